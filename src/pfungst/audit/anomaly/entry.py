"""One category and one detector: everything that the anomaly audit measures about them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from torch import Tensor, nn

from pfungst import measure
from pfungst.anomaly import Detector
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.examples import choose_examples, thumbnails
from pfungst.audit.anomaly.fitted import FittedDetectors
from pfungst.audit.anomaly.mitigation import fixed_filter
from pfungst.audit.anomaly.result import Entry, Group, Provenance, Scores, Spectrum
from pfungst.audit.result import Interval
from pfungst.audit.sources import group_columns
from pfungst.data import Prepared
from pfungst.mitigate import LowPass, propose_cutoff
from pfungst.relevance import DCTBands, PixelBands

RATES = {  # names of the result → names of `measure`
    "auroc": "auroc",
    "f1": "f1",
    "f1_balanced": "balanced_f1",
    "fnr": "fnr",
    "fpr": "fpr",
    "balanced_accuracy": "balanced_accuracy",
}
COMPARED_WITH = {"deployed": "original", "mitigated": "deployed", "mitigated_original": "original"}
_RESAMPLES = 300  # bootstrap resamples per seed
_FIT_SHARE = 0.8  # of the normal training images, drawn anew for every seed


class _Runs:
    """What the seeds gave for one variant; detector, scores and threshold of the first seed are kept."""

    def __init__(self) -> None:
        self.detector: Detector | None = None
        self.scores = np.zeros(0)
        self.threshold = math.nan
        self.intervals: list[dict[str, measure.Interval]] = []

    def values(self, rate: str) -> list[float]:
        return [found[RATES[rate]].value for found in self.intervals]

    def interval(self, rate: str) -> Interval:
        """Mean over the seeds of the value and of the bounds."""
        value, low, high = np.mean([found[RATES[rate]] for found in self.intervals], axis=0)
        return Interval(value=value, low=low, high=high)


def evaluate(
    model: str,
    original: Prepared,
    deployed: Prepared,
    config: AnomalyConfig,
    detectors: FittedDetectors,
) -> tuple[Entry, dict[str, np.ndarray]]:
    """Fit, score, explain and mend one detector on one category.

    Args:
        model: the detector, see :func:`pfungst.anomaly.detector_from_spec`.
        original: all images of the category under the original condition.
        deployed: the same images under the deployed condition.
        detectors: what earlier categories with the same training images were fitted on.

    Returns:
        The entry (its `arrays` still empty) and its arrays, see :class:`~pfungst.audit.result.Entry`.
    """
    is_train = (original.splits == "train") & (np.array(original.classes) == "good")
    is_test = original.splits == "test"
    train, test, shifted = original.images[is_train], original[is_test], deployed[is_test]
    labels = test.labels
    detectors.use([item for item, mine in zip(original.items, is_train, strict=True) if mine])

    runs = {"original": _Runs(), "deployed": _Runs()}
    _repeat(
        model,
        None,
        train,
        labels,
        {"original": test.images, "deployed": shifted.images},
        runs,
        config,
        detectors,
    )
    plain = runs["original"].detector
    assert plain is not None

    spectrum = plain.explain(test.images, DCTBands.paper())
    edges = list(DCTBands.paper().resolve(config.size, config.size))
    mitigation = _mitigation(config, plain, train, edges)
    mended: Detector | None = None
    if mitigation is not None:
        runs |= {"mitigated_original": _Runs(), "mitigated": _Runs()}
        tests = {"mitigated_original": test.images, "mitigated": shifted.images}
        _repeat(model, mitigation, train, labels, tests, runs, config, detectors)
        mended = runs["mitigated"].detector

    heat = {
        "original": plain.explain(test.images).values,
        "deployed": plain.explain(shifted.images).values,
    }
    if mended is not None:
        heat["mitigated_original"] = mended.explain(test.images).values
        heat["mitigated"] = mended.explain(shifted.images).values

    scores = _scores(runs, labels, heat, test)
    examples = choose_examples(test, runs, config.examples)
    rows = [e.row for e in examples]
    arrays: dict[str, np.ndarray] = {
        "labels": labels.astype(np.uint8),
        "kinds": np.array([kind or "" for kind in test.classes]),
        "ids": np.array(test.ids),
        **{f"scores_{name}": run.scores for name, run in runs.items()},
        **{f"threshold_{name}": np.array(run.threshold) for name, run in runs.items()},
        "image": thumbnails(test.images[rows]),
        "image_deployed": thumbnails(shifted.images[rows]),
        "heat": _half(heat["original"][rows]),
        "joint": _half(plain.explain(test.images[rows], PixelBands.coarse()).values),
    }
    if test.masks is not None:
        arrays["mask"] = test.masks[rows].numpy().astype(np.uint8) * 255
    if "mitigated" in heat:
        arrays["heat_mitigated"] = _half(heat["mitigated_original"][rows])
    for row, example in enumerate(examples):
        example.row = row

    provenance = []
    for column, values in group_columns(original.items, config.groups).items():
        values = values[is_test]
        if len(set(values.tolist())) < 2:
            continue
        arrays[f"group_{column}"] = values
        provenance.append(_provenance(column, labels, runs["original"].scores, values))

    share = _share(spectrum.values)
    kept = _kept_energy(train.mean(0), test.images, shifted.images)
    entry = Entry(
        category=test.name,
        model=model,
        n_train=len(train),
        n_good=int((labels == 0).sum()),
        n_defect=int((labels == 1).sum()),
        kinds=dict(Counter(kind or "" for kind, label in zip(test.classes, labels, strict=True) if label)),
        variants=scores,
        trivial_f1=measure.trivial_f1(labels),
        threshold=runs["original"].threshold,
        spectrum=Spectrum(
            edges=edges,
            original=share.tolist(),
            mitigated=_share(mended.explain(test.images, DCTBands.paper()).values).tolist()
            if mended
            else None,
            kept=kept.tolist(),
        ),
        exposure=_exposure(share, kept, edges, heat["original"], test),
        per_seed={name: {rate: run.values(rate) for rate in RATES} for name, run in runs.items()},
        provenance=provenance,
        examples=examples,
        arrays="",
        notes=_notes(test, labels),
    )
    return entry, arrays


def _repeat(
    model: str,
    mitigation: nn.Module | None,
    train: Tensor,
    labels: np.ndarray,
    tests: dict[str, Tensor],
    runs: dict[str, _Runs],
    config: AnomalyConfig,
    detectors: FittedDetectors,
) -> None:
    """Fit with every seed; score every test set with the same fitted detector and the same threshold.

    A mitigation is a fixed filter in front of the detector, so images are filtered once for all seeds; the
    detector that is kept and explained, that of the first seed, has the filter inside.
    """
    seen, seen_tests = train, tests
    if mitigation is not None:
        seen = _filtered(mitigation, train)
        seen_tests = {name: _filtered(mitigation, images) for name, images in tests.items()}
    for index in range(config.seeds):
        seed = config.seed + index
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train)))
        n_fit = len(train) if config.protocol == "published" else max(2, round(_FIT_SHARE * len(train)))
        first = index == 0
        detector = detectors.fitted(
            model, (train if first else seen)[order[:n_fit]], mitigation, inside=first, seed=seed
        )
        held_out = (train if first else seen)[order[n_fit:]]
        scores = {
            name: detector.anomaly_score(images).double().cpu().numpy()
            for name, images in (tests if first else seen_tests).items()
        }
        normal = [detector.training_scores_]
        if len(held_out):
            normal.append(detector.anomaly_score(held_out).double().cpu().numpy())
        threshold = measure.choose_threshold(
            config.protocol,
            labels=labels,
            scores=next(iter(scores.values())),
            normal_scores=np.concatenate(normal),
            quantile=config.quantile,
        )
        detector.threshold_ = threshold
        for name, values in scores.items():
            run = runs[name]
            if run.detector is None:
                run.detector, run.scores, run.threshold = detector, values, threshold
            found = measure.bootstrap_scores(
                labels, values, threshold, tuple(RATES.values()), _RESAMPLES, seed=seed
            )
            run.intervals.append(found)


def _filtered(mitigation: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([mitigation(part) for part in images.split(32)]).clone()


def _scores(
    runs: dict[str, _Runs], labels: np.ndarray, heat: dict[str, Tensor], test: Prepared
) -> dict[str, Scores]:
    masked = labels.astype(bool) & test.has_mask
    result = {}
    for name, run in runs.items():
        intervals = {rate: run.interval(rate) for rate in RATES}
        clever_hans = None
        if masked.any():
            assert test.masks is not None
            found = measure.clever_hans_score(
                labels, run.scores, heat[name].cpu().numpy(), test.masks.numpy()
            )
            clever_hans = Interval(value=found.value, low=found.low, high=found.high)
        mark, p_value = "", None
        if name in COMPARED_WITH:
            change = measure.degradation(runs[COMPARED_WITH[name]].values("f1"), run.values("f1"))
            mark, p_value = change.mark, change.p
        result[name] = Scores(**intervals, clever_hans=clever_hans, mark=mark, p_value=p_value)
    return result


def mean_scores(entries: list[Entry]) -> dict[str, dict[str, Scores]]:
    """Mean over categories for every detector and variant; tests are made on the seeds' means."""
    result: dict[str, dict[str, Scores]] = {}
    for model in dict.fromkeys(e.model for e in entries):
        mine = [e for e in entries if e.model == model]
        result[model] = {}
        for name in mine[0].variants:
            per_seed = {rate: np.mean([e.per_seed[name][rate] for e in mine], axis=0) for rate in RATES}
            means = {rate: Interval(value=float(np.mean(values))) for rate, values in per_seed.items()}
            if len(mine) == 1:
                means = {rate: getattr(mine[0].variants[name], rate) for rate in RATES}
            hans = [e.variants[name].clever_hans for e in mine]
            known = [h.value for h in hans if h is not None]
            clever_hans = (
                hans[0] if len(mine) == 1 else Interval(value=float(np.mean(known))) if known else None
            )
            mark, p_value = "", None
            if name in COMPARED_WITH:
                base = np.mean([e.per_seed[COMPARED_WITH[name]]["f1"] for e in mine], axis=0)
                change = measure.degradation(base, per_seed["f1"])
                mark, p_value = change.mark, change.p
            result[model][name] = Scores(**means, clever_hans=clever_hans, mark=mark, p_value=p_value)
    return result


