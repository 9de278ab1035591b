"""The models that score a pool, and how images reach each of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfungst.errors import ConfigError, InputError

_OPTIONS = ("checkpoint", "condition", "size")
_FORM = "write [NAME=]SPEC[,checkpoint=FILE][,condition=CONDITION][,size=PIXELS]"


@dataclass(frozen=True)
class PoolModel:
    """A classifier by name, its weights and its preprocessing.

    Args:
        name: short name, also of the folder of its scores.
        source: what `pfungst.encoders.load` understands as a classifier, or a function that worker processes
            can import; what is made takes images (N, 3, S, S) in [0, 1] and returns logits.
        condition: how files become images, as ``Condition.parse`` reads it; by default as for the published
            weights of libraries, Pillow bilinear for functions.
        size: edge S in pixels; by default that of the published weights, 224 for functions.
        checkpoint: weights, safetensors or a state dict; libraries' architectures need one.
        trust_checkpoint: also read checkpoints that can run code.
    """

    name: str
    source: str | Callable[[], Any]
    condition: str | None = None
    size: int | None = None
    checkpoint: Path | None = None
    trust_checkpoint: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise InputError(
                f"{self.name!r} is no name for a model", "use letters, digits, dot, dash and underscore"
            )

    @classmethod
    def parse(cls, text: str, trust_checkpoint: bool = False) -> PoolModel:
        """Read ``[NAME=]SPEC[,checkpoint=FILE][,condition=CONDITION][,size=PIXELS]``, as on the command line.

        Files become absolute, because worker processes may run elsewhere.

        Raises:
            ConfigError: an unknown option, a size that is no number, or a file that is not there.
        """
        first, *rest = text.split(",")
        name, sign, spec = first.partition("=")
        if not sign:
            name, spec = "", first
        where, _, attribute = spec.rpartition(":")
        if where.endswith(".py"):
            spec = f"{_existing(where, text)}:{attribute}"
        options = dict(part.partition("=")[::2] for part in rest)
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown or len(options) < len(rest):
            what = f"knows no option {unknown[0]!r}" if unknown else "gives an option twice"
            raise ConfigError(f"--model {text!r} {what}", _FORM)
        size = options.get("size")
        if size is not None and not (size.isdecimal() and int(size)):
            raise ConfigError(f"--model {text!r}: the size {size!r} is no number of pixels", _FORM)
        checkpoint = options.get("checkpoint")
        return cls(
            name or re.sub(r"[^A-Za-z0-9._-]", "-", attribute),
            spec,
            options.get("condition"),
            None if size is None else int(size),
            None if checkpoint is None else _existing(checkpoint, text),
            trust_checkpoint,
        )

    def load(self) -> Any:
        """The classifier with its preprocessing, a `pfungst.encoders.Classifier`.

        Raises:
            ConfigError: nothing has that name.
            CheckpointError: the checkpoint does not fit or cannot be loaded safely.
        """
        from pfungst.encoders import load

        return load(
            self.source,
            "classifier",
            checkpoint=self.checkpoint,
            trust_checkpoint=self.trust_checkpoint,
            size=self.size,
            condition=self.condition,
        )


def _existing(file: str, text: str) -> Path:
    path = Path(file).resolve()
    if not path.is_file():
        raise ConfigError(f"--model {text!r}: there is no {file}", _FORM)
    return path
