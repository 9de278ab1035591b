"""The final linear layer of a classifier: logits = (W φ + b) / T."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.features import model_key
from pfungst.features.folded import folded
from pfungst.files import digest
from pfungst.suggest import suggest

_TOLERANCE = 1e-3  # relative; half a digit above float16 rounding of the logits


@dataclass(frozen=True)
class LinearHead:
    """Weights of a linear head without the network in front of it.

    Attributes:
        weight: (K, D), one row per class.
        bias: (K,) or None.
        temperature: T in logits = (W φ + b) / T.
    """

    weight: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0

    @property
    def n_classes(self) -> int:
        return self.weight.shape[0]

    @property
    def n_features(self) -> int:
        return self.weight.shape[1]

    def logits(self, phi: Tensor) -> Tensor:
        """Logits (N, K) of features (N, D)."""
        out = phi @ self.weight.to(phi).T
        if self.bias is not None:
            out = out + self.bias.to(phi)
        return out if self.temperature == 1.0 else out / self.temperature

    def psi(self, phi: Tensor, class_: int) -> Tensor:
        """Features weighted by one class's row, w_k ⊙ φ / T, (N, D): they sum to logit − bias/T."""
        return phi * (self.weight[class_].to(phi) / self.temperature)

    def fingerprint(self) -> dict[str, Any]:
        """What is known of the model that components belong to: sizes, and SHA-256 of head in float32."""
        parts = [p.float() for p in (self.weight, self.bias, torch.tensor(self.temperature)) if p is not None]
        return {"classes": self.n_classes, "features": self.n_features, "head_sha256": digest(*parts)}


@dataclass
class _Call:
    """One execution of a candidate layer during the trace."""

    name: str
    weight: Tensor
    phi: Tensor
    output: Tensor
    count: int


class FeatureHead:
    """A classifier seen as features and a final linear layer; found by running the model once.

    The layer is the last `nn.Linear` (or 1×1 convolution on a 1×1 map) whose output is the logits up to one
    positive scale, which is kept as the temperature. This covers the heads of torchvision, timm and Hugging
    Face image classifiers. The model is put into evaluation mode.

    Args:
        model: maps images (N, C, H, W) to logits (N, K), or to an object with `.logits`.
        layer: name of the layer in `model.named_modules()`, to choose it yourself.
        example: (N, C, H, W) real images in [0, 1] to trace with; by default two random images of the size in
            the model's own configuration, else 224.

    Attributes:
        model: as given; runs: what computes, the model or, after :meth:`fold`, its faster copy.

    Raises:
        InputError: no such layer, or the logits are not linear in its input; the message gives the reason.
    """

    def __init__(self, model: nn.Module, layer: str | None = None, example: Tensor | None = None) -> None:
        self.model = self.runs = model.eval()
        if example is None:
            example = _default_example(model)
        elif len(example) == 1:
            example = torch.cat([example, 1 - example])  # a scale per image must not pass as a temperature
        found, logits = _trace(model, example[:8])
        self.layer, self.temperature = _choose(model, found, logits, layer)
        self.module: Any = model.get_submodule(self.layer)  # nn.Linear, or nn.Conv2d with a 1×1 kernel

    def __repr__(self) -> str:
        k, d = self.linear.weight.shape
        scale = "" if self.temperature == 1.0 else f", temperature {self.temperature:.4g}"
        return f"FeatureHead({type(self.model).__name__}, {self.layer!r}, {d} features, {k} classes{scale})"

    @property
    def linear(self) -> LinearHead:
        """The head's present weights, detached."""
        bias = self.module.bias
        return LinearHead(
            self.module.weight.detach().flatten(1),
            None if bias is None else bias.detach(),
            self.temperature,
        )

    def fold(self, example: Tensor) -> FeatureHead:
        """Compute with a copy that is faster, see :func:`~pfungst.features.folded.folded`; later changes of
        the model do not reach it."""
        self.runs = folded(self.model, example)
        return self

    def to(self, device: torch.device | str) -> FeatureHead:
        """Move it to a device."""
        self.model.to(device)
        self.runs.to(device)
        return self

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the model: that of its head, and a key of the whole network."""
        return self.linear.fingerprint() | {"model_key": model_key(self.model)}

    @property
    def weight(self) -> Tensor:
        """(K, D)."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """(K,) or None."""
        return self.linear.bias

    @property
    def device(self) -> torch.device:
        return self.module.weight.device

    def features(self, x: Tensor) -> Tensor:
        """Input of the head, (N, D), for images (N, C, H, W); differentiable."""
        return self.features_and_logits(x)[0]

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and logits (N, K) from one forward pass."""
        caught: list[Tensor] = []
        module = self.runs.get_submodule(self.layer)
        hook = module.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
        try:
            logits = logits_of(self.runs(x))
        finally:
            hook.remove()
        return caught[-1].flatten(1), logits

    def __call__(self, x: Tensor) -> Tensor:
        return logits_of(self.runs(x))


