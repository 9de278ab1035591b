"""What ``--dry-run`` forecasts against what the audit takes, in time and memory.

    python benchmarks/forecast.py [classifier|similarity|anomaly OPTION=VALUE …] [--threads 1] [--repeats 2]

Options as in TOML files, lists with semicolons: ``classes=tench;church``. Without any: the classifier of the
demo. Each forecast and each audit has a process of its own, in turn; what is compared is the least of each.
Beside other work wall time says little: CPU time is forecast and taken as well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from _common import describe_machine

from pfungst.memory import keep_freed_memory, peak_memory
from pfungst.threads import share_the_machine

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "CPU": lambda: sum(os.times()[:4])}


def forecast(kind: str, config: Any, now: Callable[[], float]) -> Any:
    if kind == "anomaly":
        from pfungst.audit.anomaly import forecast as anomaly
        from pfungst.audit.anomaly.prepare import check, open_sets

        return anomaly.estimate(open_sets(config), check(config), config, now)
    if kind == "similarity":
        from pfungst.audit.similarity import forecast as similarity
        from pfungst.audit.similarity.run import check as check_similarity

        return similarity.estimate(config, *check_similarity(config), now)
    from pfungst.audit.classifier import forecast as classifier
    from pfungst.audit.classifier.prepare import Given

    return classifier.estimate(Given.check(config), now)


def configured(kind: str, options: dict[str, Any]) -> Any:
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.classifier.config import ClassifierConfig
    from pfungst.audit.similarity.config import SimilarityConfig

    of: dict[str, Any] = {
        "anomaly": AnomalyConfig,
        "classifier": ClassifierConfig,
        "similarity": SimilarityConfig,
    }
    return of[kind].build(**options, overwrite=True)


def measure(kind: str, options: dict[str, Any], clock: str, threads: int, sender: Any) -> None:
    """In a process of its own: a forecast by a clock, or the audit by all."""
    share_the_machine()
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    config, audit = configured(kind, options), import_module(f"pfungst.audit.{kind}.run")
    started = {name: now() for name, now in CLOCKS.items()}
    if clock:
        cost = forecast(kind, config, CLOCKS[clock])
        print(f"  by {clock} time, {CLOCKS[clock]() - started[clock]:.1f} s: {cost}", flush=True)
        sender.send(({clock: cost.seconds}, cost.memory))
        return
    audit.run(config)
    sender.send(({name: now() - started[name] for name, now in CLOCKS.items()}, float(peak_memory())))


def compare(kind: str, options: dict[str, Any], threads: int, repeats: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    said: dict[str, float] = {}
    taken: dict[str, float] = {}
    for _ in range(repeats):
        for clock in (*CLOCKS, ""):
            receiver, sender = spawn.Pipe(False)
            job = spawn.Process(target=measure, args=(kind, options, clock, threads, sender))
            job.start()
            sender.close()
            seconds, memory = receiver.recv()
            job.join()
            into = said if clock else taken
            for name, value in {**seconds, "memory": memory}.items():
                into[name] = min(value, into.get(name, value))
    for name in CLOCKS:
        ratio = said[name] / taken[name]
        print(f"{name}: {said[name]:.1f} s forecast, {taken[name]:.1f} s taken: {ratio:.2f}")
    ratio = said["memory"] / taken["memory"]
    print(f"memory: {said['memory'] / 1e6:.0f} MB, {taken['memory'] / 1e6:.0f} MB: {ratio:.2f}")


def demo(folder: Path) -> dict[str, Any]:
    from pfungst.audit.classifier import demo as planted
    from pfungst.audit.demo import WEIGHTS

    return {
        "model": "pfungst.audit.classifier.demo:model",
        "checkpoint": planted.prepare(folder, weights=WEIGHTS / "classifier.safetensors"),
        "train": folder / "train",
        "val": folder / "val",
        "spurious": folder / "spurious",
        "size": planted.SIZE,
        "candidates": 12,
        "shown": 6,
        "steps": 60,
        "batch_size": 60,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", nargs="?", choices=("classifier", "similarity", "anomaly"))
    parser.add_argument("options", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        options: dict[str, Any] = {}
        for text in given.options:
            name, _, value = text.partition("=")
            options[name] = value.split(";") if ";" in value else value
        options = options if given.kind else demo(out / "data")
        compare(given.kind or "classifier", {**options, "out": out / "out"}, given.threads, given.repeats)


if __name__ == "__main__":
    main()
