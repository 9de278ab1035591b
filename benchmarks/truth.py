"""Does Pfungst find what is there, and nothing else? False alarms on clean models, and artefacts that were planted.

    OMP_NUM_THREADS=1 python benchmarks/truth.py --half dev --minutes 2 [--part clean|untrained|planted|curve] [--jobs 1]
    python benchmarks/truth.py --half dev --table

Every run trains a small network on 32 px pictures (seconds), audits it blind as a user would, and appends one JSON line to
--out. Started again it goes on with what is missing: a line counts for the settings, the thresholds (``measure/limits.py``),
the version and the source it was made with. Even seeds are the development half, odd ones the reporting half; thresholds
are chosen on the first and never on the second.

clean    models without a planted artefact: classifiers, anomaly detectors (deployed by a condition that changes next to
         nothing, with a column "source" drawn by lot), encoders (the same). Share of each verdict word.
untrained  classifiers with random weights, which are to be called unfit.
planted  an artefact in a share `rate` of the training images of one class. The network relies on it if, pasted on held-out
         images of the other classes, it brings at least `TAKEN` of them to the class. Found: the first finding is a
         component of that class which the artefact moves, on held-out images, at least half as much as any.
curve    the same with other sizes and rates.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _planting import ARTEFACTS, plant
from _truth_nets import NETS, answers, as_tensors, pictures, trained, write_table
from safetensors.torch import save_file

import pfungst
from pfungst.files import digest
from pfungst.measure import limits

TAKEN = (
    0.25  # of the other classes' images that the artefact brings to its class, for the network to rely on it
)
SIZE, RATE = 0.35, 0.6  # of planted artefacts, where not varied
PARTS = ("clean", "untrained", "planted", "curve")
FAMILIES = ("residual", "mixer")
ALARMS = ("provenance", "clever-hans", "fragile")
WORDS = ("sound", "not-established", *ALARMS, "unfit", "too-few")
_AUDITED = (
    "relevance",
    "spurious",
    "measure",
    "audit",
    "anomaly",
    "similarity",
    "features",
    "encoders",
    "data",
)


@dataclass(frozen=True)
class Run:
    """One model and its audit.

    Attributes:
        part: of ``PARTS``. kind: classifier, anomaly or similarity.
        on: set of pictures. model: of ``NETS``, or a detector, or how an encoder is trained.
        artefact: "" for none. size, rate: of the artefact, see above.
    """

    part: str
    kind: str
    on: str
    model: str
    seed: int
    artefact: str = ""
    size: float = 0.0
    rate: float = 0.0

    @property
    def half(self) -> str:
        return "report" if self.seed % 2 else "dev"

    def key(self, source: str) -> str:
        values = {k: float(v) for k, v in vars(limits).items() if isinstance(v, limits.Limit)}
        return digest(
            json.dumps([asdict(self), pfungst.__version__, values, source], sort_keys=True), length=16
        )


def source() -> str:
    """Names the code that an audit runs through, as it is now."""
    root = Path(pfungst.__file__).parent
    files = sorted(f for part in _AUDITED for f in (root / part).rglob("*.py"))
    here = [Path(__file__), *sorted(Path(__file__).parent.glob("_[pt]*.py"))]
    return digest("".join(f.read_text(encoding="utf-8") for f in [*files, *here]), length=8)


def runs(seeds: Sequence[int] = range(10)) -> Iterator[Run]:
    """All runs, seed by seed, so that what is finished in limited time is balanced; the curves of the first
    four seeds."""
    for seed in seeds:
        for on in ("digits", "mnist", "cifar"):
            for model in NETS:
                yield Run("clean", "classifier", on, model, seed)
            yield Run("untrained", "classifier", on, "residual", seed)
        for on in ("shear", "stripe", "dotted_line"):
            for model in ("d2neighbors", "kde"):
                yield Run("clean", "anomaly", on, model, seed)
        for on in ("digits", "cifar"):
            yield Run("clean", "similarity", on, "simclr", seed)
        for artefact in ARTEFACTS:
            for model in FAMILIES:
                yield Run("planted", "classifier", "cifar", model, seed, artefact, SIZE, RATE)
    for seed in seeds[:4]:
        for artefact in ARTEFACTS:
            for model in FAMILIES:
                for size in (0.1, 0.2):
                    yield Run("curve", "classifier", "cifar", model, seed, artefact, size, RATE)
            for rate in (0.3, 0.9):
                yield Run("curve", "classifier", "mnist", "residual", seed, artefact, SIZE, rate)


# --- the audits --------------------------------------------------------------------------------------------


@dataclass
class Finding:
    """One thing that an audit says a classifier relies on: a component of a class. First is most serious."""

    class_: int
    component: int
    word: str
    score: float


@dataclass
class Detection:
    """What an audit said: the verdict word, the findings it stands by, and all candidates in the order of its ranking."""

    level: str
    accuracy: float
    findings: list[Finding] = field(default_factory=list)
    ranking: list[Finding] = field(default_factory=list)


def detect(model: str, checkpoint: Path, train: Path, val: Path, out: Path, seed: int) -> Detection:
    """Audit a classifier blind. The one place that knows how the audit says what it found."""
    from pfungst.audit.classifier.config import ClassifierConfig
    from pfungst.audit.classifier.run import run

    result = run(
        ClassifierConfig.build(
            model=model, checkpoint=checkpoint, train=train, val=val, size=32, n_components=16, shown=4, batch_size=128,
            seed=seed, out=out, device="cpu",
        )
    )  # fmt: skip
    ranking = [
        Finding(e.index, c.component, "spurious" if c.spurious else "", c.order[1])
        for e, c in sorted(
            ((e, c) for e in result.entries for c in e.components),
            key=lambda pair: pair[1].order,
            reverse=True,
        )
    ]
    return Detection(result.verdict.level, result.accuracy.value, [f for f in ranking if f.word], ranking)


def _classifier(run: Run, data: Path, folder: Path) -> dict[str, Any]:
    parts = pictures(data, run.on, run.seed)
    target = run.seed % 4
    if run.artefact:
        for n, (name, (images, labels)) in enumerate(parts.items()):
            if name == "held":
                continue
            rng = np.random.default_rng([run.seed, n])
            rows = np.flatnonzero((labels == target) & (rng.random(len(labels)) < run.rate))
            images[rows] = plant(images[rows], run.artefact, run.size, seed=run.seed * 10 + n)
    network = trained(run.model, parts["train"], run.seed, epochs=0 if run.part == "untrained" else 6)
    held, labels = parts["held"]
    before = answers(network, held)
    numbers: dict[str, Any] = {"held": float((before == labels).mean())}
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(folder / "model.safetensors"))
    (folder / "net.py").write_text(
        f"from _truth_nets import build\n\ndef model():\n    return build({run.model!r}, 4)\n",
        encoding="utf-8",
    )
    files = {
        n: write_table(folder / f"{n}.parquet", parts[n][0], label=parts[n][1]) for n in ("train", "val")
    }
    found = detect(
        f"{folder / 'net.py'}:model",
        folder / "model.safetensors",
        files["train"],
        files["val"],
        folder / "out",
        run.seed,
    )
    numbers |= {
        "level": found.level, "accuracy": found.accuracy, "findings": len(found.findings),
        "first": asdict(found.findings[0]) if found.findings else None,
    }  # fmt: skip
    if run.artefact:
        marked = plant(held, run.artefact, run.size, seed=run.seed * 10 + 9)
        others = labels != target
        lift = (answers(network, marked) == target)[others].mean() - (before == target)[others].mean()
        right = moved(folder / "out" / "npca", network, target, held, marked)
        is_right = [f.class_ == target and f.component in right for f in found.ranking]
        called = [f.class_ == target and f.component in right for f in found.findings]
        numbers |= {
            "lift": float(lift),
            "target": target,
            "right": sorted(right),
            "rank": is_right.index(True) + 1 if any(is_right) else None,
            "called": called.index(True) + 1 if any(called) else None,
        }
    return numbers


def moved(
    npca: Path, network: torch.nn.Module, target: int, plain: np.ndarray, marked: np.ndarray
) -> set[int]:
    """Components of a class that the artefact moves by at least half of what it moves the one that it moves most."""
    from pfungst.spurious import NeuralPCA

    loaded = NeuralPCA.load(npca, network)
    with torch.inference_mode():
        a, b = (loaded.alpha(as_tensors((x, np.zeros(len(x))))[0], target).mean(0) for x in (plain, marked))
    change = (b - a).cpu().numpy()
    return {int(i) for i in np.flatnonzero((change >= change.max() / 2) & (change > 0))}


def _anomaly(run: Run, data: Path, folder: Path) -> dict[str, Any]:
    from pfungst.audit.anomaly.config import AnomalyConfig
    from pfungst.audit.anomaly.run import run as audit
    from pfungst.datasets import digits_c

    (images,) = digits_c(run.on, size=32, train=300, good=100, anomalous=100, seed=run.seed)
    table = write_table(
        folder / "parts.parquet",
        np.stack([np.asarray(i.read().convert("RGB")) for i in images.items]),
        label=[i.label for i in images.items],
        split=[i.split for i in images.items],
        source=_by_lot(len(images.items), run.seed),
    )
    result = audit(
        AnomalyConfig.build(
            data=table, model=run.model, original="pillow-bilinear", deployed="pillow-bilinear+noise:0.002", size=32,
            seeds=3, examples=1, seed=run.seed, out=folder / "out", device="cpu",
        )
    )  # fmt: skip
    return {"level": result.verdict.level, "headline": result.verdict.headline}


def _similarity(run: Run, data: Path, folder: Path) -> dict[str, Any]:
    from pfungst.audit.similarity.config import SimilarityConfig
    from pfungst.audit.similarity.run import run as audit
    from pfungst.encoders.training import train_small

    images, labels = (
        np.concatenate(pair) for pair in zip(*pictures(data, run.on, run.seed).values(), strict=True)
    )
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    encoder = train_small(
        x, method="simclr", width=6, steps=40, batch_size=96, flip=False, min_scale=0.5, seed=run.seed
    )
    rows = np.random.default_rng(run.seed).permutation(len(images))[:400]
    table = write_table(
        folder / "pictures.parquet",
        images[rows],
        label=[f"class {k}" for k in labels[rows]],
        source=_by_lot(len(rows), run.seed),
    )
    result = audit(
        SimilarityConfig.build(
            images=table, encoder=f"pfungst:{encoder.save(folder / 'encoder')}", condition=["noise:0.002"], seeds=3, pairs=1,
            explain=8, patches=8, seed=run.seed, out=folder / "out", device="cpu",
        )
    )  # fmt: skip
    return {"level": result.verdict.level, "headline": result.verdict.headline}


def _by_lot(count: int, seed: int) -> list[str]:
    return [f"site {'AB'[int(v)]}" for v in np.random.default_rng([seed, 7]).random(count) < 0.5]


KINDS: dict[str, Callable[[Run, Path, Path], dict[str, Any]]] = {
    "classifier": _classifier,
    "anomaly": _anomaly,
    "similarity": _similarity,
}


def perform(run: Run, data: Path, code: str) -> dict[str, Any]:
    """The finished line of one run."""
    started = time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = KINDS[run.kind](run, data, Path(folder))
    stamp = {"key": run.key(code), "source": code, "date": date.today().isoformat()}
    return stamp | asdict(run) | numbers | {"seconds": round(time.monotonic() - started, 1)}


# --- resuming ----------------------------------------------------------------------------------------------


def read(file: Path) -> list[dict[str, Any]]:
    """Finished lines; one that an interruption cut short is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def work(todo: list[Run], file: Path, data: Path, jobs: int, minutes: float) -> int:
    """Perform runs until the time is up; returns how many."""
    code, end, done = source(), time.monotonic() + 60 * minutes, 0
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and (text := file.read_text(encoding="utf-8")) and not text.endswith("\n"):
        file.write_text(text + "\n", encoding="utf-8")

    def keep(line: dict[str, Any]) -> None:
        with file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
        print(f"{line['part']} {line['kind']} {line['on']} {line['model']} {line['seed']} {line['artefact']}: {line['level']}"
              f" ({line['seconds']} s)", flush=True)  # fmt: skip

    if jobs == 1:
        for run in todo:
            if time.monotonic() > end:
                break
            keep(perform(run, data, code))
            done += 1
        return done
    waiting = iter(todo)
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future[dict[str, Any]]] = set()
        while True:
            while len(running) < jobs and time.monotonic() < end and (run := next(waiting, None)) is not None:
                running.add(pool.submit(perform, run, data, code))
            if not running:
                return done
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                keep(future.result())
                done += 1


