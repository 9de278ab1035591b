"""What the benchmarks share: a clock, and what they ran on."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch


def timed(call: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


class AnonymousPeak:
    """Peak of memory that is not file pages, sampled every 10 ms, in bytes above the start."""

    def __enter__(self) -> AnonymousPeak:
        self.start, self.peak, self.stop = self._now(), 0, False
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop = True
        self.thread.join()

    def _watch(self) -> None:
        while not self.stop:
            self.peak = max(self.peak, self._now() - self.start)
            time.sleep(0.01)

    @staticmethod
    def _now() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        return 0


def describe_machine(device: str = "cpu") -> str:
    """Kind of machine, threads, torch and load, on two lines."""
    name = _processor() if device != "cuda" else torch.cuda.get_device_name()
    load = " ".join(f"{v:.1f}" for v in os.getloadavg())
    return (
        f"machine: {name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
        f"load average at the start: {load}"
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
