"""New images without labels against those of an audit: have scores, relevance or files shifted?

An audit keeps a reference beside the mended model, ``reference.npz``: what that model says of images of the
audit, where its relevance lies, and what their files tell. The same is read from the new images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pfungst import measure
from pfungst.audit.machine import circumstances
from pfungst.audit.mended import About, Mended, folders
from pfungst.audit.quantities import EXPLAINED, REFERENCE, RELEVANCE, quantities
from pfungst.audit.result import Interval, Metric, Model, Result, Skipped, Verdict, refuse_other, save
from pfungst.conditions import Condition
from pfungst.data import ImageSet, open_images
from pfungst.data.traits import PREFIX
from pfungst.data.window import Window
from pfungst.errors import ConfigError, DataError, few
from pfungst.files import read
from pfungst.measure import limits
from pfungst.measure.paired import Shift, shift
from pfungst.measure.proportions import share_difference, wilson, wilson_of

_BATCH = 32
_LEAST = 10  # new images
_KINDS: dict[Literal["file", "relevance"], str] = {"file": PREFIX, "relevance": RELEVANCE}


class Quantity(Model):
    """One quantity of the new images against the reference."""

    name: str
    kind: Literal["answer", "relevance", "file"]
    n: tuple[int, int] = Field(description="images of the reference, and new ones")
    before: float | None = Field(description="median; None of words")
    after: float | None
    distance: float = Field(description="Kolmogorov–Smirnov; of words total variation")
    p: float = Field(description="corrected for all quantities (Holm)")
    shifted: bool
    shares: dict[str, tuple[float, float]] = Field({}, description="of words: share before and after")


class WatchResult(Result):
    """What ``pfungst watch`` writes."""

    kind: Literal["watch"] = "watch"
    model: str
    mended: str
    reference: int = Field(description="images of the audit")
    n: int = Field(description="new images")
    abnormal: Interval | None = Field(None, description="share of new images above a detector's threshold")
    quantities: list[Quantity]

    @property
    def shifted(self) -> list[Quantity]:
        """Those that shifted, the furthest first."""
        return sorted((q for q in self.quantities if q.shifted), key=lambda q: -q.distance)


def watch(
    audit: Path,
    source: Path,
    out: Path | None = None,
    *,
    entry: str | None = None,
    device: str = "cpu",
    skip_bad: bool = False,
) -> WatchResult:
    """Hold new images against the reference of an audit; writes ``result.json`` into `out`.

    Args:
        audit: its folder. source: new images, whose labels are not read. entry: of several detectors one.
        device: where the model runs. skip_bad: leave unreadable images out.

    Raises:
        ConfigError: several entries and none named; `out` holds another result.
        DataError: the audit kept no reference, or there are too few new images.
        UnreadableImages: some cannot be decoded.
    """
    started = time.monotonic()
    refuse_other(out, "watch")
    found = folders(audit, entry)
    if len(found) > 1:
        names = [About.of(f).name for f in found]
        raise ConfigError(f"{audit} holds {len(found)} models", f"choose one with --entry: {few(names)}")
    model = Mended.load(found[0], device)
    if not (found[0] / REFERENCE).exists():
        raise DataError(f"{found[0]} holds no {REFERENCE}", "run the audit again")
    before = read(found[0] / REFERENCE, "run the audit again")
    images = _open(source, Window(*model.about.window or ()))
    about, condition = model.about, Condition.parse(model.about.condition)
    (prepared,) = images.prepare_many([condition], about.size, skip_bad=skip_bad, masks=False)
    if len(prepared.items) < _LEAST:
        raise DataError(f"{source} holds {len(prepared.items)} images", f"give at least {_LEAST}")
    x = prepared.images.to(next(model.parameters(), prepared.images).device)
    after = quantities(model, x, prepared.items)
    compared = _compared(before, after)
    if not any(q.kind == "answer" for q in compared):
        raise DataError(f"{found[0] / REFERENCE} holds nothing that this model says", "run the audit again")
    threshold = model.about.threshold
    share = None if threshold is None else wilson(after["score"] > threshold)
    asked = {"audit": str(audit), "images": str(source), "entry": entry, "out": str(out or "pfungst-watch")}
    result = WatchResult(
        title=f"{model.about.name} on {images.name}",
        **circumstances(asked, started),
        verdict=_verdict(compared),
        metrics={
            f"shift-{kind}": Metric.worst(per, "lower", "distance of the distributions, 0 to 1")
            for kind in ("answer", "relevance", "file")
            if (per := {q.name: q.distance for q in compared if q.kind == kind})
        },
        skipped=[Skipped(id=id_, reason=reason) for id_, reason in prepared.skipped],
        notes=[
            "numbers by the Kolmogorov–Smirnov test, words by a permutation test of the total variation "
            f"distance; shifted: {limits.SHIFTED:g} or more with p < {limits.P_SHIFT:g} after Holm",
            f"relevance of the first {EXPLAINED} images; of classifiers and encoders gradient × input",
            "the reference are images of the audit, of a detector the normal ones",
            *_silent(before, after),
        ],
        model=model.about.name,
        mended=model.about.mended,
        reference=max(len(v) for v in before.values()),
        n=len(prepared.items),
        abnormal=share,
        quantities=compared,
    )
    if out is not None:
        save(result, out)
    return result


def _open(source: Path, window: Window) -> ImageSet:
    sets = open_images(source, label_column=None, window=window)
    several = len(sets) > 1  # categories, which have images of the same names
    items = [replace(i, id=f"{s.name}/{i.id}") if several else i for s in sets for i in s.items]
    return ImageSet(Path(source).resolve().name, items)


def _compared(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> list[Quantity]:
    pairs = {n: (a, after[n]) for n, a in before.items() if n in after and len(a) and len(after[n])}
    names = [n for n, (a, b) in pairs.items() if _usable(a) and _usable(b)]
    found = {name: shift(*pairs[name]) for name in names}
    corrected = dict(zip(names, measure.holm([f.p for f in found.values()]), strict=True))
    return [_quantity(name, *pairs[name], found[name], corrected[name]) for name in found]


def _quantity(name: str, a: np.ndarray, b: np.ndarray, f: Shift, p: float) -> Quantity:
    known: dict[str, Any] = {"before": f.before, "after": f.after}
    if a.dtype.kind in "US":
        values = np.unique(np.concatenate([a, b])).tolist()
        shares = {v: (float((a == v).mean()), float((b == v).mean())) for v in values}
        known = {"before": None, "after": None, "shares": shares}
    return Quantity(
        name=name,
        kind=next((kind for kind, start in _KINDS.items() if name.startswith(start)), "answer"),
        n=(len(a), len(b)),
        distance=f.distance,
        p=p,
        shifted=f.distance >= limits.SHIFTED and p < limits.P_SHIFT,
        **known,
    )


def _silent(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> list[str]:
    """What one side alone tells, such as the format of files where the audit saw images in memory."""
    sides = (("the audit's images", set(before) - set(after)), ("the new images", set(after) - set(before)))
    return [f"not compared, as only {side} tell it: {few(sorted(names))}" for side, names in sides if names]


def _usable(values: np.ndarray) -> bool:
    return values.dtype.kind in "US" or bool(np.isfinite(values).any())


def _verdict(found: Sequence[Quantity]) -> Verdict:
    shifted = sorted((q for q in found if q.shifted), key=lambda q: -q.distance)
    if not shifted:
        return Verdict(level="sound", headline="Nothing that is watched has shifted since the audit")
    kinds = {q.kind for q in shifted}
    what = "What the model says has shifted" if "answer" in kinds else "The images have shifted"
    if kinds == {"relevance"}:
        what = "What the model looks at has shifted"
    told = [*map(_told, shifted[:4]), "Audit the model again on labelled images of this kind."]
    headline = f"{what}: {few((q.name for q in shifted), 3)}"
    return Verdict(level="fragile", headline=headline, sentences=told)


def _told(q: Quantity) -> str:
    if q.before is not None and q.after is not None:
        values = f"median {q.before:.4g} → {q.after:.4g}"
    else:
        name, (a, b) = max(q.shares.items(), key=lambda kv: abs(kv[1][1] - kv[1][0]))
        more = share_difference(wilson_of(b, q.n[1]), wilson_of(a, q.n[0]))
        values = f"{name!r} {a:.0%} → {b:.0%} ({more.low:+.0%} to {more.high:+.0%})"
    return f"{q.name}: {values} (distance {q.distance:.2f}, p = {q.p:.2g})"
