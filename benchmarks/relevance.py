"""Speed of relevance on ResNet-50 at 224 px against zennit, measured in the same run, interleaved.

    python benchmarks/relevance.py [--rows 2048] [--loop 16] [--repeats 5] [--threads 2] [--device cpu]

(a) one heatmap; (b) all 2048 pooled features: zennit explains `--loop` of them one at a time and the time is
scaled to 2048; ours computes `--rows` of them (scaled too when fewer than 2048). Random weights; times are min and median over the
repeats. The factor over patches is in bilrp.py.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torchvision
from _common import describe_machine, timed
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer

from pfungst.memory import peak_memory
from pfungst.relevance import attribute, linearize


def peak(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    return f"{peak_memory() / 2**30:.2f} GiB of the process"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--loop", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = args.device
    print(describe_machine(device))

    model = torchvision.models.resnet50().eval().to(device)
    x = torch.randn(1, 3, 224, 224, device=device)
    one = torch.nn.functional.one_hot(torch.tensor([7], device=device), 1000)

    def zennit_single() -> None:
        with Gradient(model=model, composite=EpsilonPlusFlat(canonizers=[ResNetCanonizer()])) as attributor:
            attributor(x, lambda out: out * one)

    def ours_single() -> None:
        attribute(model, x, 7, "epsilon_plus_flat")

    times: dict[str, list[float]] = {"zennit": [], "ours": []}
    for _ in range(args.repeats + 1):  # the first round warms up
        times["zennit"].append(timed(zennit_single, device))
        times["ours"].append(timed(ours_single, device))
    print("\n(a) one heatmap                     min s   median s")
    for who, t in times.items():
        print(f"    {who:30s} {min(t[1:]):8.3f} {statistics.median(t[1:]):8.3f}")
    ratio = statistics.median(times["zennit"][1:]) / statistics.median(times["ours"][1:])
    print(f"    zennit / ours, medians         {ratio:8.2f}")

    model.fc = torch.nn.Identity()
    features = model(x).shape[1]
    loop: list[float] = []
    batches: list[float] = []
    eye = torch.eye(features, device=device)[: args.rows]
    begun = time.perf_counter()
    lin = linearize(model, x, "epsilon_plus_flat")
    lin.rows(eye[:1])  # builds the program
    setup = time.perf_counter() - begun
    parts = eye.split(688)  # as many as go through the deep layers at once
    every = -(-args.loop // len(parts))
    with Gradient(model=model, composite=EpsilonPlusFlat(canonizers=[ResNetCanonizer()])) as attributor:
        for i in range(every * len(parts)):  # interleaved, so that both meet the same load
            if i < args.loop:
                hot = torch.nn.functional.one_hot(torch.tensor([i], device=device), features)
                loop.append(timed(lambda hot=hot: attributor(x, lambda out: out * hot), device))
            if i % every == every - 1:  # rows are used and dropped, as an application that reduces them does
                part = parts[i // every]
                took = timed(lambda part=part: lin.rows(part), device)
                batches += [took / len(part)] * len(part)
    total = setup + sum(batches)
    scaled_loop = statistics.median(loop) * features
    scaled_ours = total / args.rows * features
    print(f"\n(b) all {features} features")
    print(f"    zennit, median of {args.loop} outputs × {features} {scaled_loop:10.1f} s (scaled)")
    note = "measured" if args.rows == features else f"scaled from {args.rows} rows"
    print(f"    ours, with linearisation          {scaled_ours:10.1f} s ({note})")
    print(f"    zennit / ours                     {scaled_loop / scaled_ours:10.1f}")
    print(
        f"    per output: zennit min {min(loop):.3f} s, ours min {min(batches):.4f} s (ratio {min(loop) / min(batches):.1f}), peak {peak(device)}"
    )


if __name__ == "__main__":
    main()
