"""Where tensors are computed: one choice for every ``device`` argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pfungst.errors import ConfigError
from pfungst.suggest import suggest

if TYPE_CHECKING:
    import torch

_KINDS = ("auto", "cpu", "cuda", "mps", "xpu")


def double(x: torch.Tensor) -> torch.Tensor:
    """The same in float64, on the CPU where its device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def check_device(name: str) -> None:
    """Raise ConfigError unless the name has the form of a device; the machine is not asked."""
    kind, colon, index = str(name).partition(":")
    if kind not in _KINDS or (colon and (kind == "auto" or not index.isdecimal())):
        raise ConfigError(f"unknown device {str(name)!r}", suggest(kind, (*_KINDS, "cuda:1")))


def choose_device(name: str | torch.device = "auto", float64: bool = False) -> torch.device:
    """The device of that name.

    Args:
        name: "auto" (a CUDA GPU where there is one, else the CPU), "cpu", "cuda", "cuda:1", "mps", "xpu".
        float64: whether sums are made there in double precision, which MPS cannot hold.

    Raises:
        ConfigError: unknown, this machine has none such, or it has no float64 where that is needed.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(str(name))
    device = torch.device(name)
    if device.type == "cpu":
        count = 1
    elif device.type == "mps":
        count = int(torch.backends.mps.is_available())
    else:
        backend = getattr(torch, device.type)
        count = backend.device_count() if backend.is_available() else 0
    if count == 0:
        raise ConfigError(
            f"device {str(name)!r} is not available: this machine has no {device.type} device that torch "
            "can use",
            "use auto or cpu; for a GPU install its driver and the torch build made for it",
        )
    if float64 and device.type == "mps":
        raise ConfigError(f"device {str(name)!r} has no float64, in which this is computed", "use cpu")
    if (device.index or 0) >= count:
        found = f"only {device.type}:0" if count == 1 else f"{device.type}:0 to {device.type}:{count - 1}"
        raise ConfigError(f"device {str(name)!r} does not exist: there is {found}", "choose one of them")
    return device
