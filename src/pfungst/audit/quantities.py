"""What is known of images of which nobody has the labels: a model's answers, its relevance, their files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfungst.data import Item
from pfungst.data.decode import Undecodable
from pfungst.data.traits import PREFIX, Traits, traits
from pfungst.errors import PfungstError
from pfungst.relevance import PixelBands

REFERENCE = "reference.npz"
RELEVANCE = "relevance: "
EXPLAINED = 32  # images whose relevance is read
_BATCH = 32


def quantities(model: Any, images: Tensor, items: Sequence[Item]) -> dict[str, np.ndarray]:
    """What is watched of images (N, C, H, W) and their items: numbers or words, (N,) or fewer, by name.

    `model` is a :class:`pfungst.audit.mended.Mended`, which writes these as the reference.

    Relevance is read from the first 32 images: of a detector its explanation, of others gradient × input of
    the answer. Its shares are of absolute values.
    """
    found = _answers(model, images)
    try:
        maps = _relevance(model, images[:EXPLAINED])
    except PfungstError:  # a detector without maps of bands, such as one of tiles
        maps = None
    if maps is not None:
        size = maps.abs()
        total = size.flatten(1).sum(1).clamp_min(torch.finfo(size.dtype).tiny)
        bands = (size.sum((2, 3)) / total[:, None]).numpy()
        edge = max(1, size.shape[-1] // 6)
        inner = size[..., edge:-edge, edge:-edge].flatten(1).sum(1)
        names = ("low frequencies", "middle frequencies", "high frequencies")
        found |= {RELEVANCE + name: bands[:, k] for k, name in enumerate(names)}
        found[f"{RELEVANCE}border"] = (1 - inner / total).numpy()
    return found | _files(items)


def _answers(model: Any, images: Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        out = torch.cat([model.answer(part).double().cpu() for part in images.split(_BATCH)])
    if model.about.kind == "detector":
        return {"score": out.numpy()}
    if model.about.kind == "classifier":
        confidence, k = out.softmax(1).max(1)
        names = model.about.classes
        return {
            "confidence": confidence.numpy(),
            "predicted class": np.array([names.get(i, str(i)) for i in k.tolist()]),
        }
    unit = torch.nn.functional.normalize(out, dim=1)
    return {"likeness to the audit's images": (unit @ _centre(model).double()).numpy()}


def _centre(model: Any) -> Tensor:
    """Mean direction of the representations of the sample of an encoder."""
    kept = model.sample()[1][0]
    return torch.nn.functional.normalize(torch.nn.functional.normalize(kept, dim=1).mean(0), dim=0)


def _relevance(model: Any, images: Tensor) -> Tensor:
    """(N, 3, H, W): low, middle and high frequencies."""
    basis = PixelBands.coarse()
    if model.about.kind == "detector":
        return model.source.explain(images, basis).values.detach().cpu()
    parts = []
    for part in images.split(_BATCH):
        x = part.clone().requires_grad_()
        out = model.answer(x)
        if model.about.kind == "classifier":
            score = out.amax(1)
        else:
            score = torch.nn.functional.normalize(out, dim=1) @ _centre(model).to(out)
        slope = torch.autograd.grad(score.sum(), x)[0]
        parts.append(basis.contract(part, slope).detach().cpu())
    return torch.cat(parts)


def _files(items: Sequence[Item]) -> dict[str, np.ndarray]:
    known: list[Traits] = []
    for item in items:
        try:
            known.append(traits(item))
        except Undecodable:
            continue
    numbers = dict.fromkeys(name for t in known for name in t.numbers)
    words = dict.fromkeys(name for t in known for name in t.words)
    found = {PREFIX + n: np.array([t.numbers.get(n, np.nan) for t in known]) for n in numbers}
    return found | {PREFIX + n: np.array([t.words.get(n, "none") for t in known]) for n in words}
