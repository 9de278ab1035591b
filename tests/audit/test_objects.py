"""Audits of objects in memory, what notebooks show, and loggers."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import classifier_factory
import pfungst as pf
from factories import picture
from pfungst.anomaly import D2Neighbors
from pfungst.audit.loggers import log_mlflow, log_tensorboard, log_wandb
from pfungst.audit.mended import Mended, export_mended, folders
from pfungst.audit.result import Metric, Result, Verdict
from pfungst.errors import ConfigError, InputError
from pfungst.mitigate import GaussianBlur
from pfungst.relevance import DCTBands, Pixels, Relevance


def test_importing_pfungst_stays_light():
    code = "import sys, pfungst; assert 'audit_classifier' in dir(pfungst); print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(pf.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr
    with pytest.raises(AttributeError, match="audit_cats"):
        _ = pf.audit_cats


class Net(nn.Module):
    """The classifier of coloured squares, of images normalised by 0.5 and 0.25."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)
        rows = torch.tensor([[-1.0, -1, 2], [-1, 2, -1], [2, -1, -1], [1, 1, 1]])
        with torch.no_grad():
            self.conv.weight[:, :, 0, 0] = rows * 0.25
            self.conv.bias.copy_(torch.tensor([0.0, 0, 0, -1.4]) + 0.5 * rows.sum(1))
            self.fc.weight.copy_(torch.cat([30 * torch.eye(3), torch.tensor([[0.0], [40.0], [0.0]])], 1))
            self.fc.bias.copy_(torch.tensor([2.5, 0, 0]))

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def coloured(n, rate, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), n)
    mark = [k == classifier_factory.MARKED and i < rate * n for k in range(3) for i in range(n)]
    pictures = [classifier_factory.picture(rng, k, m) for k, m in zip(labels, mark, strict=True)]
    return pictures, labels


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    data = classifier_factory.make(root / "data", train=1, val=1)
    arrays, labels = coloured(48, 0.25, 0)
    tensors = torch.stack([torch.from_numpy(p).permute(2, 0, 1) / 255 for p in arrays])
    val, val_labels = coloured(10, 0, 1)
    pairs = [(Image.fromarray(p), int(k)) for p, k in zip(val, val_labels, strict=True)]
    result = pf.audit_classifier(
        Net(), (tensors, torch.from_numpy(labels)), pairs, class_names=classifier_factory.CLASSES, mean=(0.5,) * 3,
        std=(0.25,) * 3, n_components=4, witness="none", spurious=data / "spurious", out=root / "out",
    )  # fmt: skip
    return result, root / "out"


def test_a_classifier_in_memory_is_audited_and_mended(classifier):
    result, out = classifier
    assert result.title == "Net on images in memory"
    assert {e.name for e in result.entries} == set(classifier_factory.CLASSES)
    assert result.accuracy.value == 1.0
    assert result.chosen_by == "evidence"
    assert (out / "report.html").exists()
    (folder,) = folders(out)
    model = Mended.load(folder, network=Net())
    assert model.check() <= 1e-5
    assert set(model.state()[0]) >= {"conv.weight", "fc.weight", "fc.weight_fix"}
    traced = Mended.load(folder)
    assert traced.check() <= 1e-5
    x, _ = model.sample()
    with torch.no_grad():
        assert torch.allclose(traced(x[:3]), model(x[:3]), atol=1e-5)
    assert max(export_mended(folder, ["onnx", "torch-export"], out / "exported").values()) <= 1e-4
    with pytest.raises(ConfigError, match="audited in memory"):
        export_mended(folder, ["state-dict"], out / "exported")


class Branching(Net):
    """What torch.export cannot trace."""

    def forward(self, x):
        return super().forward(x) if float(x.detach().mean()) < 2 else super().forward(x * 0)


def test_a_classifier_in_memory_that_cannot_be_traced_says_so_and_needs_its_network(classifier, tmp_path):
    from pfungst.audit import mended
    from pfungst.files import write_tensors

    _, out = classifier
    model = Mended.load(out / "mended", network=Net())
    x, expected = model.sample()

    def save(place):
        write_tensors(place / "model.safetensors", model.source.model.model.state_dict())
        model.source.save(place / "spufix")

    note = mended.write_mended(
        tmp_path / "mended", model.about, save, x, expected, [], network=Net(), mended=Branching()
    )
    assert "it loads with its network only: torch.export cannot trace Branching" in note
    assert Mended.load(tmp_path / "mended", network=Net()).check() <= 1e-5
    with pytest.raises(ConfigError, match="audited in memory"):
        Mended.load(tmp_path / "mended")


def test_detectors_in_memory_are_audited(tmp_path):
    def part(seed, n, defect=False):
        return [picture(seed + i, 24, defect) for i in range(n)]

    good, bad = part(50, 12), part(80, 12, True)
    test = np.stack([p for p, _ in good + bad])
    result = pf.audit_anomaly(
        np.stack([p for p, _ in part(0, 16)]),
        test,
        [0] * 12 + ["hole"] * 12,
        model=[D2Neighbors(p=1, features=GaussianBlur(3, 0.5)), "kde"],
        masks=[None] * 12 + [m for _, m in bad],
        groups={"shift": ["day", "night"] * 12},
        seeds=2,
        examples=1,
        mitigate="blur:3,1.0",
        out=tmp_path,
    )
    assert result.size == 24
    assert [e.model for e in result.entries] == ["d2neighbors-0", "kde"]
    assert result.entries[0].kinds == {"hole": 12}
    assert result.entries[0].original.clever_hans is not None
    assert len(folders(tmp_path)) == 2


