"""One pass over a labelled image set that keeps the penultimate features on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from pfungst.device import check_device, choose_device
from pfungst.errors import DataError, InputError, few
from pfungst.features import Batch, Store, Stream, Work, Workers, combined, content_key, read_part, run
from pfungst.files import Lock, read, write_json
from pfungst.progress import progress_bar
from pfungst.spurious.heads import FeatureHead

FORMAT = "pfungst.features/2"
_KEYS = 4096  # keys at a time as Python objects
_DAMAGED = "delete the folder and call extract_features again"


class FeatureStore:
    """Features of a labelled image set in a folder: `features.npy`, `index.parquet`, `store.json`.

    Attributes:
        features: (N, D) memory-mapped, float16 or float32.
        ids: N identifiers.
        labels: (N,) class index of each image.
        predicted: (N,) class that the model gives.
        confidence: (N,) softmax probability of the image's own label.
        meta: fingerprint of the model, layer, skipped images.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            raise DataError(f"{self.path} holds no feature store", "make one with extract_features")
        self.meta = read(self.path / "store.json", _DAMAGED, format=FORMAT)
        if not self.meta.get("complete"):
            raise DataError(
                f"{self.path} is an unfinished feature pass ({len(Store(self.path))} images)",
                "call extract_features with the same arguments to finish it",
            )
        self._index, self.features = read_part(self.path / "index.parquet", _DAMAGED)

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def ids(self) -> list[str]:
        return self._index["id"].to_pylist()

    @cached_property
    def labels(self) -> np.ndarray:
        return self._index["label"].to_numpy()

    @cached_property
    def predicted(self) -> np.ndarray:
        return self._index["predicted"].to_numpy()

    @cached_property
    def confidence(self) -> np.ndarray:
        return self._index["confidence"].to_numpy()

    @cached_property
    def _rows(self) -> dict[int, np.ndarray]:
        order = np.argsort(self.labels, kind="stable")
        classes, starts = np.unique(self.labels[order], return_index=True)
        return {int(k): rows for k, rows in zip(classes, np.split(order, starts[1:]), strict=True)}

    @property
    def classes(self) -> list[int]:
        """Class indices that occur, ascending."""
        return list(self._rows)

    def rows(self, class_: int) -> np.ndarray:
        """Row numbers of one class's images."""
        return self._rows.get(class_, np.empty(0, dtype=np.int64))

    def of_class(self, class_: int) -> Tensor:
        """Features (n, D) of one class, float32."""
        return torch.from_numpy(self.features[self.rows(class_)].astype(np.float32))


def extract_features(
    model: nn.Module | FeatureHead,
    data: Iterable[tuple[Any, Tensor, int]],
    path: str | Path,
    *,
    batch_size: int = 32,
    dtype: str = "float16",
    device: str = "auto",
    workers: Workers = 0,
    ray: str | None = None,
    skip_bad: bool = False,
    commit_every: int = 50,
    progress: bool = True,
) -> FeatureStore:
    """Run the model once over (id, image, label) and store the features; an interrupted pass continues.

    A store holds what a pass into an empty folder would: rows of images or labels that changed are computed
    again, as are those whose files are damaged.

    Args:
        model: the classifier, or its :class:`FeatureHead`.
        data: gives (id, image (C, H, W) in [0, 1], class index). With `__len__` and `__getitem__`, other
            processes can load. Images are known by their content. If `data.identity(i)` tells what the image
            i, its preparation and its label depend on (plain values, such as
            :func:`pfungst.features.file_key`), those in the store are not even read; that needs `data.ids`
            too.
        path: folder of the store.
        batch_size: images per forward pass.
        dtype: "float16" (half the disk) or "float32".
        device: "auto", "cpu", "cuda", …
        workers: loading processes; "auto": one per core but one where there are many images.
        ray: compute on a Ray cluster: "auto", or its ``host:port``.
        skip_bad: leave unreadable images out and count them in `store.meta["skipped"]`; otherwise they are
            all named.
        commit_every: batches between commits; at most this many are computed again after a kill.
        progress: show a bar.

    Raises:
        UnreadableImages: some images cannot be read.
        InputError: labels outside the model's classes, features too large for float16, a store of another
            model.
        DataError: an identifier occurs twice; another process is writing into the folder.
        ConfigError: the device does not exist.
    """
    choose_device(device, float64=True) if ray is None else check_device(device)
    head = head_for(model, data)
    path = Path(path)
    with Lock(path / ".lock", str(path)):
        meta = _open(path, head, dtype)
        store = Store(path)
        keys = _known(data)
        have = set(store.keys().to_pylist()) if keys is None else set[bytes]()
        reading = _Labelled(head, data, dtype, keys, have)
        there = np.empty(0, bool) if keys is None else store.find(keys) >= 0
        rows = reading.rows if keys is None else np.flatnonzero(~there).tolist()
        wanted = _Wanted()
        if keys is not None:
            wanted.add(np.flatnonzero(there), keys.filter(there))
        names, problems = set[str](), list[tuple[int, str]]()
        if keys is None or rows:
            write_json(path / "store.json", meta | {"complete": False})
        work = Work(partial(read_item, reading.data), reading.compute, reading.to, reading.name)
        options: Any = {"device": device, "workers": workers, "ray": ray, "skip_bad": skip_bad}
        options["threads"] = int(keys is not None)  # our own data; others' may belong to this thread
        total = len(data) if hasattr(data, "__len__") else None  # type: ignore[arg-type]
        shown = progress_bar("features", total, show=progress, done=int(there.sum()))
        with shown as bar, store.writing(commit_every * batch_size) as write:
            for done in run(work, rows, batch_size, **options):
                bar.advance(done.count)
                problems += done.problems
                if done.result is not None:
                    ids, found, fresh = done.result
                    if keys is None:
                        _once(ids, names)
                    wanted.add(done.rows, found)
                    if fresh:
                        write(*fresh[:2], **fresh[2])
        if not (ordered := wanted.ordered()):
            raise DataError("the image set is empty", "pass at least one readable labelled image")
        store.merge(ordered)
        meta["skipped"] = [[reading.name(row), why] for row, why in problems]
        write_json(path / "store.json", meta | {"complete": True})
    return FeatureStore(path)


