"""Configuration of audits: the same names on the command line and in TOML files."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pfungst import __version__
from pfungst.audit.result import Level
from pfungst.errors import ConfigError
from pfungst.files import content, digest, reading, stamp
from pfungst.suggest import suggest


class AuditConfig(BaseModel):
    """What every audit can be told. The command line makes options of the fields: name, type, description.

    Descriptions are the help texts; they say in brackets what happens without the option where the default
    does not.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, coerce_numbers_to_str=True)

    seed: int = Field(0, ge=0, description="First seed")
    out: Path = Field(Path("pfungst-audit"), description="Folder for result, arrays and report")
    skip_bad: bool = Field(False, description="Leave unreadable images out and count them")
    resume: bool = Field(False, description="Go on with an interrupted audit")
    overwrite: bool = Field(False, description="Replace an earlier result")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="Processes that load and explain images; 0: this one, auto: as many as pay",
    )
    ray: str | None = Field(None, description="Run the model on a Ray cluster: HOST:PORT, or auto [no]")

    fail_on: list[str] = Field(
        [],
        description="Exit with 1 where the verdict is one of these, such as unfit,fragile",
    )

    # What does not change the numbers, so that a resumed run may differ in it.
    _irrelevant: ClassVar[tuple[str, ...]] = (
        *("out", "resume", "overwrite", "device", "workers", "ray", "fail_on", "answers"),
    )
    # Folders of other audits: what is read of them is in the state.
    _audits: ClassVar[tuple[str, ...]] = ()

    def no_pass(self) -> str:
        """Why there is no pass of a model over images to share with workers or a cluster; else ""."""
        return ""

    @model_validator(mode="after")
    def _applicable(self) -> Self:
        given = [
            name for name, of in (("workers", "auto"), ("ray", None)) if getattr(self, name) not in (of, 0)
        ]
        if given and (why := self.no_pass()):
            raise ValueError(f"--{given[0]} does nothing here: {why}; leave it out")
        if self.ray is not None and find_spec("ray") is None:
            raise ValueError("--ray needs Ray, which is not installed: pip install 'pfungst[ray]'")
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: ValidationInfo) -> Any:
        of = cls.model_fields[info.field_name or ""].annotation
        if info.field_name == "fail_on":
            return list(levels_of(value if isinstance(value, list | tuple) else [value]))
        several = info.field_name in ("encoder", "model") and of is str
        if several and isinstance(value, list):  # in TOML
            return ";".join(map(str, value))
        return listed(value) if get_origin(of) is list else value

    @classmethod
    def build(cls, file: str | Path | None = None, **options: Any) -> Self:
        """Configuration from a TOML file, options given here taking precedence; None means not given.

        Paths in the file are relative to the file.

        Raises:
            ConfigError: names the wrong key or value, and the nearest right one.
        """
        values: dict[str, Any] = {}
        where = "the options"
        if file is not None:
            where = str(file)
            if not Path(file).exists():
                raise ConfigError(f"{file} does not exist", "give the path of a TOML file")
            with reading(file, "it is a TOML file; mend that line", ConfigError):
                values = tomllib.loads(content(file).decode())
            base = Path(file).resolve().parent
            values = {key.replace("-", "_"): value for key, value in values.items()}
            values = {
                key: base / value if cls._is_path(key, value) else value for key, value in values.items()
            }
        values.update({key: value for key, value in options.items() if value is not None})
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(*_explain(error, where, cls)) from None

    @classmethod
    def _is_path(cls, key: str, value: Any) -> bool:
        """Whether a text of this field is a path, and none of the words that it also takes."""
        if key not in cls.model_fields or not isinstance(value, str):
            return False
        of = cls.model_fields[key].annotation
        kinds = get_args(of) or (of,)
        return Path in kinds and all(value not in get_args(kind) for kind in kinds)

    def fingerprint(self, state: str = "") -> str:
        """Identifies what the numbers depend on: the options, the files that they name as they are now, the
        version, and `state`, which names the data."""
        data = self.model_dump(mode="json", exclude=set(self._irrelevant))
        files = self._named({key: value for key, value in data.items() if key not in self._audits})
        own = digest(json.dumps([__version__, data, files], sort_keys=True), length=16)
        return joined(own, state) if state else own

    def _named(self, value: Any) -> list[str]:
        """Files in the texts of a value, such as checkpoints, ``FILE.py:FUNCTION`` and logos, and those
        directly in folders, with their stamps."""
        if isinstance(value, dict | list):
            return [t for v in (value.values() if isinstance(value, dict) else value) for t in self._named(v)]
        found: list[str] = []
        for text in {value, *re.split("[:,;=+]", value)} - {""} if isinstance(value, str) else ():
            with suppress(OSError, ValueError):
                path = Path(text)
                inside = path.is_dir() and path.resolve() != self.out.resolve()
                files = [f for f in path.iterdir() if f.is_file()] if inside else [path]
                found += [f"{file}:{stamp(file)}" for file in files if file.is_file()]
        return sorted(found)


