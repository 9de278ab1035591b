"""One pass over a labelled image set that keeps the penultimate features on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.device import choose_device
from pfungst.errors import DataError, InputError, UnreadableImages, few
from pfungst.files import Lock, read, whole, write_json
from pfungst.progress import progress_bar
from pfungst.spurious.heads import FeatureHead

FORMAT = "pfungst.features/1"
_DAMAGED = "delete the folder and call extract_features again"
_HEADER = 128  # bytes; the length of the table is rewritten in place at every commit


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
                f"{self.path} is an unfinished feature pass ({self.meta.get('count', 0)} images)",
                "call extract_features with the same arguments to finish it",
            )
        self.features = read(self.path / "features.npy", _DAMAGED)

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def _index(self) -> Any:
        return read(self.path / "index.parquet", _DAMAGED)

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
    workers: int = 0,
    skip_bad: bool = False,
    commit_every: int = 50,
    progress: bool = True,
) -> FeatureStore:
    """Run the model once over (id, image, label) and store the features; an interrupted pass continues.

    Args:
        model: the classifier, or its :class:`FeatureHead`.
        data: gives (id, image (C, H, W) in [0, 1], class index). With `__len__` and `__getitem__` a restart reads only
            what is missing, and `workers` processes can load; any other iterable is read again from its start.
        path: folder of the store; a finished store of the same model is returned as it is.
        batch_size: images per forward pass.
        dtype: "float16" (half the disk) or "float32".
        device: "auto", "cpu", "cuda", …
        workers: loading processes.
        skip_bad: leave unreadable images out and count them in `store.meta["skipped"]`; otherwise they are all named.
        commit_every: batches between commits; at most this many are computed again after a restart.
        progress: show a bar.

    Raises:
        UnreadableImages: some images cannot be read.
        InputError: labels outside the model's classes, features too large for float16, a store of another model.
        DataError: an identifier occurs twice (or again, when the data changed since an interrupted pass); another
            process is writing into the folder.
        ConfigError: the device does not exist.
    """
    target = choose_device(device)
    head = head_for(model, data)
    head.model.to(target)
    with Lock(Path(path) / ".lock", str(path)):
        writer = _Writer(Path(path), head, dtype)
        if writer.meta["complete"]:
            return FeatureStore(path)
        problems: list[tuple[str, str]] = []
        size = len(data) if hasattr(data, "__len__") else None  # type: ignore[arg-type]
        items = read_items(data, writer.meta["read"], workers, problems)
        parameter = next(head.model.parameters())
        shown = progress_bar("features", size, show=progress, done=writer.meta["read"])
        with shown as bar, torch.inference_mode():
            for n, batch in enumerate(_batches(items, batch_size), 1):
                good = [item for item in batch if item[1] is not None]
                if problems and not skip_bad:
                    bar.advance(len(batch))
                    continue  # nothing is computed any more, but every unreadable image gets named
                if good:
                    labels = _check_labels([label for _, _, label in good], [i for i, _, _ in good], head)
                    images = torch.stack([image for _, image, _ in good if image is not None])
                    phi, logits = head.features_and_logits(images.to(target, parameter.dtype))
                    writer.add([i for i, _, _ in good], labels, phi, logits)
                writer.meta["read"] += len(batch)
                writer.meta["skipped"] += [list(problem) for problem in problems]
                problems.clear()
                bar.advance(len(batch))
                if n % commit_every == 0:
                    writer.commit()
        if problems and not skip_bad:
            writer.commit(close=True)
            raise UnreadableImages(problems)
        if writer.count == 0:
            raise DataError("the image set is empty", "pass at least one readable labelled image")
        writer.finish()
    return FeatureStore(path)


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
        model: the model's class names in order of its outputs, or their number when it carries none; then the sorted
            folders must be as many.

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
                f"image {item!r} has label {label!r}, but the model's classes are 0 … {head.linear.n_classes - 1}",
                "map the image set's labels to the model's classes with match_classes",
            )
        out.append(number)
    return out


Item = tuple[str, Tensor | None, Any]


def read_items(
    data: Iterable[Any], start: int, workers: int, problems: list[tuple[str, str]]
) -> Iterator[Item]:
    """Items from `start` on; an unreadable one has no image and is added to `problems`."""
    guarded: Iterable[tuple[str, Tensor | None, Any, str]]
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        rows = _Guarded(data, start)
        guarded = (rows[i] for i in range(len(rows)))
        if workers:
            guarded = torch.utils.data.DataLoader(
                rows, batch_size=None, num_workers=workers, prefetch_factor=16
            )
    else:
        guarded = (_guard(partial(_same, item), str(i)) for i, item in enumerate(data) if i >= start)
    for item, image, label, why in guarded:
        if why:
            problems.append((item, why))
        yield item, image, label


def _same(item: Any) -> Any:
    return item


class _Guarded(torch.utils.data.Dataset):
    def __init__(self, data: Any, start: int) -> None:
        self.data, self.start = data, start

    def __len__(self) -> int:
        return max(len(self.data) - self.start, 0)

    def __getitem__(self, i: int) -> tuple[str, Tensor | None, Any, str]:
        if i >= len(self):
            raise IndexError(i)
        ids = getattr(self.data, "ids", None)
        name = str(ids[i + self.start]) if ids is not None else str(i + self.start)
        return _guard(lambda: self.data[i + self.start], name)


def _guard(load: Callable[[], Any], name: str) -> tuple[str, Tensor | None, Any, str]:
    try:
        item, image, label = load()
    except UnreadableImages as error:
        return name, None, -1, error.problems[0][1]
    except (OSError, SyntaxError, DataError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        return name, None, -1, str(error).splitlines()[0] if str(error) else type(error).__name__
    return str(item), image, label, ""


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class _Writer:
    """Appends rows; `commit` makes what is there readable and is what a restart goes back to."""

    def __init__(self, path: Path, head: FeatureHead, dtype: str) -> None:
        if dtype not in ("float16", "float32"):
            raise InputError(f"features cannot be stored as {dtype!r}", "choose float16 or float32")
        self.path, self.dtype = path, np.dtype(dtype)
        self.dim = head.linear.n_features
        fresh: dict[str, Any] = {
            "format": FORMAT,
            "model": head.linear.fingerprint(),
            "layer": head.layer,
            "dtype": dtype,
            "count": 0,
            "read": 0,
            "skipped": [],
            "complete": False,
        }
        meta = path / "store.json"
        self.meta = read(meta, _DAMAGED, format=FORMAT) if meta.exists() else fresh
        for key in ("model", "layer", "dtype"):
            if self.meta[key] != fresh[key]:
                raise InputError(
                    f"{path} holds features made with another {key}: {self.meta[key]}, not {fresh[key]}",
                    "choose another folder, or delete this one",
                )
        self.count: int = self.meta["count"]
        self.ids: list[str] = []
        self.columns: dict[str, list[Any]] = {"label": [], "predicted": [], "confidence": []}
        if self.meta["complete"]:
            return
        self._open()

    def _open(self) -> None:
        features, index = self.path / "features.npy", self.path / "index.jsonl"
        self.file = open(features, "r+b" if features.exists() else "w+b")  # noqa: SIM115
        self.file.truncate(_HEADER + self.count * self.dim * self.dtype.itemsize)
        self.file.seek(0, os.SEEK_END)
        self.index = open(index, "a+", encoding="utf-8")  # noqa: SIM115
        self.index.seek(0)
        lines, end = [], 0
        for _ in range(self.count):
            lines.append(self.index.readline())
            end = self.index.tell()
        self.index.truncate(end)
        self.index.seek(0, os.SEEK_END)
        for line in lines:
            name, *values = json.loads(line)
            self.ids.append(name)
            for column, value in zip(self.columns.values(), values, strict=True):
                column.append(value)
        self.known = set(self.ids)

    def add(self, ids: Sequence[str], labels: Sequence[int], phi: Tensor, logits: Tensor) -> None:
        for name in ids:
            if name in self.known:
                raise DataError(
                    f"the identifier {name!r} occurs twice",
                    "identifiers match images across models: make them unique",
                )
            self.known.add(name)
        with np.errstate(over="ignore"):
            rows = phi.float().cpu().numpy().astype(self.dtype)
        if not np.isfinite(rows).all():
            raise InputError(
                f"features up to {float(phi.abs().max()):.3g} do not fit {self.dtype} (image {ids[0]!r} or near)",
                "store them with dtype='float32'; if they are not finite, the model or the images are broken",
            )
        own = torch.tensor(list(labels), device=logits.device)
        confidence = logits.float().softmax(1).gather(1, own[:, None])[:, 0].tolist()
        predicted = logits.argmax(1).tolist()
        self.file.write(rows.tobytes())
        for row in zip(ids, labels, predicted, confidence, strict=True):
            self.index.write(json.dumps(row) + "\n")
            self.ids.append(row[0])
            for column, value in zip(self.columns.values(), row[1:], strict=True):
                column.append(value)
        self.count += len(rows)

    def commit(self, close: bool = False) -> None:
        header = repr({"descr": self.dtype.str, "fortran_order": False, "shape": (self.count, self.dim)})
        body = header.ljust(_HEADER - 11) + "\n"
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode("latin1"))
        self.file.seek(0, os.SEEK_END)
        for file in (self.file, self.index):
            file.flush()
            os.fsync(file.fileno())
        self.meta["count"] = self.count
        write_json(self.path / "store.json", self.meta)
        if close:
            self.file.close()
            self.index.close()

    def finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                "id": self.ids,
                "label": pa.array(self.columns["label"], pa.int32()),
                "predicted": pa.array(self.columns["predicted"], pa.int32()),
                "confidence": pa.array(self.columns["confidence"], pa.float32()),
            }
        )
        with whole(self.path / "index.parquet") as part:
            pq.write_table(table, part)
        self.meta["complete"] = True
        self.commit(close=True)
        (self.path / "index.jsonl").unlink()
