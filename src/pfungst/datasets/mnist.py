"""MNIST, EMNIST letters and MNIST-C as they are published."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from pfungst.data.item import Item
from pfungst.data.items import ImageSet
from pfungst.datasets.digits import corrupted
from pfungst.errors import DataError
from pfungst.files import content, read
from pfungst.suggest import suggest

_TYPES: dict[int, str] = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4"}
_IDENTITY = "identity"


def read_idx(path: str | Path) -> np.ndarray:
    """An array in the idx format, gzipped or not.

    Raises:
        DataError: the file is missing, cut short, or in another format.
    """
    path = Path(path)
    try:
        data = content(path)
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", "download it again") from None
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        raise DataError(f"{path} is not in the idx format", "pass the published file")
    kind, axes = np.dtype(_TYPES[data[2]]), data[3]
    start = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", data[4:start]) if len(data) >= start else ()
    wanted = start + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if len(data) != wanted:
        raise DataError(f"{path} has {len(data)} bytes, its header says {wanted}", "download it again")
    return np.frombuffer(data, kind, offset=start).reshape(shape)


def mnist(folder: str | Path) -> ImageSet:
    """MNIST: {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]; label and group "digit" are the digit."""
    return _idx_set(Path(folder), "mnist", (("train", "train"), ("test", "t10k")), "", 0, False)


def emnist_letters(folder: str | Path) -> ImageSet:
    """EMNIST letters: emnist-letters-{train,test}-{images-idx3,labels-idx1}-ubyte[.gz], turned upright.

    The published images are transposed; labels 1 to 26 become "A" to "Z".
    """
    parts = (("train", "emnist-letters-train"), ("test", "emnist-letters-test"))
    return _idx_set(Path(folder), "emnist-letters", parts, "letter", ord("A") - 1, True)


def corrupted_mnist(
    folder: str | Path, corruptions: str | list[str] | None = None, seed: int = 0, **counts: int
) -> list[ImageSet]:
    """MNIST under the corruptions of :mod:`pfungst.datasets.digits`: as MNIST-C, whose strengths are others.

    Args:
        folder: as for :func:`mnist`; its 10,000 test images are used for all three parts.
        corruptions: which; all 15 by default.
        seed: of the choice of digits and of the corruptions.
        counts: train, good, anomalous, as for :func:`~pfungst.datasets.digits.digits_c`.
    """
    place = Path(folder)
    images = read_idx(_find(place, "t10k-images", "idx3-ubyte"))
    labels = read_idx(_find(place, "t10k-labels", "idx1-ubyte"))
    return corrupted(images.astype(np.float32) / 255, labels, corruptions, seed=seed, **counts)


def is_mnist(folder: Path) -> bool:
    """Whether a folder holds the idx files of MNIST's test images."""
    try:
        _find(folder, "t10k-images", "idx3-ubyte")
    except DataError:
        return False
    return True


def is_mnist_c(folder: Path) -> bool:
    """Whether a folder is laid out as MNIST-C."""
    return (folder / _IDENTITY / "test_images.npy").is_file()


def _idx_set(
    folder: Path, name: str, parts: tuple[tuple[str, str], ...], group: str, first: int, transposed: bool
) -> ImageSet:
    items: list[Item] = []
    for split, prefix in parts:
        images = read_idx(_find(folder, f"{prefix}-images", "idx3-ubyte"))
        labels = read_idx(_find(folder, f"{prefix}-labels", "idx1-ubyte"))
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"{folder}: {prefix} has images {images.shape} and labels {labels.shape}",
                "download both again",
            )
        if transposed:
            images = images.transpose(0, 2, 1)
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            word = chr(first + label) if group else str(label)
            items.append(
                Item(f"{split}/{i:05d}", _picture(image), word, None, split, {group or "digit": word})
            )
    return ImageSet(name, items)


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{dash}{kind}{zipped}" for dash in "-." for zipped in ("", ".gz")]
    for place in (folder, folder / "raw", folder / "gzip"):
        for name in names:
            if (place / name).is_file():
                return place / name
    raise DataError(
        f"{folder} has no {names[0]} or {names[0]}.gz", "pass the folder that holds the idx files"
    )


def _picture(image: np.ndarray):
    return lambda: Image.fromarray(np.ascontiguousarray(image))


def mnist_c(
    folder: str | Path,
    corruptions: str | list[str] | None = None,
    train: int | None = None,
    good: int = 1000,
    anomalous: int = 1000,
) -> list[ImageSet]:
    """MNIST-C: one set per corruption, with the absolute difference to the identity image as mask.

    Training images are the identity's, test images the identity's (good) and the corruption's; a digit is
    never good and corrupted in the same test set.

    Args:
        folder: holds CORRUPTION/{train,test}_{images,labels}.npy and identity/ beside them.
        corruptions: which; all there are by default.
        train: at most so many training images. good, anomalous: so many test images of each kind.

    Raises:
        DataError: a folder, file or shape is not as published.
    """
    folder = Path(folder)
    found = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if _IDENTITY not in found:
        raise DataError(
            f"{folder} has no folder {_IDENTITY}", "pass the folder mnist_c of the published archive"
        )
    chosen = (
        [corruptions] if isinstance(corruptions, str) else corruptions or [n for n in found if n != _IDENTITY]
    )
    normal, digits = _load(folder / _IDENTITY, "train")
    clean, clean_digits = _load(folder / _IDENTITY, "test")
    half = len(clean) // 2
    rows = range(len(normal) if train is None else min(train, len(normal)))
    sets = []
    for name in chosen:
        if name not in found:
            raise DataError(f"{folder} has no folder {name}", suggest(name, found, "found"))
        changed, labels = _load(folder / name, "test")
        if changed.shape != clean.shape:
            raise DataError(
                f"{folder / name} has test images {changed.shape}, identity has {clean.shape}",
                "masks need the same images in the same order",
            )
        items = [_item(normal, digits, "train", "good", i) for i in rows]
        items += [_item(clean, clean_digits, "test", "good", i) for i in range(min(good, half))]
        items += [
            _item(changed, labels, "test", name, i, clean)
            for i in range(half, min(len(clean), half + anomalous))
        ]
        sets.append(ImageSet(name, items))
    return sets


def _load(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    files = (folder / f"{split}_{kind}.npy" for kind in ("images", "labels"))
    images, labels = (read(file, "download MNIST-C again") for file in files)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{folder}: {split} images {images.shape} {images.dtype}, labels {labels.shape}",
            "expected uint8 images (N, 28, 28, 1) and labels (N,)",
        )
    return images, labels


def _item(
    images: np.ndarray, digits: np.ndarray, split: str, label: str, i: int, clean: np.ndarray | None = None
) -> Item:
    picture = lambda: Image.fromarray(np.array(images[i]))
    mask = None if clean is None else lambda: np.asarray(images[i]) != np.asarray(clean[i])
    return Item(f"{split}/{label}/{i:05d}", picture, label, mask, split, {"digit": str(int(digits[i]))})
