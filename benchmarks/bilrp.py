"""Speed and memory of BiLRP on ResNet-50 at 224 px against the published per-neuron procedure, in one run.

    python benchmarks/bilrp.py [--images 40] [--patches 8] [--neurons 16] [--repeats 5] [--threads 2]

The peer explains one neuron of the representation after the other with zennit and sums its relevance over patches;
`--neurons` of them are measured, between our factors so that both meet the same load, and the time is scaled to all
2048. Ours is `SimilarityExplainer` with the same rules (gamma, box −3 to 3): factors of `--images` images over patches
of `--patches` px, kept on disk, then all their pairs; of one image over patches of 16 px, `--repeats` times; `--threads=1`
measures CPU time. Random weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from _common import describe_machine
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox
from zennit.torchvision import ResNetCanonizer

from pfungst.memory import peak_memory
from pfungst.relevance import Patches
from pfungst.similarity import SimilarityExplainer

#: CPU time where there is one thread: other work beside it disturbs that less.
CLOCK = time.process_time if "--threads=1" in sys.argv else time.perf_counter


def timed(call: Callable[[], object]) -> float:
    start = CLOCK()
    call()
    return CLOCK() - start


class NeuronLoop:
    """The published procedure, one neuron at a time: forward and backward pass, relevance summed over patches."""

    def __init__(self, model: nn.Module, width: int, patch: int) -> None:
        self.model, self.width = model, width
        self.pool = nn.AvgPool2d(patch, divisor_override=1)
        self.seconds: list[float] = []
        self.rows: list[Tensor] = []

    def run(self, x: Tensor, count: int) -> None:
        """Explain the next neurons, timing each."""
        rules = EpsilonGammaBox(low=-3.0, high=3.0, canonizers=[ResNetCanonizer()])
        with Gradient(model=self.model, composite=rules) as attributor:
            for _ in range(count):
                hot = nn.functional.one_hot(torch.tensor([len(self.rows)]), self.width)
                start = CLOCK()
                _, relevance = attributor(x.clone(), lambda out, hot=hot: out * hot)
                self.rows.append(self.pool(relevance.sum(1, keepdim=True)).flatten())
                self.seconds.append(CLOCK() - start)


class Watched(SimilarityExplainer):
    """Our explainer, with the time of each factor, the memory after it, and the peer's turn between factors."""

    def watch(self, peer: NeuronLoop, turns: list[int]) -> None:
        """From now on give the peer so many neurons after each factor."""
        self.peer, self.turns = peer, turns
        self.seconds: list[float] = []
        self.memory: list[int] = []
        self.elsewhere = 0.0

    def _factor(self, x: Tensor) -> tuple[Tensor, Tensor]:
        start = CLOCK()
        result = super()._factor(x)
        done = CLOCK()
        self.seconds.append(done - start)
        self.memory.append(peak_memory())
        n = len(self.seconds) - 1
        self.peer.run(x, self.turns[n])
        neurons = [f"{s:.3f}" for s in self.peer.seconds[len(self.peer.seconds) - self.turns[n] :]]
        print(
            f"    image {n + 1:3d}: factor {done - start:.2f} s, peak {self.memory[-1] / 2**30:.2f} GiB; "
            f"zennit's neurons {' '.join(neurons)} s",
            flush=True,
        )
        self.elsewhere += CLOCK() - done
        return result


def share_out(total: int, parts: int) -> list[int]:
    """`total` things in `parts` nearly equal parts, the larger first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def say(what: str, seconds: list[float]) -> None:
    print(f"    {what:48s} {statistics.median(seconds):9.3f} {min(seconds):9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument(
        "--patches", type=int, default=8, help="side in pixels; 16 takes a quarter of the time"
    )
    parser.add_argument("--neurons", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.images < 3 or args.neurons < 2:
        parser.error("3 images and 2 neurons are the least")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(describe_machine(), flush=True)

    model = torchvision.models.resnet50()
    model.fc = nn.Identity()
    model.eval().requires_grad_(False)
    images = torch.randn(args.images, 3, 224, 224).clamp(-3, 3)
    with torch.no_grad():
        width = model(images[:1]).shape[1]
    peer = NeuronLoop(model, width, args.patches)
    peer.run(images[:1], 1)  # warms up
    peer.seconds.clear()
    peer.rows.clear()

    with tempfile.TemporaryDirectory() as folder:
        ours = Watched(model, "epsilon_gamma_box", Patches(args.patches))
        ours.watch(peer, share_out(args.neurons, args.images))
        whole = timed(lambda: ours.factor(images, store=Path(folder) / "factors"))
        factors = ours.factor(images, store=Path(folder) / "factors")  # all there: only opened
        factoring = whole - ours.elsewhere
        pair_seconds, last = [], CLOCK()
        for _ in ours.all_pairs(factors):
            pair_seconds.append(CLOCK() - last)
            last = CLOCK()
        on_disk = sum(f.stat().st_size for f in (Path(folder) / "factors").iterdir())
        end = peak_memory()
        first = ours.turns[0]
        theirs = torch.stack(peer.rows[:first])
        error = float((factors[0][:first] - theirs).norm() / theirs.norm())

    coarse = SimilarityExplainer(model, "epsilon_gamma_box", Patches(16))
    sixteen = [timed(lambda: coarse.factor(images[:1])) for _ in range(args.repeats + 1)][1:]

    loop, main_part, components = peer.seconds, ours.seconds, factors.shape[2]
    print("\nseconds                                                 median       min")
    say(f"zennit, one neuron ({len(loop)} measured)", loop)
    say(f"ours, factor over patches of {args.patches} px ({len(main_part)} images)", main_part)
    say(f"ours, factor over patches of 16 px ({len(sixteen)} repeats)", sixteen)
    say(f"ours, one pair of {components} × {components} ({len(pair_seconds)} pairs)", pair_seconds)
    print(
        f"\none image by the loop, median × {width} neurons (scaled): {statistics.median(loop) * width:.0f} s; "
        f"relative difference of the {first} rows of the first image: {error:.1e}"
    )
    print("loop / ours                                           of medians   of minima")
    for size, mine in {args.patches: main_part, 16: sixteen}.items():
        ratios = [f(loop) * width / f(mine) for f in (statistics.median, min)]
        print(
            f"    patches of {size:2d} px                                {ratios[0]:9.1f} {ratios[1]:11.1f}"
        )
    count = len(pair_seconds)
    print(
        f"\n{args.images} factors, written to disk: {factoring:.1f} s; with all {count} pairs "
        f"{factoring + sum(pair_seconds):.1f} s, × {1 + sum(pair_seconds) / factoring:.3f}"
    )
    if args.images != 40:
        scaled = 1 + statistics.median(pair_seconds) * 39 / 2 * args.images / factoring
        print(f"scaled to 40 images and their 780 pairs: × {scaled:.3f}")
    gib = 2.0**30
    print(
        f"peak resident memory: after image 2 {ours.memory[1] / gib:.2f} GiB, after image {args.images} "
        f"{ours.memory[-1] / gib:.2f} GiB, after all pairs {end / gib:.2f} GiB; factors on disk {on_disk / gib:.2f} GiB "
        "(mapped pages count as resident while there is room)"
    )


if __name__ == "__main__":
    main()