def same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of one model; by the heads alone where no more is known of one of them."""
    keys = {f["model_key"] for f in (one, other) if "model_key" in f}
    return one.get("head_sha256") == other.get("head_sha256") and len(keys) < 2


def as_linear(head: LinearHead | FeatureHead | nn.Module) -> LinearHead:
    """The linear head of whatever stands for a model."""
    if isinstance(head, LinearHead):
        return head
    return (head if isinstance(head, FeatureHead) else FeatureHead(head)).linear


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, an object with `.logits`, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise InputError(
        f"the model returns {type(output).__name__}, not logits",
        "pass a classifier that returns (N, K) logits",
    )


def _default_example(model: nn.Module) -> Tensor:
    size: Any = (3, 224, 224)
    for holder in ("pretrained_cfg", "default_cfg"):
        size = (getattr(model, holder, None) or {}).get("input_size", size)
    config: Any = getattr(model, "config", None)
    if isinstance(getattr(config, "image_size", None), int):
        size = (getattr(config, "num_channels", 3), config.image_size, config.image_size)
    weight = next(model.parameters(), torch.zeros(()))
    sample = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    return sample.to(weight.device, weight.dtype)


def _is_candidate(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1


def _trace(model: nn.Module, example: Tensor) -> tuple[dict[str, _Call], Tensor]:
    """Run the model once; the candidate layers with one vector per image, in order of execution."""
    calls: dict[str, _Call] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            count = calls.pop(name).count + 1 if name in calls else 1
            calls[name] = _Call(name, module.weight, args[0], output, count)

        return hook

    hooks = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if _is_candidate(m)]
    try:
        with torch.no_grad():
            logits = logits_of(model(example))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"the model does not run on images of shape {tuple(example.shape)}: {error}",
            "pass example=, a batch of images as the model takes them",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if logits.ndim != 2:
        raise InputError(
            f"the model's output has shape {tuple(logits.shape)}",
            "pass a classifier that returns (N, K) logits",
        )
    return calls, logits


def _choose(
    model: nn.Module, calls: dict[str, _Call], logits: Tensor, layer: str | None
) -> tuple[str, float]:
    if layer is not None:
        if layer not in dict(model.named_modules()):
            raise InputError(f"the model has no layer {layer!r}", suggest(layer, calls, "layers that ran"))
        if layer not in calls:
            raise InputError(
                f"layer {layer!r} is not a linear layer that the forward pass runs",
                f"name one of: {', '.join(calls) or 'none ran'}",
            )
        call = calls[layer]
        reason, temperature = _explain_misfit(call, logits)
    else:
        shape = logits.shape
        fitting = [
            c for c in calls.values() if c.output.numel() == logits.numel() and len(c.output) == shape[0]
        ]
        if not fitting:
            raise InputError(
                f"no linear layer of the model gives {shape[1]} outputs for each image",
                "the logits are not a linear layer's output (several heads averaged, a cosine head, a module "
                "called through its weights); name a layer or wrap the model so that it ends in nn.Linear",
            )
        call = fitting[-1]
        reason, temperature = _explain_misfit(call, logits)
    if reason:
        raise InputError(
            f"the logits are not linear in the input of layer {call.name!r}: {reason}",
            "pass a model that returns the plain outputs of its last linear layer, or name another layer",
        )
    return call.name, temperature


def _explain_misfit(call: _Call, logits: Tensor) -> tuple[str, float]:
    """Why the logits are not this layer's output over a positive constant (empty if they are), and that
    constant."""
    if call.count > 1:
        return f"it runs {call.count} times in one pass", 1.0
    if call.output.numel() != logits.numel() or call.phi.numel() != len(logits) * call.phi[0].numel():
        return f"its output has shape {tuple(call.output.shape)}, the logits {tuple(logits.shape)}", 1.0
    features = call.weight.flatten(1).shape[1]
    if call.phi.flatten(1).shape[1] != features:
        return f"its input has shape {tuple(call.phi.shape)}, not one vector of {features} per image", 1.0
    z, y = call.output.flatten(1).double(), logits.double()
    if not bool(z.any()) and not bool(y.any()):
        return "", 1.0  # an untrained head that starts at zero
    scale = float((z * y).sum() / (z * z).sum().clamp_min(1e-300))
    size = float(y.abs().max())
    misfit = float((y - scale * z).abs().max()) / max(size, 1e-300)
    if misfit <= _TOLERANCE and scale > 0:
        return "", 1.0 if abs(scale - 1) < 1e-5 else 1.0 / scale
    ones = torch.ones(len(y), dtype=torch.float64, device=y.device)
    if bool((y >= 0).all()) and torch.allclose(y.sum(1), ones, atol=1e-3):
        return "the rows of the output sum to one, so a softmax follows it", 1.0
    if torch.allclose(y.exp().sum(1), ones, atol=1e-3):
        return "the exponentials of each row sum to one, so a log-softmax follows it", 1.0
    if misfit <= _TOLERANCE:
        return f"they are its output times {scale:.4g}, which is not positive", 1.0
    return f"the best constant scale leaves {misfit:.1%} of the largest logit unexplained", 1.0
