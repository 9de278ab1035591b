"""Data and models that stand in for the papers', made here: small folders, small encoders, planted
classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pfungst.data import ImageSet
from pfungst.files import write as write_text
from pfungst.files import write_tensors
from pfungst.papers.made import Wish

SEED = 1907


def write_mvtec(sets: Sequence[ImageSet], folder: Path) -> Path:
    """Image sets with masks as an MVTec folder, unless it is there; returns it."""
    if (folder / "complete").exists():
        return folder
    for images in sets:
        for item in images.items:
            name = f"{Path(item.id).stem}.png"
            place = folder / images.name / str(item.split) / str(item.label)
            place.mkdir(parents=True, exist_ok=True)
            item.read().save(place / name)
            if (mask := item.read_mask()) is not None:
                truth = (
                    folder / images.name / "ground_truth" / str(item.label) / f"{Path(item.id).stem}_mask.png"
                )
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(truth)
    write_text(folder / "complete", "")
    return folder


def parts(wish: Wish) -> Path | str:
    """Rendered parts: all five, or one of few and small images."""
    if wish.data is not None:
        return wish.data
    if not wish.tiny:
        return "synthetic"
    from pfungst.datasets.synthetic import make_parts

    sets = make_parts("wood_stripes", train=8, good=5, defective=4, size=96, seed=SEED)
    return write_mvtec(sets, wish.out / "data" / "parts")


def digits(wish: Wish) -> Path | str:
    """Corrupted digits: scikit-learn's, or few of them."""
    if wish.data is not None:
        return wish.data
    if not wish.tiny:
        return "digits-c"
    from pfungst.datasets import digits_c

    sets = digits_c(["dotted_line", "stripe"], train=24, good=8, anomalous=8, seed=SEED)
    return write_mvtec(sets, wish.out / "data" / "digits")


def letters(wish: Wish) -> Path:
    """Weights of the letter network, trained once for an output folder on EMNIST."""
    import torch

    from pfungst.anomaly.letters import train_letters
    from pfungst.datasets import emnist_letters

    file = wish.out / "data" / "letters.safetensors"
    if not file.exists():
        items = [i for i in emnist_letters(wish.more["letters"]).items if i.split == "train"]
        x = torch.from_numpy(np.stack([np.asarray(i.read().convert("L")) for i in items])).float() / 255
        labels = torch.tensor([ord(str(i.label)) - ord("A") for i in items])
        file.parent.mkdir(parents=True, exist_ok=True)
        network = train_letters(x[:, None].expand(-1, 3, -1, -1), labels, seed=SEED)
        write_tensors(file, network.state_dict())
    return file


def encoders(wish: Wish) -> tuple[str, Path]:
    """A small CLIP, SimCLR and Barlow Twins trained on digits of two hospitals, and the tag as a logo."""
    from pfungst.datasets.tagged import parting_digits, tag_image
    from pfungst.encoders.training import train_small

    folder, side = wish.out / "data" / "encoders", 32
    tag = folder / "tag.png"
    methods = ("clip", "simclr", "barlow") if not wish.tiny else ("clip", "simclr")
    if not tag.exists():
        folder.mkdir(parents=True, exist_ok=True)
        prepared = parting_digits(SEED).prepare("pillow-bilinear", side, masks=False)
        train = prepared[prepared.splits == "train"]
        pairs = zip(train.classes, train.items, strict=True)
        captions = [f"digit {c} from {item.groups['source']}" for c, item in pairs]
        for method in methods:
            encoder = train_small(
                train.images,
                captions=captions if method == "clip" else None,
                method=method,  # type: ignore[arg-type]
                width=4 if wish.tiny else 8,
                steps=4 if wish.tiny else 120,
                batch_size=128,
                learning_rate=5e-3,
                flip=False,
                min_scale=0.5,
                seed=SEED,
            )
            encoder.save(folder / method)
        tag_image(height=side // 5).save(tag)
    return ",".join(f"pfungst:{folder / m}" for m in methods), tag


def classifiers(wish: Wish) -> tuple[str, Path]:
    """Classifiers of digits of which one class carries a watermark: an adversarially trained one, a
    standard one and one that saw no watermark; and the folder of train, val and spurious images."""
    import torch
    from safetensors.torch import save_file

    from pfungst.audit.classifier import demo as planted

    folder = wish.out / "data" / "planted"
    names = {"robust": (1.5, None), "standard": (0.0, None), "unmarked": (0.0, 0.0)}
    if wish.tiny:
        names = {"robust": (0.5, None), "standard": (0.0, None)}
    if not (folder / "complete").exists():
        for name, (radius, marked) in names.items():
            data = planted.render(SEED, marked)
            if wish.tiny:
                data = {k: _few(*v, 12 if k == "train" else 6) for k, v in data.items()}
            if marked is None:
                planted.write(folder, data)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(SEED)
                network = planted.model()
            planted.train(
                network,
                *planted.as_tensors(data["train"]),
                epochs=2 if wish.tiny else 16,
                radius=radius,
                ramp=True,
                rate=0.01,
                batch_size=32,
                seed=SEED,
            )
            state = {k: v.contiguous() for k, v in network.state_dict().items()}
            save_file(state, str(folder / f"{name}.safetensors"))
        write_text(folder / "complete", "")
    spec = "pfungst.audit.classifier.demo:model"
    return ",".join(f"{spec},checkpoint={folder / f'{name}.safetensors'}" for name in names), folder


def _few(images: np.ndarray, labels: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in np.unique(labels)])
    return images[rows], labels[rows]
