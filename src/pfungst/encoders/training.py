"""Training a small encoder: for demo and examples, and where the cause of an effect must be known."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfungst.device import choose_device
from pfungst.encoders import losses
from pfungst.encoders.encoder import Encoder
from pfungst.encoders.models import load
from pfungst.encoders.small import Projector
from pfungst.errors import ConfigError, InputError, PfungstWarning
from pfungst.progress import track

Method = Literal["simclr", "barlow", "clip"]


def augment(
    x: Tensor,
    generator: torch.Generator,
    min_scale: float = 0.3,
    jitter: float = 0.4,
    grey: float = 0.2,
    flip: bool = True,
) -> Tensor:
    """One random view of each image: resized crop, mirror, colour jitter, loss of colour, as in SimCLR.

    Args:
        x: (N, C, H, W) in [0, 1].
        generator: on the CPU; the same generator gives the same views on every device.
        min_scale: smallest share of the area that a crop keeps.
        jitter: strength of changes of brightness, contrast and saturation.
        grey: probability that colour is dropped.
        flip: mirror half of the images.
    """
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        drawn = torch.rand(n, generator=generator) * (high - low) + low
        return drawn.to(x.device)

    side = uniform(min_scale, 1.0).sqrt()
    ratio = uniform(math.log(3 / 4), math.log(4 / 3)).mul(0.5).exp()
    width, height = (side * ratio).clamp(max=1), (side / ratio).clamp(max=1)
    theta = x.new_zeros(n, 2, 3)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(n, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = width * mirror, height
    theta[:, 0, 2] = uniform(-1, 1) * (1 - width)
    theta[:, 1, 2] = uniform(-1, 1) * (1 - height)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    out = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def factor() -> Tensor:
        return uniform(1 - jitter, 1 + jitter)[:, None, None, None]

    out = out * factor()
    mean = out.mean((1, 2, 3), keepdim=True)
    out = (out - mean) * factor() + mean
    luma = out.mean(1, keepdim=True)
    out = (out - luma) * factor() + luma
    dropped = (uniform(0, 1) < grey)[:, None, None, None]
    return torch.where(dropped, luma, out).clamp(0, 1)


class CaptionEncoder(nn.Module):
    """Mean of word embeddings, then two linear layers: the text half of a small CLIP.

    Args:
        captions: the training captions; their words, in lower case, are the vocabulary.
        width: of the embeddings.
        out: of the result.
    """

    def __init__(self, captions: Sequence[str], width: int, out: int) -> None:
        super().__init__()
        words = sorted({w for c in captions for w in c.lower().split()})
        self.vocabulary = {w: i for i, w in enumerate(words)}
        self.words = nn.EmbeddingBag(len(words), width, mode="mean")
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """All token numbers in a row, and where each caption starts."""
        rows = [[self.vocabulary[w] for w in c.lower().split()] for c in captions]
        starts = torch.tensor([0, *[len(r) for r in rows]]).cumsum(0)[:-1]
        return torch.tensor([t for r in rows for t in r]), starts

    def forward(self, tokens: Tensor, starts: Tensor) -> Tensor:
        return self.head(self.words(tokens, starts))


def train_small(
    images: Tensor,
    captions: Sequence[str] | None = None,
    method: Method = "simclr",
    width: int = 32,
    steps: int = 400,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    seconds: float | None = None,
    flip: bool = True,
    min_scale: float = 0.3,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
) -> Encoder:
    """Train our small CNN without labels.

    Args:
        images: (N, 3, S, S) in [0, 1].
        captions: N texts, for "clip".
        method: "simclr", "barlow" (Barlow Twins) or "clip".
        width: of the first stage; the representation has 4 × `width` values.
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: highest, of AdamW with a cosine schedule.
        seconds: stop after this time, with a warning: the result then depends on the machine.
        flip: mirror views; not for text or digits.
        min_scale: smallest share of an image's area that a view keeps.
        seed: of weights, batches and views.
        device: "auto" takes a GPU if there is one.
        progress: show a bar.

    Returns:
        The encoder, whose `info` says how it was trained; it can be saved and loaded.

    Raises:
        InputError: images of the wrong shape or range, too few, or captions that do not match them.
        ConfigError: an unknown method or device.
    """
    place = choose_device(device)
    if method not in ("simclr", "barlow", "clip"):
        raise ConfigError(f"training method {method!r} is not known", "use simclr, barlow or clip")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or len(images) < 8:
        raise InputError(
            f"images of shape {tuple(images.shape)} cannot be trained on", "pass 8 or more, (N, 3, S, S)"
        )
    if method == "clip" and (captions is None or len(captions) != len(images)):
        got = "no" if captions is None else len(captions)
        raise InputError(f"{got} captions for {len(images)} images", "clip needs one caption per image")
    encoder = load(f"small:{width}", size=images.shape[-1], seed=seed)
    encoder._checked(images)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head: nn.Module = Projector(4 * width, 4 * width, 4 * width if method == "barlow" else 64)
        text = CaptionEncoder(captions, 64, 64) if method == "clip" and captions is not None else None
        scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    modules = nn.ModuleList([encoder, head] + ([text] if text else [])).to(place).train()
    scale = nn.Parameter(scale.detach().to(place))
    optimiser = torch.optim.AdamW([*modules.parameters(), scale], lr=learning_rate, weight_decay=1e-4)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: (
            (s + 1) / warm if s < warm else 0.5 * (1 + math.cos(math.pi * (s - warm) / max(1, steps - warm)))
        ),
    )
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch_size, len(images))
    began, done, losses_seen = time.monotonic(), 0, []
    source = images.to(place)
    for step in track(range(steps), f"training ({method})", progress):
        index = torch.randperm(len(images), generator=generator)[:batch]
        x = source[index.to(source.device)]
        view = lambda: augment(x, generator, min_scale, flip=flip)  # noqa: B023
        if text is not None and captions is not None:
            chosen = [captions[i] for i in index.tolist()]
            tokens, starts = (t.to(place) for t in text.tokenize(chosen))
            same = torch.tensor([[a == b for b in chosen] for a in chosen], device=place)
            loss = losses.clip(head(encoder(view())), text(tokens, starts), scale.exp().clamp(max=100), same)
        else:
            both = head(encoder(torch.cat([view(), view()])))
            objective = losses.nt_xent if method == "simclr" else losses.barlow_twins
            loss = objective(*both.chunk(2))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses_seen.append(float(loss.detach()))
        done = step + 1
        if seconds is not None and time.monotonic() - began > seconds:
            break
    if done < steps:
        warnings.warn(
            f"training stopped after {seconds:g} s at step {done} of {steps}; the result depends on the "
            "machine",
            PfungstWarning,
            stacklevel=2,
        )
    encoder.trained = True
    encoder.name = f"{method} small:{width}"
    encoder.info = {
        "method": method,
        "images": len(images),
        "steps": done,
        "batch_size": batch,
        "seed": seed,
        "loss": round(sum(losses_seen[-20:]) / len(losses_seen[-20:]), 4),
    }
    return encoder.requires_grad_(False).eval().cpu()
