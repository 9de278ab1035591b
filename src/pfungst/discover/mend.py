"""From a proved finding to the edits that fit it, and what each costs; fitted on one half of the changed
images, measured on the other.

Pruning by response difference: Linhardt, Müller and Montavon 2024. SpuFix: Neuhaus et al. 2023, equation 9,
here along the contrast of ψ that the cluster has. Balanced refit of the readout: deep feature reweighting,
Kirichenko et al. 2023, with groups made by intervention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pfungst.discover.subjects import ClassSubject
from pfungst.measure import auroc
from pfungst.mitigate import LowPass, propose_cutoff
from pfungst.relevance import DCTBands
from pfungst.spurious.heads import LinearHead
from pfungst.spurious.spufix import fold

if TYPE_CHECKING:
    from pfungst.anomaly import Detector

_FEATURES = (1, 2, 5, 10, 20, 50)  # numbers of features that pruning tries
_DECAY = 1e-3  # weight of the distance from the old readout
_COST = 0.03  # recognised images that a setting may cost on the half it is chosen on


@dataclass(frozen=True)
class Pairs:
    """The same images with and without what a finding is.

    Attributes:
        own: (n, C, H, W) of the cluster. removed: (n, C, H, W) without it.
        bare: (t, n, C, H, W) images that are not of the subject. put: (t, n, C, H, W) the same with it.
        part: (n,) which of several probes answers for an image; by default one for all.
    """

    own: Tensor
    removed: Tensor
    bare: Tensor
    put: Tensor
    part: Tensor | None = None

    @classmethod
    def joined(cls, parts: Mapping[int, Pairs]) -> Pairs:
        """One after the other, by number of the probe."""
        own, removed, bare, put = (
            torch.cat([getattr(p, n) for p in parts.values()], -4) for n in ("own", "removed", "bare", "put")
        )
        part = [torch.full((len(p.own),), number) for number, p in parts.items()]
        return cls(own, removed, bare, put, torch.cat(part))


class _Rows(NamedTuple):
    """Features (n, D), and which probe answers for each (n,)."""

    phi: Tensor
    part: Tensor


@dataclass(frozen=True)
class Edit:
    """What an edit of the model brings and costs, on images that it was not fitted to.

    Attributes:
        name: of the edit, with its setting.
        turned: share of the other images that are taken for the subject with the finding put into them (of a
            detector: of the cluster's images that are flagged), before and after.
        right: share of images as they are that are answered rightly, the subject's and others' in equal parts
            (of a detector: AUROC of the test images), before and after.
        n: images that `turned` is measured on.
    """

    name: str
    turned: tuple[float, float]
    right: tuple[float, float]
    n: int

    @property
    def price(self) -> float:
        """What it costs of the right answers."""
        return self.right[0] - self.right[1]


def class_edits(
    subjects: Sequence[ClassSubject],
    pairs: Pairs,
    psi: np.ndarray | None,
    contrast: np.ndarray | None,
    bands: tuple[int, ...] = (),
    batch_size: int = 16,
) -> list[Edit]:
    """The edits of a classifier or probe that fit a finding, best first: what they turn back, less the price.

    Args:
        subjects: the class, by number of the probe (one model: one), all on the same features.
        pairs: of the finding, at least 4 images.
        psi: (D,) mean ψ of the class's images without the finding, where SpuFix starts; None for no SpuFix.
        contrast: (D,) mean ψ of the cluster less that of the class's other images.
        bands: of 8, that the finding consists of; a low-pass below the lowest is tried where there are any.
        batch_size: images at a time.
    """
    head, k = subjects[0].head, subjects[0].index
    part = torch.zeros(len(pairs.own), dtype=torch.long) if pairs.part is None else pairs.part
    half = {name: _halves(getattr(pairs, name)) for name in ("own", "removed", "bare", "put")}
    linears = [s.head.linear for s in subjects]

    def rows(x: Tensor, side: int) -> _Rows:
        with torch.no_grad():
            phi = torch.cat([head.features(p.to(head.device)).cpu() for p in x.split(batch_size)])
        own = part[side::2]
        return _Rows(phi, own.repeat(len(phi) // len(own)))

    def plain(f: _Rows) -> Tensor:
        each = torch.stack([linear.logits(f.phi).cpu() for linear in linears])
        return each[f.part, torch.arange(len(f.phi))]

    features = {name: (rows(first, 0), rows(second, 1)) for name, (first, second) in half.items()}

    def scored(logits: _Logits, side: int = 1) -> tuple[float, float]:
        said = {name: (logits(parts[side]).argmax(1) == k).float().mean() for name, parts in features.items()}
        return float(said["put"]), float((said["own"] + 1 - said["bare"]) / 2)

    def made(name: str, logits: _Logits) -> Edit:
        (a, b), (c, d) = scored(plain), scored(logits)
        return Edit(name, (a, c), (b, d), len(features["put"][1].phi))

    edits = [made("balanced refit of the readout", _refit(plain, k, features))]
    weight = torch.stack([linear.weight[k].cpu() for linear in linears]).mean(0)
    response = (features["put"][0].phi.mean(0) - features["bare"][0].phi.mean(0)) * weight
    least = scored(plain, 0)[1] - _COST
    tried = [(count, _pruned(plain, response.topk(min(count, len(response))).indices)) for count in _FEATURES]
    count, best = min(tried, key=lambda t: (scored(t[1], 0)[1] < least, scored(t[1], 0)[0], t[0]))
    edits.append(made(f"pruning of {count} penultimate features by response difference", best))
    if psi is not None and contrast is not None and np.linalg.norm(contrast) > 0:
        unit = torch.from_numpy(contrast / np.linalg.norm(contrast)).double()[None]
        edits.append(
            made(
                "SpuFix along what the cluster's features share",
                _spufixed(plain, linears, k, unit, torch.from_numpy(psi).double()),
            )
        )
    if bands and min(bands) > 0:
        edits += _low_pass(subjects, half, part[1::2], min(bands), scored(plain), batch_size)
    return sorted(edits, key=lambda e: e.turned[1] - e.turned[0] + max(e.price, 0.0))


_Logits = Callable[[_Rows], Tensor]


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Images with even and with odd number; of (t, n, …) the n are parted."""
    return x[..., ::2, :, :, :].flatten(0, -4), x[..., 1::2, :, :, :].flatten(0, -4)


def _pruned(plain: _Logits, gone: Tensor) -> _Logits:
    return lambda f: plain(f._replace(phi=f.phi.index_fill(1, gone, 0.0)))


def _spufixed(plain: _Logits, linears: Sequence[LinearHead], k: int, along: Tensor, start: Tensor) -> _Logits:
    folded = [(linear.temperature, *fold(linear, {k: along}, {k: start})[:2]) for linear in linears]

    def logits(f: _Rows) -> Tensor:
        z = plain(f).clone()
        each = [functional.linear(f.phi, w.to(f.phi) / t, b.to(f.phi) / t)[:, 0] for t, w, b in folded]
        z[:, k] -= torch.stack(each)[f.part, torch.arange(len(z))].clamp_min(0)
        return z

    return logits


def _refit(plain: _Logits, k: int, features: dict[str, tuple[_Rows, _Rows]]) -> _Logits:
    """The class's row fitted anew, the other rows as they are: logistic regression of the class against the
    rest on images with and without the finding, each of the four groups of equal weight."""
    groups = [features[name][0] for name in ("own", "removed", "bare", "put")]
    rows = _Rows(*(torch.cat(x) for x in zip(*groups, strict=True)))
    x = rows.phi.double()
    sizes = [len(g.phi) for g in groups]
    y = torch.cat([torch.full((n,), float(i < 2), dtype=torch.float64) for i, n in enumerate(sizes)])
    share = torch.cat([torch.full((n,), 0.25 / n, dtype=torch.float64) for n in sizes])
    logits = plain(rows).double()
    rest = torch.cat([logits[:, :k], logits[:, k + 1 :]], 1).logsumexp(1)
    scale = x.std(0).clamp_min(1e-6)
    change = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([change, shift], max_iter=200, line_search_fn="strong_wolfe")
    own = logits[:, k]

    def loss() -> Tensor:
        optimiser.zero_grad()
        odds = own + (x / scale) @ change + shift - rest
        found = (share * functional.binary_cross_entropy_with_logits(odds, y, reduction="none")).sum()
        found = found + _DECAY * (change**2).sum()
        found.backward()
        return found

    optimiser.step(loss)
    added, more = (change / scale).detach().float(), float(shift.detach())

    def fitted(f: _Rows) -> Tensor:
        z = plain(f).clone()
        z[:, k] += f.phi @ added + more
        return z

    return fitted


def _low_pass(
    subjects: Sequence[ClassSubject],
    half: dict[str, tuple[Tensor, Tensor]],
    part: Tensor,
    band: int,
    before: tuple[float, float],
    batch_size: int,
) -> Iterator[Edit]:
    size = half["own"][1].shape[-2:]
    layer = LowPass(int(DCTBands(count=8).resolve(*size)[band]))
    said = {}
    with torch.no_grad():
        for name in ("own", "bare", "put"):
            x = half[name][1]
            who = part.repeat(len(x) // len(part))
            seen = [
                subject.answer(0, layer(p.to(subject.device)))[1]
                for i, subject in enumerate(subjects)
                if (who == i).any()
                for p in x[who == i].split(batch_size)
            ]
            said[name] = float(torch.cat(seen).float().mean())
    after = said["put"], (said["own"] + 1 - said["bare"]) / 2
    yield Edit(
        f"low-pass of {layer.cutoff} coefficients in front",
        (before[0], after[0]),
        (before[1], after[1]),
        len(half["put"][1]),
    )


class Tone(torch.nn.Module):
    """Gives every image the mean and standard deviation of each channel, both (C, 1, 1)."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W), not clipped."""
        own, spread = x.mean((-2, -1), keepdim=True), x.std((-2, -1), keepdim=True).clamp_min(1e-3)
        return (x - own) / spread * self.get_buffer("std") + self.get_buffer("mean")

    @classmethod
    def of(cls, images: Tensor) -> Tone:
        """That of images (N, C, H, W) on the average."""
        return cls(images.mean((-2, -1), keepdim=True).mean(0), images.std((-2, -1), keepdim=True).mean(0))


def score_edits(
    fit: Callable[[torch.nn.Module | None, Tensor], Detector],
    train: Tensor,
    images: Tensor,
    labels: np.ndarray,
    cluster: np.ndarray,
    kind: str,
) -> list[Edit]:
    """The edits of a detector that fit a finding in normal images, best first.

    Args:
        fit: fits the detector, with a filter in front, to images.
        train: (N, C, H, W) normal training images. images: (T, C, H, W) test images.
        labels: (T,) 1 = defect. cluster: rows of the test images that have the finding.
        kind: of the finding; with "tone" images are brought to one tone.
    """
    given, asked = cluster[::2], cluster[1::2]
    left = np.setdiff1d(np.arange(len(labels)), given)
    filters: dict[str, tuple[torch.nn.Module | None, Tensor]] = {
        "refit with half of the cluster's images": (None, torch.cat([train, images[given]])),
    }
    if kind == "tone":
        filters["every image brought to the tone of the training images"] = (Tone.of(train), train)
    plain = fit(None, train)
    edges = DCTBands.paper()
    spectrum = plain.explain(train[:64], edges).values.cpu().numpy()
    if (spectrum > 0).any():  # training images may score nothing, each beside itself
        cut = propose_cutoff(spectrum, list(edges.resolve(*train.shape[-2:]))).cutoff
        filters[f"low-pass of {cut} coefficients in front"] = (LowPass(cut), train)

    def scored(detector: Detector) -> tuple[float, float]:
        scores = detector.anomaly_score(images).double().cpu().numpy()
        return float((scores[asked] > detector.threshold_).mean()), float(auroc(labels[left], scores[left]))

    before = scored(plain)
    after = {name: scored(fit(*how)) for name, how in filters.items()}
    edits = [
        Edit(name, (before[0], turned), (before[1], right), len(asked))
        for name, (turned, right) in after.items()
    ]
    return sorted(edits, key=lambda e: e.turned[1] - e.turned[0] + max(e.price, 0.0))
