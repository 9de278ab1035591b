"""Neural PCA feature visualisation: images that maximise a component, found by APGD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pfungst.errors import InputError
from pfungst.spurious.heads import FeatureHead
from pfungst.spurious.npca import NeuralPCA

NOTE = (
    "Feature visualisations can be read only on adversarially robust models; on others they look like noise."
)


@dataclass
class Ascent:
    """Result of :func:`apgd` for N starts.

    Attributes:
        images: (N, C, H, W) best points.
        values: (N,) objective there.
        trace: (N, steps + 1) objective of the background, then of each iterate.
    """

    images: Tensor
    values: Tensor
    trace: Tensor


def apgd(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    background: Tensor,
    radius: float,
    steps: int = 200,
) -> Ascent:
    """Adaptive projected gradient ascent in an l2 ball within [0, 1], each image with its own step size.

    Croce and Hein 2020, algorithm 1, as paper 003 uses it: first step 2 radius, momentum 0.75, checkpoints
    after 22 % of the steps, then every period shortened by 3 % down to 6 %; at a checkpoint the step is
    halved, and the best point taken up again, when at most 75 % of the period's steps rose or the best value
    has not moved since the last checkpoint that kept the step.

    Args:
        objective: (N, C, H, W) → (N,), each value from its own image only.
        start: (N, C, H, W) first points.
        background: centre of the ball, broadcastable to `start`.
        radius: of the ball.
        steps: iterations; each costs one forward and one backward pass.
    """
    background = background.expand_as(start)
    ones = (-1,) + (1,) * (start.ndim - 1)

    def project(y: Tensor) -> Tensor:
        delta = y - background
        norm = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        return (background + delta * (norm.clamp_max(radius) / norm).view(ones)).clamp(0, 1)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            value = objective(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    period = max(int(0.22 * steps), 1)
    shrink, shortest = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    eta = start.new_full((len(start),), 2 * radius)
    with torch.no_grad():
        first = objective(background)
    x = previous = start
    value, gradient = evaluate(x)
    best, best_value, best_gradient = x.clone(), value.clone(), gradient.clone()
    checked_value, halved = best_value.clone(), torch.ones(len(start), dtype=torch.bool, device=start.device)
    last, risen, since = torch.zeros_like(value), torch.zeros_like(value), 0
    trace = [first]
    for i in range(steps):
        a = 0.75 if i else 1.0
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        z = project(x + gradient * (eta / norm).view(ones))
        x, previous = project(x + a * (z - x) + (1 - a) * (x - previous)), x
        value, gradient = evaluate(x)
        better = value > best_value
        best = torch.where(better.view(ones), x, best)
        best_gradient = torch.where(better.view(ones), gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        risen += (value > last).to(value)  # the first step is compared with 0, as published
        last = value
        since += 1
        if since == period:
            stuck = ~halved & (checked_value >= best_value)
            halved = (risen <= 0.75 * period) | stuck
            eta = torch.where(halved, eta / 2, eta)
            x = torch.where(halved.view(ones), best, x)
            gradient = torch.where(halved.view(ones), best_gradient, gradient)
            value = torch.where(halved, best_value, value)
            checked_value = best_value
            risen, since = torch.zeros_like(risen), 0
            period = max(period - shrink, shortest)
        trace.append(value)
    return Ascent(best, best_value, torch.stack(trace, 1))


@dataclass
class Visualisation:
    """NPFV of components.

    Attributes:
        pairs: N (class, component).
        images: (N, C, H, W) in [0, 1].
        alpha: (N,) α of the component on its image.
        confidence: (N,) softmax probability of the class there.
        note: when these images can be read.
    """

    pairs: list[tuple[int, int]]
    images: Tensor
    alpha: Tensor
    confidence: Tensor
    note: str = NOTE

    def __getitem__(self, index: Sequence[int]) -> Visualisation:
        keep = list(index)
        return Visualisation(
            [self.pairs[i] for i in keep],
            self.images[keep],
            self.alpha[keep],
            self.confidence[keep],
            self.note,
        )


def visualise(
    npca: NeuralPCA,
    pairs: Sequence[tuple[int, int]],
    shape: tuple[int, int, int] = (3, 224, 224),
    *,
    radius: float | None = None,
    steps: int = 200,
    background: float = 0.5,
    batch_size: int = 32,
    seed: int = 0,
) -> Visualisation:
    """NPFV: argmax over z of ⟨1, v_l⟩ ⟨v_l, ψ_k(z)⟩ near grey (paper 003, section 4), batched over
    components.

    Args:
        npca: fitted, with its model attached.
        pairs: (class, component).
        shape: of the image.
        radius: of the l2 ball; by default 30 at 3 × 224 × 224, scaled with the root of the number of values.
        steps: APGD steps.
        background: grey value around which is searched.
        batch_size: components at a time.
        seed: of the random starts; a pair's start does not depend on the other pairs.
    """
    head = npca.model
    if head is None:
        raise InputError("no model is attached", "fit with a FeatureHead, or call attach(model)")
    size = shape[0] * shape[1] * shape[2]
    radius = 30.0 * (size / (3 * 224 * 224)) ** 0.5 if radius is None else radius
    like = head.module.weight
    grey = like.new_full((1, *shape), background)
    parts: list[Tensor] = []
    alphas: list[Tensor] = []
    confidences: list[Tensor] = []
    for begin in range(0, len(pairs), batch_size):
        chunk = list(pairs[begin : begin + batch_size])
        directions, offsets = _directions(npca, chunk)
        directions, offsets = directions.to(like), offsets.to(like)
        noise = torch.stack([_noise(shape, seed, k, component) for k, component in chunk]).to(like)
        start = (grey + radius * noise).clamp(0, 1)
        ascent = apgd(partial(_project, head, directions), start, grey, radius, steps)
        with torch.no_grad():
            phi, logits = head.features_and_logits(ascent.images)
        own = torch.tensor([k for k, _ in chunk], device=logits.device)
        parts.append(ascent.images.cpu())
        alphas.append(((phi * directions).sum(1) - offsets).cpu())
        confidences.append(logits.float().softmax(1).gather(1, own[:, None])[:, 0].cpu())
    return Visualisation(list(pairs), torch.cat(parts), torch.cat(alphas), torch.cat(confidences))


def select(
    npca: NeuralPCA, class_: int, n: int = 10, candidates: int = 128, **options: object
) -> Visualisation:
    """The components of a class to look at: of the `candidates` of highest variance, the n whose NPFV is most
    confident.

    Args:
        npca: fitted, with its model attached.
        class_: class index.
        n: how many to keep.
        candidates: how many to visualise.
        options: for :func:`visualise`.

    Returns:
        Their visualisations, most confident first.
    """
    known = len(npca.components_[npca._known(class_)])
    pairs = [(class_, component) for component in range(min(candidates, known))]
    shown = visualise(npca, pairs, **options)  # type: ignore[arg-type]
    return shown[shown.confidence.argsort(descending=True, stable=True)[:n].tolist()]


def _project(head: FeatureHead, directions: Tensor, x: Tensor) -> Tensor:
    return (head.features(x) * directions).sum(1)


def _directions(npca: NeuralPCA, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Rows d with α = ⟨d, φ⟩ − offset."""
    rows, offsets = [], []
    for k, component in pairs:
        v = npca.components_[npca._known(k, component)][component]
        rows.append(npca.head_.weight[k] / npca.head_.temperature * v * v.sum())
        offsets.append(npca.mean_[k] @ v * v.sum())
    return torch.stack(rows), torch.stack(offsets)


def _noise(shape: tuple[int, ...], *seed: int) -> Tensor:
    number = 0
    for part in seed:
        number = (number * 1_000_003 + part + 1) % 2**63
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(number))
    return noise / noise.norm()
