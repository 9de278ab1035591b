"""CIFAR-10 as pool, a planted mark as spurious feature: index → score → search → label → export → spurious score → SpuFix."""

import importlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from pfungst.audit.classifier.demo import train
from pfungst.audit.result import load as load_result
from pfungst.cli import app
from pfungst.label import Study
from pfungst.pool import PoolModel, direction, index, score, search, to_label_task, to_spurious_folder

spurious = pytest.importorskip("pfungst.spurious")
pytest.importorskip("pfungst.conditions")
pytest.importorskip("pfungst.data")

CLASS = 3
EXAMPLES = Path(__file__).parents[2] / "examples"


class RandomPatches(nn.Module):
    """Convolution with patches of the data, rectified, pooled over quadrants, then a linear head (Coates et al. 2011)."""

    def __init__(self, images: torch.Tensor, filters: int = 96, size: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, filters, size, stride=2)
        patches = []
        for i in torch.randint(len(images), (filters,), generator=generator):
            top, left = torch.randint(0, 33 - size, (2,), generator=generator).tolist()
            patch = images[i, :, top : top + size, left : left + size]
            patches.append((patch - patch.mean()) / (patch - patch.mean()).norm().clamp(min=0.1))
        self.conv.weight.data = torch.stack(patches)
        self.conv.bias.data = torch.full((filters,), -0.5)
        self.head = nn.Linear(4 * filters, 10)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))

    def fit(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Ridge regression onto one-hot labels: a head in closed form."""
        with torch.no_grad():
            phi = torch.cat([self.features(b) for b in images.split(250)]).double()
            mean = phi.mean(0)
            target = nn.functional.one_hot(labels, 10).double() - 0.1
            gram = (phi - mean).T @ (phi - mean) + 1.0 * torch.eye(phi.shape[1])
            weight = torch.linalg.solve(gram, (phi - mean).T @ target).T * 8
            self.head.weight.copy_(weight)
            self.head.bias.copy_(-weight @ mean)


def mark(pixels: np.ndarray) -> np.ndarray:
    """A magenta square in the lower right corner."""
    out = pixels.copy()
    out[22:31, 22:31] = (230, 20, 200)
    return out


def load(path, count):
    table = pq.read_table(path).slice(0, count)
    images = [
        np.asarray(Image.open(io.BytesIO(b["bytes"])).convert("RGB")) for b in table["image"].to_pylist()
    ]
    return np.stack(images), np.asarray(table["label"])


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 255).float()


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def trained(shared):
    """A model whose class 3 was marked in 40 % of its training images, and its neural PCA."""
    pixels, labels = load(shared / "data" / "cifar10" / "train.parquet", 4000)
    rng = np.random.default_rng(0)
    marked = (labels == CLASS) & (rng.random(len(labels)) < 0.4)
    pixels = np.where(marked[:, None, None, None], np.stack([mark(p) for p in pixels]), pixels)
    images, classes = tensor(pixels), torch.from_numpy(labels).long()
    model = RandomPatches(images)
    model.fit(images, classes)
    head = spurious.FeatureHead(model.eval(), example=images[:4])
    with torch.inference_mode():
        phi = torch.cat([model.features(b) for b in images.split(250)])
    npca = spurious.NeuralPCA(n_components=10).fit(head, phi.clone(), classes)
    npca.attach(head)
    alpha = npca.alpha_features(phi[classes == CLASS], CLASS)
    inside = torch.from_numpy(marked[labels == CLASS])
    # The planted components: marked and unmarked images of the class differ most in their α.
    components = (alpha[inside].mean(0) - alpha[~inside].mean(0)).topk(4).indices.tolist()
    return model, npca, components


def test_the_whole_way(shared, trained, tmp_path):
    model, npca, components = trained
    component = components[0]
    pixels, labels = load(shared / "data" / "cifar10" / "test.parquet", 2000)
    rng = np.random.default_rng(1)
    planted = (labels != CLASS) & (rng.random(len(labels)) < 0.15)
    content = [png(mark(p) if m else p) for p, m in zip(pixels, planted, strict=True)]
    content[17] = content[17][:60]
    (tmp_path / "source").mkdir()
    names = [f"test-{i}" for i in range(len(content))]
    table = pa.table({"image": [{"bytes": c, "path": None} for c in content], "name": names})
    pq.write_table(table, tmp_path / "source" / "pool.parquet", row_group_size=300)

    pool = index(tmp_path / "source", tmp_path / "pool", shard_rows=400, id_column="name")
    summary = score(pool.folder, [PoolModel("patches", lambda: model, "torch-bilinear", 32)], device="cpu")
    assert summary.errors == {"patches": 1}
    hits = search(pool.folder, direction(npca, CLASS, component), "patches", agree=1, top=100)
    is_planted = {name: bool(p) for name, p in zip(names, planted, strict=True)}
    precision = np.mean([is_planted[h.id] for h in hits])
    print(f"precision at {len(hits)}: {precision:.2f}, planted {planted.mean():.2f} of the pool")
    assert len(hits) == 100
    assert precision >= 0.9

    to_label_task(pool.folder, hits, tmp_path / "task", CLASS, "cat", component, "patches")
    study = Study(tmp_path / "task", ["anna", "ben"])
    of_class = {name: int(label) == CLASS for name, label in zip(names, labels, strict=True)}
    for person in study.labellers:
        for item in list(study.items):
            study.act(
                person, item, 0, "answer", "in" if of_class[item] else "out" if is_planted[item] else "trash"
            )
    assert study.task.model["head_sha256"] == npca.model_fingerprint_["head_sha256"]
    study.close()
    counts = to_spurious_folder(tmp_path / "task", tmp_path / "set")
    assert counts == {f"spurious_class_{CLASS}_component_{component}": round(100 * precision)}

    def transform(image):
        return tensor(np.asarray(image.convert("RGB"))[None])[0]

    wrong = spurious.SpuriousFolder(tmp_path / "set", transform)
    clean = [(f"v{i}", tensor(pixels[i : i + 1])[0], CLASS) for i in np.flatnonzero(labels == CLASS)[:80]]
    before = spurious.spurious_score(model, clean, wrong)
    fixed = spurious.SpuFix(model, npca, {CLASS: components})
    after = spurious.spurious_score(fixed, clean, wrong)
    print(f"mAUC {before.mauc:.3f}, with SpuFix {after.mauc:.3f}")
    gain, low, _ = after.gain_over(before)
    assert gain > low > 0


def pfungst(*args):
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


@pytest.mark.slow
def test_the_whole_way_by_commands(shared, tmp_path, monkeypatch):
    """The model, square and pool of the examples, smaller: from the audit to the mended model, each step a command."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("cifar10_spurious")
    data = shared / "data" / "cifar10"
    names = json.loads((data / "labels.json").read_text())
    images, labels = example.read(data / "train.parquet", 200)
    validation, truth = example.read(data / "test.parquet", 60)
    rng = np.random.default_rng(0)
    marked = (labels == CLASS) & (rng.random(len(labels)) < 0.4)
    images[marked] = [example.plant(image) for image in images[marked]]
    example.save_images(tmp_path / "train", images, [names[k] for k in labels])
    example.save_images(tmp_path / "val", validation, [names[k] for k in truth])
    torch.manual_seed(0)
    network = example.network()
    train(
        network,
        example.tensors(images),
        torch.from_numpy(labels),
        epochs=5,
        rate=0.01,
        augment=example.flipped,
    )
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(tmp_path / "m.safetensors"))
    spec = f"{EXAMPLES / 'cifar10_spurious.py'}:network"
    audit = ["audit", "classifier", "--model", spec, "--checkpoint", tmp_path / "m.safetensors"]
    audit += ["--train", tmp_path / "train", "--val", tmp_path / "val", "--classes", "cat", "--size", 32]
    audit += ["--n-components", 32, "--steps", 0, "--fix", 1, "--device", "cpu"]
    pfungst(*audit, "--out", tmp_path / "audit")
    (entry,) = json.loads((tmp_path / "audit" / "result.json").read_text())["entries"]
    component = entry["components"][0]["component"]  # the most suspicious one, blind

    pool = tmp_path / "pool"
    count, planted = importlib.import_module("cifar10_pool").make_pool(data, tmp_path / "pool.parquet")
    pfungst("pool", "index", tmp_path / "pool.parquet", "--out", pool, "--id-column", "id")
    scored = f"small={spec},checkpoint={tmp_path / 'm.safetensors'},size=32"
    pfungst("pool", "score", pool, "--model", scored, "--device", "cpu")
    find = [
        "--npca",
        tmp_path / "audit",
        "--class",
        "cat",
        "--component",
        component,
        "--agree",
        1,
        "--top",
        100,
    ]
    pfungst("pool", "search", pool, *find, "--out", tmp_path / "task")
    study = Study(tmp_path / "task", ["anna", "ben"])
    precision = np.mean([item.id.endswith("+square") for item in study.task.items])
    print(f"precision at {len(study.items)}: {precision:.2f}, {planted / count:.2f} of the pool")
    assert len(study.items) == 100
    assert precision >= 0.9
    assert all(len(item.reference) == 5 and item.class_name == "cat" for item in study.task.items)
    for person in study.labellers:
        for item in list(study.items):
            study.act(person, item, 0, "answer", "out" if item.endswith("+square") else "in")
    study.close()
    pfungst("pool", "export", tmp_path / "task", "--out", tmp_path / "set")
    pfungst(*audit, "--spurious", tmp_path / "set", "--out", tmp_path / "again")
    result = load_result(tmp_path / "again")
    first, second = result.under(), result.under(mitigated=True)
    print(f"mAUC {first.mauc.value:.2f}, with SpuFix {second.mauc.value:.2f}")
    assert result.mauc_gain.low > 0
    assert second.triggered < first.triggered
