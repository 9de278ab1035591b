"""Which explanations of real networks beat a random order of patches: pixel flipping on Imagenette photographs.

    OMP_NUM_THREADS=1 python benchmarks/faithfulness.py [--model robust|standard] [--fill inpaint] [--randomise] [--data ../shared/data]

Photographs are drawn by seed, as many of each class; explained is the logit of the class that the network answers. All maps of
a network are measured on the same images, patches, replacement and random orders. `over grad × input` is the paired difference.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torchvision
from _common import describe_machine
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from pfungst.encoders.preprocessing import Normalise
from pfungst.measure.faithfulness import (
    Flipping,
    gradient_times_input,
    integrated_gradients,
    random_maps,
    weight_randomisation,
)
from pfungst.relevance import attribute, gradcam

COMPOSITES = (
    "epsilon_plus_flat",
    "epsilon_plus",
    "epsilon_gamma",
    "epsilon_alpha2_beta1_flat",
    "paper_resnet",
)
LAYERS = ("1.layer4.1", "1.layer1", "1.fc")
Explain = Callable[[nn.Module], Tensor]


def network(file: Path) -> nn.Module:
    """The ResNet-18 of a checkpoint, for images in [0, 1]."""
    net = torchvision.models.resnet18(num_classes=10)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()})
    return (
        nn.Sequential(Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), net)
        .eval()
        .requires_grad_(False)
    )


def photographs(file: Path, per_class: int, seed: int) -> Tensor:
    """(N, 3, 128, 128), as many of each class."""
    table = pq.read_table(file)
    labels = np.array(table["label"].to_pylist())
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == k))[:per_class] for k in np.unique(labels)]
    rows = np.concatenate(drawn)
    made = []
    for r in rows.tolist():
        image = Image.open(io.BytesIO(table["image"][r].as_py()["bytes"])).convert("RGB").resize((128, 128))
        made.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
    return torch.stack(made)


def methods(x: Tensor, target: Tensor) -> dict[str, Explain]:
    """Name → a network's maps (N, H, W)."""
    mean = x.mean((2, 3), keepdim=True)
    found: dict[str, Explain] = {
        f"LRP {name}": partial(lambda m, c: attribute(m, x, target, c, measure=False).values, c=name)
        for name in COMPOSITES
    }
    found |= {
        "GradCAM layer4": lambda m: gradcam(m, x, "1.layer4", target),
        "GradCAM layer3": lambda m: gradcam(m, x, "1.layer3", target),
        "gradient × input": lambda m: gradient_times_input(m, x, target),
        "gradient × (input − mean)": lambda m: gradient_times_input(m, x, target, mean),
        "integrated gradients, from black": lambda m: integrated_gradients(m, x, target),
        "integrated gradients, from the mean": lambda m: integrated_gradients(m, x, target, mean),
        "contrast of the image (no model)": lambda m: (x - mean).abs().sum(1),
        "random": lambda m: random_maps(x, 1),
    }
    return found


def randomise(name: str, model: nn.Module, x: Tensor, target: Tensor) -> None:
    """Print how alike maps stay when all weights, or those of a layer, are in random order."""
    print(f"\n{name} ResNet-18, {len(x)} photographs: |rank correlation| of maps before and after\n")
    print(f"| map | all weights | {' | '.join(f'only {layer[2:]}' for layer in LAYERS)} |")
    print("| --- | --- | --- | --- | --- |")
    for method, explain in methods(x, target).items():
        if method != "random":
            found = weight_randomisation(explain, model, LAYERS).values()
            print(
                f"| {method} | {' | '.join(f'{r.value:.2f} ({r.low:.2f} to {r.high:.2f})' for r in found)} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["robust", "standard"], default="robust")
    parser.add_argument("--fill", choices=["inpaint", "blur", "mean"], default="inpaint")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="points of a curve after the first")
    parser.add_argument("--per-class", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--randomise", action="store_true", help="weight randomisation instead, on 8 photographs"
    )
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PFUNGST_SHARED", "../shared")) / "data"
    )
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    file = options.data / "models" / f"imagenette_{options.model}_resnet18.safetensors"
    if not file.is_file():
        raise SystemExit(f"{file} does not exist: give --data")
    print(describe_machine())
    model = network(file)
    x = photographs(options.data / "imagenette" / "val.parquet", options.per_class, options.seed)
    with torch.inference_mode():
        target = model(x).argmax(1)
    if options.randomise:
        randomise(options.model, model, x[::2][:8], target[::2][:8])
        return
    started = time.monotonic()
    flipping = Flipping(
        model,
        x,
        patch=options.patch,
        target=target,
        fill=options.fill,
        steps=options.steps,
        seed=options.seed,
    )
    measured = {name: flipping.of(explain(model)) for name, explain in methods(x, target).items()}
    base = measured["gradient × input"]
    first, last = flipping.random[:, 0].mean(), flipping.random[:, -1].mean()
    print(f"\n{options.model} ResNet-18, {len(x)} photographs, {flipping.patches} patches of {options.patch} px, {options.fill}; "
          f"mean logit {first:.1f}, {last:.1f} where all is replaced; {time.monotonic() - started:.0f} s\n")  # fmt: skip
    print("| map | faithfulness (95 %) | beats random | most first | least first | over gradient × input |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, f in sorted(measured.items(), key=lambda pair: -pair[1].value):
        over = f.over(base)
        print(f"| {name} | {f.value:+.3f} ({f.low:+.3f} to {f.high:+.3f}) | {'yes' if f.beats_random else 'no'} | {f.most.value:+.3f} "
              f"| {f.least.value:+.3f} | {over.value:+.3f} ({over.low:+.3f} to {over.high:+.3f}) |")  # fmt: skip


if __name__ == "__main__":
    main()
