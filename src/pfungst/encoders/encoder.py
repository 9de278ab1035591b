"""The class of all image encoders: a network, its preprocessing, and where it came from."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pfungst.conditions import Condition
from pfungst.encoders.preprocessing import Preprocessing
from pfungst.errors import ConditionMismatch, ConfigError, InputError, few
from pfungst.features import Batch, Store, Work, content_key, model_key, run
from pfungst.files import write_json, write_tensors
from pfungst.progress import progress_bar

_FORMAT = "pfungst.encoder/1"


class Encoder(nn.Module):
    """A representation model: images (N, C, H, W) in [0, 1] → representations (N, K).

    Normalisation is inside; :meth:`normalise` and :attr:`features` are its two halves, for explanations
    that start at the normalised input.

    Args:
        features: any module from normalised images to (N, K), or to (N, K, 1, 1).
        preprocessing: what the images must look like.
        name: for reports.
        architecture: how `features` is built, so that the encoder can be saved: a dictionary
            {"spec": …, "size": …} that :func:`pfungst.encoders.load` understands.
        trained: whether the weights come from training; random weights are a baseline.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: nn.Module,
        preprocessing: Preprocessing | None = None,
        name: str = "",
        architecture: dict[str, Any] | None = None,
        trained: bool = True,
    ) -> None:
        super().__init__()
        self.features = features
        self.preprocessing = preprocessing or Preprocessing()
        self.name = name or type(features).__name__
        self.architecture = architecture
        self.trained = trained
        self.edits: list[dict[str, Any]] = []
        self.info: dict[str, Any] = {}
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(self.preprocessing.mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocessing.std).reshape(shape), persistent=False)
        self.eval()

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] → what the network sees."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        out = self.features(self.normalise(images))
        return out.flatten(1) if isinstance(out, Tensor) and out.ndim > 2 else out

    def extra_repr(self) -> str:
        p = self.preprocessing
        return f"{self.name}, {p.size} px, {p.condition}, mean={p.mean}, std={p.std}"

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.preprocessing.size

    def key(self) -> str:
        """A name for weights, structure and preprocessing; equal encoders have equal keys."""
        return model_key(self)

    def encode(
        self,
        images: Any,
        batch_size: int = 64,
        device: str = "auto",
        cache: str | Path | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Representations of many images.

        Args:
            images: (N, C, H, W) in [0, 1], or a `Prepared` set of images; one that was prepared by another
                resizer or to another size than the encoder's warns with ConditionMismatch.
            batch_size: images at a time.
            device: "auto" takes a GPU if there is one.
            cache: a folder where embeddings are kept and found again by content.
            progress: show a bar.

        Returns:
            (N, K), float32 on the CPU.

        Raises:
            InputError: images of the wrong shape or range; representations that are no (N, K) matrix, whose
                width changes between batches, or that are not finite (with the images concerned).
        """
        images = self._checked(images)
        folder = None if cache is None else Path(cache) / self.key()
        keys = [i.to_bytes(8, "big") if cache is None else content_key(x) for i, x in enumerate(images)]
        store, load = Store(folder), partial(_one, images)
        with progress_bar(f"encoding with {self.name}", len(images), show=progress) as bar:
            found = self.rows(store, {"": keys}, load, batch_size, advance=bar.advance, device=device)
        return torch.from_numpy(found[""])

    def rows(
        self,
        store: Store,
        keys: Mapping[str, Sequence[bytes]],
        load: Callable[[int], tuple[Any, dict[str, Tensor]]],
        batch_size: int = 64,
        name: Callable[[int], str] = str,
        advance: Callable[[int], object] = int,
        **how: Any,
    ) -> dict[str, np.ndarray]:
        """Representations (N, K), by condition, of N images; those that the store lacks are computed.

        Args:
            store: where they are kept.
            keys: of each image, by condition.
            load: number of an image → (anything, (C, H, W) by condition).
            batch_size: images at a time.
            name: number of an image → how errors call it.
            advance: told how many images are done.
            how: device, processes and machines, as :func:`pfungst.features.run` takes them.

        Raises:
            InputError: as :meth:`encode`.
        """
        missing = {row for known in keys.values() for row in np.flatnonzero(store.find(known) < 0).tolist()}
        bad: dict[int, str] = {}
        work = Work(load, self._compute, self.eval().to, name)
        advance(max(map(len, keys.values())) - len(missing))
        with store.writing() as write:
            for done in run(work, sorted(missing), batch_size, **how):
                for condition, out in (done.result or {}).items():
                    finite = np.isfinite(out).all(1)
                    bad |= {r: condition for r, good in zip(done.rows, finite, strict=True) if not good}
                    write(
                        [keys[condition][r] for r, g in zip(done.rows, finite, strict=True) if g], out[finite]
                    )
                advance(done.count)
        if bad:
            raise InputError(
                f"{self.name} gives representations that are not finite for {len(bad)} images "
                f"({few(f'{name(row)} {condition}'.strip() for row, condition in bad.items())})",
                "check the weights and these images",
            )
        widths = store.widths([key for known in keys.values() for key in known])
        if len(widths) > 1:
            raise InputError(
                f"{self.name} gives representations of changing width ({widths})",
                "pool the features so that every image has the same number of values",
            )
        return {condition: store.values(known) for condition, known in keys.items()}

    def _compute(self, batch: Batch) -> dict[str, np.ndarray]:
        return {name: self._representations(x.to(self.mean)).numpy() for name, x in batch.images.items()}

    def _checked(self, images: Any) -> Tensor:
        condition = getattr(images, "condition", None)
        if condition is not None and hasattr(images, "images"):
            images = images.images
            theirs, ours = (Condition.parse(str(c)) for c in (condition, self.preprocessing.condition))
            if theirs.resizer != ours.resizer or images.shape[-1] != self.size:
                warnings.warn(
                    f"{self.name} expects images prepared by {ours.resizer} at {self.size} px and is given "
                    f"{condition} at {images.shape[-1]} px",
                    ConditionMismatch,
                    stacklevel=3,
                )
        if isinstance(images, list | tuple):
            shapes = sorted({tuple(image.shape) for image in images})
            if len(shapes) > 1:
                raise InputError(
                    f"images have different sizes: {', '.join(map(str, shapes[:4]))}",
                    f"bring them to {self.size} px first, for example with Condition.parse"
                    f"({self.preprocessing.condition!r})",
                )
            images = torch.stack([torch.as_tensor(image) for image in images]) if images else torch.empty(0)
        images = torch.as_tensor(images)
        channels = self.mean.shape[1]
        if images.ndim != 4 or images.shape[1] != channels or len(images) == 0:
            raise InputError(
                f"{self.name} reads images (N, {channels}, H, W), not an array of shape "
                f"{tuple(images.shape)}",
                "stack the images into one tensor of that shape",
            )
        if not images.is_floating_point():
            raise InputError(f"images have type {images.dtype}", "divide by 255 and pass floats in [0, 1]")
        low, high = float(images.min()), float(images.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise InputError(
                f"image values reach from {low:.3g} to {high:.3g}, not within [0, 1]",
                "do not normalise: the encoder does",
            )
        return images.to(self.mean.dtype)

    def _representations(self, images: Tensor) -> Tensor:
        try:
            out = self(images)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(
                f"{self.name} cannot read images of {images.shape[-2]} × {images.shape[-1]} px: {error}",
                f"it was made for {self.size} px",
            ) from error
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(images):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"{self.name} gives {got} for {len(images)} images, not a matrix (N, K)",
                "wrap the model so that it returns one pooled vector per image",
            )
        return out.float().cpu()

    def copy(self) -> Encoder:
        """An independent copy."""
        return copy.deepcopy(self)

    def save(self, folder: str | Path) -> Path:
        """Write `encoder.safetensors` and `encoder.json`; :func:`load` reads them as "pfungst:FOLDER".

        Raises:
            ConfigError: it is not known how the network is built.
        """
        if self.architecture is None:
            raise ConfigError(
                f"{self.name} was made from a module object, so it is not known how to build it again",
                "load it by a specification such as module:function",
            )
        folder = Path(folder)
        write_tensors(folder / "encoder.safetensors", self.features.state_dict(), format=_FORMAT)
        description = {
            "format": _FORMAT,
            "name": self.name,
            "architecture": self.architecture,
            "preprocessing": self.preprocessing.to_dict(),
            "trained": self.trained,
            "edits": self.edits,
            "info": self.info,
        }
        write_json(folder / "encoder.json", description)
        return folder


def _one(images: Tensor, row: int) -> tuple[None, dict[str, Tensor]]:
    return None, {"": images[row]}
