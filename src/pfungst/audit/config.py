"""Configuration of audits: the same names on the command line and in TOML files."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pfungst.errors import ConfigError
from pfungst.files import digest
from pfungst.suggest import suggest

EMBEDDED = ("synthetic", "digits-c")  # data sets that come with the package, instead of a path


class AuditConfig(BaseModel):
    """What every audit can be told. Field names are the option names, with `-` for `_` on the command line."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    out: Path = Field(Path("pfungst-audit"), description="folder for the result, the arrays and the report")
    seeds: int = Field(5, ge=1, le=100, description="number of repetitions; tests and marks need at least 3")
    seed: int = Field(0, ge=0, description="first seed")
    skip_bad: bool = Field(False, description="leave unreadable images out and count them")
    resume: bool = Field(False, description="go on with an interrupted audit in the same folder")
    overwrite: bool = Field(False, description="replace an earlier result in the same folder")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, …")

    # Keys of TOML files that are paths relative to the file.
    paths: ClassVar[tuple[str, ...]] = ("data", "out", "images")
    # What does not change the numbers, so that a resumed run may differ in it.
    _irrelevant: ClassVar[tuple[str, ...]] = ("out", "resume", "overwrite", "device")

    @classmethod
    def build(cls, file: str | Path | None = None, **options: Any) -> Self:
        """Configuration from a TOML file, options given here taking precedence; None means not given.

        Raises:
            ConfigError: names the wrong key or value, and the nearest right one.
        """
        values: dict[str, Any] = {}
        where = "the options"
        if file is not None:
            where = str(file)
            try:
                values = tomllib.loads(Path(file).read_text(encoding="utf-8"))
            except FileNotFoundError:
                raise ConfigError(f"{file} does not exist", "give the path of a TOML file") from None
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
                raise ConfigError(f"{file} is not readable TOML: {error}", "mend that line") from None
            values = {key.replace("-", "_"): value for key, value in values.items()}
            base = Path(file).resolve().parent
            for key in cls.paths:
                if isinstance(values.get(key), str) and values[key] not in EMBEDDED:
                    values[key] = base / values[key]
        values.update({key: value for key, value in options.items() if value is not None})
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(*_explain(error, where, cls)) from None

    def fingerprint(self) -> str:
        """Identifies what the numbers depend on."""
        data = self.model_dump(mode="json", exclude=set(self._irrelevant))
        return digest(json.dumps(data, sort_keys=True), length=16)


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


def listed(value: Any) -> Any:
    """A comma-separated text as a list; ``a,b:p=1,q=2`` has two members, as parameters go with their name."""
    if not isinstance(value, str):
        return value
    parts: list[str] = []
    for part in filter(None, (p.strip() for p in value.split(","))):
        if parts and "=" in part and ":" not in part.partition("=")[0]:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts
