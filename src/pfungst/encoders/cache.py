"""Embeddings kept on disk, found again by content."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from pfungst.files import digest, read, write_tensors


def content_key(image: Tensor) -> bytes:
    """16 bytes that identify the values and shape of one tensor."""
    return bytes.fromhex(digest(str(tuple(image.shape)), image.float(), length=32))


def model_key(model: nn.Module, extra: str = "") -> str:
    """A name for a model's weights, structure and anything said in `extra`."""
    weights = ((f"{k}{tuple(t.shape)}{t.dtype}", t) for k, t in model.state_dict().items())
    return digest(repr(model), extra, *itertools.chain.from_iterable(weights), length=24)


class EmbeddingCache:
    """A folder of embeddings; each model has its own part, each call adds one small file.

    Interrupted runs keep what they computed.

    Args:
        folder: created when the first embedding is stored.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._rows: dict[str, dict[bytes, Tensor]] = {}

    def _load(self, model: str) -> dict[bytes, Tensor]:
        if model not in self._rows:
            rows: dict[bytes, Tensor] = {}
            for path in sorted((self.folder / model).glob("*.safetensors")):
                part = read(path, "delete this file of the embedding cache")
                keys, values = part["keys"].numpy(), part["values"]
                rows.update({keys[i].tobytes(): values[i] for i in range(len(keys))})
            self._rows[model] = rows
        return self._rows[model]

    def get(self, model: str, keys: Iterable[bytes]) -> list[Tensor | None]:
        """The embeddings stored under these keys, None where there is none."""
        rows = self._load(model)
        return [rows.get(k) for k in keys]

    def put(self, model: str, keys: list[bytes], values: Tensor) -> None:
        """Store embeddings (N, K) under N keys."""
        rows = self._load(model)
        values = values.detach().cpu().contiguous()
        table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(len(keys), 16)
        write_tensors(
            self.folder / model / f"{uuid.uuid4().hex}.safetensors", {"keys": table, "values": values}
        )
        rows.update(zip(keys, values, strict=True))