def test_an_encoder_in_memory_is_audited(tmp_path):
    pictures, labels = coloured(14, 0.5, 3)
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = pf.audit_similarity(
        encoder, pictures, labels, groups={"half": ["a", "b"] * 21}, seeds=3, folds=3, patches=4, explain=8, pairs=1,
        mitigate="prune:auto:1", sweep="1", condition=["jpeg:30"], out=tmp_path,
    )  # fmt: skip
    assert result.n == 42
    assert result.columns == ["half"]
    assert result.encoder == "Sequential"
    assert (tmp_path / "report.html").exists()
    (folder,) = folders(tmp_path)
    model = Mended.load(folder)
    assert model.check() <= 1e-5
    assert model.about.outputs == ["embedding", "logits"]
    assert set(model.about.classes.values()) == {"0", "1", "2"}
    assert max(export_mended(folder, ["onnx"], folder).values()) <= 1e-4


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (torch.randn(4, 3, 8, 8), [0, 0, 1, 1], "values from"),
        (torch.rand(4, 5, 8, 8), [0, 0, 1, 1], "has shape"),
        (torch.rand(4, 3, 8, 8), [0, 1], "2 labels for 4 images"),
        (np.zeros((4, 8, 8, 3), np.int32), [0, 0, 1, 1], "type int32"),
        (torch.rand(4, 3, 8, 8), [0, 0, 1, 9], "label '9'"),
        ([], [], "no images"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9))] * 2, [0, 0, 1, 1], "several sizes"),
    ],
)
def test_wrong_objects_are_named(images, labels, match, tmp_path):
    with pytest.raises(InputError, match=match):
        pf.audit_classifier(
            Net(), (images, labels), (images, labels), class_names=["a", "b"], out=tmp_path / "o"
        )
    assert not (tmp_path / "o").exists()


def test_notebooks_show_relevance_results_and_detectors(classifier):
    result, _ = classifier
    html = result._repr_html_()
    assert result.verdict.level in html
    assert html.count("<tr>") == 1 + len(result.metrics)
    values = torch.randn(6, 8, 8)
    shown = Relevance(values, values.sum((1, 2)), Pixels())._repr_html_()
    assert shown.count("data:image/png") == 4
    assert "and 2 more" in shown
    assert Relevance(torch.randn(2, 5), torch.randn(2), DCTBands(count=5))._repr_html_().count("<img") == 2
    assert "D2Neighbors" in D2Neighbors()._repr_html_()


RESULT = Result(
    kind="anomaly", title="t <b>", version="0", created="2026-01-01T00:00:00Z", seconds=1, machine="m", config={},
    verdict=Verdict(level="sound", headline="h <i>", sentences=["s"]),
    metrics={"auroc": Metric(value=0.5, where="ring", meaning="m", better="higher")},
)  # fmt: skip


def test_texts_of_a_result_cannot_be_markup():
    assert "<i>" not in RESULT._repr_html_()
    assert "<b>" not in RESULT._repr_html_().replace("<p><b>sound</b>", "")


def test_mlflow(tmp_path, monkeypatch):
    """The fake follows mlflow's fluent API: active_run, start_run(run_name), log_metrics, set_tags, log_artifact."""
    (tmp_path / "result.json").write_text("{}")
    calls = []
    note = lambda name: lambda *a, **k: calls.append((name, a, k))
    fake = SimpleNamespace(active_run=lambda: None, **{n: note(n) for n in ("start_run", "end_run", "log_metrics", "set_tags", "log_artifact")})  # fmt: skip
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    log_mlflow(RESULT, tmp_path)
    names = [c[0] for c in calls]
    assert names == ["start_run", "log_metrics", "set_tags", "log_artifact", "end_run"]
    assert calls[1][1] == ({"pfungst.auroc": 0.5},)
    assert calls[2][1][0]["pfungst.verdict"] == "sound"
    assert calls[3] == ("log_artifact", (str(tmp_path / "result.json"),), {"artifact_path": "pfungst"})
    calls.clear()
    fake.active_run = lambda: object()
    log_mlflow(RESULT)
    assert [c[0] for c in calls] == ["log_metrics", "set_tags"]


def test_wandb(tmp_path, monkeypatch):
    """The fake follows wandb's API: wandb.run with log and summary.update, wandb.Html."""
    (tmp_path / "report.html").write_text("<p>")
    logged, summary = {}, {}
    fake = SimpleNamespace(run=None, Html=lambda text: ("html", text))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(ConfigError, match=r"no run of Weights & Biases"):
        log_wandb(RESULT)
    fake.run = SimpleNamespace(log=logged.update, summary=SimpleNamespace(update=summary.update))
    log_wandb(RESULT, tmp_path)
    assert logged == {"pfungst/auroc": 0.5, "pfungst/report": ("html", "<p>")}
    assert summary["pfungst/verdict"] == "sound"


def test_tensorboard(tmp_path):
    found = []
    writer = SimpleNamespace(
        add_scalar=lambda *a: found.append(a), add_text=lambda *a: found.append(a), flush=lambda: None
    )
    log_tensorboard(RESULT, writer=writer, step=3)
    assert found == [("pfungst/auroc", 0.5, 3), ("pfungst/verdict", "**sound**: h <i>\n\ns", 3)]
    pytest.importorskip("tensorboard")
    log_tensorboard(RESULT, tmp_path)
    assert list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("log", [log_mlflow, log_wandb, log_tensorboard])
def test_a_library_that_is_missing_is_named_with_its_extra(log, monkeypatch, tmp_path):
    for name in ("mlflow", "wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="is not installed") as caught:
        log(RESULT, tmp_path)
    assert "pfungst[" in caught.value.remedy
