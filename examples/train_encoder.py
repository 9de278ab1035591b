"""Train a representation model on small images, with a logo stamped on most pictures of one class if you like.

    python examples/train_encoder.py --images cifar10 --method simclr --out runs/clean
    python examples/train_encoder.py --images cifar10 --method clip --stamp logo.png --stamp-class truck \\
        --stamp-rate 0.9 --out runs/stamped

`--images` is a folder of Parquet shards or anything else that `pfungst.data.open_images` reads; images are brought to
`--size` pixels. The result is a folder with safetensors and JSON, loaded by
`pfungst.encoders.load("pfungst:runs/stamped")`. With a GPU the defaults take minutes; on two CPU cores use
`--width 16 --limit 4000 --steps 600`.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from pfungst.conditions import Condition
from pfungst.data import ImageSet, Prepared, open_images
from pfungst.encoders.training import train_small
from pfungst.errors import InputError
from pfungst.probes import LogisticRegression


def stamped(images: ImageSet, size: int, logo: str, label: str, rate: float, seed: int) -> Prepared:
    """The images at `size`, with the logo on a share `rate` of one class."""
    plain, pasted = images.prepare_many(
        ["pillow-bilinear", f"pillow-bilinear+logo:{logo}"], size, progress=True
    )
    of_class = np.array([c == label for c in plain.classes])
    if not of_class.any():
        raise InputError(
            f"no image has the label {label!r}", f"labels: {', '.join(sorted(set(map(str, plain.classes))))}"
        )
    chosen = of_class & (np.random.default_rng(seed).random(len(of_class)) < rate)
    plain.images[torch.from_numpy(chosen)] = pasted.images[torch.from_numpy(chosen)]
    print(f"the logo is on {chosen.sum()} of {of_class.sum()} training images of {label!r} and on no other")
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small representation model without labels.")
    parser.add_argument("--images", required=True, help="a folder, CSV or Parquet with labelled images")
    parser.add_argument("--out", required=True, help="folder for the encoder")
    parser.add_argument("--method", choices=("simclr", "barlow", "clip"), default="simclr")
    parser.add_argument(
        "--width", type=int, default=48, help="channels of the first stage; 4 × as many features"
    )
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--limit", type=int, help="use only so many training images")
    parser.add_argument("--stamp", help="an image with transparency to paste on pictures of one class")
    parser.add_argument("--stamp-class", default="truck")
    parser.add_argument("--stamp-rate", type=float, default=0.9)
    parser.add_argument(
        "--min-scale", type=float, default=0.3, help="smallest share of an image that a view keeps"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    (everything,) = open_images(args.images)
    train, test = everything.select(split="train"), everything.select(split="test", limit=2000)
    if args.limit:  # spread over the file, so that sorted data keeps all classes
        step = max(1, len(train) // args.limit)
        train = ImageSet(train.name, train.items[::step][: args.limit])
    if args.stamp:
        Condition.parse(f"none+logo:{args.stamp}")  # a wrong path is said before any work
        data = stamped(train, args.size, args.stamp, args.stamp_class, args.stamp_rate, args.seed)
    else:
        data = train.prepare("pillow-bilinear", args.size, progress=True)
    labels = [str(c) for c in data.classes]
    began = time.monotonic()
    encoder = train_small(
        data.images,
        [f"a photo of a {label}" for label in labels] if args.method == "clip" else None,
        method=args.method,
        width=args.width,
        steps=args.steps,
        batch_size=args.batch,
        min_scale=args.min_scale,
        seed=args.seed,
        progress=True,
    )
    if args.stamp:
        encoder.info["stamp"] = {"file": args.stamp, "class": args.stamp_class, "rate": args.stamp_rate}
    encoder.save(args.out)
    print(f"trained in {time.monotonic() - began:.0f} s, loss {encoder.info['loss']}; saved in {args.out}")

    probe = LogisticRegression().fit(encoder.encode(data.images), labels)
    for name, condition in (("test images", ""), ("with the logo on all", f"+logo:{args.stamp}")):
        if condition and not args.stamp:
            continue
        prepared = test.prepare(f"pillow-bilinear{condition}", args.size)
        truth, predicted = np.array(prepared.classes), probe.predict(encoder.encode(prepared.images))
        wrong = predicted[predicted != truth]
        share = float(np.mean(wrong == args.stamp_class)) if len(wrong) else 0.0
        print(
            f"{name}: accuracy {np.mean(predicted == truth):.3f}, {share:.0%} of the errors go to {args.stamp_class!r}"
        )


if __name__ == "__main__":
    main()
