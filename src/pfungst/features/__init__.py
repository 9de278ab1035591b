"""One pass of a model over images: decoded and prepared, computed in batches, kept on disk, gone on with
after a kill."""

from typing import TYPE_CHECKING, Any

from pfungst.features.engine import Batch, Done, Stream, Work, batches, run
from pfungst.features.store import Store, check_part, read_part, write_part
from pfungst.features.workers import Workers

if TYPE_CHECKING:
    from pfungst.features.fingerprint import combined, content_key, file_key, model_key

__all__ = [
    "Batch",
    "Done",
    "Store",
    "Stream",
    "Work",
    "Workers",
    "batches",
    "check_part",
    "combined",
    "content_key",
    "file_key",
    "model_key",
    "read_part",
    "run",
    "write_part",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # those of the fingerprint need torch
        from pfungst.features import fingerprint

        return getattr(fingerprint, name)
    raise AttributeError(name)
