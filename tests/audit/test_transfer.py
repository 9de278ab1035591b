"""SpuFix carried over from one audit to another model, by numpy; classes in another order, images by identifier."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from classifier_factory import MARKED, SIZE, make
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.run import run
from pfungst.audit.compare_models import run_models
from pfungst.audit.result import load
from pfungst.errors import ConfigError
from pfungst.files import read
from pfungst.report import write

_OTHER = '''
import torch
from torch import nn


class Other(nn.Module):
    """Six features that mix the toy's, four classes of which one has no images: red, yellow, green, blue."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.conv, self.fc = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)
        with torch.no_grad():
            self.conv.weight[:, :, 0, 0] = torch.tensor(
                [[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0], [1.0, 1.0, 1.0],
                 [0.4, 0.9, 0.6], [1.1, -0.3, 0.2]]
            )
            self.conv.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -1.4, -0.8, 0.0]))
            self.fc.weight.copy_(0.2 * torch.randn(4, 6, generator=g))
            for k, feature in ((0, 0), (2, 1), (3, 2)):
                self.fc.weight[k, feature] += 30.0
            self.fc.weight[2, 3] += 30.0
            self.fc.weight[2, 4] += 8.0
            self.fc.bias.copy_(torch.tensor([0.0, -20.0, 0.0, 2.5]))

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def other():
    return Other()
