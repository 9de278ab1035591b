"""Discovery in encoders and anomaly detectors, and as a section of the audits."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import classifier_factory
from pfungst.anomaly import detector_from_spec
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.run import run as audit_anomaly
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.run import run as audit_classifier
from pfungst.audit.discovery.config import DiscoveryConfig
from pfungst.audit.discovery.run import run
from pfungst.audit.result import load
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.run import run as audit_similarity
from pfungst.data import join_columns, open_images
from pfungst.discover import Judge, ScoreSubject, explain, explain_scores
from pfungst.discover.mend import score_edits
from pfungst.errors import ConfigError
from pfungst.label import read_task
from pfungst.relevance import DCTBands, Patches, attribute
from pfungst.report.write import write as write_report
from pfungst.spurious import FeatureHead


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Textures whose session is told by brightness alone: training images dark, half of the tests bright."""
    folder, rng = tmp_path_factory.mktemp("tiles"), np.random.default_rng(0)
    rows = ["path,split,label"]
    for split, label, bright, count in (("train", "good", 0, 40), ("test", "good", 0, 20), ("test", "good", 1, 20), ("test", "hole", 0, 12)):  # fmt: skip
        for _ in range(count):
            image = rng.normal(90 + 70 * bright, 12, (32, 32))
            if label == "hole":
                image[10:16, 10:16] = 250
            name = f"{rng.integers(1 << 40):x}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append(f"{name},{split},{label}")
    (folder / "parts.csv").write_text("\n".join(rows))
    return folder / "parts.csv"


