"""The unit of work of scoring: every model on the images of one index shard, as one part per model.

A part exists only when it is complete, so a job that was stopped goes on where it was, whoever runs which shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from pfungst.device import choose_device
from pfungst.features import ahead, write_part
from pfungst.pool.index import Place, Pool
from pfungst.pool.model import PoolModel
from pfungst.pool.parts import part_path, record_model
from pfungst.pool.read import read


class Scorer:
    """Loaded models that score one shard at a time, in this process or in a worker.

    Args:
        pool: the pool.
        models: what to score with.
        batch_size: images per forward pass.
        device: "cpu", "cuda", "cuda:1", or "auto".
        threads: decoding threads.

    Raises:
        ConfigError, CheckpointError: a model cannot be loaded.
        DataError: the pool has scores of another model under the same name.
    """

    def __init__(
        self,
        pool: Pool,
        models: Sequence[PoolModel],
        batch_size: int = 64,
        threads: int = 2,
        device: str = "auto",
    ) -> None:
        import torch

        from pfungst.conditions import Condition
        from pfungst.spurious import FeatureHead

        self.pool, self.models, self.batch_size = pool, list(models), batch_size
        self.device = choose_device(device)
        self.threads = threads
        self.heads: dict[str, FeatureHead] = {}
        self.inputs: dict[str, tuple[str, int]] = {}  # condition and size of each model's images
        for model in self.models:
            classifier = model.load()
            condition, size = classifier.preprocessing.condition, classifier.preprocessing.size
            example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
            head = FeatureHead(classifier.model.to(self.device), example=example.to(self.device))
            record_model(pool, model.name, condition, size, head.fingerprint())
            self.heads[model.name], self.inputs[model.name] = head, (condition, size)
        self.conditions = {key: Condition.parse(key[0]) for key in self.inputs.values()}

    def __call__(self, shard: int) -> int:
        """Score one shard with every model whose part is missing.

        Returns:
            How many rows of the shard have an error.
        """
        import torch

        models = [m for m in self.models if not part_path(self.pool, m.name, shard).is_file()]
        if not models:
            return 0
        places = self.pool.shard(shard)
        n = len(places)
        needed = {self.inputs[m.name] for m in models}
        errors: list[str | None] = [None] * n
        predicted = {m.name: np.full(n, -1, np.int32) for m in models}
        confidence = {m.name: np.full(n, np.nan, np.float32) for m in models}
        features = {
            m.name: np.full((n, self.heads[m.name].linear.n_features), np.nan, np.float16) for m in models
        }
        failed: dict[str, dict[int, str]] = {m.name: {} for m in models}
        for rows, batches in self._batches(places, needed, errors):
            for model in models:
                images = batches[self.inputs[model.name]].to(self.device)
                with torch.inference_mode():
                    phi, logits = self.heads[model.name].features_and_logits(images)
                    best, index = logits.float().softmax(1).max(1)
                    half = phi.half()
                    fine = half.isfinite().all(1).cpu().numpy()
                features[model.name][rows] = half.cpu().numpy()
                predicted[model.name][rows] = index.cpu().numpy()
                confidence[model.name][rows] = best.cpu().numpy()
                for row in np.asarray(rows)[~fine]:
                    failed[model.name][int(row)] = "features are not finite in float16"
        for model in models:
            name = model.name
            why = [failed[name].get(i) or errors[i] for i in range(n)]
            bad = [i for i, reason in enumerate(why) if reason]
            features[name][bad], predicted[name][bad], confidence[name][bad] = np.nan, -1, np.nan
            self._write(name, shard, places, features[name], predicted[name], confidence[name], why)
        return sum(reason is not None for reason in errors)

    def _batches(
        self, places: list[Place], needed: set[tuple[str, int]], errors: list[str | None]
    ) -> Iterator[tuple[list[int], dict[tuple[str, int], Any]]]:
        """Batches of prepared images, decoded by threads while the models compute."""
        import torch

        from pfungst.data import read_image

        def prepare(place: Place, content: bytes | str) -> dict[tuple[str, int], Any] | str:
            if isinstance(content, str):
                return content
            try:
                image = read_image(content)
                return {key: self.conditions[key](image, key[1], key=place.id) for key in needed}
            except Exception as error:  # whatever a broken file makes a decoder do must not stop the job
                return f"{type(error).__name__}: {error}".splitlines()[0]

        rows: list[int] = []
        kept: list[dict[tuple[str, int], Any]] = []
        tasks = (partial(prepare, p, c) for p, c in zip(places, read(self.pool, places), strict=True))
        for row, prepared in enumerate(ahead(tasks, self.threads, 3 * self.batch_size)):
            if isinstance(prepared, str):
                errors[row] = prepared
                continue
            rows.append(row)
            kept.append(prepared)
            if len(rows) == self.batch_size:
                yield rows, {key: torch.stack([p[key] for p in kept]) for key in needed}
                rows, kept = [], []
        if kept:
            yield rows, {key: torch.stack([p[key] for p in kept]) for key in needed}

    def _write(
        self,
        name: str,
        shard: int,
        places: list[Place],
        features: np.ndarray,
        predicted: np.ndarray,
        confidence: np.ndarray,
        errors: list[str | None],
    ) -> None:
        import pyarrow as pa

        table = {
            "id": [p.id for p in places],
            "shard": pa.array([shard] * len(places), pa.int32()),
            "row": pa.array(range(len(places)), pa.int32()),
            "predicted": pa.array(predicted, mask=predicted < 0),
            "confidence": pa.array(confidence, mask=predicted < 0),
            "error": pa.array(errors, pa.string()),
        }
        write_part(part_path(self.pool, name, shard), table, features)
