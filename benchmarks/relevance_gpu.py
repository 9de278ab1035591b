"""Heatmaps and factors of ResNet-50 at 224 px on a GPU: times, where they go, and whether the GPU agrees with the CPU.

    python benchmarks/relevance_gpu.py [--repeats 5] [--skip-checks]

Random weights. Times are medians (minima) of the repeats in milliseconds, with the device waited for. Every part stands on
its own: one that fails is reported and the others run.
"""

from __future__ import annotations

import argparse
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torchvision
from _common import describe_machine
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pfungst.relevance import Patches, Replay, attribute, linearize
from pfungst.relevance.program.windows import Convolution

COMPOSITES = ("epsilon_plus_flat", "epsilon_gamma_box", "transformer")


def clock(call: Callable[[], object], repeats: int) -> str:
    """Median and minimum in milliseconds, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return f"{statistics.median(times[1:]):9.2f} ({min(times[1:]):.2f})"


def section(title: str, run: Callable[[], object]) -> None:
    start = time.perf_counter()
    print(f"\n== {title}", flush=True)
    try:
        run()
    except Exception:
        traceback.print_exc(limit=6)
    print(f"   [{time.perf_counter() - start:.1f} s]", flush=True)


def hottest(call: Callable[[], object], rows: int = 12) -> None:
    """The kernels and the calls that take longest, and how many kernels there are."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        wall = 1e3 * (time.perf_counter() - start)
    events = found.key_averages()
    kernels_only = [e for e in events if str(e.device_type).endswith("CUDA")]
    device = sum(e.self_device_time_total for e in kernels_only) / 1e3
    count = sum(e.count for e in kernels_only)
    print(f"   {count} kernels, {device:.1f} ms on the device of {wall:.1f} ms (with the profiler)")
    for e in sorted(kernels_only, key=lambda e: -e.self_device_time_total)[:rows]:
        print(f"     device {e.self_device_time_total / 1e3:8.2f} ms {e.count:6d} ×  {e.key[:100]}")
    calls = [e for e in events if e not in kernels_only]
    for e in sorted(calls, key=lambda e: -e.self_cpu_time_total)[:rows]:
        print(f"     host   {e.self_cpu_time_total / 1e3:8.2f} ms {e.count:6d} ×  {e.key[:100]}")


