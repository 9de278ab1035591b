"""Pruning within a similarity audit: settings are compared on validation images, the best one is tested."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import BaseModel
from sklearn.model_selection import StratifiedGroupKFold

from pfungst import measure
from pfungst.audit.conditions import ORIGINAL
from pfungst.audit.mended import COMPARED, FOLDER, About, Probed, resolved, write_mended
from pfungst.audit.result import Variant
from pfungst.audit.similarity.embeddings import Source
from pfungst.audit.similarity.prepare import AS_IS, Study
from pfungst.audit.similarity.result import Mitigation, ProbeScores, Trial
from pfungst.encoders import Encoder
from pfungst.encoders.edits import resolve_layer
from pfungst.errors import ConfigError
from pfungst.features import combined
from pfungst.measure import limits
from pfungst.mitigate.pruning import Pruning, filter_responses, prunable_layers, region, sweep
from pfungst.probes import Plan, fit_probe

RESPONSES = 200  # training images that the responses of filters are measured on
_LAYERS = 6  # tried by auto, spread over the depth
_COMPARED = 1500  # images at most that settings are compared on, fewer where they are large
_BYTES = 1 << 29  # of these images
_FOLDS = 5  # one of which is for validation


@dataclass(frozen=True)
class Wish:
    """What ``--mitigate`` asks for; `layer` and `k` are None where the audit chooses.

    Attributes:
        layer: name of a module.
        k: number of filters.
        frame: the region where it is given in rows and columns of the feature map.
        pasted: only where the first condition pastes its logo.
    """

    layer: str | None
    k: int | None
    frame: Pruning
    pasted: bool = False

    @classmethod
    def parse(cls, text: str) -> Wish:
        """Read ``prune:LAYER|auto[:K|auto][:region][:rows=90-][:cols=-20]``.

        Raises:
            ConfigError: it cannot be read.
        """
        verb, _, rest = text.partition(":")
        layer, *options = rest.split(":")
        k = "auto" if layer == "auto" and (not options or not options[0].isdigit()) else ""
        if options and (options[0] == "auto" or not k):
            k = options.pop(0)
        pasted = "region" in options
        spans = [o for o in options if o != "region"]
        wrong = ConfigError(
            f"{text!r} says not what to prune",
            "write prune:LAYER:5, prune:LAYER:5:rows=90-112, prune:LAYER:auto:region or prune:auto",
        )
        if verb != "prune" or not layer:
            raise wrong
        try:
            frame = Pruning.parse(":".join([layer, "0" if k == "auto" else k, *spans]))
        except ConfigError:
            raise wrong from None
        return cls(None if layer == "auto" else layer, None if k == "auto" else frame.k, frame, pasted)


def settings(encoder: Encoder, wish: Wish, source: Source, ks: list[int]) -> list[Pruning]:
    """All that is tried: layers, numbers of filters and, where the audit may choose, places."""
    if wish.layer is None:
        every = prunable_layers(encoder, encoder.size)
        layers = [every[i] for i in sorted({round(x) for x in np.linspace(0, len(every) - 1, _LAYERS)})]
    else:
        layers = [resolve_layer(encoder, wish.layer)]
    condition = list(source.conditions.values())[1]
    box = condition.logo_box(encoder.size)
    given = wish.frame.rows is not None or wish.frame.cols is not None
    chosen = wish.layer is None or wish.k is None
    everywhere = not wish.pasted
    inside = box is not None and not given and (wish.pasted or chosen)
    sample = torch.zeros(1, encoder.mean.shape[1], encoder.size, encoder.size)
    found = []
    for layer in layers:
        places = [wish.frame] if everywhere else []
        size = filter_responses(encoder, sample, sample, [layer])[layer].size
        if inside and box is not None and size is not None:
            rows, cols = region(size, box, encoder.size)
            if (rows, cols) != ((None, None), (None, None)) or not everywhere:
                places.append(replace(wish.frame, rows=rows, cols=cols))
        found += [replace(place, layer=layer, k=k) for place, k in itertools.product(places, ks)]
    return found


class _Sweep(BaseModel):
    trials: list[Trial]
    chosen: int
    images: int
    spec: str


def mitigate(study: Study, wish: Wish) -> tuple[Mitigation, Study]:
    """The sweep, and the study with the variants of the pruned encoder.

    Filters respond to the first condition on training images. Settings are compared on a fifth of the
    training images (or of a sample of them), by a probe fitted on the rest: the mean of the class-balanced
    accuracies without and under the first condition decides. Test images decide nothing where the data name
    them; with folds the training images of the first fold are used.

    Raises:
        ConfigError, InputError: see :func:`settings` and :func:`pfungst.mitigate.prune`.
    """
    train = study.plan.fitted
    drawn = np.random.default_rng(study.config.seed).permutation(train)[:RESPONSES].tolist()
    names = list(study.source.conditions)
    pictures = study.source.pick(drawn, [ORIGINAL, names[1]])
    with_artefact, without = pictures[names[1]], pictures[ORIGINAL]
    part = f"sweep {combined(study.encoder.key(), study.source.state())}"
    done = study.workspace.load_part(part, _Sweep)
    if done is None:
        done = _compare(study, wish, with_artefact, without, train)
        study.workspace.save_part(part, done)
    pruned = Pruning.parse(done.spec).apply(study.encoder, with_artefact, without)
    mitigation = Mitigation.copied(done, filters=pruned.edits[-1]["filters"])
    study = study.with_mended(pruned)
    return mitigation, replace(study, notes=(*study.notes, _write(study, pruned, done.spec)))


def _write(study: Study, pruned: Encoder, spec: str) -> str:
    """Write the pruned encoder with its first probe; returns a note."""
    rows = np.unique(np.linspace(0, len(study.source.items) - 1, COMPARED).round().astype(int)).tolist()
    prepared = pruned.preprocessing
    embeddings = study.embeddings[Variant(condition=ORIGINAL, mitigated=True)]
    train = study.plan.rounds[0][0][0]
    probe = fit_probe(study.config.probe, embeddings[train], study.plan.labels[train]).attach(pruned)
    head = probe.head.cpu()
    about = About(
        kind="encoder",
        name=study.encoder.name,
        spec=resolved(study.config.encoder),
        condition=prepared.condition,
        audited=prepared.condition,
        size=pruned.size,
        mean=list(prepared.mean),
        std=list(prepared.std),
        outputs=["embedding", "logits"],
        classes=dict(enumerate(probe.classes)),
        mended=spec,
    )
    said = torch.from_numpy(embeddings[rows])
    images = study.source.pick(rows, [ORIGINAL])[ORIGINAL]
    items = [study.source.items[i] for i in rows]
    folder, device = study.workspace.folder / FOLDER, study.config.device
    with torch.no_grad():
        expected = [said, head(said)]
    probed = Probed(pruned, copy.deepcopy(head))
    # In memory there is nothing to build the encoder from: its traced program is all that is written.
    save = probed.save if pruned.architecture is not None else lambda place: place
    return write_mended(folder, about, save, images, expected, items, device=device, mended=probed)


def recovered(scores: list[ProbeScores]) -> dict[str, float | None]:
    """Per condition the share of the fall that came back; None where there was none."""
    pooled = {s.variant: s.accuracy.value for s in scores if not s.column}
    found: dict[str, float | None] = {}
    for variant, after in pooled.items():
        if variant.mitigated and variant.condition != ORIGINAL:
            under = pooled[Variant(condition=variant.condition)]
            fall = pooled[AS_IS] - under
            found[variant.condition] = (after - under) / fall if fall >= limits.FALL else None
    return found


def _compare(
    study: Study, wish: Wish, with_artefact: torch.Tensor, without: torch.Tensor, train: np.ndarray
) -> _Sweep:
    """All settings on held-out training images, and which one is taken."""
    config, plan, encoder = study.config, study.plan, study.encoder
    names = list(study.source.conditions)
    fit, held_out = split(plan, train, encoder.size, config.seed)
    fitted = study.source.pick(fit.tolist(), [ORIGINAL])[ORIGINAL]
    tested = study.source.pick(held_out.tolist())

    def evaluate(candidate: Encoder) -> dict[str, float]:
        x = candidate.encode(fitted, device=config.device).numpy()
        probe = fit_probe(config.probe, x, plan.labels[fit])
        said = {n: probe.predict(candidate.encode(t, device=config.device)) for n, t in tested.items()}
        scores = {n: float(measure.balanced_accuracy(plan.labels[held_out], s)) for n, s in said.items()}
        return {**scores, "mean": (scores[ORIGINAL] + scores[names[1]]) / 2}

    ks = sorted({*config.sweep, *([wish.k] if wish.k is not None else [])})
    done = sweep(encoder, with_artefact, without, evaluate, settings(encoder, wish, study.source, ks))
    rows = [r for r in done.rows[1:] if wish.k is None or r["k"] == wish.k]
    if not rows:
        raise ConfigError(f"no layer has {wish.k or min(ks)} filters to prune", "lower the number of filters")
    given = wish.layer is not None and wish.k is not None
    best = rows[0] if given else max(rows, key=lambda r: (r["mean"], -r["k"]))
    trials, chosen = [_trial(row, names) for row in done.rows], done.rows.index(best)
    return _Sweep(trials=trials, chosen=chosen, images=len(held_out), spec=best["setting"])


def split(plan: Plan, train: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images to fit on and to compare settings on, units kept together."""
    most = min(_COMPARED, max(200, _BYTES // (12 * size**2)))
    if len(train) > most:
        train = np.sort(np.random.default_rng(seed).choice(train, most, replace=False))
    labels, units = plan.labels[train], plan.units[train]
    least = min(len(set(units[labels == c].tolist())) for c in np.unique(labels))
    splitter = StratifiedGroupKFold(max(2, min(_FOLDS, least)), shuffle=True, random_state=seed)
    fit, held_out = next(iter(splitter.split(labels, labels, units)))
    return train[fit], train[held_out]


def _trial(row: dict[str, object], names: list[str]) -> Trial:
    setting = Pruning.parse(str(row["setting"])) if row["setting"] else None
    about = {"layer": setting.layer, "where": _where(setting)} if setting else {"layer": ""}
    known = {"k": row["k"], "share": row["share"], "accuracy": row[ORIGINAL]}
    return Trial.model_validate({**about, **known, "conditions": {n: row[n] for n in names[1:]}})


def _where(setting: Pruning) -> str:
    """The region of the feature map: "from row 11 to the bottom"; rows and columns count from 0."""
    spans = []
    for name, before, end, span in (
        ("row", "above", "bottom", setting.rows),
        ("column", "left of", "right", setting.cols),
    ):
        low, high = span or (None, None)
        if low is not None and high is not None:
            spans.append(f"{name}s {low} to {high - 1}")
        elif high is not None:
            spans.append(f"{before} {name} {high}")
        elif low is not None:
            spans.append(f"from {name} {low} to the {end}")
    return ", ".join(spans) or "everywhere"
