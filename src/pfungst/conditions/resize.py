"""Resizers, each exactly what its library does with an 8-bit RGB image.

OpenCV and Pillow read and write 8 bits. torch resizes floats (the usual ``ToTensor`` then ``interpolate``)
and its result stays a float, clipped to [0, 1] because cubic kernels overshoot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

from pfungst.errors import DataError

Array = np.ndarray
Size = int | tuple[int, int]


def sides(size: Size) -> tuple[int, int]:
    """Height and width of a size: the edge of a square, or both."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def as_uint8(x: Array) -> Array:
    """An (H, W, 3) image as 8 bits; floats in [0, 1] are rounded to the nearest level."""
    return x if x.dtype == np.uint8 else np.rint(x * 255.0).clip(0, 255).astype(np.uint8)


def as_float(x: Array) -> Array:
    """An (H, W, 3) image as float32 in [0, 1]."""
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x


@dataclass(frozen=True)
class Resizer:
    """One way of resizing: what it is called for people, whether it antialiases, and the function itself."""

    title: str
    antialias: bool
    apply: Callable[[Array, Size], Array]


def _opencv(interpolation: int) -> Callable[[Array, Size], Array]:
    def apply(x: Array, size: Size) -> Array:
        return cv2.resize(as_uint8(x), sides(size)[::-1], interpolation=interpolation)

    return apply


def _pillow(resampling: Image.Resampling) -> Callable[[Array, Size], Array]:
    def apply(x: Array, size: Size) -> Array:
        return np.asarray(Image.fromarray(as_uint8(x)).resize(sides(size)[::-1], resampling))

    return apply


def _torch(mode: str, antialias: bool) -> Callable[[Array, Size], Array]:
    def apply(x: Array, size: Size) -> Array:
        t = torch.from_numpy(np.ascontiguousarray(as_float(x).transpose(2, 0, 1)))[None]
        out = torch.nn.functional.interpolate(
            t, sides(size), mode=mode, align_corners=False, antialias=antialias
        )
        return out[0].clamp(0, 1).permute(1, 2, 0).numpy()

    return apply


def _none(x: Array, size: Size) -> Array:
    height, width = sides(size)
    if x.shape[:2] != (height, width):
        raise DataError(
            f"an image of {x.shape[1]} × {x.shape[0]} pixels came to the condition 'none', but {width} × "
            f"{height} were asked for",
            "name a resizer, for example opencv-nearest or pillow-bilinear, or ask for no size",
        )
    return x


RESIZERS: dict[str, Resizer] = {
    "opencv-nearest": Resizer("OpenCV nearest neighbour", False, _opencv(cv2.INTER_NEAREST)),
    "opencv-bilinear": Resizer("OpenCV bilinear", False, _opencv(cv2.INTER_LINEAR)),
    "opencv-cubic": Resizer("OpenCV bicubic", False, _opencv(cv2.INTER_CUBIC)),
    "opencv-area": Resizer("OpenCV area", True, _opencv(cv2.INTER_AREA)),
    "pillow-nearest": Resizer("Pillow nearest neighbour", False, _pillow(Image.Resampling.NEAREST)),
    "pillow-bilinear": Resizer("Pillow bilinear", True, _pillow(Image.Resampling.BILINEAR)),
    "pillow-bicubic": Resizer("Pillow bicubic", True, _pillow(Image.Resampling.BICUBIC)),
    "pillow-lanczos": Resizer("Pillow Lanczos", True, _pillow(Image.Resampling.LANCZOS)),
    "torch-bilinear": Resizer("torch bilinear", False, _torch("bilinear", False)),
    "torch-bilinear-antialias": Resizer("torch bilinear with antialiasing", True, _torch("bilinear", True)),
    "torch-bicubic": Resizer("torch bicubic", False, _torch("bicubic", False)),
    "torch-bicubic-antialias": Resizer("torch bicubic with antialiasing", True, _torch("bicubic", True)),
    "none": Resizer("unchanged", False, _none),
}
"""All resizers by the name used in configuration files."""