def _mitigation(config: AnomalyConfig, plain: Detector, train: Tensor, edges: list[int]) -> nn.Module | None:
    """The filter to put in front; a low-pass without a number is proposed from normal images only."""
    fixed = fixed_filter(config.mitigate, config.size)
    if fixed is not None or config.mitigate == "none":
        return fixed
    return LowPass(propose_cutoff(plain.explain(train, DCTBands.paper()).values.cpu().numpy(), edges).cutoff)


def _share(values: Tensor) -> np.ndarray:
    """Share of the relevance in each band over all inputs; magnitudes, where bands can be negative."""
    total = values.double().abs().sum(0)
    return (total / total.sum().clamp_min(torch.finfo(torch.float64).tiny)).cpu().numpy()


def _kept_energy(mean: Tensor, original: Tensor, deployed: Tensor) -> np.ndarray:
    """Energy of the deviations from the mean training image, deployed over original, per band (B,)."""
    bands = DCTBands.paper()
    energy = []
    for images in (original, deployed):
        total = torch.zeros(bands.shape(tuple(mean.shape))[0], dtype=torch.float64)
        for part in (images - mean).split(16):
            total += bands.contract(part, part).sum(0).double()
        energy.append(total)
    return (energy[1] / energy[0].clamp_min(1e-12)).numpy()


