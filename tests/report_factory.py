"""Makes realistic results of anomaly audits, small and large, for the tests of the report.

Parts are rendered (ring, capsule, plate, stripes, bristles) with a sensor's grain; the deployed image is
smoothed; scores and relevance are computed from the pictures as squared distances to the clean part.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from scipy.fft import dctn, idctn
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from pfungst.audit.anomaly.measure import DEPLOYED, MENDED, MENDED_ORIGINAL, ORIGINAL
from pfungst.audit.anomaly.result import (
    AnomalyResult,
    Answer,
    Entry,
    Example,
    Exposure,
    Faithfulness,
    Group,
    Provenance,
    Scored,
    Scores,
    Spectrum,
)
from pfungst.audit.result import About, Interval, Metric, Skipped, Variant, Verdict, save

PARTS = ("ring", "capsule", "plate", "stripes", "bristles")
EDGES = [
    0,
    3,
    18,
    70,
    189,
    410,
    770,
    1314,
    2089,
    3143,
    4529,
    6304,
    8526,
    11255,
    14554,
    18492,
    23133,
    28549,
    34812,
    41996,
    50176,
]
GRAIN = 0.055


def part(name: str, size: int, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """A clean part, (S, S, 3) float in [0, 1]."""
    s, (dx, dy) = size, shift
    y, x = np.mgrid[:s, :s].astype(np.float32)
    light = 0.86 + 0.14 * (x + y) / (2 * s)
    image = np.full((s, s, 3), 0.20, np.float32)
    centre = (int(s / 2 + dx), int(s / 2 + dy))
    if name == "ring":
        cv2.circle(image, centre, int(0.40 * s), (0.66, 0.68, 0.71), -1, cv2.LINE_AA)
        cv2.circle(image, centre, int(0.31 * s), (0.55, 0.57, 0.60), max(1, s // 110), cv2.LINE_AA)
        cv2.circle(image, centre, int(0.19 * s), (0.16, 0.17, 0.19), -1, cv2.LINE_AA)
    elif name == "capsule":
        a, b = (centre[0] - int(0.22 * s), centre[1]), (centre[0] + int(0.22 * s), centre[1])
        cv2.line(image, a, centre, (0.86, 0.84, 0.76), int(0.34 * s), cv2.LINE_AA)
        cv2.line(image, centre, b, (0.76, 0.30, 0.24), int(0.34 * s), cv2.LINE_AA)
        for k in range(5):
            left = centre[0] - int((0.15 - 0.025 * k) * s)
            cv2.line(
                image,
                (left, centre[1] - int(0.05 * s)),
                (left, centre[1] + int(0.05 * s)),
                (0.2, 0.2, 0.25),
                max(1, s // 90 - k % 2),
            )
    elif name == "plate":
        m = int(0.12 * s)
        cv2.rectangle(image, (m, m), (s - m, s - m), (0.62, 0.64, 0.63), -1)
        for cx in (0.27, 0.73):
            for cy in (0.27, 0.73):
                cv2.circle(
                    image,
                    (int(cx * s + dx), int(cy * s + dy)),
                    int(0.055 * s),
                    (0.12, 0.13, 0.14),
                    -1,
                    cv2.LINE_AA,
                )
    elif name == "stripes":
        wave = 0.5 + 0.12 * np.sin(x / s * 60 + 2 * np.sin(y / s * 5)) + 0.05 * np.sin(x / s * 23)
        image = np.stack([wave * 1.25, wave * 0.92, wave * 0.62], -1).astype(np.float32)
    else:
        rng = np.random.default_rng(4)
        for _ in range(60):
            cx = rng.uniform(0.15, 0.85) * s
            colour = [float(v) for v in rng.uniform(0.4, 0.8, 3)]
            cv2.line(image, (int(cx), int(0.85 * s)), (int(cx + rng.uniform(-9, 9)), int(0.2 * s)), colour, max(1, s // 70), cv2.LINE_AA)  # fmt: skip
    return np.clip(image * light[..., None], 0, 1)


def damage(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The part with a defect of this kind, and its mask."""
    s = len(image)
    mask = np.zeros((s, s), np.uint8)
    cx, cy = (int(v * s) for v in rng.uniform(0.3, 0.7, 2))
    if kind == "scratch":
        angle = rng.uniform(0, np.pi)
        d = np.array([np.cos(angle), np.sin(angle)]) * 0.16 * s
        cv2.line(mask, (int(cx - d[0]), int(cy - d[1])), (int(cx + d[0]), int(cy + d[1])), 1, max(2, s // 60))
        colour = 0.92
    elif kind == "stain":
        cv2.ellipse(mask, (cx, cy), (int(0.08 * s), int(0.05 * s)), rng.uniform(0, 180), 0, 360, 1, -1)
        colour = 0.30
    else:
        points = (np.array([cx, cy]) + rng.uniform(-0.09 * s, 0.09 * s, (7, 2))).astype(np.int32)
        cv2.fillPoly(mask, [cv2.convexHull(points)], 1)
        colour = 0.08
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)[..., None] * 0.7
    return image * (1 - soft) + colour * soft, mask


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _scores(variant: Variant, labels: np.ndarray, scores: np.ndarray, threshold: float, rng: np.random.Generator, mark: str = "", ch: float | None = None) -> Scores:  # fmt: skip
    def measure(y: np.ndarray, s: np.ndarray) -> tuple[float, ...]:
        flag = s > threshold
        tp, fn = (flag & (y == 1)).sum(), (~flag & (y == 1)).sum()
        fp, tn = (flag & (y == 0)).sum(), (~flag & (y == 0)).sum()
        tpr, fpr = tp / max(1, tp + fn), fp / max(1, fp + tn)
        positive = rankdata(s)[y == 1]  # what scikit-learn gives, of which a page needs thousands
        auroc = (positive.mean() - (len(positive) + 1) / 2) / (y == 0).sum()
        return (auroc, 2 * tp / max(1, 2 * tp + fp + fn), 2 * tpr / (1 + tpr + fpr), 1 - tpr, fpr, (1 + tpr - fpr) / 2)  # fmt: skip

    draws = []
    for _ in range(60):
        pick = rng.integers(0, len(labels), len(labels))
        if 0 < labels[pick].sum() < len(labels):
            draws.append(measure(labels[pick], scores[pick]))
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    names = ("auroc", "f1", "f1_balanced", "fnr", "fpr", "balanced_accuracy")
    values = measure(labels, scores)
    parts = {n: Interval(value=float(v), low=float(a), high=float(b)) for n, v, a, b in zip(names, values, low, high, strict=True)}  # fmt: skip
    return Scores(variant=variant, **parts, clever_hans=None if ch is None else Interval(value=ch), mark=mark)  # type: ignore[arg-type]


def _mark(scores: Scores, before: dict[Variant, Scores]) -> str:
    if scores.variant == DEPLOYED:
        fall = before[ORIGINAL].f1.value - scores.f1.value
        return "↓↓" if fall >= 0.06 else "↓" if fall >= 0.03 else ""
    if scores.variant == MENDED:
        return "↑" if scores.f1.value - before[DEPLOYED].f1.value >= 0.03 else ""
    return ""


def entry(folder: Path, category: str, model: str, *, size: int = 224, examples: int = 6, seed: int = 0, look: str = "ring", groups: bool = False, unfit: bool = False, names: str = "test/{kind}/{number:03d}.png") -> Entry:  # fmt: skip
    """One entry; writes its arrays into `folder`."""
    rng = np.random.default_rng(seed)
    kinds = {"scratch": 20, "stain": 16, "chip": 14}
    n_good, n_defect = 40, sum(kinds.values())
    labels = np.repeat([0, 1], [n_good, n_defect])
    kind = np.array(["good"] * n_good + [k for k, n in kinds.items() for _ in range(n)])
    signal = labels * rng.gamma(3.2, 42, len(labels))
    # Uneven grain, unrelated to defects, is what the original detector also scores.
    original = 620 + 34 * rng.standard_normal(len(labels)) + signal + labels * 60
    deployed = 560 + 24 * rng.standard_normal(len(labels)) + 0.8 * signal + labels * 50
    mitigated = 90 + 7 * rng.standard_normal(len(labels)) + 0.6 * signal + labels * 12
    group = None
    if groups:
        group = np.array([f"session {1 + i % 6}" for i in range(len(labels))])
        effect = np.array([130.0 * int(g.split()[1]) for g in group])
        original, deployed = 0.4 * original + effect, 0.4 * deployed + effect
        mitigated = 0.4 * mitigated + 0.8 * effect
    elif unfit:
        shuffled = rng.permutation(len(labels))
        original, deployed, mitigated = original[shuffled], deployed[shuffled], mitigated[shuffled]
    limit = float(np.percentile(original[labels == 0], 92))
    limit_m = float(np.percentile(mitigated[labels == 0], 92))
    ids = np.array([names.format(kind=k, number=i) for i, k in enumerate(kind)])

    defects = np.flatnonzero(labels)
    missed = [i for i in defects if original[i] > limit and deployed[i] <= limit]
    alarms = [i for i in np.flatnonzero(labels == 0) if original[i] > limit]
    rest = [i for i in defects if i not in missed]
    chosen = (missed[: examples - 2] + alarms[:1] + rest)[:examples]
    pictures: dict[str, list[np.ndarray]] = {k: [] for k in ("image", "image_deployed", "mask", "heat", "heat_mended", "joint")}  # fmt: skip
    y, x = np.mgrid[:size, :size]
    order = np.argsort(np.argsort((x + y).ravel() * 4.0 * size + x.ravel())).reshape(size, size)
    shown = []
    for row, i in enumerate(chosen):
        clean = part(look, size)
        true = part(look, size, tuple(rng.uniform(-1.4, 1.4, 2)))
        mask = np.zeros((size, size), np.uint8)
        if labels[i]:
            true, mask = damage(true, str(kind[i]), rng)
        image = np.clip(true + GRAIN * rng.standard_normal(true.shape), 0, 1)
        smooth = cv2.GaussianBlur(image, (0, 0), 0.9)
        delta = image - clean
        blurred = cv2.GaussianBlur(delta, (11, 11), 2.0)
        joint = []
        for a, b in ((0, 3), (3, 190), (190, size * size)):
            band = ((order >= a) & (order < b))[..., None]
            filtered = idctn(dctn(delta, axes=(0, 1), norm="ortho") * band, axes=(0, 1), norm="ortho")
            joint.append((delta * filtered).sum(-1))
        for key, value in zip(pictures, (_bytes(image), _bytes(smooth), mask, (delta**2).sum(-1), (blurred**2).sum(-1), np.stack(joint)), strict=True):  # fmt: skip
            pictures[key].append(value)
        bad, now = bool(labels[i]), bool(deployed[i] > limit)
        why = "missed after deployment" if bad and not now else "false alarm" if not bad else "highest score"
        shown.append(
            Example(
                id=str(ids[i]), row=row, label=str(kind[i]), defect=bad, why=why,
                groups={"session": str(group[i])} if group is not None else {},
                answers=[
                    Answer(variant=v, score=values[i], flagged=bool(values[i] > cut))
                    for v, values, cut in ((ORIGINAL, original, limit), (DEPLOYED, deployed, limit), (MENDED, mitigated, limit_m))
                ],
            )
        )  # fmt: skip
    arrays: dict[str, np.ndarray] = {
        "labels": labels,
        "kinds": kind,
        "ids": ids,
    }
    variants = {ORIGINAL: (original, limit), DEPLOYED: (deployed, limit), MENDED_ORIGINAL: (mitigated, limit_m), MENDED: (mitigated, limit_m)}  # fmt: skip
    for variant, (values, cut) in variants.items():
        arrays |= {f"scores_{variant.key}": values, f"threshold_{variant.key}": np.array(cut)}
    for key, values in pictures.items():
        arrays[key] = np.stack(values).astype(np.uint8 if values[0].dtype == np.uint8 else np.float16)
    provenance = []
    if group is not None:
        arrays["group_session"] = group
        total = ((original - original.mean()) ** 2).sum()
        between = lambda by: float(sum((by == v).sum() * (original[by == v].mean() - original.mean()) ** 2 for v in np.unique(by)) / total)  # fmt: skip
        rows = []
        for name in np.unique(group):
            at = group == name
            rows.append(Group(name=str(name), n_good=int((at & (labels == 0)).sum()), n_defect=int((at & (labels == 1)).sum()), mean_score=float(original[at].mean()), auroc=float(roc_auc_score(labels[at], original[at]))))  # fmt: skip
        provenance.append(Provenance(column="session", eta2_group=between(group), eta2_label=between(labels), auroc_pooled=float(roc_auc_score(labels, original)), auroc_within=float(np.mean([g.auroc for g in rows])), follows=True, groups=rows))  # fmt: skip
    file = f"arrays/{seed:04d}.npz"
    (folder / "arrays").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / file, **arrays)
    results: dict[Variant, Scores] = {}
    for variant, (values, cut) in variants.items():
        ch = {ORIGINAL: 0.61, DEPLOYED: 0.58}.get(variant, 0.34) + 0.05 * float(rng.standard_normal())
        scores = _scores(variant, labels, values, cut, rng, "", ch)
        results[variant] = scores.model_copy(update={"mark": _mark(scores, results)})
    bands = np.arange(20)
    spread = np.exp(-((bands - 3) ** 2) / 9) * 0.5 + 0.5 * np.exp((bands - 20) / 5)
    cut_off = np.exp(-((bands - 4) ** 2) / 8)
    return Entry(
        category=category, model=model, n_train=60, n_good=n_good, n_defect=n_defect, kinds=kinds, scores=list(results.values()),
        trivial_f1=2 * n_defect / (2 * n_defect + n_good), threshold=limit,
        spectrum=Spectrum(edges=EDGES, original=list(spread / spread.sum()), mitigated=list(cut_off / cut_off.sum()), kept=list(1 / (1 + np.exp((bands - 13.5) / 1.4)))),
        exposure=Exposure(high=0.71, outside_mask=0.83, lost_in_deployment=0.44),
        faithfulness=Faithfulness(value=0.23, low=0.18, high=0.27, images=16),
        provenance=provenance, examples=shown, arrays=file,
    )  # fmt: skip


