"""Evidence about components of real networks, and false alarms and hits on small planted ones.

    python benchmarks/evidence.py real --data ../shared/data --cache FOLDER [--audited robust] [--classes 0 3] [--components 8] [--minutes 30]
    python benchmarks/evidence.py planted [--seeds 10]

real: neural PCA on Imagenette's training images; evidence on its validation images, with the other networks as witnesses. A
table of class × component: AUROC of α for the faces of people.csv (a detector's answer, on all images that it saw; never
read by the method), the published rule, necessity, sufficiency, excess, what is retained, the word. Features and finished
classes are kept in the cache, so that a second run resumes.
planted: networks on digits with a white corner in half of the images of one class, and clean ones; witnesses are clean.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from _common import describe_machine
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pfungst.audit.result import Model
from pfungst.encoders import load
from pfungst.features import combined, file_key, model_key
from pfungst.features.folded import folded
from pfungst.files import whole
from pfungst.measure import Interval, auroc
from pfungst.spurious import (
    Evidence,
    FeatureHead,
    NeuralPCA,
    Witness,
    correct,
    evidence,
    extract_features,
    paper_rule,
)

INDEX = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # Imagenette's classes among the 1,000 of ImageNet
SIZE = {"robust": 128, "standard": 128, "lite0": 224}


class Kept(Model):
    """What a class took long for."""

    evidence: list[Evidence]


class Sized(nn.Module):
    """A network that takes images of any size."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.size:
            x = nn.functional.interpolate(x, size=(self.size,) * 2, mode="bicubic", antialias=True).clamp(
                0, 1
            )
        return self.net(x)


def network(name: str, models: Path) -> nn.Module:
    if name == "lite0":
        net = load("efficientnet-lite0", "classifier").model
    else:
        file = Path(__file__).resolve().parents[1] / "examples/resnet18_imagenette.py"
        weights = models / f"imagenette_{name}_resnet18.safetensors"
        net = load(f"{file}:network", "classifier", checkpoint=weights, size=SIZE[name]).model
    return Sized(folded(net.eval(), torch.rand(2, 3, SIZE[name], SIZE[name])), SIZE[name])


