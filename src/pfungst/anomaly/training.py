"""Training with early stopping, resumable after any epoch."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError, PfungstWarning
from pfungst.files import read, reading, write_tensors
from pfungst.progress import progress_bar

_FORMAT = "pfungst.training/1"
_EXPLODED = 1e3  # validation error above the untrained network's, times this, is divergence


@dataclass
class History:
    """What happened: validation error before training and after each epoch, and the best epoch."""

    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor], Tensor],
    data: Tensor,
    held_out: Tensor,
    *,
    epochs: int,
    patience: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    checkpoint_dir: str | Path | None = None,
    progress: bool = False,
    name: str = "training",
) -> History:
    """Adam, until the error on held-out data has not fallen for `patience` epochs; the best weights are kept.

    Args:
        model: trained in place.
        loss: (model, samples of one batch) → loss of each sample (n,).
        data: training samples (N, ...). held_out: validation samples.
        checkpoint_dir: where the state is kept after each epoch, and found again by the same call after an
            interruption. The result is that of an uninterrupted run.

    Returns:
        The history.

    Raises:
        InputError: training diverged at once.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    history = History()
    best = copy.deepcopy(model.state_dict())
    start = 0
    config = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
    config |= {"samples": len(data), "sum": float(data.double().sum())}
    file = None if checkpoint_dir is None else Path(checkpoint_dir) / "training.safetensors"
    if file is not None and file.exists():
        start, best = _resume(file, config, model, optimizer, history)
    if not history.validation:
        history.validation.append(_error(model, loss, held_out, batch_size))
    with progress_bar(name, epochs, show=progress, done=start) as bar:
        for epoch in range(start, epochs):
            if history.stopped:
                break
            model.train()
            order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
            for index in order.split(batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss(model, data[index.to(data.device)]).mean().backward()
                optimizer.step()
            error = _error(model, loss, held_out, batch_size)
            history.validation.append(error)
            if error < min(history.validation[:-1]):
                history.best_epoch = epoch + 1
                best = copy.deepcopy(model.state_dict())
            if not error < _EXPLODED * max(history.validation[0], 1e-12):
                history.stopped = f"diverged in epoch {epoch + 1} (error {error:.3g})"
            elif epoch + 1 - history.best_epoch >= patience:
                history.stopped = f"no improvement in {patience} epochs"
            if file is not None:
                _keep(file, config, epoch + 1, model, optimizer, best, history)
            bar.advance()
    model.load_state_dict(best)
    model.eval()
    if history.stopped.startswith("diverged"):
        advice = f"lower learning_rate (it is {learning_rate}) or raise batch_size (it is {batch_size})"
        if history.best_epoch == 0:
            raise InputError(f"{name} {history.stopped}", advice)
        warnings.warn(
            f"{name} {history.stopped}; the weights of epoch {history.best_epoch} are kept. To train on: "
            f"{advice}",
            PfungstWarning,
            stacklevel=5,
        )
    return history


@torch.no_grad()
def _error(
    model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], data: Tensor, batch_size: int
) -> float:
    model.eval()
    return float(torch.cat([loss(model, part) for part in data.split(batch_size)]).double().mean())


def _keep(
    file: Path,
    config: dict[str, Any],
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    history: History,
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    meta = {"format": _FORMAT, "config": json.dumps(config), "epoch": str(epoch)}
    meta["history"] = json.dumps([history.validation, history.best_epoch, history.stopped])
    write_tensors(file, tensors, **meta)


def _resume(
    file: Path, config: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, history: History
) -> tuple[int, dict[str, Tensor]]:
    from safetensors import safe_open

    remedy = "delete it to train from the beginning"
    tensors = read(file, remedy, InputError)
    with reading(file, remedy, InputError), safe_open(str(file), framework="pt") as opened:
        meta = opened.metadata() or {}
    kept = json.loads(meta.get("config", "{}"))
    if meta.get("format") != _FORMAT or {**kept, "epochs": 0} != {**config, "epochs": 0}:
        raise InputError(
            f"{file} belongs to another training ({kept})", "choose another checkpoint_dir, or delete it"
        )
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "adam": {}}
    for key, tensor in tensors.items():
        group, _, rest = key.partition(".")
        groups[group][rest] = tensor
    model.load_state_dict(groups["model"])
    state = optimizer.state_dict()
    for key, tensor in groups["adam"].items():
        index, _, part = key.partition(".")
        state["state"].setdefault(int(index), {})[part] = tensor
    optimizer.load_state_dict(state)
    history.validation, history.best_epoch, history.stopped = json.loads(meta["history"])
    where = next(iter(model.parameters())).device
    return int(meta["epoch"]), {k: v.to(where) for k, v in groups["best"].items()}
