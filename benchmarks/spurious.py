"""Speed of neural PCA, of the feature pass and of SpuFix, each against the plain way in the same run.

    python benchmarks/spurious.py [--classes 100] [--rounds 16] [--part npca|spufix|pass|all]

Neural PCA: 100 classes × 1,300 images × 2,048 features with eigenvalues falling as 1/l in a random basis per class, stored
as float16, against covariance and full eigendecomposition of three classes (scaled to all), in float64 (the published code
calls numpy.cov, which computes in float64) and in float32. Forward passes alternate between the two sides.
Freed memory is kept by the process, as the command line does: page faults would drown the differences.
Two threads, or one where only one core may be used.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from _common import AnonymousPeak, describe_machine
from torch import Tensor, nn

from pfungst.memory import keep_freed_memory
from pfungst.spurious import FeatureHead, LinearHead, NeuralPCA, SpuFix, extract_features

IMAGES, DIM, KEPT = 1300, 2048, 128


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def both_seconds(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds on the clock and of the processor, and what the work gave."""
    start = time.perf_counter(), time.process_time()
    result = work()
    return (time.perf_counter() - start[0], time.process_time() - start[1]), result


def generated_features(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features with a realistic spectrum: eigenvalues ∝ 1/l, another basis for each class."""
    table = np.lib.format.open_memmap(path, "w+", np.float16, (classes * IMAGES, DIM))
    scales = torch.arange(1, DIM + 1) ** -0.5
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    for k in range(classes):
        basis = rotation[torch.randperm(DIM, generator=generator)]
        rows = 1 + (torch.randn(IMAGES, DIM, generator=generator) * scales) @ basis
        table[k * IMAGES : (k + 1) * IMAGES] = rows.numpy()
    return table, np.repeat(np.arange(classes), IMAGES)


def baseline(psi: Tensor) -> tuple[Tensor, Tensor]:
    psi = psi - psi.mean(0)
    values, vectors = torch.linalg.eigh(psi.T @ psi / (len(psi) - 1))
    return values.flip(0)[:KEPT], vectors.flip(1)[:, :KEPT]


def accuracy(npca: NeuralPCA, k: int, values: Tensor, vectors: Tensor) -> tuple[float, float]:
    """Largest angle where the relative gap exceeds 1 %, largest relative error of the variance."""
    found = npca.components_[k].double()
    truth = vectors.T.double()
    truth = truth * (found * truth).sum(1, keepdim=True).sign()
    angle = (found - truth).norm(dim=1)[:-1]
    step = values.diff().abs() / values[:-1]
    gap = torch.minimum(step, torch.cat([torch.tensor([1.0]).double(), step[:-1]]))
    worst = float(angle[gap > 0.01].max())
    return worst, float((npca.explained_variance(k) / values - 1).abs().max())


def bench_npca(classes: int) -> None:
    print(
        f"\nNeural PCA, {classes} classes × {IMAGES} × {DIM}, {KEPT} components, {torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as folder:
        table, labels = generated_features(Path(folder, "features.npy"), classes)
        generator = torch.Generator().manual_seed(1)
        head = LinearHead(torch.randn(classes, DIM, generator=generator).abs() + 0.2)
        npca = NeuralPCA(KEPT)
        sample = [0, classes // 2, classes - 1]
        slow: dict[str, list[tuple[float, float]]] = {"float64": [], "float32": []}
        exact = {}

        def measure_baseline(k: int) -> None:
            psi = head.psi(torch.from_numpy(table[labels == k].astype(np.float32)), k)
            for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
                spent, result = both_seconds(partial(baseline, psi.to(dtype)))
                slow[name].append(spent)
                if name == "float64":
                    exact[k] = result

        measure_baseline(sample[0])
        with AnonymousPeak() as memory:
            (fast, fast_cpu), _ = both_seconds(lambda: npca.fit(head, table, labels))
        for k in sample[1:]:
            measure_baseline(k)
        stored = classes * KEPT * DIM * 4
        print(
            f"  ours                             {1000 * fast / classes:6.0f} ms a class, CPU {1000 * fast_cpu / classes:6.0f}"
        )
        for name, times in slow.items():
            wall, cpu = (classes * min(column) for column in zip(*times, strict=True))
            print(
                f"  covariance + full eigh, {name}  {1000 * wall / classes:6.0f} ms a class, CPU {1000 * cpu / classes:6.0f}"
                f"   ours {wall / fast:.1f}× faster, by CPU time {cpu / fast_cpu:.1f}×   (best of 3 classes)"
            )
        print(
            f"  peak memory {memory.peak / 2**20:.0f} MiB above the start, of which {stored / 2**20:.0f} MiB are the result"
        )
        for k in sample:
            angle, variance = accuracy(npca, k, *exact[k])
            print(
                f"  class {k:3d}: largest angle {angle:.1e} where the gap > 1 %, variance within {variance:.1e}"
            )


def spurious_network() -> tuple[nn.Module, FeatureHead]:
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    return model, FeatureHead(model)


def published_loop(phi: Tensor, z: Tensor, parts: dict[int, tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The correction class by class, as the published wrapper does it."""
    z = z.clone()
    for k, (weight, mean, directions) in parts.items():
        psi = phi * weight - mean
        coordinates = torch.linalg.lstsq(directions.T, psi.T).solution
        z[:, k] -= (coordinates * directions.sum(1)[:, None]).clamp_min(0).sum(0)
    return z


def paired(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of two calls, alternating which goes first, after one of each to warm up."""
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        for which in (0, 1) if i % 2 else (1, 0):
            times[which].append(seconds((first, second)[which]))
    return times


def overhead(plain: list[float], ours: list[float]) -> str:
    """Median over pairs of ours / plain − 1 with its 95 % bootstrap interval."""
    ratios = np.array(ours) / np.array(plain) - 1
    draws = np.median(np.random.default_rng(0).choice(ratios, (4000, len(ratios))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.median(ratios):+.2%} (95 % interval {low:+.2%} … {high:+.2%}, {len(ratios)} pairs)"


def bench_spufix(rounds: int) -> None:
    print("\nSpuFix, ResNet-50, batch 32 at 224 px, 322 components in 233 classes")
    model, head = spurious_network()
    phi = torch.rand(8 * 233, DIM)
    npca = NeuralPCA(2, workers=1).fit(head, phi, np.arange(len(phi)) % 233)
    components = {k: [0, 1] if k < 89 else [0] for k in range(233)}
    assert sum(map(len, components.values())) == 322
    fixed = SpuFix(head, npca, components)
    parts = {k: (head.weight[k], npca.mean_[k], npca.components_[k][c]) for k, c in components.items()}
    x, features = torch.rand(32, 3, 224, 224), torch.rand(32, DIM)
    with torch.inference_mode():
        z = head.module(features)
        expected = published_loop(features, z, parts)
        assert float((fixed.head(features) - expected).abs().max()) < 1e-4
        bare, corrected = paired(lambda: head.module(features), lambda: fixed.head(features), 200)
        loop = statistics.median(seconds(lambda: published_loop(features, z, parts)) for _ in range(15))
        plain, ours = paired(lambda: model(x), lambda: fixed(x), rounds)
    forward, added = statistics.median(plain), statistics.median(corrected) - statistics.median(bare)
    print(f"  plain forward {forward:.3f} s, with SpuFix {statistics.median(ours):.3f} s (medians)")
    print(f"  end to end, paired: {overhead(plain, ours)}")
    print(f"  the same model against itself would be the noise: {overhead(plain[::2], plain[1::2])}")
    print(f"  the correction alone {1000 * added:.2f} ms = {added / forward:.3%} of the forward")
    print(
        f"  the loop over classes {1000 * loop:.1f} ms = {loop / forward:.1%} of the forward, {loop / added:.0f}× ours"
    )


def bench_pass(rounds: int, batches: int = 2) -> None:
    print(f"\nFeature pass, ResNet-50 at 224 px, {batches} batches of 32, against the plain forward")
    model, head = spurious_network()
    data = [(str(i), torch.rand(3, 224, 224), i % 1000) for i in range(32 * batches)]

    def forward() -> None:
        with torch.inference_mode():
            for begin in range(0, len(data), 32):
                model(torch.stack([image for _, image, _ in data[begin : begin + 32]]))

    def extract() -> None:
        with tempfile.TemporaryDirectory() as folder:
            extract_features(head, data, folder, progress=False)

    plain, ours = paired(forward, extract, rounds)
    print(f"  plain {statistics.median(plain):.2f} s, feature pass {statistics.median(ours):.2f} s (medians)")
    print(f"  paired: {overhead(plain, ours)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=16, help="pairs of forwards")
    parser.add_argument("--part", choices=["npca", "spufix", "pass", "all"], default="all")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))
    print(describe_machine())
    if arguments.part in ("npca", "all"):
        bench_npca(arguments.classes)
    if arguments.part in ("spufix", "all"):
        bench_spufix(arguments.rounds)
    if arguments.part in ("pass", "all"):
        bench_pass(max(arguments.rounds // 2, 2))


if __name__ == "__main__":
    main()
