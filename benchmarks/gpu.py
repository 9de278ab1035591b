"""What the parts of an audit take on a GPU, each against its plain way on the same device, and whether the GPU agrees with the CPU.

    python benchmarks/gpu.py [--repeats 5]          (one short run on a GPU, or a small one on the CPU where there is none)

ResNet-50 at 224 px with random weights (ResNet-18 at 32 px on the CPU). Times are medians (minima) in milliseconds, with the
device waited for. Every part stands on its own: one that fails is reported and the others run.
"""

# ruff: noqa: B023 - what is timed is called at once
from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from _common import describe_machine, timed
from PIL import Image
from torch import Tensor, nn

from pfungst.audit.images import Labelled
from pfungst.conditions import Condition
from pfungst.data import Item
from pfungst.memory import keep_freed_memory
from pfungst.relevance import Patches, Replay, attribute, linearize
from pfungst.spurious import FeatureHead, extract_features
from pfungst.spurious.eigen import leading

COMPOSITES = ("epsilon_plus_flat", "epsilon_gamma_box", "transformer")


class Bench:
    """The device, the network and the sizes that fit it."""

    def __init__(self, repeats: int) -> None:
        self.gpu = torch.cuda.is_available()
        self.device, self.repeats = "cuda" if self.gpu else "cpu", repeats
        self.size = 224 if self.gpu else 32
        self.images = 4096 if self.gpu else 64
        self.failed: list[str] = []

    def network(self, features: bool = False) -> nn.Module:
        torch.manual_seed(0)
        model = (torchvision.models.resnet50 if self.gpu else torchvision.models.resnet18)()
        if features:
            model.fc = nn.Identity()
        return model.eval().to(self.device).requires_grad_(False)

    def x(self, batch: int) -> Tensor:
        return torch.randn(batch, 3, self.size, self.size, device=self.device)

    def clock(self, call: Callable[[], object]) -> tuple[float, str]:
        """Median in milliseconds, and it with the minimum as text, after one call to warm up."""
        times = [1e3 * timed(call, self.device) for _ in range(self.repeats + 1)][1:]
        return statistics.median(times), f"{statistics.median(times):9.2f} ({min(times):.2f})"

    def section(self, title: str, part: Callable[[], object]) -> None:
        print(f"\n== {title}", flush=True)
        start = time.perf_counter()
        try:
            with torch.no_grad():
                part()
        except Exception:
            self.failed.append(title)
            traceback.print_exc(limit=6)
        print(f"   [{time.perf_counter() - start:.1f} s]", flush=True)

    # --- the parts

    def checks(self) -> None:
        model, x = self.network(), self.x(2)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        share = lambda a, b: float((a - b).abs().sum() / b.abs().sum())
        for name in COMPOSITES:
            here = attribute(model, x, 7, name).values.cpu()
            again = Replay(model, x, 7, name)(x).values.cpu()
            there = attribute(model.cpu(), x.cpu(), 7, name).values
            model.to(self.device)
            print(f"   {name:20s} against the CPU {share(here, there):.1e}, replay {share(again, here):.1e}")
        net, patches = self.network(True), Patches(32)
        here = linearize(net, x[:1], "epsilon_plus_flat").factor(patches).cpu()
        there = linearize(net.cpu(), x[:1].cpu(), "epsilon_plus_flat").factor(patches)
        print(f"   factor at 32 px      against the CPU {float((here - there).norm() / there.norm()):.1e}")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def heatmaps(self) -> None:
        for dtype in (torch.float32, torch.bfloat16) if self.gpu else (torch.float32,):
            model = self.network().to(dtype)
            for batch in (1, 8, 32, 128) if self.gpu else (1,):
                x = self.x(batch).to(dtype)
                forward, text = self.clock(lambda: model(x))
                print(f"   {str(dtype)[6:]:9s} batch {batch:4d}: forward {text}", flush=True)
                for name in COMPOSITES:
                    plain, text = self.clock(lambda: attribute(model, x, 7, name, measure=False))
                    replay = Replay(model, x, 7, name)
                    fast, replayed = self.clock(lambda: replay(x))
                    print(
                        f"      {name:20s} plain {text} = {plain / forward:.1f} forwards, "
                        f"replayed {replayed} = {fast / forward:.1f} forwards",
                        flush=True,
                    )

    def factors(self) -> None:
        kinds = {"float32": (False, torch.float32)}
        if self.gpu:
            kinds |= {"TF32": (True, torch.float32), "bfloat16": (True, torch.bfloat16)}
        for kind, (tf32, dtype) in kinds.items():
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            model, x = self.network(True).to(dtype), self.x(1).to(dtype)
            lin = linearize(model, x, "epsilon_plus_flat")
            width = model(x).shape[1]
            eye = torch.eye(width, device=self.device, dtype=dtype)
            row, _ = self.clock(lambda: attribute(model, x, 7, "epsilon_plus_flat", measure=False))
            for patch in (8, 16):
                whole, text = self.clock(
                    lambda: linearize(model, x, "epsilon_plus_flat").factor(Patches(patch))
                )
                print(
                    f"   {kind:9s} factor over {patch:2d} px {text}: {width * row / whole:.0f} × a loop of {width} maps"
                )
            _, text = self.clock(lambda: [lin.rows(part) for part in eye.split(512)])
            print(f"   {kind:9s} {width} rows {text}", flush=True)

    def components(self) -> None:
        n, d, m = (1300, 2048, 128) if self.gpu else (520, 768, 48)
        scales = torch.arange(1, d + 1, device=self.device) ** -0.5
        a = torch.randn(n, d, device=self.device) * scales
        ours, text = self.clock(lambda: leading(a, m))
        print(f"   leading {m} of {n} × {d}              {text}")
        for dtype in (torch.float32, torch.float64):
            b = a.to(dtype)
            plain, text = self.clock(lambda: torch.linalg.eigh(b.T @ b))
            print(f"   covariance + full eigh, {str(dtype)[6:]}  {text}: ours {plain / ours:.1f} × faster")
        values = torch.linalg.eigvalsh(a.double().T @ a.double()).flip(0)[:m]
        print(f"   variances within {float((leading(a, m).values / values - 1).abs().max()):.1e}")

    def feature_pass(self) -> None:
        """The audit's pass over JPEG files against the bare loop over batches that lie on the device."""
        head = FeatureHead(self.network(), example=self.x(1))
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            items = []
            for i in range(self.images):
                path = Path(folder, f"{i:05d}.jpg")
                small = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
                small.resize((self.size, self.size)).save(path, quality=90)
                items.append(Item(path.name, path))
            data = Labelled(items, [0] * len(items), Condition.parse("pillow-bilinear"), self.size)
            batch = 64 if self.gpu else 32
            x = self.x(batch)
            rounds = self.images // batch

            def bare() -> None:
                for _ in range(rounds):
                    head.features_and_logits(x)

            bare()
            for workers in (0, "auto", 8) if self.gpu else (0, "auto"):
                best = [float("inf")] * 2
                for turn in range(2):
                    best[0] = min(best[0], timed(bare, self.device))
                    out = Path(folder, f"store-{workers}-{turn}")
                    best[1] = min(
                        best[1],
                        timed(
                            lambda: extract_features(
                                head,
                                data,
                                out,
                                batch_size=batch,
                                workers=workers,
                                progress=False,
                            ),
                            self.device,
                        ),
                    )
                print(
                    f"   {self.images} images, workers={workers}: bare forwards {best[0]:.2f} s, pass {best[1]:.2f} s: "
                    f"{best[1] / best[0] - 1:+.0%}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    bench = Bench(parser.parse_args().repeats)
    keep_freed_memory()
    print(describe_machine(bench.device))
    bench.section("the same everywhere?", bench.checks)
    bench.section("feature pass", bench.feature_pass)
    bench.section("neural PCA of one class", bench.components)
    bench.section("factors of BiLRP", bench.factors)
    bench.section("heatmaps", bench.heatmaps)
    if bench.failed:
        sys.exit(f"failed: {', '.join(bench.failed)}")


if __name__ == "__main__":
    main()
