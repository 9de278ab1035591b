"""What a step of a condition is: a frozen dataclass of its parameters that changes an image, known by name.

A step is written ``NAME``, ``NAME:VALUE`` or ``NAME:VALUE,parameter=value``, where VALUE is the first
parameter; ``FILE.py:NAME…`` takes it from a file. Ranges, examples and sentences stand where the step is
defined, and parsing, errors, help, tables and the contract test read them there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, dataclass_transform

import numpy as np

from pfungst.errors import ConfigError
from pfungst.registry import CONDITIONS, read_value
from pfungst.suggest import suggest

from .resize import RESIZERS, Array


@dataclasses.dataclass(frozen=True)
class Range:
    """Which numbers a parameter may be.

    Attributes:
        low, high: both included, `low` not where `above` says so.
        whole: no fractions.
        neutral: the value that leaves every 8-bit image as it is, None where there is none.
    """

    low: float
    high: float = float("inf")
    whole: bool = False
    above: bool = False
    neutral: float | None = None

    def __contains__(self, value: Any) -> bool:
        return (
            isinstance(value, int | float)
            and bool(np.isfinite(value))
            and (self.low < value if self.above else self.low <= value)
            and value <= self.high
            and (not self.whole or value == int(value))
        )

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"{'above' if self.above else 'from'} {self.low:g}"
        return f"{kind} {low} {f'to {self.high:g}' if np.isfinite(self.high) else 'up'}"


def number(
    low: float,
    high: float = float("inf"),
    *,
    example: float | None = None,
    default: float | None = None,
    whole: bool = False,
    above: bool = False,
    neutral: float | None = None,
) -> Any:
    """Field of a step that is a number: see :class:`Range`; `example` where it has no default."""
    facts = {"allowed": Range(low, high, whole, above, neutral), "example": example}
    return dataclasses.field(default=dataclasses.MISSING if default is None else default, metadata=facts)


def choice(*allowed: str, default: str) -> Any:
    """Field of a step that is one of some words."""
    return dataclasses.field(default=default, metadata={"allowed": allowed})


def string(example: str, default: str | None = None) -> Any:
    """Field of a step that is a text or the path of a file."""
    return dataclasses.field(
        default=dataclasses.MISSING if default is None else default, metadata={"example": example}
    )


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a condition, with fields made by :func:`number`, :func:`choice` and :func:`string`.

    Attributes:
        name: how it is written.
        source: the file that it came from, "" where its name is enough.
        title: a sentence for reports, with the parameters in braces.
        crops: whether it must come before the resizer, because it changes the shape.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    title: ClassVar[str] = ""
    crops: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, allowed = getattr(self, field.name), field.metadata.get("allowed")
            if allowed is None:
                if not isinstance(value, str) or set(value) & set("+,;"):
                    problem = f"{self.name}: {field.name} {value!r} is no text without + , ;"
                    raise ConfigError(problem, f"write for example {self.example()}")
            elif value not in allowed:
                got = format_number(value) if isinstance(value, int | float) else repr(value)
                needs = allowed if isinstance(allowed, Range) else f"one of {', '.join(allowed)}"
                raise ConfigError(
                    f"{self.name!r}: {field.name} needs {needs}, got {got}",
                    f"write for example {self.example()}",
                )
            elif isinstance(allowed, Range):
                object.__setattr__(self, field.name, int(value) if allowed.whole else float(value))

    def __call__(self, x: Array, rng: np.random.Generator) -> Array:
        """The changed image.

        Args:
            x: (H, W, 3) of 8 bits, or float32 in [0, 1].
            rng: draws the same for the same image.

        Returns:
            An image in one of the two forms.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raise ConfigError where a file that it needs cannot be read."""

    def files(self) -> list[str]:
        """Files that its result depends on."""
        return [self.source] if self.source else []

    @classmethod
    def parse(cls, spec: str) -> Step:
        """The step of a specification: a resizer's name or ``[FILE.py:]NAME[:VALUE][,parameter=value]``.

        Raises:
            ConfigError: unknown names and parameters, values out of range.
        """
        spec = spec.strip()
        head, _, rest = spec.partition(":")
        source = head.strip() if head.strip().endswith(".py") else ""
        name = head.strip().lower()
        if name in RESIZERS:
            if rest:
                raise ConfigError(f"the resizer {name!r} takes no value, got {rest!r}", "leave it out")
            return Resize(name)
        if not source and name not in CONDITIONS:
            raise ConfigError(
                f"unknown condition {name!r}",
                suggest(name, [*RESIZERS, *CONDITIONS], "resizers and steps (as STEP:VALUE)"),
            )
        kind, _, given = CONDITIONS.find(f"{source}:{rest}" if source else f"{name}:{rest}")
        step = kind(**kind._read(given, spec))
        if source:
            object.__setattr__(step, "source", source)
        return step

    @classmethod
    def _read(cls, given: str, spec: str) -> dict[str, Any]:
        fields = {field.name: field for field in dataclasses.fields(cls)}
        numbers = {name for name, field in fields.items() if isinstance(field.metadata.get("allowed"), Range)}
        first = next(iter(fields), None)
        found: dict[str, Any] = {}
        for place, part in enumerate(given.split(",") if given else []):
            key, equals, value = part.partition("=")
            if place == 0 and first and key.strip() not in fields and not (equals and first in numbers):
                key, value = first, part
            elif not equals or key.strip() not in fields:
                raise ConfigError(
                    f"{part.strip()!r} in {spec!r} is no option", suggest(key.strip(), fields, "options")
                )
            key, value = key.strip(), value.strip()
            found[key] = read_value(value, 0.5, spec) if key in numbers else value
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in found]
        if missing:
            needs = fields[missing[0]].metadata.get("allowed", "a text")
            raise ConfigError(
                f"{cls.name!r} needs {needs}, got nothing", f"write for example {cls.example()}"
            )
        return found

    @classmethod
    def example(cls) -> str:
        """How it may be written."""
        first = next(iter(dataclasses.fields(cls)), None)
        if first is None:
            return cls.name
        value = first.metadata.get("example")
        return f"{cls.name}:{_written(first.default if value is None else value)}"

    @classmethod
    def neutral(cls) -> str | None:
        """How it is written where it leaves every 8-bit image as it is; None where it never does."""
        for place, field in enumerate(dataclasses.fields(cls)):
            value = getattr(field.metadata.get("allowed"), "neutral", None)
            if value is not None:
                return (
                    f"{cls.name}:{format_number(value)}"
                    if not place
                    else f"{cls.example()},{field.name}={value}"
                )
        return None

    def __str__(self) -> str:
        parts = []
        for place, field in enumerate(dataclasses.fields(self)):
            value = getattr(self, field.name)
            if not place or value != field.default:
                parts.append(_written(value) if not place else f"{field.name}={_written(value)}")
        return (f"{self.source}:" if self.source else "") + ":".join(
            filter(None, [self.name, ",".join(parts)])
        )

    def __reduce__(self) -> Any:
        # a class from a file is not importable in worker processes, its text is
        return (Step.parse, (str(self),)) if self.source else super().__reduce__()

    def describe(self) -> str:
        """What it does, in words."""
        return self.title.format(
            **{f.name: _written(getattr(self, f.name)) for f in dataclasses.fields(self)}
        )


@dataclasses.dataclass(frozen=True)
class Resize(Step):
    """The step of a condition that brings an image to the model's size."""

    name: str  # type: ignore[misc]  # differs between instances here

    def __post_init__(self) -> None:
        if self.name not in RESIZERS:
            raise ConfigError(f"unknown resizer {self.name!r}", suggest(self.name, RESIZERS, "resizers"))

    def __str__(self) -> str:
        return self.name

    def describe(self) -> str:
        """Its library and method, and whether it antialiases."""
        kind = RESIZERS[self.name]
        return kind.title + (" (antialiases)" if kind.antialias and "antialias" not in kind.title else "")