'''
GREEN = 2  # of the other model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make(tmp_path_factory.mktemp("squares"))
    (root / "spurious" / f"spurious_class_{MARKED}_component_0").rename(
        root / "spurious" / "spurious_class_green_component_0"  # each model has another index for it
    )
    (root / "other.py").write_text(_OTHER)
    (root / "names.txt").write_text("red\nyellow\ngreen\nblue\n")
    return root


def config(data, out, model, **options):
    base = {
        "model": f"{data}/{model}", "train": data / "train", "val": data / "val", "spurious": data / "spurious",
        "out": out, "size": SIZE, "n_components": 4, "shown": 3, "device": "cpu", "witness": "none",
    }  # fmt: skip
    return ClassifierConfig.build(**base | options)


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("first")
    return out, run(config(data, out, "toy.py:biased", reference="mean"))


def pixels(folder):
    files = sorted(folder.glob("*.png"))
    return np.stack([np.asarray(Image.open(f), np.float64).transpose(2, 0, 1) / 255 for f in files])


def features(scope, name, x):
    """φ (n, D), weight and bias of a toy, its convolution of 1 × 1 in numpy."""
    net = scope[name]()
    w, b = net.conv.weight[:, :, 0, 0].detach().double().numpy(), net.conv.bias.detach().double().numpy()
    phi = np.maximum(np.einsum("dc,nchw->ndhw", w, x) + b[:, None, None], 0).mean((2, 3))
    return phi, net.fc.weight.detach().double().numpy(), net.fc.bias.detach().double().numpy()


def test_transfer_is_the_published_formula(data, first, tmp_path):
    """Equations 8 to 11 in numpy: covariance direction, least squares, clipped; the spurious images' answers."""
    folder, source = first
    result = run(
        config(
            data,
            tmp_path,
            "other.py:other",
            class_names=data / "names.txt",
            transfer=folder,
            reference="mean",
        )
    )
    scopes = {}
    for name in ("toy", "other"):
        exec((data / f"{name}.py").read_text(), scopes.setdefault(name, {}))
    entry = next(e for e in source.entries if e.name == "green")
    x = pixels(data / "train" / "green")
    phi, w, _ = features(scopes["toy"], "biased", x)
    psi = w[MARKED] * phi
    _, _, v = np.linalg.svd(psi - psi.mean(0), full_matrices=False)
    alpha = ((psi - psi.mean(0)) @ v.T * v.sum(1))[:, entry.fixed]
    chi, w2, b2 = features(scopes["other"], "other", x)
    chi = w2[GREEN] * chi
    directions = alpha.T @ (chi - chi.mean(0))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    shown = pixels(data / "spurious" / "spurious_class_green_component_0")
    phi2, _, _ = features(scopes["other"], "other", shown)
    coordinates = np.linalg.lstsq(directions.T, (w2[GREEN] * phi2 - chi.mean(0)).T, rcond=None)[0].T
    logits = phi2 @ w2.T + b2
    fixed = logits.copy()
    fixed[:, GREEN] -= np.maximum(coordinates * directions.sum(1), 0).sum(1)
    green = next(e for e in result.entries if e.name == "green")
    assert green.under().spurious.triggered.value == np.mean(logits.argmax(1) == GREEN)
    assert green.under(mitigated=True).spurious.triggered.value == np.mean(fixed.argmax(1) == GREEN)
    assert green.transferred == entry.fixed
    assert green.fixed == []
    assert (result.chosen_by, result.transferred_from) == ("transfer", source.model)
    saved = read(tmp_path / "mended" / "spufix.safetensors", "")
    on_train, _, _ = features(scopes["other"], "other", x)
    by_hand = np.linalg.lstsq(directions.T, (chi - chi.mean(0)).T, rcond=None)[0].T * directions.sum(1)
    ours = on_train @ np.asarray(saved["weight"], np.float64).T + np.asarray(saved["offset"], np.float64)
    np.testing.assert_allclose(ours, by_hand, atol=0.02)  # its features were kept in half precision
    page = write(tmp_path, result).read_text()
    assert "carried over" in page


def test_carried_over_to_itself_nothing_changes(data, first, tmp_path):
    folder, source = first
    again = run(config(data, tmp_path, "toy.py:biased", transfer=folder, reference="mean"))
    assert again.under(mitigated=True).mauc == source.under(mitigated=True).mauc
    assert again.under(mitigated=True).accuracy == source.under(mitigated=True).accuracy
    assert again.verdict.level == source.verdict.level


def test_a_report_written_anew_changes_nothing_and_other_components_do(data, first, tmp_path):
    """Regression: `pfungst report` on the other audit made a finished one of other data, which a resume refuses."""
    folder, source = first
    there = shutil.copytree(folder, tmp_path / "first")
    options = {"transfer": there, "reference": "mean"}
    run(config(data, tmp_path / "a", "toy.py:biased", **options))
    write(there, source)
    again = config(data, tmp_path / "a", "toy.py:biased", **options, resume=True)
    assert run(again) == load(tmp_path / "a")
    changed = json.loads((there / "result.json").read_text())
    entry = next(e for e in changed["entries"] if e["fixed"])
    entry["fixed"] = [*entry["fixed"], 3]
    (there / "result.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="other data"):
        run(again)


def test_the_first_of_several_models_gives_to_the_others(data, first, tmp_path):
    _, source = first
    model = f"toy.py:biased,{data}/toy.py:unbiased"
    result = run_models(config(data, tmp_path, model, transfer="first", reference="mean"), write)
    own, other = (load(tmp_path / row.folder) for row in result.rows)
    assert own.under(mitigated=True).mauc == source.under(mitigated=True).mauc
    assert own.chosen_by == "evidence"
    assert other.transferred_from == own.model
    assert {"mAUC, SpuFix"} <= set(result.rows[1].values)


def test_what_cannot_be_carried_over_is_refused(data, first, tmp_path):
    folder, _ = first
    judged = tmp_path / "judged.json"
    judged.write_text("{}")
    with pytest.raises(ConfigError, match="both say what is switched off"):
        run(config(data, tmp_path / "a", "toy.py:clean", transfer=folder, components=judged))
    with pytest.raises(ConfigError, match="first with one model"):
        run(config(data, tmp_path / "b", "toy.py:clean", transfer="first"))
    bare = run(config(data, tmp_path / "c", "toy.py:clean"))
    assert bare.chosen_by == "nothing"
    with pytest.raises(ConfigError, match="switches off no component"):
        run(config(data, tmp_path / "d", "toy.py:biased", transfer=tmp_path / "c"))
    names = data / "names.txt"
    with pytest.raises(ConfigError, match="none of which is audited here"):
        run(
            config(
                data,
                tmp_path / "e",
                "other.py:other",
                class_names=names,
                transfer=folder,
                classes="red",
                spurious=None,
            )
        )


def test_folders_of_a_label_that_no_image_has_are_refused(data, tmp_path):
    (tmp_path / "spurious_class_mauve_component_0").mkdir()
    with pytest.raises(Exception, match="label 'mauve', which the images do not have"):
        run(config(data, tmp_path / "out", "toy.py:clean", spurious=tmp_path))


def test_a_fix_for_more_classes_needs_to_know_which_is_which():
    from pfungst.errors import InputError
    from pfungst.spurious import FeatureHead, NeuralPCA, SpuFix
    from spurious_toys import items, small_net

    rows = items(60)
    x = torch.stack([image for _, image, _ in rows])
    head, other = (
        FeatureHead(small_net(), example=x[:2]),
        FeatureHead(small_net(seed=7, classes=7), example=x[:2]),
    )
    with torch.no_grad():
        phi = head.features(x)
    npca = NeuralPCA(4).fit(head, phi, np.array([k for _, _, k in rows]))
    fix = SpuFix(head, npca, {0: [0]}, reference="mean")
    moved = fix.transfer(other, rows, classes={0: 6, 1: 0})
    with torch.no_grad():
        changed = (moved(x) - other(x)).abs().amax(0)
    assert changed[6] > 0
    assert float(changed[:6].max()) == 0
    with pytest.raises(InputError, match=r"classes \[0\] are none of the other model's"):
        fix.transfer(other, rows, classes={1: 0})
