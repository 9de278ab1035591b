"""What a probe reads in its images: relevance through readout and encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pfungst.errors import InputError
from pfungst.probes.linear import Probe
from pfungst.relevance import Basis, Composite, Pixels, Relevance, attribute


def explain_probe(
    probe: Probe,
    encoder: nn.Module,
    images: Any,
    target: Any = None,
    composite: str | Composite = "epsilon_plus",
    basis: Basis | None = None,
    batch_size: int = 8,
) -> Relevance:
    """Relevance of a probe's decision for each image.

    The readout's rule is exact, R_k = w_k φ_k, its offset is reported apart; the encoder follows `composite`.

    Args:
        probe: fitted on representations of `encoder`.
        encoder: the representation model.
        images: (N, C, H, W) in [0, 1], or a `Prepared`.
        target: the class to explain: one label, N labels, or None for the class that is predicted.
        composite: rules for the encoder.
        basis: by default pixels.
        batch_size: images at a time.

    Returns:
        For N images; for two classes the score is the decision value in favour of the class.
    """
    images = images.images if hasattr(images, "images") else torch.as_tensor(images)
    readout = probe.attach(encoder)
    basis = basis or Pixels()
    parts = []
    labels = _labels(target, len(images))
    for start in range(0, len(images), batch_size):
        x = images[start : start + batch_size].to(readout.head.weight.device)
        if labels is None:
            with torch.no_grad():
                output = readout(x).argmax(1)
        else:
            chosen = labels[start : start + batch_size]
            output = torch.tensor([readout.index(label) for label in chosen], device=x.device)
        parts.append(attribute(readout, x, output=output, composite=composite, basis=basis).cpu())
    return Relevance(
        torch.cat([p.values for p in parts]),
        torch.cat([p.score for p in parts]),
        basis,
        torch.cat([p.bias for p in parts]),
        composite=parts[0].composite,
    )


def _labels(target: Any, count: int) -> list[Any] | None:
    if target is None:
        return None
    if isinstance(target, str | int | float):
        return [target] * count
    labels = target.tolist() if hasattr(target, "tolist") else list(target)
    labels = labels if isinstance(labels, list) else [labels] * count
    if len(labels) != count:
        raise InputError(
            f"{len(labels)} labels for {count} images", "pass one label per image, or one for all"
        )
    return labels