def _mean(entries: list[Entry], index: int) -> Scores:
    def mean(name: str) -> Interval:
        found = [getattr(e.scores[index], name) for e in entries]
        ends = {end: float(np.mean([getattr(i, end) for i in found])) for end in ("low", "high") if found[0].low is not None}  # fmt: skip
        return Interval(value=float(np.mean([i.value for i in found])), **ends)

    names = ("auroc", "f1", "f1_balanced", "fnr", "fpr", "balanced_accuracy", "clever_hans")
    first = entries[0].scores[index]
    return Scores(variant=first.variant, **{n: mean(n) for n in names}, mark=first.mark)  # type: ignore[arg-type]


def make(folder: Path, *, categories: int = 3, models: int = 1, level: str = "clever-hans", examples: int = 4, size: int = 224, nasty: bool = False) -> AnomalyResult:  # fmt: skip
    """A whole result in `folder`, saved."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["D2Neighbors", "PatchCore", "KDE", "Deep one-class"][:models]
    if nasty:
        names[0] = "<script>alert('model')</script>"
    entries = []
    for c in range(categories):
        category = PARTS[c] if c < len(PARTS) else f"{PARTS[c % 5]} {1 + c // 5}"
        ids = "test/{kind}/{number:03d}.png"
        if nasty and c == 0:
            category = "<script>alert('category')</script> $x_1$ & 零件"
            ids = "test/{kind}/<script>alert(1)</script>" + "a-very-long-file-name_" * 8 + "{number}.png"
        for m, model in enumerate(names):
            entries.append(entry(folder, category, model, size=size, examples=examples, seed=100 * c + m, look=PARTS[c % 5], groups=level == "provenance" or nasty, unfit=level == "unfit", names=ids))  # fmt: skip
    mean = {
        m: Scored(scores=[_mean([e for e in entries if e.model == m], i) for i in range(4)]) for m in names
    }
    first = mean[names[0]]
    fnr = [f"{100 * s.fnr.value:.0f}\u202f%" for s in (first.original, first.deployed, first.mended) if s]
    headline, sentences = {
        "unfit": (
            f"The detector does not work on these data: AUROC {first.original.auroc.value:.2f}, where 0.90 is asked and 0.50 is chance.",
            ["No conclusion about its strategy is drawn from a detector that does not detect."],
        ),
        "provenance": (
            "The score follows the acquisition session, not the defect.",
            [f"The session explains {100 * entries[0].provenance[0].eta2_group:.0f}\u202f% of the score's variance, the defect {100 * entries[0].provenance[0].eta2_label:.0f}\u202f%." if entries[0].provenance else ""],
        ),
        "too-few": ("4 defective test images: too few to judge a detector", []),
        "sound": ("Nothing was found: the detector keeps its accuracy after deployment.", []),
        "fragile": (f"The detector loses accuracy in deployment (FNR {fnr[0]} → {fnr[1]}).", ["Its relevance lies on the defects."]),
    }.get(level, (
        f"The detector relies on frequencies that antialiasing removes: FNR {fnr[0]} → {fnr[1]} in deployment; blurred: {fnr[2]}.",
        [
            "44\u202f% of the relevance lies on energy that the deployed condition removes; 83\u202f% lies outside the marked defects.",
            f"F1 falls from {first.original.f1.value:.2f} to {first.deployed.f1.value:.2f}, worst for {entries[0].category}.",
            "An 11 × 11 Gaussian blur inside the detector, before fitting, recovers it.",
        ],
    ))  # fmt: skip
    about = About(entry=names[0], condition="deployed")
    if level == "provenance":
        about = About(entry=entries[0].name, column="session", condition="original")
    result = AnomalyResult(
        title="<script>alert('title')</script> parts" if nasty else "Synthetic parts",
        version="0.1.0", created="2026-03-04T09:12:44Z", seconds=83.4, machine="2 cores, 8 GB, CPU",
        config={"data": {"path": "parts", "category": [e.category for e in entries[:2]]}, "model": {"name": names[0], "p": 2, "perplexity": 0.25, "features": None}, "original": "opencv-nearest", "deployed": "pillow-bilinear", "mitigate": "blur", "size": size, "skip_bad": True},
        verdict=Verdict(level=level, headline=headline, sentences=sentences, about=about),  # type: ignore[arg-type]
        metrics={
            "f1-drop": Metric(value=max(e.fall for e in entries), where=entries[0].category, meaning="fall of F1 from original to deployed"),
            "clever-hans-score": Metric(value=0.64, where=entries[-1].category, meaning="AUROC minus agreement of relevance and mask"),
            "auroc": Metric(value=0.91, where=entries[-1].category, meaning="AUROC on original images", better="higher"),
        },
        skipped=[Skipped(id="test/good/<script>alert(2)</script>.jpg" if nasty else "test/good/017.jpg", reason="truncated file: 1,204 of 88,310 bytes")],
        notes=["Intervals are 95 % percentile bootstrap intervals over test images, 1,000 draws.", "Images were resized from 900 px."],
        original="opencv-nearest", deployed="pillow-bilinear", mitigation="blur 11 × 11, σ = 2", protocol="held-out",
        size=size, seeds=[0], entries=entries, mean=mean,
    )  # fmt: skip
    save(result, folder)
    return result