class _Wanted:
    """The rows that a store shall hold and their keys, as arrays: Python objects would be the most of what
    grows with the images."""

    def __init__(self) -> None:
        self._rows: list[Any] = [[]]
        self._keys: list[Any] = [pa.array([], pa.binary())]

    def add(self, rows: Any, keys: Any) -> None:
        self._rows.append(rows)
        self._keys.append(pa.array(keys, pa.binary()))

    def ordered(self) -> pa.Array:
        """The keys by ascending row."""
        return pa.concat_arrays(self._keys).take(np.argsort(np.concatenate(self._rows)))


class _Labelled:
    """What a pass reads, (id, image, label), and what its rows are: features, prediction, confidence.

    Args:
        keys: of the rows, where the data tell what their images are; empty where they cannot.
        have: keys of rows that need not be computed; for images that are known by their content.
    """

    def __init__(
        self, head: FeatureHead, data: Any, dtype: str, keys: pa.Array | None, have: set[bytes]
    ) -> None:
        self.head, self.dtype, self.keys, self.have = head, dtype, keys, have
        self.ids = getattr(data, "ids", None)
        listed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        self.data: Any = data if listed else Stream(data)
        self.rows: Iterable[int] = range(len(data)) if listed else self.data

    def to(self, device: Any) -> None:
        self.head.to(device)

    def name(self, row: int) -> str:
        return str(row if self.ids is None else self.ids[row])

    def compute(self, batch: Batch) -> tuple[list[str], list[bytes], Any]:
        """Identifiers and keys of the rows, and what is to be stored: keys, features and columns."""
        ids = [name for name, _ in batch.known]
        labels = _check_labels([label for _, label in batch.known], ids, self.head)
        known = [b""] * len(ids) if self.keys is None else self.keys.take(batch.rows).to_pylist()
        found = [
            key or bytes.fromhex(combined(name, content_key(image), label))
            for key, name, image, label in zip(known, ids, batch.images, labels, strict=True)
        ]
        fresh = [i for i, key in enumerate(found) if key not in self.have]
        if not fresh:
            return ids, found, None
        weight = self.head.module.weight
        own = torch.tensor([labels[i] for i in fresh], device=weight.device)
        images = batch.images if len(fresh) == len(found) else batch.images[fresh]
        images = images.to(weight, non_blocking=images.is_pinned())
        phi, logits = self.head.features_and_logits(images)
        columns = {
            "id": np.array([ids[i] for i in fresh], object),
            "label": own.int().cpu().numpy(),
            "predicted": logits.argmax(1).int().cpu().numpy(),
            "confidence": logits.float().softmax(1).gather(1, own[:, None])[:, 0].cpu().numpy(),
        }
        return ids, found, ([found[i] for i in fresh], _rounded(phi, self.dtype, ids[fresh[0]]), columns)


