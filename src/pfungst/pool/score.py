"""Score a pool: features, predictions and errors of one or several models, one part per index shard.

A part exists only when it is complete, so a job that was stopped goes on where it was, whoever runs which shard.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfungst.errors import DataError, InputError
from pfungst.pool.files import remove_leftovers, whole
from pfungst.pool.index import Place, Pool, open_pool
from pfungst.pool.read import read

FORMAT = "pfungst.pool-scores/1"


@dataclass(frozen=True)
class PoolModel:
    """A model that scores a pool, and how images reach it.

    Args:
        name: short name, also of its folder.
        factory: ``"package.module:function"``, or a function that worker processes can import; returns the
            classifier (images (N, 3, S, S) in [0, 1] → logits).
        condition: preparation of an image, as ``Condition.parse`` reads it.
        size: edge S in pixels.
    """

    name: str
    factory: str | Callable[[], Any]
    condition: str = "pillow-bilinear"
    size: int = 224

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise InputError(
                f"{self.name!r} is no name for a model", "use letters, digits, dot, dash and underscore"
            )

    def load(self) -> Any:
        """The classifier."""
        if not isinstance(self.factory, str):
            return self.factory()
        module, _, function = self.factory.partition(":")
        try:
            return getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(
                f"model {self.name}: {self.factory!r} cannot be loaded: {error}", "give module:function"
            ) from None


class Scorer:
    """Loaded models that score one shard at a time; the unit of work of every worker process.

    Args:
        pool: the pool.
        models: what to score with.
        batch_size: images per forward pass.
        device: "cpu", "cuda", "cuda:1", or "auto".
        threads: decoding threads.
    """

    def __init__(
        self,
        pool: Pool,
        models: Sequence[PoolModel],
        batch_size: int = 64,
        device: str = "auto",
        threads: int = 2,
    ) -> None:
        import torch

        from pfungst.conditions import Condition
        from pfungst.spurious import FeatureHead

        self.pool, self.models, self.batch_size = pool, list(models), batch_size
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.threads = threads
        self.conditions = {(m.condition, m.size): Condition.parse(m.condition) for m in self.models}
        self.heads = {}
        for model in self.models:
            network = model.load().to(self.device)
            example = torch.rand(2, 3, model.size, model.size, generator=torch.Generator().manual_seed(0))
            self.heads[model.name] = FeatureHead(network, example=example.to(self.device))
            _describe(pool, model, self.heads[model.name].linear.fingerprint())

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
        needed = {(m.condition, m.size) for m in models}
        errors: list[str | None] = [None] * n
        predicted = {m.name: np.full(n, -1, np.int32) for m in models}
        confidence = {m.name: np.full(n, np.nan, np.float32) for m in models}
        features = {
            m.name: np.full((n, self.heads[m.name].linear.n_features), np.nan, np.float16) for m in models
        }
        failed: dict[str, dict[int, str]] = {m.name: {} for m in models}
        for rows, batches in self._batches(places, needed, errors):
            if not rows:
                continue
            for model in models:
                images = batches[model.condition, model.size].to(self.device)
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

        def finish(tasks: list[tuple[int, Future[Any]]]) -> tuple[list[int], dict[tuple[str, int], Any]]:
            rows, kept = [], []
            for row, task in tasks:
                prepared = task.result()
                if isinstance(prepared, str):
                    errors[row] = prepared
                else:
                    rows.append(row)
                    kept.append(prepared)
            return rows, {key: torch.stack([p[key] for p in kept]) for key in needed} if kept else {}

        with ThreadPoolExecutor(self.threads) as decoders:
            ahead: deque[list[tuple[int, Future[Any]]]] = deque()
            batch: list[tuple[int, Future[Any]]] = []
            for row, (place, content) in enumerate(zip(places, read(self.pool, places), strict=True)):
                batch.append((row, decoders.submit(prepare, place, content)))
                if len(batch) == self.batch_size:
                    ahead.append(batch)
                    batch = []
                if len(ahead) > 2:
                    yield finish(ahead.popleft())
            if batch:
                ahead.append(batch)
            while ahead:
                yield finish(ahead.popleft())

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
        import pyarrow.parquet as pq

        with whole(features_path(self.pool, name, shard)) as part, open(part, "wb") as stream:
            np.save(stream, features)
        table = pa.table(
            {
                "id": [p.id for p in places],
                "shard": pa.array([shard] * len(places), pa.int32()),
                "row": pa.array(range(len(places)), pa.int32()),
                "predicted": pa.array(predicted, mask=predicted < 0),
                "confidence": pa.array(confidence, mask=predicted < 0),
                "error": pa.array(errors, pa.string()),
            }
        )
        # The table comes last: the part counts as finished once it is there.
        with whole(part_path(self.pool, name, shard)) as part:
            pq.write_table(table, part)


@dataclass(frozen=True)
class ScoreSummary:
    """What scoring did.

    Args:
        rows: images in the pool.
        shards: parts that this call computed; skipped: parts that were finished before.
        errors: rows with an error, of all parts, by model.
    """

    rows: int
    shards: int
    skipped: int
    errors: dict[str, int]


def score(
    folder: str | os.PathLike[str],
    models: Sequence[PoolModel],
    workers: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    threads: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreSummary:
    """Score a pool on this machine; finished parts are skipped.

    Args:
        folder: the pool's folder.
        models: one or several, each with its own preparation.
        workers: worker processes, 0 for this one.
        batch_size: images per forward pass.
        device: "auto", "cpu" or "cuda"; with several GPUs worker i takes GPU i modulo their number.
        threads: decoding threads per process.
        progress: called with the number of finished shards and of all to do.

    Raises:
        DataError: the disk is full, a worker died, or scores of another model of that name exist.
    """
    pool = open_pool(folder)
    todo = prepare_scores(pool, models)
    done = 0
    if workers < 1:
        if todo:
            scorer = Scorer(pool, models, batch_size, device, threads)
            for shard in todo:
                scorer(shard)
                done += 1
                if progress:
                    progress(done, len(todo))
    elif todo:
        context = multiprocessing.get_context("spawn")
        number = context.Value("i", 0)
        arguments = (number, pool, list(models), batch_size, device, threads)
        with ProcessPoolExecutor(min(workers, len(todo)), context, _start_worker, arguments) as executor:
            jobs = [executor.submit(_work, shard) for shard in todo]
            try:
                for job in as_completed(jobs):
                    job.result()
                    done += 1
                    if progress:
                        progress(done, len(todo))
            except BrokenProcessPool:
                raise DataError(
                    f"a worker process died (killed, or out of memory) with {len(todo) - done} shards to go",
                    "run the same command again, with fewer workers or a smaller batch if memory was the reason; "
                    "finished parts are kept",
                ) from None
            finally:
                for job in jobs:
                    job.cancel()
    return summarise(pool, models, len(todo))


def prepare_scores(pool: Pool, models: Sequence[PoolModel]) -> list[int]:
    """Check the models, remove leftovers of killed processes, and list the shards that have work left."""
    names = [m.name for m in models]
    if not names or len(set(names)) < len(names):
        raise InputError(f"models are named {names}", "give at least one model, each under a name of its own")
    for model in models:
        _describe(pool, model, None)
        remove_leftovers(pool.folder / "scores" / model.name)
    return [s for s in range(pool.shards) if not all(part_path(pool, name, s).is_file() for name in names)]


def summarise(pool: Pool, models: Sequence[PoolModel], computed: int) -> ScoreSummary:
    """Count the rows and errors of finished scores."""
    import duckdb

    errors = {}
    with duckdb.connect() as db:
        for model in models:
            parts = str(pool.folder / "scores" / model.name / "part-*.parquet")
            rows, bad = db.execute("SELECT count(*), count(error) FROM read_parquet(?)", [parts]).fetchall()[
                0
            ]
            if rows != pool.rows:
                raise DataError(
                    f"scores of {model.name} have {rows} of {pool.rows} rows", "run the same command again"
                )
            errors[model.name] = bad
    return ScoreSummary(pool.rows, computed, pool.shards - computed, errors)


def part_path(pool: Pool, name: str, shard: int) -> Path:
    """Ids, predictions and errors of one shard."""
    return pool.folder / "scores" / name / f"part-{shard:06d}.parquet"


def features_path(pool: Pool, name: str, shard: int) -> Path:
    """Features of one shard, float16 (rows, D), to be mapped into memory."""
    return pool.folder / "scores" / name / f"part-{shard:06d}.npy"


def model_record(pool: Pool, name: str) -> dict[str, Any]:
    """What is known about a model that scored the pool.

    Raises:
        DataError: it did not.
    """
    try:
        return json.loads((pool.folder / "scores" / name / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = sorted(p.parent.name for p in pool.folder.glob("scores/*/model.json"))
        raise DataError(
            f"no scores of {name!r} in {pool.folder}; there are {known}", "score the pool with it"
        ) from None


def _describe(pool: Pool, model: PoolModel, fingerprint: dict[str, Any] | None) -> None:
    """Record a model beside its scores, or refuse one that differs from the record."""
    path = pool.folder / "scores" / model.name / "model.json"
    record = {
        "format": FORMAT,
        "name": model.name,
        "condition": model.condition,
        "size": model.size,
        "head": fingerprint,
    }
    if path.is_file():
        known = model_record(pool, model.name)
        for key in ("condition", "size", *(["head"] if fingerprint else [])):
            if known[key] != record[key]:
                raise DataError(
                    f"{path.parent} holds scores of another model: {key} was {known[key]}, now {record[key]}",
                    "give the new model a name of its own",
                )
    elif fingerprint:
        with whole(path) as part:
            part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


_scorer: Scorer | None = None


def _start_worker(
    number: Any, pool: Pool, models: list[PoolModel], batch_size: int, device: str, threads: int
) -> None:
    global _scorer
    import torch

    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if not gpus:
        torch.set_num_threads(threads)
    _scorer = Scorer(pool, models, batch_size, f"cuda:{mine % gpus}" if gpus else device, threads)


def _work(shard: int) -> int:
    assert _scorer is not None
    return _scorer(shard)
