"""What ``--dry-run`` says a similarity audit would cost: the encoder is tried on some images, what is made of
representations on stand-ins for those of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from torch import Tensor

from pfungst.audit.conditions import ORIGINAL, conditions_for
from pfungst.audit.recognised import Clock, Cost, some
from pfungst.audit.result import Variant
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.embeddings import KEPT, Source, embed
from pfungst.audit.similarity.explain import (
    FLIPPED,
    MAP,
    STAMPED,
    Work,
    at_a_time,
    choose,
    draw_map,
    explainer_of,
    faithful,
    locate,
    summarise,
)
from pfungst.audit.similarity.measure import follow, score, subgroups
from pfungst.audit.similarity.mend import RESPONSES, Wish, settings, split
from pfungst.audit.similarity.prepare import AS_IS, Study, columns_of, make_plan, usable
from pfungst.audit.similarity.result import Subgroup
from pfungst.audit.sources import group_columns
from pfungst.audit.workspace import Workspace
from pfungst.data import ImageSet, Item
from pfungst.data.traits import BurntInText
from pfungst.encoders import Encoder
from pfungst.measure.limits import FAITHFUL_IMAGES
from pfungst.memory import peak_memory
from pfungst.probes import predict
from pfungst.similarity import Factors

_EMBEDDED = 64  # images that are tried
_STAND_IN = 1000  # images at most whose representations are stood in for
_ENCODED = 32  # images whose encoding alone is timed, for pruning
_READ = 4  # images whose text is looked for


def estimate(
    config: SimilarityConfig, images: ImageSet, wish: Wish | None, now: Callable[[], float] = perf_counter
) -> Cost:
    """Time and memory of a similarity audit of images, whose factors one process computes: several take less.

    Args:
        images, wish: what is audited and pruned, as checked.
        now: the clock, in seconds.

    Raises:
        ConfigError, DataError, InputError: the encoder cannot be loaded, or does not fit the data.
    """
    clock = Clock(now)
    encoder = clock(config.open_encoder)
    conditions = conditions_for(encoder.preprocessing.condition, config.condition, encoder.size)
    few = [images.items[i] for i in some(np.arange(len(images)), _EMBEDDED)]
    often, read = len(images) / len(few), "text" in config.groups
    clock(lambda: ImageSet("images", few).check(), often)
    clock(lambda: embed(encoder, Source(few[:2], conditions, encoder.size, []), None, config.device))
    source = Source(few, conditions, encoder.size, [])
    passes = 1 + (wish is not None) + read * 2 / len(conditions)
    found = clock(lambda: embed(encoder, source, None, config.device), passes * often)
    with TemporaryDirectory() as folder:
        if read:
            text = BurntInText(Path(folder) / "text.json")
            clock.repeated([partial(text, item) for item in few[:_READ]], len(images))
        update = {"out": Path(folder), "resume": False, "seeds": 1, "skip_bad": True}
        update |= {"groups": [g for g in config.groups if g != "text"]}
        study = _stand_in(config.model_copy(update=update), encoder, images.items, source, found)
        larger = len(images) / len(study.source.items)
        fits = [partial(predict, study.plan, study.embeddings, AS_IS, config.probe)] * 2
        clock.repeated(fits, config.seeds * (1 + (wish is not None)) * larger)
        clock(lambda: score(study), larger)
        study = replace(
            study, columns={p.column: study.columns[p.column] for p in clock(partial(follow, study), larger)}
        )
        clock(lambda: draw_map(study), min(len(images), MAP) / min(len(study.source.items), MAP))
        each, taken = _explained(study, clock, clock(partial(subgroups, study), larger))
        if wish is not None:
            _pruned(study, wish, clock, larger)
    pixels = 3 * 4 * encoder.size**2 * len(conditions)
    kept = pixels * len(images) * (pixels * len(images) <= KEPT)
    vectors = 4 * study.original.shape[1] * len(images) * len(study.embeddings) * (1 + (wish is not None))
    memory = peak_memory() + kept + 2 * vectors + taken * (pixels + each)
    without = [f"--{name}" for name in ("discover", "ray") if getattr(config, name)]
    return Cost(clock.seconds, memory, vectors + taken * each, without)


def _stand_in(
    config: SimilarityConfig,
    encoder: Encoder,
    every: Sequence[Item],
    tried: Source,
    found: Mapping[str, np.ndarray],
) -> Study:
    """The study of up to 1,000 images, each with the representations of one that was tried, if possible of
    its class, and noise."""
    items, _ = usable([every[i] for i in some(np.arange(len(every)), _STAND_IN)], config)
    rng, labels = np.random.default_rng(config.seed), np.array([i.label for i in tried.items])
    alike = {c: np.flatnonzero(labels == c) for c in {i.label for i in items}}
    rows = [rng.choice(of if len(of := alike[i.label]) else len(labels)) for i in items]
    noise = rng.normal(0, 0.1, (len(items), next(iter(found.values())).shape[1]))
    embeddings = {
        Variant(condition=name): (x[rows] + x.std() * noise).astype(x.dtype) for name, x in found.items()
    }
    unit, plan = make_plan(items, config)
    columns, _ = columns_of(group_columns(items, config.groups, None), plan, unit, config)
    return Study(
        config=config,
        encoder=encoder,
        source=Source(items, tried.conditions, tried.size, []),
        plan=plan,
        unit=unit,
        columns=columns,
        embeddings=embeddings,
        found=predict(plan, embeddings, AS_IS, config.probe),
        workspace=Workspace(config),
        text=None,
        notes=(),
    )


def _explained(study: Study, clock: Clock, groups: list[Subgroup]) -> tuple[int, int]:
    """Explain with the factors of some images in place of all; bytes of the factors of an image, and of how
    many there are any."""
    explainer, size = explainer_of(study), study.encoder.size
    shown, sample = choose(study, [g for g in groups if g.falls])
    batch = min(at_a_time(study), len(sample))
    pasted = sum(c.logo_box(size) is not None for c in study.source.conditions.values())
    taken = len({*sample, *(n for _, i, j, _ in shown for n in (i, j))}) + STAMPED * pasted
    pictures = study.source.pick(sample[:batch], [ORIGINAL])[ORIGINAL]
    clock(lambda: explainer.factor(pictures[:1], 1, study.workspace.working("one")))
    factors = clock(
        lambda: explainer.factor(pictures, batch, study.workspace.working("some")), (taken - 1) / batch
    )
    rows = (np.arange(len(sample)) % batch).tolist()
    grids = [factors.grids[0]] * len(sample)
    all_of = Factors(factors.values[rows], factors.representations[rows], grids, checks=factors.checks)
    work = Work(study, explainer, study.config.patch(size), explainer.factor, sample, all_of)
    drawn = pictures[rows]
    clock(lambda: summarise(work, drawn))
    clock(lambda: locate(work))
    _flipped(work, drawn, clock)
    return factors.values[0].nbytes, taken


def _flipped(work: Work, drawn: Tensor, clock: Clock) -> None:
    """The faithfulness, on as few pairs as it needs; pairs are neighbours of one class."""
    labels = work.study.plan.labels[work.sample].tolist()
    count = Counter(labels)
    pairs = min(FLIPPED, len(labels) - len(count))
    if pairs < FAITHFUL_IMAGES:
        return
    order = sorted(range(len(labels)), key=lambda i: (-count[labels[i]], labels[i]))
    few = int(FAITHFUL_IMAGES)
    enough = (m for m in range(len(order)) if m - len({labels[i] for i in order[:m]}) == few)
    rows = order[: next(enough, len(order))]
    part = replace(work, sample=[work.sample[r] for r in rows], factors=work.factors.at(rows))
    clock(lambda: faithful(part, drawn[rows]), pairs / few)


def _pruned(study: Study, wish: Wish, clock: Clock, larger: float) -> None:
    """The comparison of all settings, each a pass over images."""
    config, encoder, source = study.config, study.encoder, study.source
    fit, held_out = split(study.plan, study.plan.fitted, encoder.size, config.seed)
    tried = 1 + len(settings(encoder, wish, source, sorted({*config.sweep, *([wish.k] if wish.k else [])})))
    images = source.pick(fit[:_ENCODED].tolist(), [ORIGINAL])[ORIGINAL]
    times = (larger * tried * (len(fit) + len(held_out) * len(source.conditions)) + 2 * RESPONSES) / len(
        images
    )
    clock.repeated([lambda: encoder.encode(images, device=config.device)] * 2, times)
