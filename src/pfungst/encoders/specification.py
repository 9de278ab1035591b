"""The grammar in which models are named, the same in every role."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pfungst.encoders.packages import PACKAGES
from pfungst.encoders.published import ARCHITECTURE_OF
from pfungst.errors import ConfigError

Role = Literal["encoder", "classifier", "backbone"]
Spec = str | Callable[[], Any]

# How each scheme is written.
SCHEMES = {
    "package": ", ".join(PACKAGES),
    "torchvision": "torchvision:NAME or NAME alone",
    "timm": "timm:NAME",
    "open_clip": "open_clip:NAME",
    **{scheme: f"{scheme}:FILE" for scheme in ARCHITECTURE_OF},
    "pfungst": "pfungst:FOLDER",
    "small": "small:WIDTH",
    "sentence-transformers": "sentence-transformers:FOLDER",
    "function": "package.module:function or file.py:function",
}
#: Schemes whose models bring their weights.
STORED = {"package", "pfungst", "sentence-transformers", *ARCHITECTURE_OF}
_ROLES: dict[Role, set[str]] = {
    "encoder": set(SCHEMES),
    "backbone": set(SCHEMES) - {"sentence-transformers"},
    "classifier": {"package", "torchvision", "timm", "function"},
}


def parse(spec: Spec, role: Role = "encoder") -> tuple[str, str]:
    """The scheme of a specification, a key of :data:`SCHEMES`, and what it names there; nothing is imported.

    Raises:
        ConfigError: it names nothing that can have this role.
    """
    if callable(spec):
        return "function", getattr(spec, "__qualname__", repr(spec))
    scheme, colon, rest = spec.partition(":")
    if not colon:
        scheme, rest = "package" if spec in PACKAGES else "torchvision", spec
    elif scheme not in SCHEMES or scheme in ("package", "function"):
        scheme, rest = "function", spec if rest else ""
    if not rest or scheme not in _ROLES[role]:
        raise ConfigError(f"{spec!r} names no {role}", f"write one of {forms(role)}")
    return scheme, rest


def forms(role: Role = "encoder") -> str:
    """What a role understands, for messages."""
    return "; ".join(form for scheme, form in SCHEMES.items() if scheme in _ROLES[role])


def short_name(spec: str) -> str:
    """A specification for people to read: without the folder of a file or the package of a module."""
    where, separator, attribute = spec.rpartition(":")
    if where == "memory":  # an object, by its class
        return attribute
    name = Path(where).name if where.endswith(".py") else where.rpartition(".")[2]
    return f"{name}{separator}{attribute}"
