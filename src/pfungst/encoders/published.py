"""Published checkpoints, whose architecture is read off the names and shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pfungst.encoders.checkpoints import State, best_prefix
from pfungst.errors import CheckpointError

# Blocks of the four stages, whether they have three convolutions, channels of the stem and of the first
# block.
_RESNETS: dict[tuple[tuple[int, ...], bool, int, int], str] = {
    ((2, 2, 2, 2), False, 64, 64): "resnet18",
    ((3, 4, 6, 3), False, 64, 64): "resnet34",
    ((3, 4, 6, 3), True, 64, 64): "resnet50",
    ((3, 4, 23, 3), True, 64, 64): "resnet101",
    ((3, 8, 36, 3), True, 64, 64): "resnet152",
    ((3, 4, 6, 3), True, 64, 128): "wide_resnet50_2",
    ((3, 4, 23, 3), True, 64, 128): "wide_resnet101_2",
}
# Width of the output and blocks of the third stage; patch and width.
_CLIP_RESNETS = {
    (1024, 6): "RN50",
    (512, 23): "RN101",
    (640, 10): "RN50x4",
    (768, 18): "RN50x16",
}
_CLIP_VITS = {(32, 768): "ViT-B-32", (16, 768): "ViT-B-16", (14, 1024): "ViT-L-14"}


def _shapes(state: State, marks: Sequence[str]) -> dict[str, tuple[int, ...]]:
    prefix = best_prefix(state, marks)
    return {k[len(prefix) :]: tuple(v.shape) for k, v in state.items() if k.startswith(prefix)}


def _resnet(state: State, source: str) -> str:
    """The torchvision ResNet to which a state dict belongs."""
    marks = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")
    shapes = _shapes(state, marks)
    missing = [m for m in marks if m not in shapes]
    if missing:
        raise CheckpointError(
            f"{source} holds no ResNet: {missing[0]} is missing",
            "use torchvision:NAME or timm:NAME with checkpoint=… for other architectures",
        )
    depths = tuple(
        len({m.group(1) for k in shapes if (m := re.match(rf"layer{i}\.(\d+)\.", k))}) for i in range(1, 5)
    )
    stem, width = shapes["conv1.weight"][0], shapes["layer1.0.conv1.weight"][0]
    found = _RESNETS.get((depths, "layer1.0.conv3.weight" in shapes, stem, width))
    if found is None:
        raise CheckpointError(
            f"{source} is a ResNet with {depths} blocks, stem {stem} and width {width}, which torchvision "
            "does not have",
            "write a function that builds it and use module:function with checkpoint=…",
        )
    return f"torchvision:{found}"


def _clip(state: State, source: str) -> str:
    """The open_clip model to which the image tower of an OpenAI-style CLIP checkpoint belongs."""
    pooled = "visual.attnpool.positional_embedding"
    shapes = _shapes(state, ("visual.conv1.weight", "visual.positional_embedding", pooled))
    found = None
    if pooled in shapes:
        blocks = len({k.split(".")[2] for k in shapes if k.startswith("visual.layer3.")})
        found = _CLIP_RESNETS.get((shapes["visual.attnpool.c_proj.weight"][0], blocks))
    elif "visual.proj" in shapes:
        width, *_, patch = shapes["visual.conv1.weight"]
        found = _CLIP_VITS.get((patch, width))
        found = found and f"{found}-quickgelu"
    if found is None:
        raise CheckpointError(
            f"{source} holds no CLIP image encoder that we recognise (its names are like "
            f"{', '.join(list(state)[:3])})",
            "use open_clip:NAME with checkpoint=…",
        )
    return f"open_clip:{found}"


#: By scheme: the tensors and their file → the specification of the architecture.
ARCHITECTURE_OF: dict[str, Callable[[State, str], str]] = {
    "vissl": _resnet,
    "barlowtwins": _resnet,
    "pubmedclip": _clip,
}
