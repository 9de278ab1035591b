"""``pfungst demo``: the main job on data that Pfungst makes itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.result import Result
from pfungst.errors import ConfigError
from pfungst.suggest import suggest

SEED = 1907  # what could be chosen was chosen on data of seed 0
STEPS = 120  # of training, about 15 s


def _anomaly(folder: Path) -> Result:
    from pfungst.audit.anomaly.run import run

    return run(AnomalyConfig.build(data="synthetic", seed=SEED, out=folder, overwrite=True))


def _similarity(folder: Path) -> Result:
    """A small CLIP, trained on digits of two hospitals, one of which prints its name on most eights."""
    from pfungst.audit.similarity.config import SimilarityConfig
    from pfungst.audit.similarity.run import run
    from pfungst.datasets.tagged import parting_digits, tag_image
    from pfungst.encoders.training import train_small

    folder.mkdir(parents=True, exist_ok=True)
    side = 32
    prepared = parting_digits(SEED).prepare("pillow-bilinear", side, masks=False)
    train = prepared[prepared.splits == "train"]
    encoder = train_small(
        train.images,
        captions=[
            f"digit {c} from {item.groups['source']}"
            for c, item in zip(train.classes, train.items, strict=True)
        ],
        method="clip",
        width=8,
        steps=STEPS,
        batch_size=128,
        learning_rate=5e-3,
        flip=False,
        min_scale=0.5,
        seed=SEED,
        progress=True,
    )
    encoder.name = "small CLIP"
    saved, tag = encoder.save(folder / "encoder"), tag_image(height=side // 5)
    tag.save(folder / "tag.png")
    return run(
        SimilarityConfig.build(
            encoder=f"pfungst:{saved}",
            images="synthetic",
            condition=[f"logo:{folder / 'tag.png'},width={tag.width / side},margin=1"],
            mitigate="prune:auto",
            seed=SEED,
            out=folder,
            overwrite=True,
        )
    )


def _classifier(folder: Path) -> Result:
    from pfungst.audit.classifier import demo as planted
    from pfungst.audit.classifier.config import ClassifierConfig
    from pfungst.audit.classifier.run import run

    data = folder / "data"
    checkpoint = planted.prepare(data)
    return run(
        ClassifierConfig.build(
            model="pfungst.audit.classifier.demo:model",
            checkpoint=checkpoint,
            train=data / "train",
            val=data / "val",
            spurious=data / "spurious",
            size=planted.SIZE,
            candidates=12,
            shown=6,
            steps=60,
            batch_size=60,
            out=folder,
            overwrite=True,
        )
    )


PARTS = {"anomaly": _anomaly, "similarity": _similarity, "classifier": _classifier}


def run_demo(folder: Path, only: str | None = None) -> Iterator[tuple[Result, Path]]:
    """Run the demo or one part of it, yielding each result with its folder.

    Raises:
        ConfigError: there is no part of that name.
    """
    if only not in (None, *PARTS):
        raise ConfigError(f"the demo has no part {only!r}", suggest(str(only), PARTS, "parts"))
    for name, part in PARTS.items():
        if only in (None, name):
            yield part(folder / name), folder / name