ENCODER = """
from torch import nn


def encoder():
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten())
"""


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Digits 0, 3 and 7; a white corner in half of the threes, which the name of no file tells."""
    folder, data = tmp_path_factory.mktemp("marked"), load_digits()
    (folder / "net.py").write_text(ENCODER)
    lines, marks = ["path,label"], {}
    for i in np.flatnonzero(np.isin(data.target, (0, 3, 7))).tolist():
        image = np.kron(data.images[i] / 16 * 255, np.ones((2, 2))).astype(np.uint8)
        marks[f"{i:04d}.png"] = data.target[i] == 3 and i % 2 == 0
        if marks[f"{i:04d}.png"]:
            image[:6, :6] = 255
        Image.fromarray(image).convert("RGB").save(folder / f"{i:04d}.png")
        lines.append(f"{i:04d}.png,{data.target[i]}")
    (folder / "images.csv").write_text("\n".join(lines))
    return folder, marks


def test_the_brightness_of_a_session_is_found_in_a_detectors_scores(tiles, tmp_path):
    made = {"detector": "d2neighbors", "images": tiles, "size": 32, "group": "files", "out": tmp_path / "out"}
    result = run(DiscoveryConfig.build(**made))
    entry, first = result.discovered.found()[0]
    assert entry.what == "normal"
    assert first.kind == "tone" or (
        first.kind == "bands" and first.bands[0] == 0
    )  # the lowest holds the mean
    assert first.share == pytest.approx(0.5, abs=0.3)
    assert any(c.column == "file: brightness" and c.p < 0.05 for c in first.columns)
    assert any(e.turned[1] < e.turned[0] for e in first.edits)
    assert first.flips[0] > first.flips[1]
    assert result.next_command.startswith(f"pfungst audit anomaly {tiles} --model d2neighbors ")
    assert result.verdict.level == "clever-hans"
    assert "no defect" in result.verdict.sentences[0]
    assert load(tmp_path / "out").discovered == result.discovered
    page = write_report(tmp_path / "out").read_text()
    for said in (
        "What mends it, and the price",
        "the way to the threshold",
        "audit anomaly",
        "Map coloured by",
    ):
        assert said in page
    task = read_task(tmp_path / "out")
    place = result.discovered.entries.index(entry)
    item = next(i for i in task.items if (i.class_index, i.component) == (place, first.number))
    assert (item.class_name, item.share) == ("a defect", first.share)
    answers = {"format": "pfungst.findings/1", "model": task.model, "findings": [
        {"class_index": i.class_index, "component": i.component, "answer": "object", "names": []} for i in task.items
    ]}  # fmt: skip
    (tmp_path / "findings.json").write_text(json.dumps(answers))
    made |= {"resume": True, "answers": tmp_path / "findings.json"}
    again = run(DiscoveryConfig.build(**made))
    assert not again.discovered.found()
    assert again.verdict.level == "sound"
    answers["findings"] = [
        {"class_index": place, "component": first.number, "answer": "artefact", "names": ["lamp"]}
    ]
    (tmp_path / "findings.json").write_text(json.dumps(answers))
    assert "people call it an artefact (lamp)" in run(DiscoveryConfig.build(**made)).verdict.sentences[0]


def test_a_mark_is_found_in_what_a_probe_reads_of_an_encoder(marked, tmp_path):
    folder, marks = marked
    options = {"encoder": f"{folder}/net.py:encoder", "images": folder / "images.csv", "size": 16}
    result = run(DiscoveryConfig.build(**options, group="none", batch_size=64, out=tmp_path / "out"))
    entry, first = result.discovered.found()[0]
    assert entry.name == "3"
    shown = [marks[s.id.rsplit("/", 1)[-1]] for s in first.images]
    assert first.n_clusters == 1 or np.mean(shown) > 0.8
    assert "similarity" in {g.view for g in entry.groupings}
    assert {e.name for e, _ in result.discovered.found()} == {"3"}
    (images,) = open_images(folder / "images.csv")
    items, _ = join_columns(images.items, tmp_path / "out/groups.csv")
    name = f"3 {first.view} {first.cluster + 1} {first.kind}"
    said = {i.id: i.groups.get(name, "") for i in items}
    assert sum(v == "with" for v in said.values()) == first.n
    assert {said[i.id] for i in items if i.label != "3"} == {""}
    having = [marks[i.rsplit("/", 1)[-1]] for i, v in said.items() if v == "with"]
    assert np.mean(having) > 0.8
    assert f"--groups-file {tmp_path}/out/groups.csv" in result.next_command


def test_explanations_of_a_detector_are_its_own():
    x = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    detector = detector_from_spec("d2neighbors", device="cpu").fit(x[:8])
    found = explain_scores(detector, lambda r: x[8:][list(r)], 4, detector.threshold_, batch_size=3)
    whole = detector.explain(x[8:], Patches(2)).values.numpy()
    np.testing.assert_allclose(found.maps, whole, rtol=1e-3, atol=1e-4)
    bands = detector.explain(x[8:], DCTBands(count=8)).values.numpy()
    np.testing.assert_allclose(found.spectra, bands, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.evidence, detector.anomaly_score(x[8:]), rtol=1e-4)
    assert [v.name for v in found.views()] == ["heatmaps", "spectra"]


def test_evidence_of_a_detector_is_0_at_the_median_and_1_at_the_threshold():
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    detector = detector_from_spec("d2neighbors", device="cpu").fit(x)
    judge = Judge(ScoreSubject(detector, 0, "normal", detector.threshold_), x, x)
    assert judge.way == [1.0]
    zero, one = np.median(detector.training_scores_), detector.threshold_
    scores = detector.anomaly_score(x).double().numpy()
    odds, said = judge.odds(0, x)
    np.testing.assert_allclose(odds, (scores - zero) / (one - zero), rtol=1e-5)
    assert (said == (scores > one)).all()


def test_where_training_images_score_nothing_the_other_edits_are_tried():
    """Each lay beside itself in noise: without relevance no low-pass can be proposed, and all was lost."""
    x = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = (x * 0.3 + 0.35).round(decimals=2)
    labels = np.arange(16) >= 12
    x[36:, :, 20:34, 20:34] = 1
    fit = lambda layer, z: detector_from_spec("d2neighbors", features=layer, device="cpu").fit(z)
    edits = score_edits(fit, x[:24], x[24:], labels.astype(int), np.arange(8), "tone")
    assert sorted(e.name.split()[0] for e in edits) == ["every", "refit"]


def test_the_similarity_view_is_bilrp_with_the_class_summed_over_its_side():
    """A linear encoder: BiLRP of x and y is x_i y_j ⟨w_i, w_j⟩, and its sum over all y and j is ours."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 5, bias=False)).eval()
    x, mates = torch.rand(3, 1, 4, 4), torch.rand(6, 1, 4, 4)
    net = nn.Sequential(encoder, nn.Linear(5, 2)).eval()
    centre = encoder(mates).mean(0).detach()
    found = explain(FeatureHead(net, "1", x), 1, lambda r: x[list(r)], 3, "gradient", alike=(encoder, centre))
    weight = encoder[1].weight.detach()
    pairs = torch.einsum("ni,mj,ki,kj->nmij", x.flatten(1), mates.flatten(1), weight, weight)
    np.testing.assert_allclose(found.alike.reshape(3, 16), pairs.sum(3).mean(1), rtol=1e-3, atol=1e-4)
    ours = attribute(encoder, x, centre, "gradient", Patches(1)).values
    np.testing.assert_allclose(found.alike, ours, rtol=1e-4, atol=1e-5)


