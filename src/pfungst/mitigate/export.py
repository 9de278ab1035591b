"""A module in the formats of other runtimes, each read back and compared with it."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.device import choose_device
from pfungst.errors import CheckpointError, ConfigError, InputError
from pfungst.files import whole

#: Formats, and the file each is written to.
FORMATS = {"onnx": "model.onnx", "torch-export": "model.pt2", "state-dict": "state_dict.safetensors"}
_LARGE = 1 << 30  # bytes of weights above which ONNX keeps them in a second file


def outputs_of(found: Any) -> list[Tensor]:
    """The outputs of a model in order: a tensor, an object with `.logits`, or the tensors of a tuple."""
    if isinstance(found, Tensor):
        return [found]
    return [found.logits] if hasattr(found, "logits") else list(found)


def gap(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of outputs, each relative to its largest value where that exceeds 1; infinite
    where shapes differ or something is not finite."""
    worst = 0.0 if len(found) == len(expected) else math.inf
    for a, b in zip(found, expected, strict=False):
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        if a.shape != b.shape or not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return math.inf
        worst = max(worst, float((a - b).abs().max()) / max(1.0, float(b.abs().max())))
    return worst


class _Outputs(nn.Module):
    """The model with its outputs as a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(outputs_of(self.model(images)))


def trace(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The program of a model on images (N, C, H, W), for any N.

    Raises:
        InputError: torch cannot trace it.
    """
    images = torch.cat([images, images])[: max(2, len(images))]  # a batch of one is taken for fixed
    with torch.no_grad():
        model(images)  # fills the caches of constants, which must not hold traced ones
        try:
            return torch.export.export(
                _Outputs(model).eval(), (images,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False
            )
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(
                f"torch.export cannot trace {type(model).__name__}: {reason}", "export --state-dict"
            ) from error


def write_torch_export(program: torch.export.ExportedProgram, path: Path, about: Mapping[str, str]) -> None:
    """Write a program that ``torch.export.load(path).module()`` runs without this package; what is said
    `about` it under the extra file ``about.json``."""
    import json

    with whole(path) as part:
        place = part.with_suffix(".pt2")
        torch.export.save(program, place, extra_files={"about.json": json.dumps(dict(about))})
        place.replace(part)


def read_torch_export(path: Path) -> torch.export.ExportedProgram:
    """A program that was written.

    Raises:
        CheckpointError: it is damaged, or of another version of torch.
    """
    try:
        return torch.export.load(path)
    except Exception as error:
        raise CheckpointError(f"{path} holds no program of torch: {error}", "run the audit again") from error


def on_device(program: torch.export.ExportedProgram, device: str) -> torch.export.ExportedProgram:
    """The program on another device, with the constants inside it.

    Raises:
        ConfigError: this torch cannot move programs, or there is no such device.
    """
    place = choose_device(device)
    if place.type == "cpu":
        return program
    try:
        from torch.export.passes import move_to_device_pass
    except ImportError:
        raise ConfigError(f"torch {torch.__version__} cannot move a traced model", "load it on cpu") from None
    return move_to_device_pass(program, str(place))


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, outputs: Sequence[str], about: Mapping[str, str]
) -> None:
    """Write an ONNX model, ``images`` in, `outputs` out; what is said `about` it in its metadata.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} is not installed", "pip install 'pfungst[export]'")
    names = [f"{outputs[i]}" for i in range(len(outputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = torch.onnx.export(
            program, input_names=["images"], output_names=names, dynamo=True, verbose=False, optimize=True
        )
    made.model.metadata_props.update(about)
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values() if isinstance(t, Tensor))
    if size > _LARGE:  # beside the model, under a name that the model holds
        made.save(str(path), external_data=True)
        return
    with whole(path) as part:
        made.save(str(part), external_data=False)


def run_onnx(path: Path, images: Tensor) -> list[Tensor] | None:
    """What ONNX Runtime makes of images; None where it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(a) for a in session.run(None, {"images": images.cpu().numpy()})]


def run_torch_export(path: Path, images: Tensor) -> list[Tensor]:
    """What the saved program makes of images."""
    with torch.no_grad():
        return list(read_torch_export(path).module()(images))
