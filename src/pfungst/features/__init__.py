"""One pass of a model over images: decoded and prepared, computed in batches, kept on disk, gone on with after a kill."""

from pfungst.features.fingerprint import combined, content_key, file_key, model_key

__all__ = ["combined", "content_key", "file_key", "model_key"]