def _exposure(
    share: np.ndarray, kept: np.ndarray, edges: list[int], heat: Tensor, test: Prepared
) -> dict[str, float]:
    high = sum(s for s, lo in zip(share, edges[:-1], strict=True) if lo >= 190)
    lost = float(np.sum(share * (1 - np.clip(kept, 0, 1))))
    exposure = {"high": float(high), "lost_in_deployment": lost}
    masked = test.labels.astype(bool) & test.has_mask
    if masked.any() and test.masks is not None:
        outside = measure.share_outside(heat[masked].cpu().numpy(), test.masks[masked].numpy())
        exposure["outside_mask"] = float(np.nanmean(outside))
    return exposure


def _provenance(column: str, labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> Provenance:
    found = measure.provenance(scores, labels, groups)
    return Provenance(
        column=column,
        eta2_group=found.eta2_group,
        eta2_label=found.eta2_label,
        auroc_pooled=found.auroc_pooled,
        auroc_within=found.auroc_within,
        follows=found.follows_group,
        reasons=list(found.reasons),
        groups=[
            Group(
                name=str(g.group) or "(none)",
                n_good=g.normal,
                n_defect=g.abnormal,
                mean_score=g.mean,
                auroc=g.auroc,
            )
            for g in found.groups
        ],
    )


def _notes(test: Prepared, labels: np.ndarray) -> list[str]:
    without = int((labels.astype(bool) & ~test.has_mask).sum())
    if without == 0:
        return []
    return [f"{without} defective test images have no mask; the Clever Hans score leaves them out"]


def _half(values: Tensor) -> np.ndarray:
    """float16 on a scale that fits: heatmaps are drawn relative to their own size."""
    array = values.detach().float().cpu().numpy()
    largest = np.abs(array).max(initial=0.0)
    return (array / largest if largest > 6e4 else array).astype(np.float16)
