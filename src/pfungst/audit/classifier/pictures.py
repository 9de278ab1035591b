"""Pictures of components: training images, feature visualisations, GradCAM with α as the score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pfungst.errors import InputError
from pfungst.files import digest, whole
from pfungst.relevance import gradcam
from pfungst.relevance.colours import overlay
from pfungst.spurious import FeatureHead, NeuralPCA


class Penultimate(nn.Module):
    """A classifier up to its final linear layer: images → features (N, D)."""

    def __init__(self, head: FeatureHead) -> None:
        super().__init__()
        self.model = head.model
        self._head = [head]

    def forward(self, x: Tensor) -> Tensor:
        return self._head[0].features(x)


class Heatmaps:
    """GradCAM of α_l on the last layer with positions that α depends on.

    Args:
        head: the classifier.
        npca: fitted on it.
        example: (N, C, H, W) images to find the layer with.
        batch_size: images at a time.

    Attributes:
        layer: name of the layer, or None where the model has none (no heatmaps then).
    """

    def __init__(self, head: FeatureHead, npca: NeuralPCA, example: Tensor, batch_size: int = 32) -> None:
        self.network, self.npca, self.batch_size = Penultimate(head), npca, batch_size
        self.device = head.device
        self.layer = self._find(example.to(self.device))

    def __call__(self, images: Tensor, class_: int, components: list[int]) -> np.ndarray:
        """(N, H, W) of the component of each image, all of one class."""
        assert self.layer is not None
        parts = []
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size].to(self.device)
            rows = torch.tensor(components[start : start + self.batch_size], device=self.device)
            parts.append(self._map(part, self.layer, class_, rows).float().cpu())
        return torch.cat(parts).numpy()

    def _map(self, images: Tensor, layer: str, class_: int, components: Tensor, relu: bool = True) -> Tensor:
        def alpha(phi: Tensor) -> Tensor:
            return self.npca.alpha_features(phi, class_).gather(1, components[:, None])[:, 0]

        return gradcam(self.network, images, layer, output=alpha, relu=relu)

    def _find(self, example: Tensor) -> str | None:
        ran: list[str] = []
        hooks = []

        def watch(name: str) -> object:
            def hook(module: nn.Module, args: object, output: object) -> None:
                if isinstance(output, Tensor) and _has_positions(output):
                    ran.append(name)

            return hook

        for name, module in self.network.named_modules():
            if name:
                hooks.append(module.register_forward_hook(watch(name)))
        try:
            with torch.no_grad():
                self.network(example)
        finally:
            for hook in hooks:
                hook.remove()
        class_ = self.npca.classes_[0]
        first = torch.zeros(len(example), dtype=torch.long, device=example.device)
        for name in list(dict.fromkeys(reversed(ran)))[:40]:
            try:
                if bool(self._map(example, name, class_, first, relu=False).any()):
                    return name
            except InputError:
                continue
        return None


def _has_positions(output: Tensor) -> bool:
    if output.ndim == 4:
        sides = sorted(output.shape[1:])  # (C, h, w) or (h, w, C): two of the three are sides above one
        return sides[1] > 1 and min(output.shape[2], max(output.shape[1], output.shape[3])) > 1
    return output.ndim == 3 and output.shape[1] >= 4


class PictureFolder:
    """Writes pictures into ``images/`` of an audit's folder; the same picture once."""

    def __init__(self, folder: Path) -> None:
        self.root, self.folder = folder, folder / "images"
        self.folder.mkdir(parents=True, exist_ok=True)

    def photo(self, image: np.ndarray, id_: str) -> str:
        """A training image (H, W, 3) uint8, named by its identifier."""
        name = digest(id_, length=20)
        return self._write(image, f"photo-{name}")

    def heat(self, heat: np.ndarray, image: np.ndarray, name: str) -> str:
        """A heatmap (H, W) over its image (H, W, 3), full colour at its maximum."""
        return self._write(overlay(heat, image, max(float(heat.max()), 1e-12)), name)

    def visual(self, image: np.ndarray, name: str) -> str:
        """A feature visualisation, kept exactly."""
        return self._write(image, name, exact=True)

    def tidy(self, keep: set[str]) -> None:
        """Remove our pictures of an earlier result in this folder."""
        for pattern in ("photo-*", "class-*-component-*"):
            for file in self.folder.glob(pattern):
                if file.relative_to(self.root).as_posix() not in keep:
                    file.unlink()

    def _write(self, image: np.ndarray, name: str, exact: bool = False) -> str:
        exact = exact or max(image.shape[:2]) <= 96
        target = self.folder / f"{name}.{'png' if exact else 'jpg'}"
        with whole(target) as part:
            Image.fromarray(image).save(part, "PNG" if exact else "JPEG", quality=90)
        return target.relative_to(self.root).as_posix()