def network(features: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    if features:
        model.fc = nn.Identity()
    return model.eval().cuda().requires_grad_(False)


@contextmanager
def setting(tf32: bool = True, benchmark: bool = False) -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


@contextmanager
def products() -> Iterator[None]:
    """1 × 1 convolutions as matrix products instead of convolutions."""
    plain = Convolution.forward

    def forward(self: Convolution, tangents: list[Tensor | None], owned: bool) -> list[Tensor | None]:
        t = tangents[0]
        if t is None or not self.pointwise:
            return plain(self, tangents, owned)
        (m, n), (sh, sw) = t.shape[:2], self.stride
        rows = t.flatten(0, 1)[..., ::sh, ::sw].permute(0, 2, 3, 1)
        out = rows.reshape(-1, rows.shape[-1]) @ self.weight.flatten(1).T
        return [out.view(*rows.shape[:3], -1).permute(0, 3, 1, 2).unflatten(0, (m, n))]

    Convolution.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        Convolution.forward = plain  # type: ignore[method-assign]


def checks() -> None:
    """GPU against CPU, replayed against plain."""
    model = network()
    x = torch.randn(2, 3, 224, 224)
    with setting(tf32=False):
        for name in COMPOSITES:
            here = attribute(model, x.cuda(), 7, name).values.cpu()
            again = Replay(model, x.cuda(), 7, name)(x.cuda()).values.cpu()
            there = attribute(model.cpu(), x, 7, name).values
            model.cuda()
            error = lambda a, b: float((a - b).abs().sum() / b.abs().sum())
            print(
                f"   {name:20s} GPU against CPU {error(here, there):.1e}, replay against plain {error(again, here):.1e}"
            )
        features = network(True)
        lin = linearize(features, x[:1].cuda(), "epsilon_plus_flat")
        a = lin.factor(Patches(32)).cpu()
        b = linearize(features.cpu(), x[:1], "epsilon_plus_flat").factor(Patches(32))
        features.cuda().bfloat16()
        c = (
            linearize(features, x[:1].cuda().bfloat16(), "epsilon_plus_flat")
            .factor(Patches(32))
            .float()
            .cpu()
        )
        norm = lambda a, b: float((a - b).norm() / b.norm())
        print(
            f"   factor at 32 px      GPU against CPU {norm(a, b):.1e}, bfloat16 against float32 {norm(c, b):.1e}"
        )


def replay_tests() -> None:
    """Weights that change after recording; decisions that a graph cannot repeat."""
    model = network()
    x = torch.randn(1, 3, 224, 224, device="cuda")
    replay = Replay(model, x, 7, "epsilon_plus_flat")
    with torch.no_grad():
        model.layer1[0].conv1.weight.data.mul_(-1)
    a, b = replay(x).values, attribute(model, x, 7, "epsilon_plus_flat").values
    print(f"   after .data.mul_: {float((a - b).abs().sum() / b.abs().sum()):.1e}")
    model.layer1[0].conv1.weight.data = model.layer1[0].conv1.weight.data * 0.5
    a, b = replay(x).values, attribute(model, x, 7, "epsilon_plus_flat").values
    print(f"   after .data = : {float((a - b).abs().sum() / b.abs().sum()):.1e}")
    for dtype in (torch.float32, torch.bfloat16):
        vit = torchvision.models.vit_b_16().eval().cuda().to(dtype)
        y = x.to(dtype)
        again = Replay(vit, y, 7, "transformer")
        plain = lambda vit=vit, y=y: attribute(vit, y, 7, "transformer", measure=False)
        print(
            f"   ViT-B/16 {str(dtype)[6:]:9s} plain {clock(plain, 3)}, replay {clock(lambda a=again, y=y: a(y), 3)}"
        )


def heatmaps(repeats: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = network().to(dtype)
        for batch in (1, 8, 32, 128):
            x = torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype)
            with torch.no_grad():
                line = f"   {str(dtype)[6:]:9s} batch {batch:4d}: forward {clock(lambda m=model, x=x: m(x), repeats)}"
            print(line, flush=True)
            for name in COMPOSITES:
                plain = clock(lambda m=model, x=x, n=name: attribute(m, x, 7, n, measure=False), repeats)
                try:
                    replay = Replay(model, x, 7, name)
                    replayed = clock(lambda x=x, r=replay: r(x), repeats)
                except torch.OutOfMemoryError:
                    replay, replayed = None, "out of memory"
                print(f"      {name:20s} plain {plain}   replay {replayed}", flush=True)
                del replay
                torch.cuda.empty_cache()


def factors(repeats: int) -> None:
    x = torch.randn(1, 3, 224, 224, device="cuda")
    for kind, tf32, dtype in (
        ("float32", False, torch.float32),
        ("TF32", True, torch.float32),
        ("bfloat16", True, torch.bfloat16),
    ):
        model = network(True).to(dtype)
        y = x.to(dtype)
        for patch in (8, 16):
            for name in ("epsilon_plus_flat", "epsilon_gamma_box"):

                def whole(m: nn.Module = model, y: Tensor = y, n: str = name, p: int = patch) -> Tensor:
                    return linearize(m, y, n).factor(Patches(p))

                with setting(tf32):
                    line = f"   {kind:9s} {patch:2d} px {name:18s} whole {clock(whole, repeats)}"
                    if name == "epsilon_plus_flat":
                        lin = linearize(model, y, name)
                        line += (
                            f"  linearize {clock(lambda m=model, y=y, n=name: linearize(m, y, n), repeats)}"
                        )
                        line += f"  tape {clock(lambda m=model, y=y, n=name: linearize(m, y, n).tape, repeats)} with it"
                        line += (
                            f"  columns {clock(lambda lin=lin, p=patch: lin.columns(Patches(p)), repeats)}"
                        )
                print(line, flush=True)
        lin = linearize(model, y, "epsilon_plus_flat")
        columns = lambda lin=lin: lin.columns(Patches(8))
        with setting(tf32, benchmark=True):
            print(f"   {kind:9s}  8 px columns, cudnn.benchmark       {clock(columns, repeats)}", flush=True)
        with setting(tf32), products():
            print(f"   {kind:9s}  8 px columns, 1 × 1 as products      {clock(columns, repeats)}", flush=True)
        for most in (128, 256, 512):
            chunk = lin._chunk
            lin._chunk = lambda count, start=0, stop=None, most=most, chunk=chunk: min(  # type: ignore[method-assign]
                most, chunk(count, start, stop)
            )
            with setting(tf32):
                print(
                    f"   {kind:9s}  8 px columns, at most {most:4d} vectors  {clock(columns, repeats)}",
                    flush=True,
                )
            lin._chunk = chunk  # type: ignore[method-assign]
        eye = torch.eye(2048, device="cuda", dtype=dtype)
        with setting(tf32):
            rows = lambda lin=lin, eye=eye: [lin.rows(part) for part in eye.split(512)]
            print(f"   {kind:9s} 2,048 rows                           {clock(rows, 2)}", flush=True)
        print(f"      peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        torch.cuda.reset_peak_memory_stats()


def profiles() -> None:
    x = torch.randn(1, 3, 224, 224, device="cuda")
    model = network()
    print("  heatmap, batch 1, plain")
    hottest(lambda: attribute(model, x, 7, "epsilon_plus_flat", measure=False))
    replay = Replay(model, x, 7, "epsilon_plus_flat")
    print("  heatmap, batch 1, replay")
    hottest(lambda: replay(x))
    features, y = network(True).bfloat16(), x.bfloat16()
    print("  bfloat16 linearize and tape")
    hottest(lambda: linearize(features, y, "epsilon_plus_flat").tape)
    lin = linearize(features, y, "epsilon_plus_flat")
    print("  bfloat16 columns at 8 px")
    hottest(lambda: lin.columns(Patches(8)), 20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-checks", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU")
    print(describe_machine("cuda"))
    if not args.skip_checks:
        section("the same everywhere?", checks)
        section("replay", replay_tests)
    section("factors: median (minimum) ms", lambda: factors(args.repeats))
    section("heatmaps: median (minimum) ms", lambda: heatmaps(args.repeats))
    section("where the time goes", profiles)


if __name__ == "__main__":
    main()
