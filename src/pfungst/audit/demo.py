"""``pfungst demo``: the main job on data that Pfungst makes itself.

The two small networks come with Pfungst as this file trains them on one core (``--train`` trains them anew):
training takes as long as their audits, and ends elsewhere where sums are rounded otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.result import Result, load
from pfungst.errors import ConfigError
from pfungst.files import writing
from pfungst.memory import available_memory, keep_freed_memory
from pfungst.suggest import suggest

SEED = 1907  # what could be chosen was chosen on data of seed 0
STEPS = 120  # of training, about 15 s
WEIGHTS = Path(__file__).parent / "weights"
MEMORY = 6 << 30  # bytes that all parts at once may take


def _anomaly(folder: Path, train: bool) -> Result:
    from pfungst.audit.anomaly.run import run

    return run(AnomalyConfig.build(data="synthetic", seed=SEED, out=folder, overwrite=True))


def _similarity(folder: Path, train: bool) -> Result:
    """A small CLIP of digits of two hospitals, one of which prints its name on most eights."""
    from pfungst.audit.similarity.config import SimilarityConfig
    from pfungst.audit.similarity.run import run
    from pfungst.datasets.tagged import tag_image

    encoder, tag = folder / "encoder", tag_image(height=_SIDE // 5)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if train:
            train_encoder(encoder)
        else:
            encoder.mkdir(exist_ok=True)
            for name in ("encoder.json", "encoder.safetensors"):
                shutil.copyfile(WEIGHTS / name, encoder / name)
        tag.save(folder / "tag.png")
    return run(
        SimilarityConfig.build(
            encoder=f"pfungst:{encoder}",
            images="synthetic",
            condition=[f"logo:{folder / 'tag.png'},width={tag.width / _SIDE},margin=1"],
            mitigate="prune:auto",
            seed=SEED,
            out=folder,
            overwrite=True,
        )
    )


_SIDE = 32


def train_encoder(folder: Path) -> None:
    """Train the demo's CLIP and save it in `folder`."""
    from pfungst.datasets.tagged import parting_digits
    from pfungst.encoders.training import train_small

    prepared = parting_digits(SEED).prepare("pillow-bilinear", _SIDE, masks=False)
    part = prepared[prepared.splits == "train"]
    encoder = train_small(
        part.images,
        captions=[
            f"digit {c} from {item.groups['source']}"
            for c, item in zip(part.classes, part.items, strict=True)
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
    encoder.save(folder)


def _classifier(folder: Path, train: bool) -> Result:
    from pfungst.audit.classifier import demo as planted
    from pfungst.audit.classifier.config import ClassifierConfig
    from pfungst.audit.classifier.run import run

    data = folder / "data"
    checkpoint = planted.prepare(data, weights=None if train else WEIGHTS / "classifier.safetensors")
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


PARTS = {"anomaly": _anomaly, "classifier": _classifier, "similarity": _similarity}


@dataclass(frozen=True)
class _Beside:
    """Makes, in a process of its own, what runs a part by its number and writes its page."""

    folder: Path
    train: bool
    write: Callable[[Path, Result], Path]

    def __call__(self, device: str) -> Callable[[int], object]:
        from rich import reconfigure

        keep_freed_memory()
        reconfigure(force_terminal=False)  # bars of several processes would overwrite each other

        def run(number: int) -> tuple[str, Path]:
            name = list(PARTS)[number]
            where = self.folder / name
            return name, self.write(where, PARTS[name](where, self.train))

        return run


def run_demo(
    folder: Path, write: Callable[[Path, Result], Path], only: str | None = None, train: bool = False
) -> Iterator[tuple[Result, Path]]:
    """Run the demo or one part of it, yielding each result with its page as it is finished.

    All parts run side by side where there is more than one core and enough memory.

    Args:
        folder: for one folder for each part.
        write: makes the page of a result, from its folder; a function of a module.
        only: "anomaly", "similarity" or "classifier".
        train: train the networks instead of taking those that come with Pfungst.

    Raises:
        ConfigError: there is no part of that name.
    """
    from pfungst.features.workers import on_processes
    from pfungst.progress import progress_bar
    from pfungst.threads import cores

    if only not in (None, *PARTS):
        raise ConfigError(f"the demo has no part {only!r}", suggest(str(only), PARTS, "parts"))
    free = available_memory()
    workers = min(cores(), len(PARTS))
    if only is not None or workers == 1 or (free is not None and free < MEMORY):
        for name in PARTS if only is None else (only,):
            result = PARTS[name](folder / name, train)
            yield result, write(folder / name, result)
        return
    parts, threads = range(len(PARTS)), cores() // workers
    beside = _Beside(folder, train, write)
    with progress_bar("audits of three models, side by side", len(PARTS)) as bar:
        for name, page in cast(
            Iterator[tuple[str, Path]], on_processes(beside, parts, workers, "auto", threads)
        ):
            bar.advance()
            yield load(folder / name), page
