"""Embeddings kept on disk, found again by content."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pfungst.errors import DataError


class EmbeddingCache:
    """A folder of embeddings; each model has its own part, each call adds one small file.

    Interrupted runs keep what they computed: files are written to a temporary name and renamed.

    Args:
        folder: created when the first embedding is stored.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._rows: dict[str, dict[bytes, Tensor]] = {}

    def _load(self, model: str) -> dict[bytes, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if model not in self._rows:
            rows: dict[bytes, Tensor] = {}
            for path in sorted((self.folder / model).glob("*.safetensors")):
                try:
                    part = load_file(str(path))
                    keys, values = part["keys"].numpy(), part["values"]
                except (SafetensorError, KeyError, OSError) as error:
                    raise DataError(
                        f"{path} in the embedding cache cannot be read: {error}", "delete this file"
                    ) from None
                rows.update({keys[i].tobytes(): values[i] for i in range(len(keys))})
            self._rows[model] = rows
        return self._rows[model]

    def get(self, model: str, keys: Iterable[bytes]) -> list[Tensor | None]:
        """The embeddings stored under these keys, None where there is none."""
        rows = self._load(model)
        return [rows.get(k) for k in keys]

    def put(self, model: str, keys: list[bytes], values: Tensor) -> None:
        """Store embeddings (N, K) under N keys."""
        from safetensors.torch import save_file

        rows = self._load(model)
        values = values.detach().cpu().contiguous()
        folder = self.folder / model
        folder.mkdir(parents=True, exist_ok=True)
        name = folder / f"{uuid.uuid4().hex}.safetensors"
        temporary = name.with_suffix(".tmp")
        table = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(len(keys), 16)
        save_file({"keys": table, "values": values}, str(temporary))
        os.replace(temporary, name)
        rows.update(zip(keys, values, strict=True))
