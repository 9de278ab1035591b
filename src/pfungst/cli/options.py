"""Options of a command from the fields of its configuration."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature, get_annotations
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from pfungst.audit.config import AuditConfig

Config = TypeVar("Config", bound=AuditConfig)

_SHORT = {"out": ["-o"]}


def from_config(
    config: type[Config], argument: str | None = None
) -> Callable[[Callable[[Config], None]], Callable[..., None]]:
    """Make a command of a function of a configuration: an option a field, and ``--config`` for a TOML file.

    Args:
        config: its fields are the options, those of the class itself before those that all audits have. A
            list is an option that can be repeated; a flag can only be switched on.
        argument: the field that is given by position.
    """
    names = dict.fromkeys(name for base in config.__mro__ for name in get_annotations(base))
    fields = {name: config.model_fields[name] for name in names if name in config.model_fields}
    parameters = [_parameter(name, field, name == argument) for name, field in fields.items()]
    file = Annotated[Path | None, typer.Option("--config", help="TOML file with the same names.")]
    parameters.insert(
        argument is not None, Parameter("file", Parameter.KEYWORD_ONLY, default=None, annotation=file)
    )

    def decorate(function: Callable[[Config], None]) -> Callable[..., None]:
        def command(**options: Any) -> None:
            given = {name: value for name, value in options.items() if value is not False and value != []}
            repeated = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
            function(config.build(**given | repeated))

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(name: str, field: FieldInfo, positional: bool) -> Parameter:
    text, default = field.description or "", field.default
    if isinstance(default, list):
        default = ",".join(map(str, default))
    if (
        isinstance(default, str | int | float | Path)
        and default is not False
        and default != ""
        and text[-1:] != "]"
    ):
        text += f" [{default}]"
    text += "" if text.endswith("…") else "."
    option = ["--" + name.replace("_", "-"), *_SHORT.get(name, [])]
    how: Any = typer.Argument(help=text) if positional else typer.Option(*option, help=text)
    kind = _type(field.annotation)
    default, kind = (False, bool) if kind is bool else (None, kind | None)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, how])


def _type(annotation: Any) -> Any:
    """What Typer reads: the configuration itself holds the bounds, the choices, and the errors about them."""
    if get_origin(annotation) is list:
        return list[str]
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return annotation if not kinds else kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) else str
