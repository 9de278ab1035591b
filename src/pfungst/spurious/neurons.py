"""The neuron baseline: which single features matter most for a class (Singla and Feizi, ICLR 2022)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.spurious.features import FeatureStore
from pfungst.spurious.heads import FeatureHead, LinearHead, as_linear


def neuron_importance(
    model: nn.Module | FeatureHead | LinearHead,
    features: FeatureStore | Tensor,
    labels: Any = None,
    by: str = "predicted",
) -> Tensor:
    """Mean of w_k ⊙ φ over the images of each class (paper 003, equation 12).

    Args:
        model: the classifier or its head.
        features: a store or (N, D), of the training images of all classes.
        labels: (N,) class indices for by="label"; a store has its own.
        by: "predicted" groups images by the model's prediction (the published way), "label" by their label.

    Returns:
        (K, D) float64; NaN rows for classes without images.
    """
    head = as_linear(model)
    if by not in ("predicted", "label"):
        raise InputError(f"by={by!r}", "choose 'predicted' or 'label'")
    if isinstance(features, FeatureStore):
        groups = features.predicted if by == "predicted" else features.labels
        chunks = (features.features[i : i + 8192] for i in range(0, len(features), 8192))
    else:
        if by == "label" and labels is None:
            raise InputError("features come without labels", "pass labels=")
        groups = head.logits(features).argmax(1).cpu().numpy() if by == "predicted" else np.asarray(labels)
        chunks = (np.asarray(features.detach().cpu()) for _ in range(1))
    sums = torch.zeros(head.weight.shape, dtype=torch.float64)
    done = 0
    for chunk in chunks:
        own = torch.as_tensor(groups[done : done + len(chunk)].astype(np.int64))
        sums.index_add_(0, own, torch.from_numpy(np.asarray(chunk, dtype=np.float64)))
        done += len(chunk)
    counts = torch.bincount(torch.as_tensor(groups.astype(np.int64)), minlength=head.n_classes)
    mean = sums / counts[:, None]
    return mean * (head.weight.double().cpu() / head.temperature)


def rank_neurons(importance: Tensor, n: int | None = None) -> Tensor:
    """Neurons by falling importance, (K, n); −1 for classes without images."""
    order = torch.argsort(importance.nan_to_num(0.0), dim=1, descending=True, stable=True)[:, :n]
    return torch.where(importance.isnan().any(1, keepdim=True), -1, order)


def majority(votes: Any, needed: int = 3) -> np.ndarray:
    """Whether at least `needed` judges call a neuron spurious; votes are (judges, …) booleans."""
    return np.asarray(votes, dtype=bool).sum(0) >= needed