def test_options_that_do_nothing_are_refused(tiles, tmp_path):
    made = lambda **o: DiscoveryConfig.build(images=tiles, out=tmp_path / "x", **o)
    with pytest.raises(ConfigError, match="give one of --model, --encoder and --detector, not none"):
        made()
    with pytest.raises(ConfigError, match="not --model and --detector"):
        made(model="timm:resnet18", detector="kde")
    with pytest.raises(ConfigError, match="--witness does nothing for --detector"):
        made(detector="kde", witness=["timm:resnet18"])


def told(audit, build, made, folder):
    """What an audit found; people's answers to its findings come back through --answers."""
    made = {**made, "discover": True, "out": folder}
    found = audit(build(**made)).discovery
    assert found.tried == sum(len(e.findings) + len(e.told) for e in found.entries) > 0
    assert {f"arrays/{p.name}" for p in (folder / "arrays").glob("discovered*")} == found.arrays()
    assert all((folder / file).is_file() for file in found.files())
    page = write_report(folder).read_text()
    assert "What nobody named" in page
    assert found.headline in page
    decided = [f for e in found.entries for f in e.findings if f.standing != "unproved"]
    assert (folder / "findings").exists() == bool(decided)
    if decided:
        task = read_task(folder / "findings")
        assert len(task.items) == len(decided)
        answers = {"format": "pfungst.findings/1", "model": task.model, "findings": [
            {"class_index": i.class_index, "component": i.component, "answer": "object", "names": ["it"]} for i in task.items
        ]}  # fmt: skip
        (folder / "findings.json").write_text(json.dumps(answers))
        again = audit(build(**made, resume=True, answers=folder / "findings.json")).discovery
        assert not again.found()
        assert load(folder).discovery == again
        assert "people call it the object (it)" in str([f.reason for e in again.entries for f in e.findings])
    with pytest.raises(ConfigError, match="--answers are to findings of --discover"):
        build(**{**made, "discover": False}, answers=folder / "findings.json")
    return found


def test_the_anomaly_audit_tells_what_nobody_named(tiles, tmp_path):
    made = {"data": tiles, "size": 32, "seeds": 1, "mitigate": "none", "examples": 2}
    found = told(audit_anomaly, AnomalyConfig.build, made, tmp_path / "out")
    assert found.found()[0][1].kind in ("tone", "bands")


def test_the_similarity_audit_tells_what_nobody_named(marked, tmp_path):
    folder, _ = marked
    made = {"images": folder / "images.csv", "encoder": f"{folder}/net.py:encoder", "size": 16, "seeds": 1, "explain": 4, "device": "cpu"}  # fmt: skip
    found = told(audit_similarity, SimilarityConfig.build, made, tmp_path / "out")
    assert {e.name for e in found.entries} == {"0", "3", "7"}


def test_the_classifier_audit_tells_what_nobody_named(tmp_path):
    data = classifier_factory.make(tmp_path / "squares")
    made = {"model": f"{data}/toy.py:biased", "train": data / "train", "val": data / "val", "size": classifier_factory.SIZE, "n_components": 4, "device": "cpu"}  # fmt: skip
    told(audit_classifier, ClassifierConfig.build, made, tmp_path / "out")
