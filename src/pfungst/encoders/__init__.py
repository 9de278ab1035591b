"""Models: from libraries, packages with weights, published checkpoints and your own functions."""

from typing import TYPE_CHECKING, Any

from pfungst.encoders.checkpoints import LoadReport, read_checkpoint
from pfungst.encoders.encoder import Encoder
from pfungst.encoders.models import Classifier, load
from pfungst.encoders.preprocessing import Preprocessing

if TYPE_CHECKING:
    from pfungst.encoders.text import SentenceEncoder

__all__ = [
    "Classifier",
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
