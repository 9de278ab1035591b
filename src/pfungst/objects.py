"""Audits of objects in memory: ``pfungst.audit_anomaly``, ``audit_classifier``, ``audit_similarity``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pfungst.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from pfungst.anomaly import Detector
    from pfungst.audit.anomaly.result import AnomalyResult
    from pfungst.audit.classifier.result import ClassifierResult
    from pfungst.audit.similarity.result import SimilarityResult
    from pfungst.data import ImageSet
    from pfungst.encoders import Encoder

#: What stands for a path or a specification in the configuration of an audit of objects.
PLACE, SCHEME = Path("images in memory"), "memory"

Images = Any
"""Tensors (N, C, H, W) or arrays (N, H, W, C), uint8 or floats in [0, 1], or a list of Pillow images or of
single ones; or a path or an `ImageSet`."""


def audit_classifier(
    model: nn.Module | str,
    train: Any,
    val: Any,
    *,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    out: str | Path = "pfungst-audit",
    **options: Any,
) -> ClassifierResult:
    """Audit a classifier in memory; writes what ``pfungst audit classifier`` writes, with the report.

    Args:
        model: takes images (N, 3, S, S) in [0, 1], or normalised ones if `mean` and `std` are given; or a
            specification.
        train, val: (images, labels), see :data:`Images`, or an iterable of (image, label), or a path. Labels
            are class indices or names.
        class_names: in the order of the model's outputs.
        mean, std: per channel, for a model that takes normalised images.
        out: folder. options: of :class:`ClassifierConfig`. Without `original`, images of one square size are
            used as they are, others are resized by ``pillow-bilinear`` to `size`.

    Raises:
        InputError: images or labels that cannot be used. Else as :func:`pfungst.audit.classifier.run.run`.
    """
    from pfungst.audit.classifier.config import ClassifierConfig
    from pfungst.audit.classifier.run import run

    names = None if class_names is None else list(class_names)
    sets = {n: _labelled(data, n, names) for n, data in (("train", train), ("val", val))}
    given = {n: s for n, s in sets.items() if s is not None}
    places = {n: PLACE if n in given else Path(data) for n, data in (("train", train), ("val", val))}
    options = _prepared(options, given.values()) if not isinstance(model, str) else options
    named = model if isinstance(model, str) else f"{SCHEME}:{type(model).__name__}"
    config = ClassifierConfig.build(model=named, out=out, **places, **options)
    loaded = None if isinstance(model, str) else _classifier(model, config.size, config.original, mean, std)
    return _reported(run(config, model=loaded, names=names, **given), config.out)


def audit_anomaly(
    train: Images,
    test: Images,
    labels: Sequence[Any],
    *,
    model: str | Detector | Sequence[str | Detector] = "d2neighbors",
    masks: Sequence[np.ndarray | None] | None = None,
    groups: Mapping[str, Sequence[Any]] | None = None,
    out: str | Path = "pfungst-audit",
    **options: Any,
) -> AnomalyResult:
    """Audit anomaly detectors on images in memory; writes what ``pfungst audit anomaly`` writes.

    Args:
        train: normal images, see :data:`Images`. test: test images.
        labels: of the test images: 0 or "good" for normal ones, else 1 or the kind of defect.
        model: specifications, or unfitted detectors, which are cloned.
        masks: of the test images, boolean (H, W), None where there is none.
        groups: columns of the test images, such as their session.
        out: folder. options: of :class:`AnomalyConfig`; `size` is that of the images where they are smaller
            than 224.

    Raises:
        InputError: images or labels that cannot be used. Else as :func:`pfungst.audit.anomaly.run.run`.
    """
    from dataclasses import replace

    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.anomaly.run import run
    from pfungst.data import ImageSet

    kinds = [
        {"0": "good", "1": "defect", "False": "good", "True": "defect"}.get(str(k), str(k)) for k in labels
    ]
    normal, tests = _items(train, ["good"] * _count(train), "train"), _items(test, kinds, "test")
    if masks is not None:
        _same_length("masks", masks, tests)
        tests = [
            item if mask is None else replace(item, mask=partial(_same, np.asarray(mask, bool)))
            for item, mask in zip(tests, masks, strict=True)
        ]
    tests = _grouped(tests, groups)
    items = [replace(i, split="train") for i in normal] + [replace(i, split="test") for i in tests]
    models = [model] if isinstance(model, str) or not isinstance(model, Sequence) else list(model)
    given = {f"{type(m).__name__.lower()}-{i}": m for i, m in enumerate(models) if not isinstance(m, str)}
    names = {id(m): name for name, m in given.items()}
    if "size" not in options and (side := _side(items)):
        options["size"] = min(224, side)
    if groups:
        options.setdefault("groups", list(groups))
    config = AnomalyConfig.build(
        data=PLACE, model=[m if isinstance(m, str) else names[id(m)] for m in models], out=out, **options
    )
    notes = _rounded(items)
    return _reported(run(config, sets=[ImageSet("images", items, notes)], detectors=given), config.out)


def audit_similarity(
    encoder: nn.Module | Encoder | str,
    images: Images,
    labels: Sequence[Any],
    *,
    groups: Mapping[str, Sequence[Any]] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    out: str | Path = "pfungst-audit",
    **options: Any,
) -> SimilarityResult:
    """Audit an encoder in memory; writes what ``pfungst audit similarity`` writes, with the report.

    Args:
        encoder: images (N, 3, S, S) in [0, 1], or normalised ones if `mean` and `std` are given, to (N, K);
            an `Encoder`; or a specification.
        images: see :data:`Images`. labels: that a probe predicts.
        groups: columns of the images, such as scanner or patient.
        mean, std: per channel, for a module that takes normalised images.
        out: folder. options: of :class:`SimilarityConfig`; `size` and `original` as in
            :func:`audit_classifier`.

    Raises:
        InputError: images or labels that cannot be used. Else as :func:`pfungst.audit.similarity.run.run`.
    """
    from pfungst.audit.similarity.config import SimilarityConfig
    from pfungst.audit.similarity.run import run
    from pfungst.data import ImageSet
    from pfungst.encoders import Encoder, Preprocessing

    items = _grouped(_items(images, labels, "images"), groups)
    data = ImageSet("images", items, _rounded(items))
    made: Encoder | None = None
    original = options.pop("original", None)
    if not isinstance(encoder, str):
        named = f"{SCHEME}:{getattr(encoder, 'name', type(encoder).__name__)}"
        if isinstance(encoder, Encoder):
            made = encoder
        else:
            ready = _prepared({"size": options.get("size"), "original": original}, [data])
            scale = {"mean": tuple(mean or (0.0,) * 3), "std": tuple(std or (1.0,) * 3)}
            prepared = Preprocessing(ready["size"], ready["original"], **scale)
            made = Encoder(encoder, prepared, type(encoder).__name__)
        options["size"] = made.size
    else:
        named = encoder
    if groups:
        options.setdefault("groups", list(groups))
    config = SimilarityConfig.build(encoder=named, images=PLACE, out=out, **options)
    return _reported(run(config, encoder=made, images=data), config.out)


def _reported(result: Any, folder: Path) -> Any:
    from pfungst.report import write

    write(folder, result)
    return result


def _classifier(
    model: nn.Module,
    size: int | None,
    condition: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Any:
    from collections import OrderedDict

    from torch import nn

    from pfungst.encoders import Classifier, Preprocessing
    from pfungst.encoders.preprocessing import Normalise

    assert size is not None
    assert condition is not None
    network = model
    scale: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if mean is not None or std is not None:
        scale = {"mean": tuple(mean or (0.0,) * 3), "std": tuple(std or (1.0,) * 3)}
        front = Normalise(scale["mean"], scale["std"])
        network = nn.Sequential(OrderedDict(normalize=front, model=model))
    prepared = Preprocessing(size, condition, **scale)
    return Classifier(network.eval(), prepared, type(model).__name__, "in memory")


# --- images ----------------------------------------------------------------------------------------------


def _labelled(data: Any, name: str, names: list[str] | None) -> ImageSet | None:
    """A labelled set from memory; None for a path."""
    from pfungst.data import ImageSet

    if isinstance(data, str | Path):
        return None
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        images, labels = data
    else:
        pairs = [data[i] for i in range(len(data))] if hasattr(data, "__getitem__") else list(data)
        if not all(isinstance(p, tuple | list) and len(p) == 2 for p in pairs):
            raise InputError(
                f"{name} gives no pairs", "pass (images, labels), or an iterable of (image, label)"
            )
        images, labels = [p[0] for p in pairs], [p[1] for p in pairs]
    texts = [str(v.item() if hasattr(v, "item") else v) for v in labels]
    if names is not None:
        wrong = [t for t in texts if t not in names and not (t.isdecimal() and int(t) < len(names))]
        if wrong:
            raise InputError(f"{name} has the label {wrong[0]!r}", f"class_names holds {len(names)} names")
        texts = [t if t in names else names[int(t)] for t in texts]
    items = _items(images, texts, name)
    return ImageSet(name, items, _rounded(items))


def _items(images: Images, labels: Sequence[Any], name: str) -> list[Any]:
    from pfungst.data import Item

    pictures = [_picture(image, f"{name}[{i}]") for i, image in enumerate(images)]
    _same_length("labels", labels, pictures)
    if not pictures:
        raise InputError(f"{name} holds no images", "pass some")
    texts = [str(v.item() if hasattr(v, "item") else v) for v in labels]
    return [
        Item(f"{name}/{i:06d}", partial(_same, picture), label)
        for i, (picture, label) in enumerate(zip(pictures, texts, strict=True))
    ]


def _same(thing: Any) -> Any:
    return thing


def _count(images: Any) -> int:
    if not hasattr(images, "__len__"):
        raise InputError(f"images as {type(images).__name__}", "pass a list, an array or a tensor")
    return len(images)


def _same_length(what: str, values: Sequence[Any], items: Sequence[Any]) -> None:
    if len(values) != len(items):
        raise InputError(f"{len(values)} {what} for {len(items)} images", "give one per image")


def _picture(image: Any, name: str) -> Image.Image:
    """A Pillow image of one in memory; floats are rounded to 8 bits, as files hold them."""
    if isinstance(image, Image.Image):
        return image
    try:
        x: np.ndarray = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    except (TypeError, ValueError):  # parts of several shapes
        x = np.empty(0, object)
    if x.dtype == object:
        raise InputError(f"{name} is a {type(image).__name__}", "give an array, a tensor or a Pillow image")
    if x.ndim == 3 and x.shape[0] in (1, 3) and (hasattr(image, "detach") or x.shape[-1] not in (1, 3)):
        x = x.transpose(1, 2, 0)
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[-1] not in (1, 3):
        raise InputError(
            f"{name} has shape {x.shape}", "give (C, H, W) tensors or (H, W, C) arrays, C = 1 or 3"
        )
    off = 0.0
    if x.dtype.kind == "f":
        if not np.isfinite(x).all() or x.min() < -1e-6 or x.max() > 1 + 1e-6:
            raise InputError(
                f"{name} has values from {x.min():.3g} to {x.max():.3g}",
                "give images in [0, 1], before normalisation; pass mean= and std=",
            )
        levels = np.rint(x * 255)
        off = float(np.abs(x * 255 - levels).max()) / 255
        x = levels.clip(0, 255).astype(np.uint8)
    if x.dtype != np.uint8:
        raise InputError(f"{name} has type {x.dtype}", "give uint8, or floats in [0, 1]")
    made = Image.fromarray(np.ascontiguousarray(np.repeat(x, 3, 2) if x.shape[-1] == 1 else x))
    made.info["rounded"] = off
    return made


def _rounded(items: Iterable[Any]) -> list[str]:
    off = max(item.image().info.get("rounded", 0.0) for item in items)
    return [f"float images were rounded to 8 bits, by up to {off:.1g}"] if off > 1e-4 else []


def _grouped(items: list[Any], groups: Mapping[str, Sequence[Any]] | None) -> list[Any]:
    from dataclasses import replace

    for name, values in (groups or {}).items():
        _same_length(f"values of {name}", values, items)
        items = [replace(i, groups={**i.groups, name: str(v)}) for i, v in zip(items, values, strict=True)]
    return items


def _side(items: Iterable[Any]) -> int | None:
    """The side of the images where all are squares of one size."""
    sizes = {item.image().size for item in items if callable(item.image)}
    return next(iter(sizes))[0] if len(sizes) == 1 and len(set(*sizes)) == 1 else None


def _prepared(options: dict[str, Any], sets: Iterable[ImageSet]) -> dict[str, Any]:
    """Options with the size and the preparation of images in memory, where they do not say it."""
    side = _side([item for images in sets for item in images.items])
    size = options.get("size") or side
    if size is None:
        raise InputError(
            "the images have several sizes, or are no squares", "say which the model takes: size=224"
        )
    usual = "none" if size == side else "pillow-bilinear"
    return options | {"size": size, "original": options.get("original") or usual}
