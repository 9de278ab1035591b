"""``pfungst demo``: the main job on data that Pfungst makes itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.result import Result
from pfungst.errors import ConfigError

DEMO_STEPS = 120  # of training; less than a minute on two cores


def _anomaly(folder: Path) -> Result:
    from pfungst.audit.anomaly.run import run

    return run(AnomalyConfig.build(data="synthetic", seed=1907, out=folder, overwrite=True))


def _similarity(folder: Path) -> Result:
    """A small CLIP, trained on digits of two hospitals, one of which prints its name on most eights."""
    from pfungst.audit.similarity.config import SimilarityConfig
    from pfungst.audit.similarity.embeddings import synthetic_digits
    from pfungst.audit.similarity.run import run
    from pfungst.data.tagged import tag_image
    from pfungst.encoders.training import train_small

    folder.mkdir(parents=True, exist_ok=True)
    prepared = synthetic_digits(0).prepare("pillow-bilinear", 32, masks=False)
    train = prepared[prepared.splits == "train"]
    encoder = train_small(
        train.images,
        captions=[f"digit {label}" for label in train.classes],
        method="clip",
        width=16,
        steps=DEMO_STEPS,
        batch_size=64,
        flip=False,
        min_scale=0.5,
        progress=True,
    )
    encoder.name = "small encoder"
    saved, tag = encoder.save(folder / "encoder"), tag_image(height=32 // 5)
    tag.save(folder / "tag.png")
    logo = f"logo:{folder / 'tag.png'},width={tag.width / 32},margin=1"
    return run(
        SimilarityConfig.build(
            encoder=f"pfungst:{saved}",
            images="synthetic",
            condition=[logo],
            mitigate="prune:stage3.relu2:10",
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


def run_demo(folder: Path, only: str = "anomaly") -> Iterator[tuple[Result, Path]]:
    """Run a part of the demo, or ``all``, yielding each result with its folder.

    Raises:
        ConfigError: there is no part of that name.
    """
    if only not in (*PARTS, "all"):
        raise ConfigError(f"the demo has no part {only!r}", f"parts: {', '.join(PARTS)}, or all")
    for name, part in PARTS.items():
        if only in ("all", name):
            yield part(folder / name), folder / name
