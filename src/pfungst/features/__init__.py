"""One pass of a model over images: decoded and prepared, computed in batches, kept on disk, gone on with after a kill."""

from pfungst.features.fingerprint import combined, content_key, file_key, model_key
from pfungst.features.reading import Workers, ahead, load_all, worker_count
from pfungst.features.store import Store, values_file, write_part, write_table

__all__ = [
    "Store",
    "Workers",
    "ahead",
    "combined",
    "content_key",
    "file_key",
    "load_all",
    "model_key",
    "values_file",
    "worker_count",
    "write_part",
    "write_table",
]
