"""Discovery end to end: a planted mark is the first finding, a clean network has none; proof by hand."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from typer.testing import CliRunner

from pfungst.audit.discovery.config import DiscoveryConfig
from pfungst.audit.discovery.run import _of_encoder, _opened, run
from pfungst.audit.result import load
from pfungst.cli import app
from pfungst.discover import ClassSubject, Judge, Proof, cluster, correct, explain, find
from pfungst.errors import ConfigError, InputError
from pfungst.measure import Interval, auroc
from pfungst.measure.limits import DECIDES
from pfungst.relevance import Patches, attribute
from pfungst.spurious import FeatureHead, Witness

MARKED = 3
NET = '''
from torch import nn


def network():
    """Digits of 16 px."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 48), nn.ReLU(), nn.Linear(48, 10),
    )
'''
_scope = {}
exec(NET, _scope)


def digits(mark):
    """Digits in the middle of 16 px; a white corner in half of those of class 3: images, labels, marked."""
    data = load_digits()
    x = nn.functional.pad(torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, (4, 4, 4, 4))
    x, y = x.repeat(1, 3, 1, 1), torch.tensor(data.target)
    marked = torch.zeros(len(y), dtype=torch.bool)
    if mark:
        marked[torch.nonzero(y == MARKED)[:, 0][::2]] = True
        x[marked, :, 1:4, 1:4] = 1
    return x, y, marked


def trained(x, y, seed=0, epochs=12):
    torch.manual_seed(seed)
    net = _scope["network"]()
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def planted():
    x, y, marked = digits(True)
    return trained(x[:1100], y[:1100]), x[1100:], y[1100:], marked[1100:]


def searched(net, x, y, classes, witness=None):
    head = FeatureHead(net, example=x[:4])
    found = []
    for k in classes:
        own = x[y == k]
        explained = explain(head, k, lambda r, own=own: own[list(r)], len(own), batch_size=64)
        witnesses = [] if witness is None else [Witness(witness, k)]
        subject = ClassSubject(head, k, witnesses)
        found += find(subject, explained, lambda r, own=own: own[list(r)], x[y != k][:80], batch_size=64)[0]
    return correct(found)


def test_a_planted_mark_is_the_first_finding_and_clean_classes_have_none(planted):
    net, x, y, marked = planted
    found = searched(net, x, y, [MARKED, 0, 7])
    first = found[0]
    assert first.proof.survives, first.proof.reason
    assert first.index == MARKED
    member = np.zeros(int((y == MARKED).sum()))
    member[first.rows] = 1
    assert auroc(marked[y == MARKED].numpy(), member) > 0.9
    assert first.proof.flips[0] > first.proof.flips[1]
    assert {f.index for f in found if f.proof.survives} == {MARKED}
    region = next(f.regions[0] for f in found if f.proof.survives and f.regions is not None)
    assert region[1:4, 1:4].mean() > 0.5  # the mark is in it


def test_explanations_are_those_of_the_engine_and_of_the_head(planted):
    net, x, *_ = planted
    head = FeatureHead(net, example=x[:4])
    few = x[:5]
    explained = explain(head, 2, lambda r: few[list(r)], 5, "gradient", batch_size=2)
    expected = attribute(net, few, 2, "gradient", Patches(1)).values
    np.testing.assert_allclose(explained.maps, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(explained.spectra.sum(1), expected.sum((1, 2)).numpy(), rtol=1e-3, atol=1e-4)
    logits = net(few).detach()
    np.testing.assert_allclose(
        explained.psi.sum(1) + net[-1].bias[2].item(), logits[:, 2].numpy(), rtol=1e-4, atol=1e-4
    )
    assert explained.said.tolist() == (logits.argmax(1) == 2).tolist()
    with pytest.raises(InputError, match="class 2 has no images"):
        explain(head, 2, lambda r: few[:0], 0)


class _Corner(nn.Module):
    """Class 1 is decided by the corner, class 0 by nothing."""

    def __init__(self):
        super().__init__()
        self.flat, self.fc = nn.Flatten(), nn.Linear(64, 2)
        with torch.no_grad():
            self.fc.weight.zero_()
            self.fc.bias.zero_()
            self.fc.weight.view(2, 8, 8)[1, :2, :2] = 2.0
            self.fc.bias[1] = -3.0

    def forward(self, x):
        return self.fc(self.flat(x))


def test_proof_by_hand():
    net = _Corner().eval()
    x, others = torch.zeros(12, 1, 8, 8), torch.zeros(20, 1, 8, 8)
    x[:, :, :2, :2] = 1
    head = FeatureHead(net, example=torch.rand(4, 1, 8, 8))
    judge = Judge(ClassSubject(head, 1), x, others)
    odds, hit = judge.odds(0, x)
    np.testing.assert_allclose(odds, 2.0 * 4 - 3, rtol=1e-5)  # log odds of two classes are their difference
    assert hit.all()
    assert judge.way == pytest.approx([8.0])
    heat = torch.zeros(12, 8, 8)
    heat[:, :2, :2] = 1
    proof = replace(judge.regions(x, heat, None).proof(), corrected=0.001)
    assert proof.insert.value == pytest.approx(1, abs=0.35)
    assert proof.accuracy[:2] == (1.0, 0.0)  # all evidence is in the corner: without it nothing is recognised
    assert proof.retained.value == 0
    assert proof.decides
    assert not proof.survives
    assert "may be the object" in proof.reason
    nothing = judge.regions(x, torch.flip(heat, (1, 2)), None).proof()
    assert not nothing.decides
    assert "no proof" in nothing.reason
    always = _Corner().eval()
    with torch.no_grad():
        always.fc.bias[1] = 5.0
    witnessed = Judge(ClassSubject(head, 1, [Witness(always, 1)]), x, others)
    kept = witnessed.regions(x, heat, None).proof().retained.value
    assert kept == pytest.approx(0.9933 / 1, abs=1e-3)  # of the witness's probability, σ(5) of σ(13)
    assert (
        witnessed.regions(x, heat, None).proof().insert.low < 0.1
    )  # and is moved as much, so that it is the object
    with pytest.raises(InputError, match="prove nothing"):
        Judge(ClassSubject(head, 1), x, others[:0])


def test_exchanged_bands_are_what_a_network_of_high_frequencies_follows():
    rng = torch.Generator().manual_seed(0)
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1

    class Fine(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 2)
            with torch.no_grad():
                self.fc.weight.copy_(torch.tensor([[0.0], [80.0]]))
                self.fc.bias.copy_(torch.tensor([0.0, -8.0]))

        def forward(self, x):
            return self.fc((x * checks).mean((1, 2, 3))[:, None])

    smooth = torch.rand(60, 1, 1, 1, generator=rng).expand(-1, 1, 16, 16) * 0.3 + 0.35
    x = smooth[:20] + 0.2 * checks
    net = Fine().eval()
    head = FeatureHead(net, example=torch.rand(4, 1, 16, 16))
    judge = Judge(ClassSubject(head, 1), x, smooth[20:40])
    kept = np.zeros(8, bool)
    kept[-1] = True
    proof = judge.bands(x, kept, smooth[40:]).proof()
    assert proof.accuracy == (1.0, 0.0, 1.0)
    assert proof.flips == (1.0, 0.0)
    assert proof.insert.value == pytest.approx(1, abs=0.05)
    none = judge.bands(x, ~kept, smooth[40:]).proof()
    assert not none.decides


def test_words_of_proofs():
    made = lambda **k: Proof(
        **{"n": 9, "remove": Interval(1, 0.5, 2), "insert": Interval(0.5, 0.3, 0.7), "accuracy": (1, 0.9, 1),
           "flips": (0.5, 0.0), "retained": Interval(0.9, 0.7, 1), "p": 0.001, "corrected": 0.01} | k
    )  # fmt: skip
    assert made().survives
    assert not made(retained=Interval(0.6, 0.4, 0.8)).survives
    little = made(insert=Interval(0.2, 0.05, 0.3))
    assert little.moves
    assert "(corrected p 0.01); below 15% at the lower end it decides little" in little.reason
    assert made(insert=Interval(0.2, -0.05, 0.3)).reason.startswith("no proof: put into")
    lungs = made(alone=True)  # all X-rays of a class have lungs: once called an artefact
    assert lungs.decides
    assert not lungs.survives
    assert "only a witness" in lungs.reason
    assert "falls by" in made(remove=Interval(0.2, -0.1, 0.3)).reason
    assert "after correction" in made(corrected=0.2).reason


@pytest.fixture(scope="module")
def command(planted, tmp_path_factory):
    """Files of three classes, the net, and the options of the command."""
    net, x, y, marked = planted
    folder = tmp_path_factory.mktemp("discover")
    (folder / "net.py").write_text(NET)
    save_file(net.state_dict(), str(folder / "net.safetensors"))
    lines = ["path,label,site"]
    for i in torch.nonzero((y == MARKED) | (y == 0) | (y == 7))[:, 0].tolist():
        name = f"{i:04d}.png"
        Image.fromarray((x[i].permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / name)
        lines.append(f"{name},{int(y[i])},{'A' if marked[i] else 'B'}")
    (folder / "images.csv").write_text("\n".join(lines))
    return {
        "model": f"{folder / 'net.py'}:network", "checkpoint": folder / "net.safetensors", "images": folder / "images.csv",
        "size": 16, "batch_size": 64, "device": "cpu",
    }  # fmt: skip


def test_the_command_finds_the_mark_names_the_column_and_writes_the_page(command, tmp_path):
    words = [w for k, v in command.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    done = CliRunner().invoke(app, ["discover", *words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    result = load(tmp_path / "out")
    assert result.kind == "discovery"
    assert result.verdict.level == "clever-hans"
    assert result.verdict.about.entry == str(MARKED)
    entry, first = result.discovered.found()[0]
    assert entry.index == MARKED
    assert (first.columns[0].column, first.columns[0].value) == ("site", "A")
    assert first.columns[0].inside > 0.9 > 0.1 > first.columns[0].outside
    assert result.metrics["findings"].where == str(MARKED)
    assert "--classes 3" in result.next_command
    page = (tmp_path / "out" / "report.html").read_text()
    for said in ("survived proof", "pfungst audit classifier", "site = A", "Everything that was tried"):
        assert said in page
    assert not (tmp_path / "out" / ".parts").exists()


def test_an_interrupted_discovery_goes_on_with_the_same_numbers(command, tmp_path, monkeypatch):
    import pfungst.audit.findings.search as module

    whole = run(DiscoveryConfig.build(**command, out=tmp_path / "whole", classes="0,3"))
    real, calls = module.find, []

    def broken(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(module, "find", broken)
    options = {**command, "out": tmp_path / "cut", "classes": "0,3"}
    with pytest.raises(KeyboardInterrupt):
        run(DiscoveryConfig.build(**options))
    resumed = run(DiscoveryConfig.build(**options, resume=True))
    assert len(calls) == 3
    assert any("1 finished topics were taken over" in n for n in resumed.notes)
    assert resumed.discovered == whole.discovered
    with pytest.raises(ConfigError, match="already holds a result"):
        run(DiscoveryConfig.build(**options))


def test_too_few_images_and_other_witnesses_are_said(command, tmp_path):
    lines = command["images"].read_text().splitlines()
    small = command["images"].with_name("small.csv")
    small.write_text("\n".join([lines[0], *lines[1:6]]))
    result = run(DiscoveryConfig.build(**{**command, "images": small}, out=tmp_path / "few"))
    assert result.verdict.level == "too-few"
    other = command["images"].with_name("other.py")
    other.write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(768, 4))\n"
    )
    with pytest.raises(InputError, match="has 4 outputs, the model 10"):
        run(DiscoveryConfig.build(**command, witness=f"{other}:net", out=tmp_path / "other"))


def test_columns_of_another_file_are_compared_with_clusters_too(command, tmp_path):
    """Such as the column human of `pfungst people`."""
    ids = [line.split(",")[0] for line in command["images"].read_text().splitlines()[1:]]
    rows = [f"{name},{'human' if i % 3 else 'no human'}" for i, name in enumerate(ids)]
    (tmp_path / "people.csv").write_text("\n".join(["path,human", *rows]))
    options = {**command, "groups_file": tmp_path / "people.csv", "out": tmp_path / "out", "classes": "3"}
    config = DiscoveryConfig.build(**options, per_class=12, changed=6)
    assert [i.groups["human"] for i in _opened(config)[0].items[:3]] == ["no human", "human", "human"]
    assert "human" in {t.column for t in run(config).discovered.entries[0].told}
    del options["model"]
    config = DiscoveryConfig.build(**options, encoder="efficientnet-lite0")
    assert _of_encoder(config).groups_file == tmp_path / "people.csv"
    with pytest.raises(ConfigError, match="groups-file"):
        run(DiscoveryConfig.build(**command, out=tmp_path / "none", groups_file=tmp_path / "none.csv"))


def test_what_carries_too_little_is_tried_on_ten_images_and_what_may_survive_on_all(planted, monkeypatch):
    net, x, y, _ = planted
    found = searched(net, x, y, [MARKED])
    assert {f.proof.n for f in found if f.proof.insert.low >= DECIDES} == {20}
    few = [f for f in found if f.proof.n == 10]
    assert few
    assert all(f.proof.insert.high < DECIDES and not f.proof.decides for f in few)
    monkeypatch.setattr(sys.modules["pfungst.discover.find"], "_FIRST", 99)
    whole = searched(net, x, y, [MARKED])
    alike = lambda fs: [
        (f.view, f.kind, f.proof.insert, f.proof.remove, f.proof.p) for f in fs if f.proof.decides
    ]
    assert alike(whole) == alike(found)


def test_one_cluster_and_few_images(planted):
    net, x, *_ = planted
    head = FeatureHead(net, example=x[:4])
    explained = explain(head, 1, lambda r: x[list(r)], 5)
    with pytest.raises(InputError, match="5 images of subject 1"):
        find(ClassSubject(head, 1), explained, lambda r: x[list(r)], x)
    assert cluster(np.zeros((9, 3))).n_clusters == 1
