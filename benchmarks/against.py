"""The engine against another version of it, in one run, interleaved: ResNet-50 at 224 px, random weights, CPU time.

    git worktree add /tmp/before COMMIT
    OMP_NUM_THREADS=1 python benchmarks/against.py /tmp/before/src [--repeats 5] [--rows 344] [--jobs heatmaps,rows,16,8]

Heatmaps are given in plain forward passes (medians of ratios within a round); rows and factors over patches in seconds (minima).
`before / now` above 1 means that this version is faster; `difference` is that of the results.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from _common import describe_machine
from torch import Tensor

HEATMAPS = ("epsilon_plus", "epsilon_plus_flat", "transformer", "lrp_zero", "epsilon_gamma_box")


def load(source: Path) -> ModuleType:
    """``pfungst.relevance`` of a source tree, beside other versions of it."""
    for name in [n for n in sys.modules if n.split(".")[0] == "pfungst"]:
        del sys.modules[name]
    sys.path.insert(0, str(source))
    module = importlib.import_module("pfungst.relevance")
    sys.path.pop(0)
    if not str(module.__file__).startswith(str(source)):
        raise SystemExit(f"{source} holds no pfungst")
    return module


def cpu(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    out = call()
    return time.process_time() - start, out


def heatmaps(before: ModuleType, now: ModuleType, repeats: int) -> None:
    model, x = torchvision.models.resnet50().eval(), torch.randn(1, 3, 224, 224)
    print(f"{'heatmap, in plain forwards':30s} {'before':>8s} {'now':>8s} {'before / now':>14s}")
    for name in HEATMAPS:
        rounds = []
        for _ in range(repeats + 1):
            with torch.no_grad():
                plain = cpu(lambda: model(x))[0]
            old = cpu(lambda n=name: before.attribute(model, x, 7, n))[0]
            new = cpu(lambda n=name: now.attribute(model, x, 7, n))[0]
            rounds.append((old / plain, new / plain, old / new))
        old, new, ratio = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
        print(f"{name:30s} {old:8.2f} {new:8.2f} {ratio:14.2f}", flush=True)


def many(before: ModuleType, now: ModuleType, job: str, rows: int, repeats: int) -> None:
    model, x = torchvision.models.resnet50().eval(), torch.randn(1, 3, 224, 224)
    model.fc = torch.nn.Identity()

    def run(library: ModuleType) -> Tensor:
        lin = library.linearize(model, x, "epsilon_plus_flat")
        if job == "rows":
            return lin.rows(torch.eye(2048)[:rows]).sum((2, 3, 4))
        return lin.factor(library.Patches(int(job)))

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        found = []
        for side, library in zip(times, (before, now), strict=True):
            took, out = cpu(lambda library=library: run(library))
            side.append(took)
            found.append(out)
    old, new = (min(side) for side in times)
    error = float((found[0] - found[1]).norm() / found[0].norm())
    what = f"{rows} rows" if job == "rows" else f"factor over {job} px"
    print(f"{what:30s} {old:7.1f}s {new:7.1f}s {old / new:14.2f}   difference {error:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder src of the other version")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=344)
    parser.add_argument("--jobs", default="heatmaps,rows,16,8")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(describe_machine())
    before = load(args.source.resolve())
    now = load(Path(__file__).resolve().parents[1] / "src")
    for job in args.jobs.split(","):
        if job == "heatmaps":
            heatmaps(before, now, args.repeats)
        else:
            many(before, now, job, args.rows, max(2, args.repeats // 2))


if __name__ == "__main__":
    main()