def _open(path: Path, head: FeatureHead, dtype: str) -> dict[str, Any]:
    """The record of the store, begun if there is none.

    Raises:
        InputError: it is of another model, or another type is asked for.
    """
    if dtype not in ("float16", "float32"):
        raise InputError(f"features cannot be stored as {dtype!r}", "choose float16 or float32")
    fresh: dict[str, Any] = {
        "format": FORMAT,
        "model": head.fingerprint(),
        "layer": head.layer,
        "dtype": dtype,
        "skipped": [],
        "complete": False,
    }
    record = path / "store.json"
    if not record.exists():
        write_json(record, fresh)
        return fresh
    meta = read(record, _DAMAGED, format=FORMAT)
    for key in ("model", "layer", "dtype"):
        if meta[key] != fresh[key]:
            raise InputError(
                f"{path} holds features made with another {key}: {meta[key]}, not {fresh[key]}",
                "choose another folder, or delete this one",
            )
    return meta


def read_item(data: Any, row: int) -> tuple[tuple[str, Any], Tensor]:
    """((id, label), image) of a row."""
    name, image, label = data[row]
    return (str(name), label), image


def _known(data: Any) -> pa.Array | None:
    """The key of each row where the data tell what their images are, empty where they cannot."""
    identity = getattr(data, "identity", None)
    if identity is None:
        return None
    _once(map(str, data.ids), set())

    def key(row: int) -> bytes:
        try:
            return bytes.fromhex(combined(str(data.ids[row]), identity(row)))
        except OSError:  # reading it will tell
            return b""

    starts = range(0, len(data.ids), _KEYS)
    blocks = [range(start, min(start + _KEYS, len(data.ids))) for start in starts] or [range(0)]
    return pa.concat_arrays([pa.array(list(map(key, block)), pa.binary()) for block in blocks])


def _once(ids: Iterable[str], names: set[str]) -> None:
    for name in ids:
        if name in names:
            raise DataError(
                f"the identifier {name!r} occurs twice",
                "identifiers match images across models: make them unique",
            )
        names.add(name)


def _rounded(phi: Tensor, dtype: str, near: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        rows = phi.float().cpu().numpy().astype(dtype)
    if not np.isfinite(rows).all():
        raise InputError(
            f"features up to {float(phi.abs().max()):.3g} do not fit {dtype} (image {near!r} or near)",
            "store them with dtype='float32'; if they are not finite, the model or the images are broken",
        )
    return rows


def head_for(model: nn.Module | FeatureHead, data: Iterable[tuple[Any, Tensor, int]]) -> FeatureHead:
    """The model's head, found on the first image where the data can be read more than once."""
    if isinstance(model, FeatureHead):
        return model
    example = None
    if iter(data) is not data:
        with suppress(StopIteration, OSError, SyntaxError, DataError):  # the pass itself reports it
            example = next(iter(data))[1][None]
    if example is not None and (weight := next(model.parameters(), None)) is not None:
        example = example.to(weight.device, weight.dtype)
    return FeatureHead(model, example=example)


def match_classes(folders: Sequence[str], model: Sequence[str] | int) -> dict[str, int]:
    """Class index of each folder (or label) name.

    Args:
        folders: label names of the image set.
        model: the model's class names in order of its outputs, or their number when it carries none; then the
            sorted folders must be as many.

    Raises:
        InputError: names without a class, showing both sides.
    """
    names = sorted(set(folders))
    if isinstance(model, int):
        if len(names) == model:
            return {name: i for i, name in enumerate(names)}
        if all(n.isdigit() and int(n) < model for n in names):
            return {name: int(name) for name in names}
        raise InputError(
            f"the model has {model} classes, the image set {len(names)}: {few(map(repr, names))}",
            "give the model's class names in order, or name the folders by class index",
        )
    index = {name: i for i, name in enumerate(model)}
    unknown = [name for name in names if name not in index]
    if unknown:
        raise InputError(
            f"{len(unknown)} labels of the image set are no class of the model: {few(map(repr, unknown))}; "
            f"the model's {len(index)} classes: {few(map(repr, model))}",
            "rename the folders, or give the class names in the order of the model's outputs",
        )
    return {name: index[name] for name in names}


def _check_labels(labels: Sequence[Any], ids: Sequence[str], head: FeatureHead) -> list[int]:
    out = []
    for item, label in zip(ids, labels, strict=True):
        try:
            number = int(label)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number < head.linear.n_classes:
            raise InputError(
                f"image {item!r} has label {label!r}, but the model's classes are 0 … "
                f"{head.linear.n_classes - 1}",
                "map the image set's labels to the model's classes with match_classes",
            )
        out.append(number)
    return out