# --- tables ------------------------------------------------------------------------------------------------


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, hits / n
    middle, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def share(hits: int, n: int) -> str:
    """``3/64 = 5 % (2 to 13)``, with the Wilson interval."""
    if n == 0:
        return "–"
    low, high = wilson(hits, n)
    return f"{hits}/{n} = {hits / n:.0%} ({100 * low:.0f} to {100 * high:.0f})".replace("%", " %")


def _markdown(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def clean_table(lines: list[dict[str, Any]]) -> str:
    """Verdict words by kind of audit and set, and the share of alarms."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        where = line["on"] if line["kind"] != "anomaly" else "digits-c"
        groups.setdefault(
            f"{line['kind']}, {where}" if line["part"] == "clean" else "untrained classifier", []
        ).append(line)
    rows: list[list[object]] = []
    for name, found in [
        *sorted(groups.items()),
        ("**all clean**", [line for line in lines if line["part"] == "clean"]),
    ]:
        words = Counter(line["level"] for line in found)
        rows.append(
            [name, len(found), *(words[w] for w in WORDS), share(sum(words[w] for w in ALARMS), len(found))]
        )
    return _markdown(["audit, set", "models", *WORDS, "alarms (95 %)"], rows)


def planted_table(lines: list[dict[str, Any]]) -> str:
    """By artefact: how many networks rely on it, and whether it is found first."""
    rows: list[list[object]] = []
    groups = [(a, [line for line in lines if line["artefact"] == a]) for a in ARTEFACTS]
    groups += [(f"**all, {m}**", [line for line in lines if line["model"] == m]) for m in FAMILIES]
    for name, found in [*groups, ("**all**", lines)]:
        taken = [line for line in found if line["lift"] >= TAKEN]
        rows.append(
            [
                name,
                f"{len(taken)}/{len(found)}",
                f"{np.median([line['lift'] for line in found]):.2f}" if found else "–",
                share(sum(line["called"] == 1 for line in taken), len(taken)),
                share(sum(line["rank"] == 1 for line in taken), len(taken)),
                share(sum((line["rank"] or 99) <= 3 for line in taken), len(taken)),
                share(sum(line["level"] in ALARMS for line in taken), len(taken)),
            ]
        )
    head = [
        "artefact",
        "rely on it",
        "median lift",
        "first finding",
        "first of the ranking",
        "among 3",
        "alarm",
    ]
    return _markdown(head, rows)


def curve_table(lines: list[dict[str, Any]], of: str) -> str:
    """Detection against size or rate, over the networks and artefacts for which all values are finished."""
    values = sorted({line[of] for line in lines})
    seen: dict[tuple[object, ...], set[float]] = {}
    for line in lines:
        seen.setdefault((line["artefact"], line["model"], line["seed"]), set()).add(line[of])
    lines = [ln for ln in lines if len(seen[ln["artefact"], ln["model"], ln["seed"]]) == len(values)]
    rows: list[list[object]] = []
    for value in sorted({line[of] for line in lines}):
        found = [line for line in lines if line[of] == value]
        taken = [line for line in found if line["lift"] >= TAKEN]
        rows.append(
            [
                value,
                f"{len(taken)}/{len(found)}",
                f"{np.median([line['lift'] for line in found]):.2f}",
                share(sum(line["called"] == 1 for line in taken), len(taken)),
                share(sum(line["rank"] == 1 for line in taken), len(taken)),
            ]
        )
    return _markdown([of, "rely on it", "median lift", "first finding", "first of the ranking"], rows)


def tables(lines: list[dict[str, Any]], half: str) -> str:
    """All tables as Markdown."""
    parts = {p: [line for line in lines if line["part"] == p] for p in PARTS}
    text = f"Half: {half}. {len(lines)} runs, {sum(line['seconds'] for line in lines) / 60:.0f} minutes on one core beside other work"
    text += f", {max((line['date'] for line in lines), default='none')}, source {', '.join(sorted({line['source'] for line in lines}))}.\n"
    if parts["clean"]:
        text += f"\n### Clean models\n\n{clean_table(parts['clean'] + parts['untrained'])}"
    if parts["planted"]:
        text += f"\n### Planted artefacts, size {SIZE}, rate {RATE}\n\n{planted_table(parts['planted'])}"
    sizes = [
        line for line in parts["curve"] + parts["planted"] if line["rate"] == RATE and line["on"] == "cifar"
    ]
    rates = [line for line in parts["curve"] if line["on"] == "mnist"]
    if parts["curve"]:
        text += f"\n### Against size (CIFAR-10, rate {RATE})\n\n{curve_table(sizes, 'size')}"
        if rates:
            text += f"\n### Against rate (MNIST, residual, size {SIZE})\n\n{curve_table(rates, 'rate')}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--half", choices=["dev", "report"], default="dev")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument(
        "--seeds", default="0-9", help="FIRST-LAST, of which the half takes its own [%(default)s]"
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="start nothing new after this time")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/truth.jsonl"))
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PFUNGST_SHARED", "../shared")) / "data"
    )
    parser.add_argument("--source", help="of --table: of lines made by this source [the present one]")
    parser.add_argument("--table", action="store_true", help="print the tables of finished runs and stop")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    seeds = [s for s in range(first, last + 1) if s % 2 == (options.half == "report")]
    wanted = [r for r in runs(seeds) if options.part in (None, r.part)]
    code = options.source or source()
    lines = {line["key"]: line for line in read(options.out)}
    keys = {run.key(code) for run in wanted}
    if options.table:
        chosen = [
            line
            for line in lines.values()
            if (line["source"] == code if options.source else line["key"] in keys)
        ]
        chosen = [line for line in chosen if ("report" if line["seed"] % 2 else "dev") == options.half]
        print(tables(chosen, options.half))
        return
    todo = [run for run in wanted if run.key(code) not in lines]
    done = work(todo, options.out, options.data, options.jobs, options.minutes)
    print(f"{done} runs done, {len(todo) - done} of {len(wanted)} to go")


if __name__ == "__main__":
    main()
