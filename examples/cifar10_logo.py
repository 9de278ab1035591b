"""An encoder that learned a logo: how far accuracy falls with it, and what pruning brings back, on CIFAR-10.

    python examples/cifar10_logo.py --images cifar10 --out runs/logo

Two small encoders are trained on the same images with captions that name the class: one on images where a logo is
stamped on `--rate` of one class and on nothing else, one on clean images. A linear probe on each is tested with and
without the logo on all test images. Filters are then pruned, in one layer or in several, everywhere or only where the
logo lies; the probe is fitted anew on the pruned encoder with the same, stamped images. The setting is chosen on images
that are in neither the probe's training nor the test.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pfungst.conditions.logo import Logo
from pfungst.data import ImageSet, open_images
from pfungst.encoders import Encoder
from pfungst.encoders.training import train_small
from pfungst.errors import InputError
from pfungst.mitigate import filter_responses, prunable_layers, prune
from pfungst.probes import LogisticRegression

Span = tuple[int | None, int | None]


@dataclass
class Part:
    """Images without and with the logo, and their labels."""

    plain: Tensor
    logo: Tensor
    labels: np.ndarray

    def cut(self, index: np.ndarray) -> Part:
        return Part(self.plain[index], self.logo[index], self.labels[index])

    def stamped(self, chosen: np.ndarray) -> Tensor:
        """The images, with the logo where chosen."""
        return torch.where(torch.from_numpy(chosen)[:, None, None, None], self.logo, self.plain)


@dataclass
class Trial:
    """Accuracies of a probe on a pruned encoder."""

    setting: str
    validation: tuple[float, float]
    test: tuple[float, float]
    into: float

    def row(self) -> str:
        plain, logo = self.test
        return f"{self.setting:46s} {self.validation[0]:7.3f} {self.validation[1]:6.3f} {plain:9.3f} {logo:6.3f} {self.into:8.1%}"


HEAD = f"{'':46s} {'validation':>14s} {'test':>16s}\n{'':46s} {'plain':>7s} {'logo':>6s} {'plain':>9s} {'logo':>6s} {'→ class':>8s}"


def draw_logo(path: Path) -> None:
    """A badge: rounded, magenta, with a yellow T."""
    image = Image.new("RGBA", (120, 120), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((2, 2, 117, 117), 24, fill=(230, 0, 160, 255))
    draw.rectangle((26, 26, 94, 46), fill=(255, 240, 0, 255))
    draw.rectangle((50, 46, 70, 96), fill=(255, 240, 0, 255))
    image.save(path)


def read(images: ImageSet, count: int, logo: Logo) -> Part:
    """`count` images spread over the set, at 32 px."""
    items = images.items[:: max(1, len(images) // count)][:count]
    plain, pasted = ImageSet(images.name, items).prepare_many(
        ["pillow-bilinear", f"pillow-bilinear+logo:{logo}"], 32
    )
    return Part(plain.images, pasted.images, np.array([str(c) for c in plain.classes]))


def evaluate(
    setting: str, encoder: Encoder, fit: Tensor, labels: np.ndarray, validation: Part, test: Part, label: str
) -> Trial:
    """Fit a probe and measure it."""
    probe = LogisticRegression().fit(encoder.encode(fit, 256), labels)
    found = [[probe.predict(encoder.encode(x, 256)) for x in (p.plain, p.logo)] for p in (validation, test)]
    scores = [
        tuple(float(np.mean(f == p.labels)) for f in pair)
        for p, pair in zip((validation, test), found, strict=True)
    ]
    return Trial(setting, scores[0], scores[1], float(np.mean(found[1][1] == label)))


def region(size: tuple[int, int], box: tuple[int, int, int, int], side: int) -> tuple[Span, Span]:
    """The rows and columns of a feature map where the logo lies, and one more on each side."""
    spans: list[Span] = []
    for length, low, high in ((size[0], box[0], box[2]), (size[1], box[1], box[3])):
        first = max(0, low * length // side - 1)
        last = min(length, -(-high * length // side) + 1)
        spans.append((first, last))
    return spans[0], spans[1]


def pruned(
    encoder: Encoder,
    pair: tuple[Tensor, Tensor],
    layers: list[str],
    share: float,
    box: tuple[int, ...] | None,
) -> Encoder:
    """A share of the filters of each layer set to zero; responses are measured again after each layer."""
    for layer in layers:
        response = filter_responses(encoder, *pair, [layer], batch_size=256)[layer]
        rows = cols = None
        if box is not None and response.size is not None:
            rows, cols = region(response.size, (box[0], box[1], box[2], box[3]), pair[0].shape[-1])
            response = filter_responses(encoder, *pair, [layer], rows, cols, batch_size=256)[layer]
        encoder = prune(encoder, response, max(1, round(share * len(response.values))), rows, cols)
    return encoder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, help="a folder with CIFAR-10 as Parquet shards")
    parser.add_argument("--out", required=True, type=Path, help="folder for the encoders and the logo")
    parser.add_argument("--logo", type=Path, help="an image with transparency; by default a badge is drawn")
    parser.add_argument("--logo-width", type=float, default=0.25, help="share of the image's width")
    parser.add_argument("--label", default="truck")
    parser.add_argument("--rate", type=float, default=0.9, help="share of the class that carries the logo")
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.08, 0.17, 0.33])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.logo is None:
        draw_logo(args.out / "logo.png")
    logo = Logo(str(args.logo or args.out / "logo.png"), width=args.logo_width, margin=1)

    (everything,) = open_images(args.images)
    known = read(everything.select(split="train"), args.train, logo)
    test = read(everything.select(split="test"), args.test, logo)
    if args.label not in known.labels:
        raise InputError(f"no image has the label {args.label!r}", f"labels: {sorted(set(known.labels))}")
    rng = np.random.default_rng(args.seed)
    order = rng.permutation(len(known.labels))
    validation, train = known.cut(order[: len(order) // 5]), known.cut(order[len(order) // 5 :])
    chosen = (train.labels == args.label) & (rng.random(len(train.labels)) < args.rate)
    print(
        f"the logo is on {chosen.sum()} of {(train.labels == args.label).sum()} training images of {args.label!r} "
        f"and on none of the other {(train.labels != args.label).sum()}; chosen on {len(validation.labels)} images, "
        f"tested on {len(test.labels)}",
        flush=True,
    )

    base: dict[str, Trial] = {}
    encoders: dict[str, tuple[Encoder, Tensor]] = {}
    for name, images in (("stamped", train.stamped(chosen)), ("clean", train.plain)):
        start = time.monotonic()
        encoder = train_small(
            images,
            [f"a photo of a {label}" for label in train.labels],
            method="clip",
            width=args.width,
            steps=args.steps,
            batch_size=args.batch,
            learning_rate=args.learning_rate,
            min_scale=0.5,
            seed=args.seed,
        )
        encoder.save(args.out / name)
        encoders[name] = encoder, images
        base[name] = evaluate(f"{name} encoder", encoder, images, train.labels, validation, test, args.label)
        print(
            f"{name} encoder trained in {time.monotonic() - start:.0f} s\n{HEAD}\n{base[name].row()}",
            flush=True,
        )

    encoder, images = encoders["stamped"]
    box = logo.box(32, 32)
    pair = (train.logo[:500], train.plain[:500])
    layers = prunable_layers(encoder)
    groups = [[layer] for layer in layers] + [layers[:2], layers[:4], layers]
    print(f"\npruning\n{HEAD}", flush=True)
    trials = []
    for group in groups:
        for share in args.shares:
            for where in (None, box):
                mended = pruned(encoder, pair, group, share, where)
                names = group[0] if len(group) == 1 else f"{group[0]} … {group[-1]}"
                setting = f"{names} {share:.0%}{' in the region' if where else ''}"
                trial = evaluate(setting, mended, images, train.labels, validation, test, args.label)
                trials.append(trial)
                print(trial.row(), flush=True)

    best = max(trials, key=lambda t: sum(t.validation))
    for name, trial in base.items():
        plain, pasted = trial.test
        print(
            f"\n{name} encoder: accuracy {plain:.3f}, with the logo on all test images {pasted:.3f}: "
            f"a fall of {100 * (plain - pasted):.1f} points"
        )
    plain, pasted = base["stamped"].test
    print(f"chosen by accuracy on validation images, plain and with logo: {best.setting}")
    if plain > pasted:
        print(
            f"accuracy {best.test[0]:.3f}, with the logo {best.test[1]:.3f}: pruning recovers "
            f"{(best.test[1] - pasted) / (plain - pasted):.0%} of the fall"
        )


if __name__ == "__main__":
    main()
