"""The classifier audit on a model whose spurious feature is known: ranking, scores, repair, files, input."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from classifier_factory import MARKED, SIZE, make
from pfungst.audit.check import Gates, check
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.result import Component
from pfungst.audit.classifier.result import Tested as Outcome
from pfungst.audit.classifier.run import run
from pfungst.audit.result import Interval, load
from pfungst.data import open_images
from pfungst.encoders import load as load_model
from pfungst.encoders.specification import short_name
from pfungst.errors import CheckpointError, ConfigError, DataError, InputError, PfungstError, UnreadableImages
from pfungst.label import Study, export, read_task
from pfungst.measure.limits import P_SPURIOUS, RETAINED
from pfungst.measure.proportions import wilson
from pfungst.spurious import FeatureHead, read_components, write_components


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("squares"))


def config(data, out, model="biased", **options):
    base = {
        "model": f"{data}/toy.py:{model}", "train": data / "train", "val": data / "val",
        "spurious": data / "spurious", "out": out, "size": SIZE, "steps": 10, "n_components": 4,
        "candidates": 4, "shown": 3, "device": "cpu",
    }  # fmt: skip
    return ClassifierConfig.build(**base | options)


@pytest.fixture(scope="module")
def biased(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("biased")
    return folder, run(config(data, folder, masks=data / "masks"))


def test_the_planted_component_is_found_proven_and_switched_off(biased):
    _, result = biased
    assert result.verdict.level == "clever-hans"
    assert "green" in result.verdict.headline
    entry = next(e for e in result.entries if e.index == MARKED)
    first = entry.components[0]
    assert first.spurious  # no other model was asked: its class has images with the mark and without
    assert first.component in entry.fixed
    assert first.tested.on == "training"  # no validation image has the mark
    assert first.tested.sufficiency[0].low > 0
    assert first.tested.corrected <= P_SPURIOUS
    assert first.tested.retained.low >= RETAINED
    assert first.off_object > 0.6  # the mark lies off the square
    assert entry.under().spurious.triggered.value == 1.0
    assert entry.under(mitigated=True).spurious.triggered.value < 0.5
    assert result.mauc_gain.value > 0
    assert result.accuracy.value == 1.0
    assert abs(result.accuracy_loss.value) <= 0.1
    assert not [c for e in result.entries for c in e.components if c.suspect and c is not first]
    assert result.faithfulness.beats_random


def test_the_answer_to_an_empty_image_is_never_spurious(biased):
    """Blue is the answer in doubt, so that it is recognised without its square shows no other reason."""
    _, result = biased
    first = next(e for e in result.entries if e.name == "blue").components[0]
    assert first.tested.sufficiency[0].low > 0.3
    assert first.tested.retained.low == 1.0
    assert first.tested.word == "unclear"
    assert "empty image" in first.tested.reason


def test_the_reference_is_said_and_the_papers_leaves_more(data, tmp_path, biased):
    _, absent = biased
    mean = run(config(data, tmp_path, reference="mean", steps=0))
    assert (absent.reference, mean.reference) == ("absent", "mean")
    after = {
        r.reference: next(e for e in r.entries if e.index == MARKED).under(mitigated=True).spurious
        for r in (absent, mean)
    }
    assert after["absent"].auc.value >= after["mean"].auc.value
    assert after["absent"].triggered.value <= after["mean"].triggered.value
    assert sum("lack the feature" in note for note in absent.notes) == 1
    assert sum("as published" in note for note in mean.notes) == 1


def test_a_clean_model_raises_no_such_finding(data, tmp_path):
    result = run(config(data, tmp_path, "clean", masks=data / "masks"))
    assert result.verdict.level == "sound"
    assert result.metrics["triggered"].value < 0.25


def test_scores_agree_with_the_model_itself(data, biased):
    _, result = biased
    classifier = load_model(f"{data}/toy.py:biased", "classifier", size=SIZE)
    probabilities = {}
    for part, label in (("val", "green"), ("spurious", f"spurious_class_{MARKED}_component_0")):
        items = [i for i in open_images(data / part)[0].items if i.label == label]
        x = torch.stack([torch.from_numpy(np.array(i.read())).permute(2, 0, 1).float() / 255 for i in items])
        with torch.no_grad():
            probabilities[part] = classifier.model(x).softmax(1)[:, MARKED].numpy()
    truth = np.r_[np.ones(len(probabilities["val"])), np.zeros(len(probabilities["spurious"]))]
    expected = roc_auc_score(truth, np.r_[probabilities["val"], probabilities["spurious"]])
    assert result.under().mauc.value == pytest.approx(expected, abs=1e-6)


def test_the_label_task_names_files_that_exist(biased):
    folder, result = biased
    task = json.loads((folder / "label-task.json").read_text())
    assert task["format"] == "pfungst.label-task/1"
    assert task["kind"] == "components"
    assert task["model"]["head_sha256"] == result.fingerprint["head_sha256"]
    assert len(task["items"]) == sum(len(e.components) for e in result.entries)
    assert len({item["id"] for item in task["items"]}) == len(task["items"])
    for item in task["items"]:
        assert len(item["images"]) == len(item["alpha"]) == len(item["confidence"]) == 5
        assert item["alpha"] == sorted(item["alpha"], reverse=True)
        assert 0 <= item["npfv_confidence"] <= 1
        for file in [item["npfv"], *(i[k] for i in item["images"] for k in ("file", "gradcam"))]:
            assert not file.startswith("/")
            with Image.open(folder / file) as picture:
                assert picture.size == (SIZE, SIZE)


def test_result_survives_the_disk_and_its_gates_work(biased):
    folder, result = biased
    again = load(folder)
    assert (
        again.model_dump() == json.loads(json.dumps(result.model_dump()), parse_constant=float)
        or again == result
    )
    outcomes = check(again, Gates.read(maximum=["triggered=0.1"], minimum=["mauc-fixed=0.9"]))
    assert [o.passed for o in outcomes] == [False, result.under(mitigated=True).mauc.value >= 0.9]
    assert "green" in outcomes[0].where


def test_labels_of_people_come_back_through_the_labelling_app(data, tmp_path, biased):
    folder, first = biased
    shutil.copytree(folder, tmp_path / "first")
    task = read_task(tmp_path / "first")
    worst = next(e for e in first.entries if e.index == MARKED).components[0].component
    study = Study(tmp_path / "first", ["Ada", "Ben"])
    for person in study.labellers:
        for item in task.items:
            spurious = (item.class_index, item.component) == (MARKED, worst)
            study.act(person, item.id, 0, "answer", "spurious" if spurious else "not")
    study.close()
    file = next(f for f in export(tmp_path / "first", tmp_path / "labels") if f.name == "components.json")
    result = run(config(data, tmp_path / "second", components=file, steps=0))
    entry = next(e for e in result.entries if e.index == MARKED)
    assert result.chosen_by == "people"
    assert entry.fixed == [worst]
    assert result.verdict.level == "clever-hans"
    with pytest.raises(InputError, match="another model"):
        run(config(data, tmp_path / "third", "clean", components=file, steps=0))


def test_components_judged_by_people_are_what_is_switched_off(data, tmp_path, biased):
    _, first = biased
    file = tmp_path / "components.json"
    worst = next(e for e in first.entries if e.index == MARKED).components[-1].component
    write_components(file, {MARKED: [worst]}, first.fingerprint)
    result = run(config(data, tmp_path / "out", components=file, shown=1))
    entry = next(e for e in result.entries if e.index == MARKED)
    assert result.chosen_by == "people"
    assert entry.fixed == entry.judged == [worst]
    assert [c.component for c in entry.components if c.component in entry.fixed] == [
        worst
    ]  # shown although not among the first
    assert all(not e.fixed for e in result.entries if e.index != MARKED)
    assert read_components(file, result.fingerprint) == {MARKED: [worst]}


def test_an_interrupted_audit_goes_on(data, tmp_path, monkeypatch):
    import pfungst.audit.classifier.run as audit

    real, calls = audit.Explainer.__call__, []

    def fail_at_second(self, class_):
        calls.append(class_)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, class_)

    monkeypatch.setattr(audit.Explainer, "__call__", fail_at_second)
    with pytest.raises(KeyboardInterrupt):
        run(config(data, tmp_path / "a"))
    result = run(config(data, tmp_path / "a", resume=True))
    assert calls == [0, 1, 1, 2]
    monkeypatch.undo()
    whole = run(config(data, tmp_path / "b"))
    skip = {"created", "seconds", "config", "notes"}
    assert result.model_dump(exclude=skip) == whole.model_dump(exclude=skip)
    assert not (tmp_path / "a" / ".parts").exists()


def test_only_the_classes_asked_for(data, tmp_path):
    result = run(config(data, tmp_path, classes="green,2", steps=0, spurious=None))
    assert [(e.index, e.name) for e in result.entries] == [(1, "green"), (2, "red")]
    assert all(c.visual is None for e in result.entries for c in e.components)
    assert result.under().mauc is None
    assert result.n_validation == 30  # accuracy is over all classes
    assert result.verdict.level == "clever-hans"  # by interventions alone
    assert "pasted into other images" in result.verdict.headline
    assert result.verdict.about.entry == "green"


def test_two_witnesses_that_do_not_read_the_mark_prove_it(data, tmp_path):
    """Interventions alone: no images with only the mark are given."""
    witness = f"{data}/toy.py:clean"
    result = run(config(data, tmp_path, witness=[witness, witness], steps=0, spurious=None))
    assert result.witnesses == ["toy.py:clean", "toy.py:clean"]
    entry = next(e for e in result.entries if e.index == MARKED)
    first = entry.components[0]
    assert first.spurious
    assert entry.fixed == [first.component]
    assert len(first.tested.necessity) == 3
    assert not [c for e in result.entries for c in e.components if c.suspect and c is not first]
    assert result.verdict.level == "clever-hans"
    assert "pasted into other images" in result.verdict.headline
    assert result.verdict.about.numbers["p"] <= P_SPURIOUS


def test_a_habit_that_all_models_share_is_not_called_spurious(data, tmp_path):
    witness = f"{data}/toy.py:biased"
    result = run(config(data, tmp_path, witness=[witness, witness], steps=0, spurious=None))
    assert not [c for e in result.entries for c in e.components if c.suspect]
    assert result.verdict.level == "sound"


def test_the_published_rule_ranks_by_confidence(data, tmp_path):
    result = run(config(data, tmp_path, rule="npfv", steps=5))
    assert result.rule == "npfv"
    assert all(c.visual is not None for e in result.entries for c in e.components)
    assert any("Neuhaus et al. 2023, section 4" in note for note in result.notes)


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ("sharp", InputError, "not linear"),
        ("nothing", ConfigError, "returned int"),
        ("missing", ConfigError, "names no classifier"),
    ],
)
def test_models_that_cannot_be_audited(data, tmp_path, model, error, says):
    with pytest.raises(error, match=says):
        run(config(data, tmp_path, model))


def test_a_head_without_bias_is_fine(data, tmp_path):
    result = run(config(data, tmp_path, "unbiased", steps=0))
    entry = result.entries[MARKED]
    assert entry.components[0].component in entry.fixed
    assert entry.under().spurious.triggered.value == 1.0
    assert entry.under(mitigated=True).spurious.auc.value >= entry.under().spurious.auc.value


def test_labels_that_do_not_fit_show_both_sides(data, tmp_path):
    shutil.copytree(data / "val", tmp_path / "val")
    (tmp_path / "val/red").rename(tmp_path / "val/crimson")
    with pytest.raises(InputError, match=r"'crimson'.*'blue', 'green', 'red'"):
        run(config(data, tmp_path / "out", val=tmp_path / "val"))
    shutil.copytree(data / "train", tmp_path / "train")
    shutil.copytree(data / "train/red", tmp_path / "train/rose")
    with pytest.raises(InputError, match=r"3 classes, the image set 4"):
        run(config(data, tmp_path / "out", train=tmp_path / "train"))


def test_a_class_without_validation_images(data, tmp_path):
    shutil.copytree(data / "val", tmp_path / "val")
    shutil.rmtree(tmp_path / "val/green")
    with pytest.raises(DataError, match="no validation images: green"):
        run(config(data, tmp_path / "out", val=tmp_path / "val"))
    result = run(config(data, tmp_path / "out", val=tmp_path / "val", spurious=None, steps=0))
    entry = result.entries[MARKED]
    assert entry.under().accuracy is None
    assert "no validation images" in entry.notes[0]


def test_fewer_images_than_components_are_said(data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it belongs into the result, not onto the terminal
        result = run(config(data, tmp_path, n_components=64, steps=0))
    assert any("64 components" in note for note in result.notes)


def test_a_class_of_one_image(data, tmp_path):
    shutil.copytree(data / "train", tmp_path / "train")
    for file in sorted((tmp_path / "train/blue").iterdir())[1:]:
        file.unlink()
    with pytest.raises(DataError, match="fewer than 2 training images: blue"):
        run(config(data, tmp_path / "out", train=tmp_path / "train"))


def test_unreadable_images_are_all_named_or_counted(data, tmp_path):
    shutil.copytree(data / "train", tmp_path / "train")
    for name in ("blue/03.png", "red/07.png"):
        (tmp_path / "train" / name).write_bytes(b"no image")
    with pytest.raises(UnreadableImages) as caught:
        run(config(data, tmp_path / "out", train=tmp_path / "train"))
    assert all(name in str(caught.value) for name in ("blue/03.png", "red/07.png"))
    result = run(config(data, tmp_path / "out", train=tmp_path / "train", skip_bad=True, steps=0))
    assert [s.id for s in result.skipped] == ["train: blue/03.png", "train: red/07.png"]


def test_a_components_file_of_another_model(data, tmp_path, biased):
    file = tmp_path / "components.json"
    write_components(file, {MARKED: [0]}, biased[1].fingerprint)
    with pytest.raises(InputError, match="another model"):
        run(config(data, tmp_path / "out", "clean", components=file))
    write_components(file, {MARKED: [9]}, biased[1].fingerprint)
    with pytest.raises(InputError, match="beyond the 4"):
        run(config(data, tmp_path / "out", components=file))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"witness": "resnet5"}, "comes without weights"),
        ({"witness": "none;mobilenetv2"}, "leave one"),
        ({"witness": "mobilenetv2"}, "does not know the classes"),
        ({"classes": "purple"}, "purple"),
        ({"classes": "7"}, "class 7"),
        ({"condition": "nearest"}, "unknown condition"),
        ({"reference": "median"}, "'absent'"),
        ({"train": "nowhere"}, "does not exist"),
        ({"spurious": "nowhere"}, "spurious_class"),
        ({"classes": "0,2"}, "none of which is audited"),
    ],
)
def test_wrong_options_say_what_to_do(data, tmp_path, options, says):
    with pytest.raises(PfungstError, match=says) as caught:
        run(config(data, tmp_path, **options))
    assert caught.value.remedy


def test_names_for_people():
    assert short_name("timm:resnet50") == "timm:resnet50"
    assert short_name("folder.x/toy.py:biased") == "toy.py:biased"
    assert short_name("package.module:function") == "module:function"


def test_libraries_need_a_checkpoint_that_fits(tmp_path):
    from torchvision import models

    with pytest.raises(ConfigError, match="downloads nothing"):
        load_model("torchvision:shufflenet_v2_x0_5", "classifier")
    with pytest.raises(ConfigError, match="no model 'resnet5'"):
        load_model("torchvision:resnet5", "classifier", checkpoint=tmp_path / "none.pt")
    network = models.shufflenet_v2_x0_5(num_classes=7).eval()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "net.pt"
    )
    loaded = load_model(
        "torchvision:shufflenet_v2_x0_5", "classifier", checkpoint=tmp_path / "net.pt", size=64
    )
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), network((x - mean) / std))
    assert FeatureHead(loaded.model, example=x).linear.n_classes == 7
    with pytest.raises(CheckpointError):
        load_model("torchvision:squeezenet1_1", "classifier", checkpoint=tmp_path / "net.pt")


# --- parts -----------------------------------------------------------------------------------------------


def test_intervals_of_shares():
    found = wilson(np.array([True] * 8 + [False] * 2))
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)


def test_what_is_not_shown_to_carry_the_class_is_ordered_by_what_it_adds():
    """The width of an interval round 0 ordered it: people who hold a tench came sixth of seven."""

    def made(adds, low, beside=0.0, tested=True):
        carried = Interval.model_construct(value=low + 0.1, low=low, high=low + 0.2)
        found = Outcome.model_construct(beside=beside, word="unclear", sufficiency=[carried])
        return Component.model_construct(adds=adds, tested=found if tested else None)

    expected = [made(0.1, 0.2, 0.3), made(0.1, 0.07), made(1.0, -0.04, 0.004), made(0.5, -0.01),
                made(0.2, 0.0, tested=False), made(0.1, -0.03)]  # fmt: skip
    mixed = [expected[i] for i in (5, 2, 0, 4, 1, 3)]
    assert sorted(mixed, key=lambda c: c.order, reverse=True) == expected
