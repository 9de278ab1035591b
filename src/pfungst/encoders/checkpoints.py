"""Reading checkpoints safely, whatever their layout, and fitting them to a model."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import CheckpointError, few
from pfungst.files import read, reading

State = dict[str, Tensor]

# Where published checkpoints keep their tensors, outermost first: vissl's nesting, PubMedCLIP and most
# training scripts ("state_dict"), Barlow Twins' training checkpoint ("model"), exponential averages.
_CONTAINERS = (
    "classy_state_dict",
    "base_model",
    "model",
    "trunk",
    "state_dict",
    "model_state_dict",
    "model_state",
    "module",
)


def read_checkpoint(path: str | Path, trust_checkpoint: bool = False) -> State:
    """The tensors of a checkpoint, by name.

    Args:
        path: safetensors, a state dict, or a training checkpoint that contains one (vissl, Barlow Twins,
            PubMedCLIP, OpenAI's TorchScript archives).
        trust_checkpoint: also read files that can run code when they are loaded. Only for files whose
            origin you trust.

    Raises:
        CheckpointError: the file is missing, damaged, holds no tensors, or needs `trust_checkpoint`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist", "check the path")
    if path.suffix == ".safetensors":
        return read(path, "copy it again", CheckpointError)
    return _tensors(_load(path, trust_checkpoint), path)


def _load(path: Path, trust: bool) -> Any:
    archive = _is_torchscript(path)
    if archive and not trust:
        raise CheckpointError(
            f"{path} is a TorchScript archive: it carries code besides its tensors",
            "if you trust where it comes from, pass trust_checkpoint=True (--trust-checkpoint)",
        )
    try:
        if archive:
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        reason = _reason(str(error))
        if reason is None:
            raise CheckpointError(f"{path} is not a PyTorch checkpoint or is damaged: {error}") from None
        raise CheckpointError(
            f"{path} holds more than tensors ({reason}); loading it could run code",
            "if you trust where it comes from, pass trust_checkpoint=True (--trust-checkpoint); "
            "better, save its state dict as safetensors",
        ) from None
    except Exception as error:  # a damaged archive makes torch raise almost anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint or is damaged: {first}", "copy it again"
        ) from None


def _is_torchscript(path: Path) -> bool:
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with reading(path, "copy it again", CheckpointError), zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _reason(message: str) -> str | None:
    """What the safe unpickler stumbled over; None when the file is no pickle at all."""
    found = re.search(r"GLOBAL ([\w.]+) was not an allowed", message)
    if found:
        return f"an object of {found.group(1)}"
    found = re.search(r"Unsupported (?:class|operand|global)[^:.]*[:.]?\s*([\w.]+)?", message)
    return f"unsupported content {found.group(1) or ''}".strip() if found else None


def _tensors(loaded: Any, path: Path) -> State:
    if isinstance(loaded, nn.Module):
        return dict(loaded.state_dict())
    node = loaded
    while isinstance(node, Mapping):
        tensors = {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, Tensor)}
        inner = next((k for k in _CONTAINERS if isinstance(node.get(k), Mapping | nn.Module)), None)
        if tensors and inner is None:
            return tensors
        if inner is None:
            break
        node = node[inner]
        if isinstance(node, nn.Module):
            return dict(node.state_dict())
    found = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, Mapping) else type(loaded).__name__
    raise CheckpointError(
        f"{path} holds no named tensors (found: {found})",
        f"pass a state dict, or a dictionary with one under {', '.join(_CONTAINERS[:5])}",
    )


@dataclass
class LoadReport:
    """What of a checkpoint went where.

    Attributes:
        prefix: the part of the names that was taken off.
        loaded: number of tensors loaded.
        unexpected: tensors under the prefix that the model has no place for.
        ignored: number of tensors outside the prefix or of a dropped head.
    """

    prefix: str
    loaded: int
    unexpected: list[str] = field(default_factory=list)
    ignored: int = 0

    def __str__(self) -> str:
        text = f"{self.loaded} tensors loaded"
        text += f" (prefix {self.prefix!r} taken off)" if self.prefix else ""
        text += f", {self.ignored} ignored" if self.ignored else ""
        return text + (f", unexpected: {few(self.unexpected)}" if self.unexpected else "")


def best_prefix(keys: Iterable[str], wanted: Iterable[str]) -> str:
    """The prefix of the names in a checkpoint after which most of them are names of the model."""
    keys, wanted = list(keys), set(wanted)
    ends = {key[: m.end()] for key in keys for m in re.finditer(r"\.", key)}
    candidates = ["", *sorted(ends, key=lambda p: (p.count("."), p))]

    def matches(prefix: str) -> int:
        return sum(k.startswith(prefix) and k[len(prefix) :] in wanted for k in keys)

    return max(candidates, key=matches)


def load_state(model: nn.Module, state: State, source: str | Path, head: Iterable[str] = ()) -> LoadReport:
    """Load tensors into a model, taking off whatever prefix the checkpoint's names carry.

    Args:
        model: changed in place.
        state: tensors by name; half precision is converted to the model's type.
        source: file, for messages.
        head: names (or leading parts of names) of a dropped classification head, to be ignored.

    Returns:
        The report. Nothing is loaded unless everything the model needs is there.

    Raises:
        CheckpointError: tensors are missing, or have another shape; all of them are named.
    """
    wanted = model.state_dict()
    prefix = best_prefix(state, wanted)
    inside = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    dropped = {k for k in inside if any(k == h or k.startswith(h + ".") for h in head)}
    found = {k: v for k, v in inside.items() if k in wanted and k not in dropped}
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of the model's {len(wanted)} tensors: {few(missing)}; "
            f"its own names are like {few(list(state), 3)}",
            "check that the checkpoint belongs to this architecture",
        )
    wrong = [
        f"{k} is {tuple(v.shape)}, not {tuple(wanted[k].shape)}"
        for k, v in found.items()
        if v.shape != wanted[k].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{source} does not fit the model: {few(wrong)}",
            "check that the checkpoint belongs to this architecture and image size",
        )
    bad = [k for k, v in found.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise CheckpointError(f"{source} holds values that are not finite: {few(bad)}", "copy it again")
    model.load_state_dict({k: v.to(wanted[k].dtype) for k, v in found.items()}, strict=False)
    unexpected = [k for k in inside if k not in found and k not in dropped]
    if prefix == "":  # towers beside the one that was loaded are not surprising, parts within it are
        roots = {k.split(".")[0] for k in found}
        unexpected = [k for k in unexpected if k.split(".")[0] in roots]
    return LoadReport(prefix, len(found), unexpected, len(state) - len(found) - len(unexpected))
