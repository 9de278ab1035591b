"""How far parts stand from what bounds them: the bare forward passes or the bare matrix products of the same job, in one run.

    python benchmarks/limits.py [--images 200] [--turns 3]

Both sides alternate; the smallest of the turns counts, in CPU time of the one thread, which other work beside it
disturbs less. Random weights, generated images. D2Neighbors with p = 1 has no product: its peer is torch.cdist.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torchvision
from _common import describe_machine

from pfungst.anomaly import D2Neighbors, PatchCore
from pfungst.anomaly.memory_bank import MemoryBank
from pfungst.datasets.synthetic import make_parts
from pfungst.memory import keep_freed_memory
from pfungst.mitigate import GaussianBlur
from pfungst.relevance import Patches, attribute, linearize
from pfungst.relevance.linearize import LinearizedModel
from pfungst.relevance.program.patches import boxes, plan
from pfungst.relevance.program.windows import Convolution


def compare(
    name: str, goal: float, ours: Callable[[], object], bound: Callable[[], object], turns: int
) -> None:
    best = [float("inf")] * 2
    for _ in range(turns):
        for side, call in enumerate((ours, bound)):
            start = time.process_time()
            call()
            best[side] = min(best[side], time.process_time() - start)
    print(
        f"  {name:44s} {best[0]:7.3f} s, bound {best[1]:7.3f} s: {best[0] / best[1]:5.2f} × (goal {goal})",
        flush=True,
    )


def bare_convolutions(linear: LinearizedModel, basis: Patches) -> Callable[[], object]:
    """The convolutions of a factor in forward mode on whole images, and nothing else: the same sizes and numbers."""
    tape, calls = linear.tape, []
    grid = basis.shape(linear.sample)
    stages = plan(tape, grid, boxes(tape, grid, basis.patch, linear.sample[1:]))
    start = 0
    for stop, groups in [(s.stop, s.groups) for s in stages] + [(len(tape.ops), basis.size(linear.sample))]:
        for op in tape.ops[start:stop]:
            if isinstance(op, Convolution):
                calls.append((op, groups))
        start = stop

    def run() -> None:
        for op, groups in calls:
            for size in [32] * (groups // 32) + [groups % 32]:
                if size:
                    op.forward([torch.ones(size, 1, *tape.shapes[op.ins[0]][1:])], False)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200, help="training images of PatchCore, 128 px")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    print(describe_machine())

    x = torch.randn(1, 3, 224, 224)
    net = torchvision.models.resnet50().eval().requires_grad_(False)
    with torch.no_grad():
        explain = lambda: attribute(net, x, 7, "epsilon_plus", measure=False)
        compare("heatmap of ResNet-50, z⁺, forward", 3.5, explain, lambda: net(x), 2 * args.turns)

        linear, patches = linearize(net, x, "epsilon_gamma_box"), Patches(16)
        factor, bare = lambda: linear.factor(patches), bare_convolutions(linear, patches)
        compare("factor of ResNet-50, 16 px, bare convolutions", 1.0, factor, bare, 1)

        queries, bank = torch.randn(8192, 384), MemoryBank(torch.randn(8192, 384))
        product = lambda: sum(float((part @ bank.rows.T)[0, 0]) for part in queries.split(1024))
        compare("bank search, 8,192 × 8,192 × 384", 1.2, lambda: bank.nearest(queries), product, args.turns)

        train, test = (torch.rand(n, 3, 224, 224) for n in (209, 83))
        u, v = train.flatten(1), test.flatten(1)
        blocks = [slice(low, low + 2048) for low in range(0, u.shape[1], 2048)]
        cdist = lambda x: sum(torch.cdist(x[:, b], u[:, b], p=1) for b in blocks)
        for p, layer in ((2, None), (4, None), (4, GaussianBlur()), (1, GaussianBlur())):

            def fitted(p: int = p, layer: GaussianBlur | None = layer) -> object:
                return D2Neighbors(p=p, features=layer).fit(train).anomaly_score(test)

            def bound(p: int = p) -> object:
                return (cdist(u), cdist(v)) if p == 1 else [(u @ u.T, v @ u.T) for _ in range(p - 1)]

            name = f"D2Neighbors p={p}{' blurred' if layer else ''}, fit + score"
            compare(name, 1.2 if p == 1 else 2.0, fitted, bound, args.turns)

    images = make_parts(train=args.images, good=1, defective=1, size=128)[0].select(split="train")
    batch = images.prepare("pillow-bilinear", 128).images
    backbone = torchvision.models.resnet18().eval().requires_grad_(False)

    def forwards() -> None:
        with torch.no_grad():
            for part in batch.split(8):
                backbone(part)

    fit = lambda: PatchCore(backbone, layer_dim=192, dim=384, calibration=0, batch_size=8, device="cpu").fit(
        batch
    )
    compare(f"PatchCore of ResNet-18, {args.images} images, fit", 2.0, fit, forwards, args.turns)


if __name__ == "__main__":
    main()
