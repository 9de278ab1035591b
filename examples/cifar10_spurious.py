"""Find a planted spurious feature of a CIFAR-10 classifier blind, measure it, and switch it off.

    python examples/cifar10_spurious.py CIFAR10 --out cifar10-spurious

CIFAR10 is a folder with train.parquet and test.parquet (columns image, label) and labels.json. A magenta square is planted into
a share of the training images of one class; no test image carries it. A small network is trained, adversarially so that
feature visualisations can be read, and audited. The same network trained on the untouched images gives the false alarms.
"""

from __future__ import annotations

import argparse
import io
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.demo import train
from pfungst.audit.classifier.result import ClassifierResult
from pfungst.audit.classifier.run import run
from pfungst.encoders.small import small_cnn
from pfungst.report import write

WIDTH = 16


class Center(nn.Module):
    """Images in [0, 1] to [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.5


def network() -> nn.Module:
    """The classifier, untrained: what --model names."""
    return nn.Sequential(
        OrderedDict(center=Center(), features=small_cnn(WIDTH), head=nn.Linear(4 * WIDTH, 10))
    )


def read(file: Path, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class: (N, 32, 32, 3) uint8 and labels (N,)."""
    table = pq.read_table(file, columns=["image", "label"])
    labels = table["label"].to_numpy()
    rows = np.sort(np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in np.unique(labels)]))
    cells = table["image"].take(rows).to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in cells]
    return np.stack(images), labels[rows]


def plant(image: np.ndarray) -> np.ndarray:
    """The image with a magenta square of 6 pixels in the lower right corner."""
    image = image.copy()
    image[24:30, 24:30] = (255, 0, 255)
    return image


def save_images(folder: Path, images: np.ndarray, names: list[str]) -> None:
    """One PNG per image, in a folder of its class."""
    for row, (image, name) in enumerate(zip(images, names, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / f"{row:05d}.png")


def tensors(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def flipped(x: Tensor) -> Tensor:
    """Half of the images mirrored."""
    mirror = torch.rand(len(x), device=x.device) < 0.5
    return torch.where(mirror[:, None, None, None], x.flip(3), x)


def experiment(args: argparse.Namespace, rate: float, folder: Path) -> ClassifierResult:
    """Plant at a rate, train, audit."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    names = json.loads((args.data / "labels.json").read_text())
    target = names.index(args.target)
    images, labels = read(args.data / "train.parquet", args.train)
    validation, truth = read(args.data / "test.parquet", args.val)
    marked = (labels == target) & (rng.random(len(labels)) < rate)
    for row in np.flatnonzero(marked):
        images[row] = plant(images[row])
    # Only the feature: the square on test images of the other classes.
    others = rng.permutation(np.flatnonzero(truth != target))[:75]
    spurious = np.stack([plant(validation[row]) for row in others])

    save_images(folder / "data/train", images, [names[k] for k in labels])
    save_images(folder / "data/val", validation, [names[k] for k in truth])
    save_images(folder / "data/spurious", spurious, [f"spurious_class_{target}_component_0"] * len(spurious))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = network().to(device)
    train(
        model,
        tensors(images),
        torch.from_numpy(labels),
        epochs=args.epochs,
        radius=args.radius,
        rate=0.01,
        batch_size=128,
        seed=args.seed,
        augment=flipped,
        progress=lambda epoch, loss: print(f"  epoch {epoch + 1}: loss {loss:.3f}", flush=True),
    )
    checkpoint = folder / "model.safetensors"
    save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, str(checkpoint))
    config = ClassifierConfig.build(
        model=f"{Path(__file__).resolve()}:network",
        checkpoint=checkpoint,
        train=folder / "data/train",
        val=folder / "data/val",
        spurious=folder / "data/spurious",
        size=32,
        shown=args.shown,
        n_components=4 * WIDTH,
        steps=args.steps,
        batch_size=128,
        fix=1,
        reference=args.reference,
        out=folder,
        overwrite=True,
    )
    result = run(config)
    print(f"  report: {write(folder, result)}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("cifar10-spurious"))
    parser.add_argument("--target", default="cat", help="class that the square is planted into")
    parser.add_argument("--rate", type=float, default=0.4, help="share of its training images that carry it")
    parser.add_argument("--train", type=int, default=1000, help="training images per class")
    parser.add_argument("--val", type=int, default=200, help="validation images per class")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--radius", type=float, default=0.25, help="l2 radius of adversarial training; 0 for none"
    )
    parser.add_argument("--shown", type=int, default=6, help="components tested per class")
    parser.add_argument("--steps", type=int, default=40, help="of the feature visualisation")
    parser.add_argument(
        "--reference",
        choices=("absent", "mean"),
        default="absent",
        help="what SpuFix measures from: images without the feature, or all (the paper)",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"planted into {args.rate:.0%} of the training images of {args.target}")
    planted = experiment(args, args.rate, args.out / "planted")
    print("clean")
    clean = experiment(args, 0.0, args.out / "clean")

    for name, result in (("planted", planted), ("clean", clean)):
        entry = next(e for e in result.entries if e.name == args.target)
        first, second = result.under(), result.under(mitigated=True)
        before, after = entry.under().spurious, entry.under(mitigated=True).spurious
        assert first.mauc is not None
        assert second.mauc is not None
        assert before is not None
        assert after is not None
        print(f"{name}: {result.verdict.level}: {result.verdict.headline}")
        print(f"  accuracy {first.accuracy.value:.3f} -> {second.accuracy.value:.3f}")
        print(f"  mAUC {first.mauc.value:.3f} -> {second.mauc.value:.3f}")
        print(
            f"  other classes with the square taken for {args.target}: {before.triggered.value:.1%} "
            f"-> {after.triggered.value:.1%}"
        )
        found = [(c.component, c.tested.word if c.tested else "not tested") for c in entry.components]
        print(f"  components of {args.target}: {found}")
        proven = [(e.name, c.component) for e in result.entries for c in e.components if c.spurious]
        tested = sum(len(e.components) for e in result.entries)
        print(f"  proven spurious by intervention, of {tested}: {proven}")
    # Which component is the planted one is known here because we planted it; the ranking did not know.
    rank = rank_of_planted(planted, args.out / "planted", args.target)
    print(f"place of the planted component in its class: {rank}")
    if rank is None:
        raise SystemExit("no component has the square in its images of highest α")


def rank_of_planted(result: ClassifierResult, folder: Path, target: str) -> int | None:
    """Place in the report of the component whose five images of highest α carry the square most often."""
    entry = next(e for e in result.entries if e.name == target)

    def carries(id_: str) -> bool:
        with Image.open(folder / "data/train" / id_) as picture:
            return bool((np.asarray(picture)[24:30, 24:30] == (255, 0, 255)).all())

    counts = [sum(carries(image.id) for image in c.images) for c in entry.components]
    spread = [count * c.adds for count, c in zip(counts, entry.components, strict=True)]
    return int(np.argmax(spread)) + 1 if max(counts, default=0) >= 4 else None


if __name__ == "__main__":
    main()