class Photos:
    """(id, image, class index) of a Parquet file."""

    def __init__(self, file: Path, classes: dict[str, int]) -> None:
        self.rows, self.file = pq.read_table(file).to_pylist(), file_key(file)
        self.ids = [r["image"]["path"] for r in self.rows]
        self.labels = np.array([classes[r["label"]] for r in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[str, Tensor, int]:
        with Image.open(io.BytesIO(self.rows[i]["image"]["bytes"])) as image:
            pixels = np.asarray(image.convert("RGB"))
        return (
            self.ids[i],
            torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255,
            int(self.labels[i]),
        )

    def identity(self, i: int) -> tuple[str, int, int]:
        return self.file, i, int(self.labels[i])

    def stack(self, rows: np.ndarray) -> Tensor:
        return torch.stack([self[int(i)][1] for i in rows])


def faces_of(file: Path) -> dict[str, bool]:
    with file.open() as lines:
        return {r["path"]: int(r["faces"]) > 0 for r in csv.DictReader(lines)}


def real(args: argparse.Namespace) -> None:
    folder = args.data / "imagenette"
    names = json.loads((folder / "names.json").read_text())
    order = sorted(names)
    plain = {wnid: i for i, wnid in enumerate(order)}
    classes = dict(zip(order, INDEX, strict=True)) if args.audited == "lite0" else plain
    nets = {name: network(name, args.data / "models") for name in SIZE}
    head = FeatureHead(nets[args.audited], example=torch.rand(2, 3, 128, 128))
    train, val = Photos(folder / "train.parquet", classes), Photos(folder / "val.parquet", classes)
    stores = {
        split: extract_features(head, photos, args.cache / f"{args.audited}-{split}", batch_size=8)
        for split, photos in (("train", train), ("val", val))
    }
    npca = NeuralPCA(64).fit(head, stores["train"])
    faces = faces_of(folder / "people.csv")
    found: list[Evidence] = []
    about: dict[tuple[int, int], tuple[str, float, int | None]] = {}
    begun = time.perf_counter()
    for number in args.classes:
        if time.perf_counter() - begun > 60 * args.minutes:
            print(f"{args.minutes:g} minutes are over; the same command goes on with {names[order[number]]}")
            break
        k = classes[order[number]]
        own, rest = (np.flatnonzero(side) for side in (val.labels == k, val.labels != k))
        known = range(min(args.components, len(npca.components_[k])))
        state = combined(npca.model_fingerprint_, val.file, model_key(head.model), known)
        part = args.cache / f"{args.audited}-evidence-{number}-{state}.json"
        if not part.exists():
            picked = np.random.default_rng((0, k)).choice(rest, min(200, len(rest)), replace=False)
            witnesses = [
                Witness(net, INDEX[number] if name == "lite0" else number)
                for name, net in nets.items()
                if name != args.audited
            ]
            start = time.perf_counter()
            tried = evidence(npca, k, known, val.stack(own), val.stack(picked), witnesses, batch_size=16)
            seconds = time.perf_counter() - start
            print(f"{names[order[number]]}: {seconds / len(known):.1f} s a component", flush=True)
            with whole(part) as file:
                file.write_text(Kept(evidence=tried).model_dump_json())
        found += Kept.model_validate_json(part.read_bytes()).evidence
        rule = paper_rule(npca, k, 10, 64, shape=(3, 128, 128), steps=args.steps) if args.steps else []
        alpha, seen = [], []
        for store in stores.values():
            alpha.append(npca.alpha_features(store.of_class(k), k).numpy())
            seen += [faces.get(store.ids[r]) for r in store.rows(k)]
        kept = np.array([s is not None for s in seen])
        truth = np.array([bool(s) for s in seen])[kept]
        mixed = truth.any() and not truth.all() if len(truth) else False
        for c in known:
            area = auroc(truth, np.concatenate(alpha)[kept, c]) if mixed else float("nan")
            about[k, c] = names[order[number]], float(area), rule.index(c) + 1 if c in rule else None
    found = correct(found)
    print(
        "\n| class | component | AUROC of faces | published rule | necessity, nats | sufficiency | excess | flips | retained | p | word |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for e in sorted(found, key=lambda e: (-e.class_, e.rank), reverse=True):
        name, area, place = about[e.class_, e.component]
        falls = ", ".join(f"{n.value:.1f}" for n in e.necessity)
        print(
            f"| {name} | {e.component} | {area:.2f} | {place or '–'} | {falls} | {percent(e.sufficiency[0])} "
            f"| {percent(e.excess)} | {e.flips[0]:.0%}, {e.flips[1]:.0%} | {percent(e.retained)} | {e.corrected:.2g} | {e.word} |"
        )


def percent(i: Interval) -> str:
    return f"{i.value:.0%} [{i.low:.0%}, {i.high:.0%}]"


def planted(args: argparse.Namespace) -> None:
    data = load_digits()
    clean = nn.functional.pad(torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, (4, 4, 4, 4))
    y, marked = torch.tensor(data.target), clean.clone()
    rows = torch.nonzero(y == 3)[::2, 0]
    marked[rows, :, 1:4, 1:4] = 1
    witnesses = [digits_network(clean[:1200], y[:1200], 1000 + i) for i in range(args.witnesses)]
    hits, alarms, clean_alarms = 0, 0, 0
    for number, seed in enumerate(range(args.first, args.first + args.seeds), 1):
        for x, planted_ in ((clean, False), (marked, True)):
            net = digits_network(x[:1200], y[:1200], seed)
            head = FeatureHead(net, example=x[:2])
            with torch.no_grad():
                npca = NeuralPCA(4).fit(head, head.features(x[:1200]), y[:1200])
            found: list[Evidence] = []
            for k in range(10):
                own, rest = x[1200:][y[1200:] == k], x[1200:][y[1200:] != k]
                found += evidence(
                    npca, k, range(4), own, rest, [Witness(w, k) for w in witnesses], batch_size=64, seed=seed
                )
            words = {(e.class_, e.component) for e in correct(found) if e.word == "spurious"}
            if planted_:
                hits += any(k == 3 for k, _ in words)
            wrong = {w for w in words if not planted_ or w[0] != 3}
            alarms += bool(wrong)
            clean_alarms += bool(wrong) and not planted_
        print(
            f"seed {seed}: planted mark found in {hits} of {number}; false alarms in {clean_alarms} of {number} clean "
            f"networks, {alarms} of {2 * number} with those of other classes than the marked",
            flush=True,
        )


def digits_network(x: Tensor, y: Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU()),
        *(
            nn.Conv2d(24, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 48),
            nn.ReLU(),
            nn.Linear(48, 10),
        ),
    )
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(15):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimiser.step()
    return net.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("real")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--cache", type=Path, required=True)
    one.add_argument("--audited", choices=list(SIZE), default="robust")
    one.add_argument("--classes", type=int, nargs="*", default=list(range(10)))
    one.add_argument("--components", type=int, default=8)
    one.add_argument(
        "--steps", type=int, default=0, help="of the published rule's visualisations; 0 leaves it out"
    )
    one.add_argument("--minutes", type=float, default=30, help="no class is begun after them")
    one.set_defaults(run=real)
    two = parts.add_parser("planted")
    two.add_argument("--seeds", type=int, default=10)
    two.add_argument("--witnesses", type=int, default=2)
    two.add_argument("--first", type=int, default=10, help="seeds below 6 set the limits")
    two.set_defaults(run=planted)
    arguments = parser.parse_args()
    print(describe_machine())
    arguments.run(arguments)
