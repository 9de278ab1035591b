"""Speed of relevance on ResNet-50 at 224 px against zennit, measured in the same run, interleaved.

    python benchmarks/relevance.py [--rows 2048] [--loop 16] [--repeats 5] [--threads 2] [--device cpu]

(a) one heatmap; (b) all 2048 pooled features: zennit explains `--loop` of them one at a time and the time is
scaled to 2048; ours computes `--rows` of them (scaled too when fewer than 2048); (c) the factor A of BiLRP over
patches. Random weights; times are min and median over the repeats.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer

from pfungst.relevance import Patches, attribute, linearize


def timed(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(device: str) -> str:
    if device == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB on the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of the process"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--loop", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patches", type=int, nargs="*", default=[8, 16])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = args.device
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"machine: {name}, {args.threads} threads, torch {torch.__version__}")
    print(f"load average at the start: {' '.join(f'{v:.1f}' for v in __import__('os').getloadavg())}")

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
    with Gradient(model=model, composite=EpsilonPlusFlat(canonizers=[ResNetCanonizer()])) as attributor:
        for k in range(args.loop):
            hot = torch.nn.functional.one_hot(torch.tensor([k], device=device), features)
            loop.append(timed(lambda hot=hot: attributor(x, lambda out: out * hot), device))
    eye = torch.eye(features, device=device)[: args.rows]
    start = time.perf_counter()
    lin = linearize(model, x, "epsilon_plus_flat")
    done = 0
    batches: list[float] = []
    while done < args.rows:  # rows are used and dropped, as an application that reduces them does
        part = eye[done : done + 128]
        batches.append(timed(lambda part=part: lin.rows(part), device) / len(part))
        done += len(part)
    total = time.perf_counter() - start
    scaled_loop = statistics.median(loop) * features
    scaled_ours = total / args.rows * features
    print(f"\n(b) all {features} features")
    print(f"    zennit, median of {args.loop} outputs × {features} {scaled_loop:10.1f} s (scaled)")
    note = "measured" if args.rows == features else f"scaled from {args.rows} rows"
    print(f"    ours, with linearisation          {scaled_ours:10.1f} s ({note})")
    print(f"    zennit / ours                     {scaled_loop / scaled_ours:10.1f}")
    print(f"    per output: zennit min {min(loop):.3f} s, ours min {min(batches):.4f} s, peak {peak(device)}")

    for size in args.patches:
        start = time.perf_counter()
        factor = linearize(model, x, "epsilon_gamma_box").factor(Patches(size))
        took = time.perf_counter() - start
        print(
            f"\n(c) A over {size}-pixel patches {tuple(factor.shape)}: {took:.1f} s, zennit's loop / ours "
            f"{scaled_loop / took:.1f}, peak {peak(device)}"
        )


if __name__ == "__main__":
    main()
