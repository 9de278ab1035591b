"""What parts the images of a class along a component: what an image has everywhere, and what is in one place.

A cast or a lack of focus cannot be pasted. It is measured away from the middle, where the object seldom is,
shown to part the images of a class, and then given to images of other classes. What is in one place can be
pasted; that some images of the class have it there and others do not, as other classes, is seen in the pixels
of that place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pfungst.measure import best_split
from pfungst.spurious.inpaint import gaussian

FEWEST = 40  # images of a class that can show two groups
_MIDDLE = 0.7  # of the sides, where the object is looked for
_BANDS = 4  # octaves, from the finest
_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
_HALVINGS = 5  # of the images, to find a direction on the one half and read the other
_STEEPEST = 4.0  # times that contrast, or a band, is raised at most
_SIDE = 32  # of the small pictures that places are looked for in
_CELLS = 32  # of them that a place has
_RIDGE = 0.05  # of the mean variance of pixels, added to each, as there are nearly as many of them as images


@dataclass(frozen=True)
class Look:
    """A property of whole images.

    Attributes:
        name: of it, as reports say it.
        of: which measurement shows it, "levels" or "energies" of :func:`measure`.
        change: images and a difference (D,) of two measurements → images with that much more of it.
    """

    name: str
    of: str
    change: Callable[[Tensor, np.ndarray], Tensor]


def measure(x: Tensor) -> dict[str, np.ndarray]:
    """What is outside the middle of images (N, C, H, W) in [0, 1], (N, D) float64 each: "levels", quantiles
    of each channel from the least to the greatest, and "energies", log amplitude of each octave band; and
    "pixels" of the whole images, (N, C · S²) of S by S, at most 32, by areas."""
    pixels = _small(x).flatten(1).double().cpu().numpy()
    return {"levels": _levels(x), "energies": _energies(x), "pixels": pixels}


def _small(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    return torch.nn.functional.adaptive_avg_pool2d(x.float(), (min(h, _SIDE), min(w, _SIDE)))


def at_place(pixels: np.ndarray, heat: Tensor) -> np.ndarray:
    """Of pixels (N, C · S²) of :func:`measure` those where a map (H, W) is strongest, (N, C · 32)."""
    small = _small(heat[None, None]).flatten().cpu().numpy()
    cells = np.argsort(-small, kind="stable")[:_CELLS]
    return pixels.reshape(len(pixels), -1, len(small))[:, :, cells].reshape(len(pixels), -1)


def _outside(x: Tensor) -> Tensor:
    """(H, W) boolean: not the middle."""
    h, w = x.shape[-2:]
    y, z = (abs((torch.arange(s, device=x.device) + 0.5) / s - 0.5) > _MIDDLE / 2 for s in (h, w))
    return y[:, None] | z[None, :]


def _levels(x: Tensor) -> np.ndarray:
    """(N, 5 C), channel by channel."""
    pixels = x[..., _outside(x)].float()
    pixels = pixels[..., :: max(1, pixels.shape[-1] // 4096)]
    at = torch.quantile(pixels, pixels.new_tensor(_QUANTILES), dim=-1)
    return at.permute(1, 2, 0).flatten(1).double().cpu().numpy()


def _cast(x: Tensor, change: np.ndarray) -> Tensor:
    """Each channel stretched so that its ends lie where the difference says."""
    by = torch.from_numpy(change).to(x).view(x.shape[1], -1)[:, [0, -1], None, None]
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    steep = ((high - low + by[:, 1] - by[:, 0]) / (high - low).clamp_min(1e-3)).clamp(0, _STEEPEST)
    return (low + by[:, 0] + (x - low) * steep).clamp(0, 1)


def _split(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Octave bands from the finest, and what is left: their sum is the image."""
    smooth = [x, *(gaussian(x, 0.6 * 2**i) for i in range(_BANDS))]
    return [a - b for a, b in pairwise(smooth)], smooth[-1]