Kind = TypeVar("Kind", bound=type[Step])


@dataclass_transform(frozen_default=True, field_specifiers=(number, choice, string))
def register(name: str) -> Callable[[Kind], Kind]:
    """Decorator: make a frozen dataclass of a step, known to conditions, the command line, tables and tests.

    Raises:
        ConfigError: the name is taken, or the class lacks a title, a docstring or `__call__`.
    """

    def keep(cls: Kind) -> Kind:
        if cls.__call__ is Step.__call__ or not (cls.title and cls.__doc__) or name in RESIZERS:
            raise ConfigError(
                f"{cls.__name__} is no step that can be registered as {name!r}",
                "write a docstring, a title and __call__(x, rng), and choose no name of a resizer",
            )
        dataclasses.dataclass(frozen=True)(cls)
        CONDITIONS.add(name, cls)
        cls.name = name
        return cls

    return keep


def format_number(value: float) -> str:
    """The shortest text that reads back as the same number, whole numbers without a point."""
    whole = np.isfinite(value) and value == int(value) and abs(value) < 1e15
    return str(int(value)) if whole else repr(float(value))


def _written(value: Any) -> str:
    return value if isinstance(value, str) else format_number(value)


_PAGE = """# Conditions: how images reach a model

A condition is written as steps joined by `+`, one of which is a resizer: `pillow-bilinear+jpeg:50`. Steps
before the resizer act on the image as it was taken, steps after it on what the model sees. A step is
`NAME:VALUE` or `NAME:VALUE,parameter=value`, where VALUE is the first parameter; brackets below hold
defaults. `FILE.py:NAME:VALUE` takes a step from a file of yours ([extending](extending.md)). Random steps
draw the same for the same image.

This page is what `pfungst conditions` prints.
"""


def condition_page() -> str:
    """The registered steps and the resizers as a Markdown page."""
    rows = [_PAGE, "| step | what it does | parameters |", "|---|---|---|"]
    for cls in CONDITIONS.values():
        cells = []
        for field in dataclasses.fields(cls):
            allowed = field.metadata.get("allowed")
            words = (
                "" if allowed is None else f" {allowed if isinstance(allowed, Range) else ', '.join(allowed)}"
            )
            default = (
                "" if field.default is dataclasses.MISSING else f" [{_written(field.default) or 'none'}]"
            )
            cells.append(f"`{field.name}`{words}{default}")
        summary = " ".join((cls.__doc__ or "").partition("\n\n")[0].split())
        rows.append(f"| `{cls.example()}` | {summary} | {'; '.join(cells)} |")
    rows += ["", "| resizer | what it is | antialiases |", "|---|---|---|"]
    rows += [f"| `{name}` | {r.title} | {'yes' if r.antialias else 'no'} |" for name, r in RESIZERS.items()]
    return "\n".join(rows) + "\n"
