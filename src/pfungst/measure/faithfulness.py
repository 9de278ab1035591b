"""Whether an explanation is one: patches replaced in its order must change the score as it says.

Pixel flipping (Samek et al. 2017) in patches: the curve of the score while patches are replaced, most
relevant first, should fall faster than in random order, and least relevant first slower. Higher relevance
means a higher score throughout, whatever the score is: a logit, an anomaly score (high = abnormal), the dot
product with a fixed partner. The explanation of a *low* anomaly score or of the distance of a pair wants the
score negated.

Insertion and deletion (Petsiuk et al. 2018) are the same curves: deletion is most relevant first, and the
image that holds the k most relevant patches only is the one from which all others were replaced, least
relevant first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.errors import InputError
from pfungst.measure.intervals import Interval, bootstrap
from pfungst.measure.limits import FAITHFUL_IMAGES
from pfungst.measure.scores import Array

Score = Callable[[Tensor], Tensor]
Fill = Literal["inpaint", "blur", "mean"]


@dataclass(frozen=True)
class Faithfulness:
    """How much better than a random order of patches a map is: 0 is random, below worse, 1 out of reach.

    Attributes:
        value, low, high: half the area between the curves least and most relevant first, as a share of the
            range of the score under random orders, means over images; 95 % paired bootstrap over images.
        most, least: its two halves, random − most relevant first and least relevant first − random, in the
            same unit.
        deletion, insertion, random: mean areas under the curves, in units of the score.
        curves: (3, K + 1) mean scores most relevant first, least relevant first, in random order.
        replaced: (K + 1,) share of the patches that is replaced at each point.
        gaps, ranges: (N,) per image, in units of the score; ``value == gaps.mean() / ranges.mean()``.
        fill: what patches were replaced by; "given" where images were.
    """

    value: float
    low: float
    high: float
    most: Interval
    least: Interval
    deletion: float
    insertion: float
    random: float
    curves: Array
    replaced: Array
    gaps: Array
    ranges: Array
    fill: Fill | Literal["given"]

    @property
    def beats_random(self) -> bool:
        """Whether the whole interval lies above what a random order has."""
        return self.low > 0

    def over(self, other: Faithfulness, seed: int = 0) -> Interval:
        """By how much this map is better than another of the same images, by paired bootstrap.

        Raises:
            InputError: they were not measured on the same images by the same :class:`Flipping`.
        """
        if not np.array_equal(self.ranges, other.ranges):
            raise InputError("the two maps were not measured together", "use one Flipping for both")
        return _relative(self.gaps - other.gaps, self.ranges, seed)

    def __str__(self) -> str:
        numbers = f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"
        if self.beats_random:
            return f"faithfulness {numbers}: beats a random order"
        if self.high < 0:
            return f"faithfulness {numbers}: worse than a random order, as if its sign were wrong"
        return f"faithfulness {numbers}: does not beat a random order"


class Flipping:
    """Replaces patches of images; all maps are compared with the same random orders and replacement.

    Args:
        score: images (B, C, H, W) → (B,), larger where relevance says more; with `target` → (B, K).
        images: (N, C, H, W), finite; at least 6, 12 to 24 are enough for a clear answer.
        target: (N,) which of the K scores each image is explained for: its class, or its number where score
            gives the products with all N partners.
        patch: side of the patches in pixels; those at the right and bottom may be smaller. At most 64 patches
            keep it cheap.
        fill: inpaint (smooth continuation of what is left; the image's mean where nothing is), blur
            (Gaussian, σ = half the patch), mean (of the image, per channel), or images (N, C, H, W) whose
            patches take the place: for an anomaly score normal ones, as to it whatever is painted over is
            abnormal.
        steps: points of a curve after the first.
        orders: random orders per image.
        batch_size: images scored at once.
        seed: of the random orders, of ties and of the bootstrap.

    Raises:
        InputError: wrong shapes, too few images, a score that is not finite or that no replacement changes.
    """

    def __init__(
        self,
        score: Score,
        images: Tensor,
        *,
        patch: int,
        target: Tensor | None = None,
        fill: Fill | Tensor = "inpaint",
        steps: int = 16,
        orders: int = 4,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if images.ndim != 4 or not bool(torch.isfinite(images).all()):
            raise InputError(f"images {tuple(images.shape)} are not finite (N, C, H, W)", "pass such a batch")
        if len(images) < FAITHFUL_IMAGES:
            raise InputError(
                f"{len(images)} images are too few to say whether a map beats a random order",
                f"pass at least {FAITHFUL_IMAGES:.0f}, better 12 to 24",
            )
        given = fill if isinstance(fill, Tensor) else None
        name: Fill | Literal["given"] = "given" if isinstance(fill, Tensor) else fill
        if given is not None and (given.shape != images.shape or not bool(torch.isfinite(given).all())):
            raise InputError(
                f"images {tuple(given.shape)} to replace patches of {tuple(images.shape)}",
                "pass a finite one for each",
            )
        if given is None and name not in get_args(Fill):
            raise InputError(f"unknown replacement {fill!r}", f"choose one of {', '.join(get_args(Fill))}")
        height, width = images.shape[2:]
        rows, columns = math.ceil(height / max(patch, 1)), math.ceil(width / max(patch, 1))
        if patch < 1 or rows * columns < 4 or steps < 2 or orders < 1:
            raise InputError(
                f"patch={patch} on {height} × {width} px, steps={steps}, orders={orders}",
                "take patches that make at least 4, at least 2 steps and 1 order",
            )
        self.score, self.target, self.images = score, target, images
        self.fill, self.batch_size, self.seed = name, batch_size, seed
        self.patches = rows * columns
        at = torch.arange(height)[:, None] // patch * columns + torch.arange(width) // patch
        self.index = at.to(images.device)
        steps = min(steps, self.patches)
        self.counts = [round(self.patches * k / steps) for k in range(steps + 1)]
        self.replaced = np.array(self.counts) / self.patches
        self.mean = images.mean((2, 3), keepdim=True)
        self.reference = self.mean.expand_as(images) if given is None else given.to(images)
        if name == "blur":
            self.reference = _blurred(images, patch / 2)
        self._ends: tuple[Array, Array] | None = None
        rng = np.random.default_rng(seed)
        drawn = rng.random((orders, len(images), self.patches)).argsort(-1)
        curves = np.stack([self._curve(order) for order in drawn])
        self.random: Array = curves.mean(0)
        self.ranges: Array = np.ptp(curves, axis=(0, 2))
        if not self.ranges.any():
            raise InputError(
                "replacing patches never changes the score", "check that it depends on the images, and fill="
            )

    def of(self, maps: Tensor | Array) -> Faithfulness:
        """How faithful maps (N, H, W) of the images are; equal patches are ordered at random.

        Raises:
            InputError: other shapes, or maps that are not finite.
        """
        values = _maps(maps)
        if values.shape != (len(self.images), *self.images.shape[2:]):
            raise InputError(
                f"maps {values.shape} for images {tuple(self.images.shape)}", "pass one (H, W) for each image"
            )
        flat, index = values.reshape(len(values), -1), self.index.cpu().numpy().ravel()
        sums = np.stack([np.bincount(index, weights=row, minlength=self.patches) for row in flat])
        ties = np.random.default_rng([self.seed, 1]).random(sums.shape)
        order = np.lexsort((ties, -sums))
        most, least = self._curve(order), self._curve(order[:, ::-1])
        areas = {k: self._area(c) for k, c in {"most": most, "least": least, "random": self.random}.items()}
        gaps = (areas["least"] - areas["most"]) / 2
        return Faithfulness(
            *_relative(gaps, self.ranges, self.seed),
            most=_relative((areas["random"] - areas["most"]) / 2, self.ranges, self.seed),
            least=_relative((areas["least"] - areas["random"]) / 2, self.ranges, self.seed),
            deletion=float(areas["most"].mean()),
            insertion=float(areas["least"].mean()),
            random=float(areas["random"].mean()),
            curves=np.stack([most.mean(0), least.mean(0), self.random.mean(0)]),
            replaced=self.replaced,
            gaps=gaps,
            ranges=self.ranges,
            fill=self.fill,
        )

    def _area(self, curves: Array) -> Array:
        return (curves[:, 1:] + curves[:, :-1]) @ np.diff(self.replaced) / 2  # trapezoids

    def _curve(self, order: NDArray[np.intp]) -> Array:
        """Scores (N, K + 1) while patches are replaced in this order (N, P)."""
        rank = torch.from_numpy(np.argsort(order, 1)).to(self.images.device)
        inner = self.counts if self._ends is None else self.counts[1:-1]
        n = len(self.images)
        found = []
        with torch.no_grad():
            for start in range(0, n * len(inner), self.batch_size):
                job = torch.arange(start, min(start + self.batch_size, n * len(inner)), device=rank.device)
                rows, count = job % n, torch.tensor(inner, device=rank.device)[job // n]
                gone = (rank[rows] < count[:, None])[:, self.index]  # (B, H, W)
                found.append(self._scored(self._replace(rows, gone[:, None]), rows))
        curve = np.concatenate(found).reshape(len(inner), n).T
        if self._ends is None:
            self._ends = curve[:, 0], curve[:, -1]
            return curve
        return np.column_stack([self._ends[0], curve, self._ends[1]])

    def _replace(self, rows: Tensor, gone: Tensor) -> Tensor:
        x = self.images[rows]
        other = _inpainted(x, gone, self.mean[rows]) if self.fill == "inpaint" else self.reference[rows]
        return torch.where(gone, other, x)

    def _scored(self, x: Tensor, rows: Tensor) -> Array:
        out = _picked(
            self.score(x), None if self.target is None else self.target[rows.to(self.target.device)]
        )
        if not bool(torch.isfinite(out).all()):
            raise InputError("the score is NaN or infinite", "check the model, or use float32")
        return out.double().cpu().numpy()


def faithfulness(
    score: Score, images: Tensor, maps: Tensor | Array, *, patch: int, **options: object
) -> Faithfulness:
    """Whether maps of a score beat a random order of patches: one number with its interval.

    Args:
        score: images (B, C, H, W) → (B,), or → (B, K) with `target` (N,), see :class:`Flipping`.
        images: (N, C, H, W). maps: (N, H, W), higher = speaks for a higher score.
        patch: side of a patch in pixels. options: those of :class:`Flipping`, which several maps of the same
            images share.

    Raises:
        InputError: see :class:`Flipping`.
    """
    return Flipping(score, images, patch=patch, **options).of(maps)  # type: ignore[arg-type]


def _picked(out: Tensor, target: Tensor | None) -> Tensor:
    """(B,) of a score's output."""
    wanted = "(B,)" if target is None else "(B, K)"
    if out.ndim != (1 if target is None else 2) or (target is not None and len(target) != len(out)):
        raise InputError(
            f"the score is {tuple(out.shape)}, not {wanted}",
            "return one number per image, or scores (B, K) with target= saying which is meant",
        )
    return out if target is None else out.gather(1, target.to(out.device)[:, None])[:, 0]


def _relative(gaps: Array, ranges: Array, seed: int) -> Interval:
    def ratio(w: Array) -> Array:
        with np.errstate(invalid="ignore"):  # all drawn images may be ones whose score nothing changes
            return (w @ gaps) / (w @ ranges)

    return bootstrap(ratio, np.zeros(len(gaps)), resamples=2000, seed=seed)


def _maps(maps: Tensor | Array) -> Array:
    values = maps.detach().cpu().numpy() if isinstance(maps, Tensor) else np.asarray(maps)
    if values.ndim != 3 or not np.isfinite(values).all():
        raise InputError(f"maps {values.shape} are not finite (N, H, W)", "sum relevance over channels first")
    return values.astype(np.float64)


# --- replacements ------------------------------------------------------------------------------------------


def _blurred(x: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(
        -(torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * sigma**2)
    )
    kernel = kernel / kernel.sum()
    for dim in (2, 3):
        shape = [1, 1, 1, 1]
        shape[dim] = len(kernel)
        pad = [0, 0, reach, reach] if dim == 2 else [reach, reach, 0, 0]
        rows = x.reshape(-1, 1, *x.shape[2:])
        x = F.conv2d(F.pad(rows, pad, mode="replicate"), kernel.view(shape)).view_as(x)
    return x


def _inpainted(x: Tensor, gone: Tensor, bottom: Tensor) -> Tensor:
    """The images continued into what is gone, by a pyramid of means of what is left (Gortler et al. 1996)."""
    if x.shape[-2:] == (1, 1):
        return torch.where(gone, bottom, x)
    known = (~gone).to(x)
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(x * known, 2, ceil_mode=True) / weight.clamp_min(1e-6)
    coarse = _inpainted(coarse, weight == 0, bottom)
    up = F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(gone, up, x)


# --- maps to compare with ----------------------------------------------------------------------------------


def random_maps(images: Tensor, seed: int = 0) -> Tensor:
    """Maps (N, H, W) that know nothing: uniform noise."""
    n, _, height, width = images.shape
    return torch.rand(n, height, width, generator=torch.Generator().manual_seed(seed))


def gradient_times_input(
    score: Score, images: Tensor, target: Tensor | None = None, baseline: Tensor | float = 0.0
) -> Tensor:
    """∇score · (x − baseline), summed over channels: (N, H, W). Score and target as in :class:`Flipping`."""
    return ((images - baseline) * _gradient(score, images, target)).sum(1)


def integrated_gradients(
    score: Score,
    images: Tensor,
    target: Tensor | None = None,
    baseline: Tensor | float = 0.0,
    steps: int = 32,
) -> Tensor:
    """Mean gradient on the way from the baseline, times (x − baseline), by the midpoint rule: (N, H, W).

    Its sum is score(x) − score(baseline) up to the error of the rule (Sundararajan, Taly and Yan 2017).
    """
    way = images - baseline
    total = torch.zeros_like(images)
    for k in range(steps):
        total += _gradient(score, images - way * (1 - (k + 0.5) / steps), target)
    return (way * total / steps).sum(1)


def _gradient(score: Score, x: Tensor, target: Tensor | None) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():  # clones: what inference mode made has no gradient
        leaf = x.detach().clone().requires_grad_()
        where = None if target is None else target.clone()
        return torch.autograd.grad(_picked(score(leaf), where).sum(), leaf)[0]


# --- weight randomisation ----------------------------------------------------------------------------------


def randomised(model: nn.Module, layer: str | None = None, seed: int = 0) -> nn.Module:
    """A copy whose weights say nothing: each parameter tensor in random order, its scale kept.

    Args:
        layer: only the parameters below this module; all by default.
    """
    other = copy.deepcopy(model)
    try:
        inside = other if layer is None else other.get_submodule(layer)
    except AttributeError:
        raise InputError(f"the model has no layer {layer!r}", "name one of its modules") from None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in inside.parameters():
            p.copy_(p.flatten()[torch.randperm(p.numel(), generator=generator).to(p.device)].view_as(p))
    return other


def weight_randomisation(
    explain: Callable[[nn.Module], Tensor | Array],
    model: nn.Module,
    layers: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Interval]:
    """How alike maps stay when weights lose their meaning (Adebayo et al. 2018): |ρ|, Spearman's correlation.

    A map that explains a model must change with it; from ``limits.SAME_MAP`` on it is rather one of the
    image. Up to sign, as random weights turn the sign of the score: a map that only turns with it has kept
    its shape.

    Args:
        explain: a model → maps (N, H, W) of the same images and outputs.
        model: not changed.
        layers: modules that are also randomised alone.

    Returns:
        "all" and each layer: mean over images of |ρ| with the maps of the model as it is, with 95 % bootstrap
        interval. A map that became constant has 0.

    Raises:
        InputError: an unknown layer; constant or not finite maps of the model as it is.
    """
    before = _maps(explain(model))
    if (np.ptp(before, axis=(1, 2)) == 0).any():
        raise InputError("a map is constant", "leave out images without an explanation")
    found = {}
    for layer in (None, *layers):
        after = _maps(explain(randomised(model, layer, seed)))
        rho = np.array([_rank_correlation(a, b) for a, b in zip(before, after, strict=True)])
        found[layer or "all"] = bootstrap(lambda w, r=rho: (w @ r) / w.sum(1), np.zeros(len(rho)), seed=seed)  # type: ignore[misc]
    return found


def _rank_correlation(a: Array, b: Array) -> float:
    from scipy.stats import rankdata  # takes a third as long as torch

    ra, rb = (rankdata(v.ravel()) for v in (a, b))
    ra, rb = ra - ra.mean(), rb - rb.mean()
    norm = math.sqrt((ra @ ra) * (rb @ rb))
    return abs(float(ra @ rb / norm)) if norm > 0 else 0.0
