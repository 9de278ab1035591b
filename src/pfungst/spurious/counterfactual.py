"""Diffusion counterfactuals: put a spurious feature into an image and see the prediction change (paper 003,
appendix H)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.spurious.heads import FeatureHead
from pfungst.spurious.npca import NeuralPCA

PREDICTIONS = ("epsilon", "sample", "v_prediction")
Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Diffusion:
    """A denoiser with its noise schedule, x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, images in [−1, 1].

    Attributes:
        denoise: (x_t (N, C, H, W), t (N,) integers) → prediction of the same shape.
        alphas_cumprod: (T,) ᾱ_t, falling.
        prediction: what `denoise` predicts: "epsilon", "sample" (x_0) or "v_prediction".
    """

    denoise: Denoise
    alphas_cumprod: Tensor
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise InputError(
                f"prediction {self.prediction!r} is unknown", f"choose one of {', '.join(PREDICTIONS)}"
            )
        a = self.alphas_cumprod = self.alphas_cumprod.double().cpu()
        if a.ndim != 1 or len(a) < 2 or not bool((a > 0).all() and (a <= 1).all() and (a.diff() <= 0).all()):
            raise InputError("alphas_cumprod is no noise schedule", "pass (T,) falling values in (0, 1]")

    @classmethod
    def from_diffusers(cls, pipeline: Any, scheduler: Any = None) -> Diffusion:
        """From a diffusers pipeline (`.unet`, `.scheduler`), or a model and its scheduler, in image space."""
        network = getattr(pipeline, "unet", pipeline)
        scheduler = getattr(pipeline, "scheduler", None) if scheduler is None else scheduler
        if scheduler is None or not hasattr(scheduler, "alphas_cumprod"):
            raise InputError(
                f"{type(scheduler).__name__} has no alphas_cumprod", "pass a DDPM- or DDIM-like scheduler"
            )
        if getattr(pipeline, "vae", None) is not None:
            raise InputError(
                "a latent diffusion pipeline", "the classifier needs images: use a pixel-space model"
            )

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            out = network(x, t)
            out = out.sample if hasattr(out, "sample") else out[0] if isinstance(out, tuple) else out
            return out[:, : x.shape[1]]  # models with learned variance append it as channels

        return cls(denoise, scheduler.alphas_cumprod, getattr(scheduler.config, "prediction_type", "epsilon"))

    def clean(self, x: Tensor, t: int) -> Tensor:
        """The denoised sample x̂_0 of x_t, not clamped."""
        out = self.denoise(x, torch.full((len(x),), t, device=x.device))
        signal, noise = self._levels(t)
        if self.prediction == "epsilon":
            return (x - noise * out) / signal
        return out if self.prediction == "sample" else signal * x - noise * out

    def _levels(self, t: int) -> tuple[float, float]:
        level = float(self.alphas_cumprod[t])
        return level**0.5, (1 - level) ** 0.5


@dataclass
class Counterfactual:
    """Counterfactuals of N images.

    Attributes:
        images: (N, C, H, W) in [0, 1].
        confidence_before, confidence: (N,) probability of the class.
        alpha_before, alpha: (N,) α of the component, None without one.
        distance: (N,) l1 distance to the original, per value.
    """

    images: Tensor
    confidence_before: Tensor
    confidence: Tensor
    alpha_before: Tensor | None
    alpha: Tensor | None
    distance: Tensor


def counterfactual(
    model: nn.Module | FeatureHead,
    diffusion: Diffusion,
    images: Tensor,
    class_: int,
    component: int | None = None,
    npca: NeuralPCA | None = None,
    *,
    confidence_weight: float = 0.1,
    alpha_weight: float = 0.1,
    distance_weight: float = 0.15,
    steps: int = 200,
    start: float = 0.5,
    seed: int = 0,
) -> Counterfactual:
    """Guided diffusion towards a class and a spurious component, close to the original (DVCE).

    From x_t at `start`, each step samples from N(μ + Σ ‖μ‖ g, Σ), g the weighted sum of the normalised
    gradients of log-confidence, of α and of −‖x̂_0 − x‖₁ with respect to x_t, evaluated at the denoised
    sample x̂_0 (Augustin et al. 2022, equation 8; paper 003, appendix H, adds α).

    Args:
        model: the classifier, images in [0, 1].
        diffusion: denoiser and schedule.
        images: (N, C, H, W) originals in [0, 1].
        class_: class to be predicted.
        component: of `npca`; None for guidance by the class alone.
        npca: fitted on `model`.
        confidence_weight, alpha_weight, distance_weight: weights of the three directions. 0.1 for the
            confidence and 0.15 for the l1 distance, and half of 200 steps, are those that the published code
            of DVCE recommends; α has the weight of the confidence here, which is our choice.
        steps: length of the respaced schedule of the whole chain.
        start: fraction of the chain from which the noised original is denoised.
        seed: of all noise.
    """
    head = model if isinstance(model, FeatureHead) else FeatureHead(model, example=images)
    if component is not None and npca is None:
        raise InputError("a component without its NeuralPCA", "pass npca=")
    if not 0 < start <= 1:
        raise InputError(f"start is {start}", "choose a fraction in (0, 1]")
    score = None if component is None or npca is None else npca.alpha_of(class_, component)

    def read(x: Tensor) -> tuple[Tensor, Tensor | None]:
        phi, logits = head.features_and_logits(x)
        return logits.log_softmax(1)[:, class_], None if score is None else score(phi)

    levels = diffusion.alphas_cumprod
    times = torch.linspace(0, len(levels) - 1, min(steps, len(levels))).round().long().unique().tolist()
    first = max(int(len(times) * start), 1) - 1
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)

    original = images * 2 - 1
    signal, spread = diffusion._levels(times[first])
    x = signal * original + spread * noise()
    for i in range(first, -1, -1):
        now, before = float(levels[times[i]]), float(levels[times[i - 1]]) if i else 1.0
        alpha, beta = now / before, 1 - now / before
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            raw = diffusion.clean(x, times[i])
            clean = raw + (raw.clamp(-1, 1) - raw).detach()  # clamped, but the gradient passes
            log_confidence, activation = read((clean + 1) / 2)
            goals = [
                (confidence_weight, log_confidence),
                (-distance_weight, (clean - original).abs().flatten(1).sum(1)),
            ]
            if activation is not None:
                goals.append((alpha_weight, activation))
            goals = [(weight, goal) for weight, goal in goals if weight]
            direction = torch.zeros_like(x)
            for n, (weight, goal) in enumerate(goals, 1):
                (gradient,) = torch.autograd.grad(goal.sum(), x, retain_graph=n < len(goals))
                direction = direction + weight * _unit(gradient)
        clean = clean.detach()
        x = x.detach()
        mean = (before**0.5 * beta * clean + alpha**0.5 * (1 - before) * x) / (1 - now)
        variance = beta * (1 - before) / (1 - now)
        size = mean.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        x = mean + variance * size * direction
        if i:
            x = x + variance**0.5 * noise()
    result = ((x + 1) / 2).clamp(0, 1)
    with torch.no_grad():
        (old, old_alpha), (new, new_alpha) = read(images), read(result)
    distance = (result - images).abs().flatten(1).mean(1)
    return Counterfactual(result, old.exp(), new.exp(), old_alpha, new_alpha, distance)


def _unit(gradient: Tensor) -> Tensor:
    norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
    return gradient / norm.view(-1, 1, 1, 1)
