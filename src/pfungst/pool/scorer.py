"""The unit of work of scoring: every model on the images of one index shard, as one part per model.

A part exists only when it is complete, so a job that was stopped goes on where it was, whoever runs which
shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pfungst.device import choose_device
from pfungst.errors import DataError
from pfungst.features import Stream, batches, write_part
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
        self.device = choose_device(device, float64=True)
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

        models = [m.name for m in self.models if not part_path(self.pool, m.name, shard).is_file()]
        if not models:
            return 0
        places = self.pool.shard(shard)
        contents = Stream(read(self.pool, places))
        load = partial(self._load, places, contents, {self.inputs[name] for name in models})
        scores = {name: _Scores(len(places), self.heads[name].linear.n_features) for name in models}
        errors = 0
        for batch in batches(load, contents, self.batch_size, threads=self.threads):
            errors += len(batch.problems)
            for name, score in scores.items():
                for row, why in batch.problems:
                    score.errors[row] = why
                if batch.rows:
                    with torch.inference_mode():
                        score.fill(
                            batch.rows,
                            *self.heads[name].features_and_logits(
                                batch.images[self.inputs[name]].to(self.device)
                            ),
                        )
        for name, score in scores.items():
            score.write(part_path(self.pool, name, shard), shard, [place.id for place in places])
        return errors

    def _load(
        self, places: list[Place], contents: Stream[bytes | str], inputs: set[tuple[str, int]], row: int
    ) -> tuple[None, dict[tuple[str, int], Any]]:
        from pfungst.data.decode import is_deep, load, open_image, to_rgb

        content = contents[row]
        if isinstance(content, str):
            raise DataError(content)
        try:
            opened = open_image(content)
            if is_deep(opened):
                raise DataError(
                    "more than 8 bits, which a data set shows through its own range: convert it to 8"
                )
            image = to_rgb(load(opened))
            return None, {k: self.conditions[k](image, k[1], key=places[row].id) for k in inputs}
        except DataError:
            raise
        except Exception as error:  # whatever a broken file makes a decoder do must not stop the job
            raise DataError(f"{type(error).__name__}: {error}") from None


class _Scores:
    """What one model says of the images of a shard; rows with an error say nothing."""

    def __init__(self, rows: int, width: int) -> None:
        self.features = np.full((rows, width), np.nan, np.float16)
        self.predicted = np.full(rows, -1, np.int32)
        self.confidence = np.full(rows, np.nan, np.float32)
        self.errors: list[str | None] = [None] * rows

    def fill(self, rows: list[int], phi: Any, logits: Any) -> None:
        half = phi.half()
        fine = half.isfinite().all(1).cpu().numpy()
        good = np.asarray(rows)[fine]
        best, index = logits.float().softmax(1).max(1)
        self.features[good] = half.cpu().numpy()[fine]
        self.predicted[good] = index.cpu().numpy()[fine]
        self.confidence[good] = best.cpu().numpy()[fine]
        for row in np.asarray(rows)[~fine]:
            self.errors[row] = "features are not finite in float16"

    def write(self, file: Path, shard: int, ids: list[str]) -> None:
        import pyarrow as pa

        table = {
            "id": ids,
            "shard": pa.array([shard] * len(ids), pa.int32()),
            "row": pa.array(range(len(ids)), pa.int32()),
            "predicted": pa.array(self.predicted, mask=self.predicted < 0),
            "confidence": pa.array(self.confidence, mask=self.predicted < 0),
            "error": pa.array(self.errors, pa.string()),
        }
        write_part(file, table, self.features)