def joined(own: str, state: str) -> str:
    """The fingerprint of a configuration, and what names its data, as one."""
    return digest(own, state, length=16)


def _explain(error: ValidationError, where: str, cls: type[BaseModel]) -> tuple[str, str]:
    problems, remedies = [], []
    for item in error.errors():
        if not item["loc"]:  # about several keys at once
            problems.append(item["msg"].removeprefix("Value error, "))
            continue
        key = str(item["loc"][0])
        if item["type"] == "extra_forbidden":
            problems.append(f"unknown key {key!r} in {where}")
            remedies.append(suggest(key, cls.model_fields, "keys"))
        elif item["type"] == "missing":
            problems.append(f"{key!r} is missing in {where}")
            remedies.append(cls.model_fields[key].description or f"give {key}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            problems.append(f"{key} = {item['input']!r} in {where}: {message}")
            remedies.append(f"{key}: {cls.model_fields[key].description}" if key in cls.model_fields else "")
    return "; ".join(problems), "; ".join(dict.fromkeys(r for r in remedies if r))


def check_file(path: Path | None, option: str) -> None:
    """Raise ConfigError where the file of an option is missing, before anything is loaded."""
    if path is not None and not path.is_file():
        raise ConfigError(f"{path} does not exist", f"check {option}")


def with_checkpoint(text: str, option: str) -> tuple[str, Path | None]:
    """The specification and the file of ``SPEC[,checkpoint=FILE]``."""
    spec, _, rest = text.partition(",")
    key, _, file = rest.partition("=")
    if rest and (key != "checkpoint" or not file):
        raise ConfigError(f"{option} {text!r}", "write SPEC or SPEC,checkpoint=FILE")
    return spec, Path(file) if file else None


class Discovering(AuditConfig):
    """An audit that can also look for what nobody named."""

    discover: bool = Field(
        False, description="Also cluster the explanations and prove what decides that nobody named"
    )
    answers: Path | None = Field(
        None, description="What people said of its findings: findings.json of `pfungst label OUT/findings`"
    )

    @model_validator(mode="after")
    def _answered(self) -> Self:
        if self.answers is not None and not self.discover:
            raise ValueError("--answers are to findings of --discover; add it")
        return self


class Repeated(AuditConfig):
    """An audit that is repeated with several seeds."""

    seeds: int = Field(5, ge=1, le=100, description="Repetitions, over which numbers are averaged")


def listed(value: Any) -> Any:
    """A comma-separated text as a list; ``a,b:p=1,q=2`` has two members, as parameters go with their name.

    A semicolon anywhere separates instead of commas. A tuple holds several such texts, of a repeated option.
    """
    if isinstance(value, tuple):
        return [part for text in value for part in listed(text)]
    if not isinstance(value, str):
        return value
    texts = [p.strip() for p in value.split(";" if ";" in value else ",")]
    parts: list[str] = []
    for part in filter(None, texts):
        if ";" not in value and parts and "=" in part and ":" not in part.partition("=")[0]:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


LEVELS: tuple[str, ...] = get_args(Level)


def levels_of(texts: Iterable[Any]) -> tuple[str, ...]:
    """Levels of verdicts from texts such as "sound,fragile". Raises ConfigError for an unknown one, and for a
    text that names none, which an unset variable leaves."""
    given = list(texts)
    if blank := [text for text in given if not isinstance(text, str) or not listed(text)]:
        raise ConfigError(f"{blank[0]!r} names no verdict", f"verdicts: {', '.join(LEVELS)}")
    found = tuple(level for text in given for level in listed(text))
    for level in found:
        if level not in LEVELS:
            raise ConfigError(f"no verdict is called {level!r}", suggest(level, LEVELS, "verdicts"))
    return found
