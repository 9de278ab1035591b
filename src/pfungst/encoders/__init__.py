"""Representation models: from libraries, from published checkpoints, from your own functions."""

from typing import TYPE_CHECKING, Any

from pfungst.encoders.checkpoints import LoadReport, read_checkpoint
from pfungst.encoders.encoder import Encoder
from pfungst.encoders.loading import load
from pfungst.encoders.preprocessing import Preprocessing

if TYPE_CHECKING:
    from pfungst.encoders.text import SentenceEncoder

__all__ = [
    "Encoder",
    "LoadReport",
    "Preprocessing",
    "SentenceEncoder",
    "load",
    "read_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name == "SentenceEncoder":  # needs transformers only when a text model is used
        from pfungst.encoders.text import SentenceEncoder

        return SentenceEncoder
    raise AttributeError(name)
