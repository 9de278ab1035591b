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
    """Make a command of a function of a configuration: an option for each field, and ``--config`` for a TOML file.

    Args:
        config: its fields are the options, those of the class itself before those that all audits have. A list is an
            option that can be repeated; a flag can only be switched on.
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
            given = {k: _given(v) for k, v in options.items()}
            function(config.build(**given))

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _given(value: Any) -> Any:
    """What ``AuditConfig.build`` takes: None for flags and lists that are not given, a tuple for a repeated option."""
    if value is False or value == []:
        return None
    return tuple(value) if isinstance(value, list) else value


def _parameter(name: str, field: FieldInfo, positional: bool) -> Parameter:
    kind, default = _type(field.annotation), field.get_default(call_default_factory=True)
    text = field.description or ""
    if isinstance(default, list):
        default = ",".join(map(str, default))
    if not (
        field.is_required() or default is None or default is False or default == "" or text.endswith("]")
    ):
        text += f" [{default}]"
    text += "" if text.endswith("…") else "."
    option = ["--" + name.replace("_", "-"), *_SHORT.get(name, [])]
    how: Any = typer.Argument(help=text) if positional else typer.Option(*option, help=text)
    if kind is bool:
        return Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, how])
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, how])


def _type(annotation: Any) -> Any:
    """What Typer reads: the configuration itself holds the bounds, the choices, and the errors about them."""
    if get_origin(annotation) is list:
        return list[str]
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return annotation if not kinds else kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) else str
