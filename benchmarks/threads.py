"""How OpenMP threads wait, on a quiet machine and beside one busy process per core: as torch has it, without a spin, after a
short one (as the command has it).

    python benchmarks/threads.py [--steps 400]

Each cell is a fresh process that trains a small network; busy processes are started and ended here. Wall and CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from pfungst.threads import WAITING

_BUSY = "import time; end = time.monotonic() + 600\nwhile time.monotonic() < end: pass"
_LOOP = """
import resource, sys, time, torch
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
step = torch.optim.SGD(net.parameters(), 0.01)
x, y = torch.rand(32, 3, 32, 32), torch.randint(10, (32,))
start = time.perf_counter()
for _ in range(int(sys.argv[1])):
    step.zero_grad(); nn.functional.cross_entropy(net(x), y).backward(); step.step()
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime)
"""


def measure(steps: int, settings: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of the loop in a process of its own."""
    plain = {k: v for k, v in os.environ.items() if k not in (*WAITING, "OMP_NUM_THREADS")}
    command = [sys.executable, "-c", _LOOP, str(steps)]
    out = subprocess.run(
        command, env=plain | settings, capture_output=True, text=True, check=True, timeout=600
    ).stdout
    wall, cpu = out.split()
    return float(wall), float(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    settings = {"as it is": {}, "no spin": WAITING | {"GOMP_SPINCOUNT": "0"}, "as we do": WAITING}
    for place, busy in (("quiet", 0), ("busy", os.cpu_count() or 1)):
        others = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(busy)]
        try:
            rounds = [[measure(options.steps, s) for s in settings.values()] for _ in range(options.repeat)]
            for name, runs in zip(settings, zip(*rounds, strict=True), strict=True):
                wall, cpu = (statistics.median(v) for v in zip(*runs, strict=True))
                print(f"{place:6} {name:11} {wall:7.2f} s  CPU {cpu:7.2f} s", flush=True)
        finally:
            for other in others:
                other.kill()


if __name__ == "__main__":
    main()