def _energies(x: Tensor) -> np.ndarray:
    """(N, 4), of root mean squares over the channels and the corners, a sixth of the sides but 8 pixels."""
    h, w = (max(s // 6, min(8, s)) for s in x.shape[-2:])
    corners = torch.stack(
        [x[..., y, z] for y in (slice(h), slice(-h, None)) for z in (slice(w), slice(-w, None))]
    )
    bands = _split(corners.flatten(0, 1).float())[0]
    power = torch.stack([band.square().mean((1, 2, 3)).view(4, -1).mean(0) for band in bands], 1)
    return 0.5 * power.clamp_min(1e-7).log().double().cpu().numpy()


def _focus(x: Tensor, change: np.ndarray) -> Tensor:
    """Each band with its amplitude multiplied."""
    bands, rest = _split(x)
    gains = np.minimum(np.exp(change), _STEEPEST)
    return (rest + sum(float(g) * band for g, band in zip(gains, bands, strict=True))).clamp(0, 1)


def _grain(x: Tensor, change: np.ndarray) -> Tensor:
    """Noise added to each band whose amplitude is to rise."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(x.shape)).to(x)
    out = x
    for band, grain, by in zip(_split(x)[0], _split(noise)[0], change.tolist(), strict=True):
        size, own = (b.square().mean((-3, -2, -1), keepdim=True).sqrt() for b in (band, grain))
        out = out + grain * size * math.sqrt(max(math.exp(2 * by) - 1, 0.0)) / own.clamp_min(1e-6)
    return out.clamp(0, 1)


LOOKS = (
    Look("colours", "levels", _cast),
    Look("sharpness", "energies", _focus),
    Look("noise", "energies", _grain),
)


@dataclass(frozen=True)
class Parted:
    """How a look parts the images of a class.

    Attributes:
        value: in [0, 1], a product: how clearly it has two peaks in the class (:func:`two_peaks`); the share
            of the class's images in the upper group beyond that of other classes' images; its correlation
            with α, as a component that reads something else has no part in it; and how near the lower group
            is to other classes, in distances between the groups, as a look that all images of the class have
            may be the object.
        change: (D,) from the mean of the lower group to that of the upper.
    """

    value: float
    change: np.ndarray


def parted_at(own: np.ndarray, others: np.ndarray, alpha: np.ndarray, heat: Tensor) -> float:
    """:func:`parted` of what pixels (N, C · S²) of the two show where a map (H, W) is strongest.

    Near 1/2 where half of the images of a class have the same thing there, and others never. What varies in
    its place or its look from image to image is not found.
    """
    return parted(at_place(own, heat), at_place(others, heat), alpha, _RIDGE).value


def parted(own: np.ndarray, others: np.ndarray, alpha: np.ndarray, ridge: float = 1e-6) -> Parted:
    """How clearly a look parts the images of a class along α, and other classes hardly have it.

    The direction leads from the quarter of the images of lowest α to that of highest, in units of what other
    classes vary by (linear discriminant); each half of the images is measured along that of the other half,
    and the value is the median over several halvings. What the class varies by as others do, as natural
    colours do, has one peak, or others have it too.

    Args:
        own: (n, D) measured on images of the class; others: (m, D) on images of other classes.
        alpha: (n,) of the component.
        ridge: added to the variances of others, as a share of their mean.
    """
    spread = np.cov(others.T)
    spread += ridge * np.trace(spread) / len(spread) * np.eye(len(spread)) + 1e-12 * np.eye(len(spread))
    found = []
    for seed in range(_HALVINGS):
        first = np.random.default_rng(seed).permutation(len(own)) < len(own) / 2
        scores, reference = np.zeros(len(own)), []
        for rows in (first, ~first):
            order = np.argsort(alpha[rows], kind="stable")
            quarter = max(1, len(order) // 4)
            apart = own[rows][order[-quarter:]].mean(0) - own[rows][order[:quarter]].mean(0)
            along = np.linalg.solve(spread, apart)
            along /= max(np.sqrt(along @ spread @ along), 1e-12)
            scores[~rows] = (own[~rows] - others.mean(0)) @ along
            reference.append((others - others.mean(0)) @ along)
        threshold = best_split(scores).threshold
        upper = scores > threshold
        if not upper.any():
            return Parted(0.0, np.zeros(own.shape[1]))
        rest = np.concatenate(reference)
        beyond = float(upper.mean() - np.mean(rest > threshold))
        low, high = scores[~upper].mean(), scores[upper].mean()
        alike = 1 - abs(low - rest.mean()) / (high - low)
        change = own[upper].mean(0) - own[~upper].mean(0)
        agree = np.corrcoef(scores, alpha)[0, 1] if scores.std() * alpha.std() > 1e-12 else 0.0
        factors = np.clip([two_peaks(scores), beyond, agree, alike], 0, 1)
        found.append(Parted(float(factors.prod()), change))
    return sorted(found, key=lambda part: part.value)[_HALVINGS // 2]


def two_peaks(values: np.ndarray) -> float:
    """Least bandwidth at which a kernel estimate of values (n,) has one peak in their middle 95 %, in
    standard deviations (Silverman 1981), at most 1.

    Two bells at a distance of d of their standard deviations, as many in each, have √((d² − 4)/(d² + 4)); a
    sample from one has about 0.2 for n in the hundreds.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.std() < 1e-12:
        return 0.0
    x = (x - x.mean()) / x.std()
    first, last = np.percentile(x, [2.5, 97.5])
    at = np.linspace(first, last, 128)
    far = -0.5 * (at[:, None] - x) ** 2

    def one(h: float) -> bool:
        steps = np.sign(np.diff(np.exp(far / h**2).sum(1)))
        steps = steps[steps != 0]
        return bool((np.diff(steps) < 0).sum() + (steps[:1] < 0).sum() + (steps[-1:] > 0).sum() <= 1)

    low, high = 0.02, 1.0
    for _ in range(10):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if one(middle) else (middle, high)
    return high
