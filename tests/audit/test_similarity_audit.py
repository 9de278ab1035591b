"""The similarity audit on miniature data: numbers, resumption, units kept together, bad input."""

import csv
import json
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pfungst.audit.similarity.mend as mending
import pfungst.audit.similarity.prepare as prepare
import pfungst.audit.similarity.run as audit
from pfungst.audit.check import Gates, check
from pfungst.audit.result import Level, Variant, load
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.embeddings import Source, open_set
from pfungst.audit.similarity.explain import _marks
from pfungst.audit.similarity.measure import score
from pfungst.audit.similarity.mend import Wish
from pfungst.audit.similarity.prepare import AS_IS, make_plan, usable
from pfungst.audit.similarity.run import run
from pfungst.conditions import Condition
from pfungst.data import Item
from pfungst.encoders import Encoder, Preprocessing
from pfungst.encoders import load as load_encoder
from pfungst.errors import CheckpointError, ConfigError, DataError, InputError
from pfungst.measure import balanced_accuracy
from pfungst.probes import predict
from pfungst.similarity import similar_pairs
from pfungst.similarity.regions import border, burnt_in, in_patches
from similarity_factory import config, logo, mini_images


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return mini_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stamp(tmp_path_factory):
    return f"logo:{logo(tmp_path_factory.mktemp('logo') / 'tag.png')},width=0.6,margin=1"


@pytest.fixture(scope="module")
def audited(data, stamp, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return run(config(data, out, condition=[stamp], mitigate="prune:stage1.relu1:1")), out


def numbers(result):
    return result.model_dump(exclude={"created", "seconds", "config", "notes", "arrays"})


def test_the_result_is_complete_and_consistent(audited):
    result, out = audited
    assert numbers(load(out)) == numbers(result)
    assert [v.key for v in result.variants] == ["original", "logo:tag", "original-mended", "logo:tag-mended"]
    assert result.kept_together == "patient"
    pooled = result.pooled(AS_IS)
    assert pooled.n == 36
    assert pooled.accuracy.value == pytest.approx(np.mean(pooled.per_seed))
    assert pooled.accuracy.low <= pooled.accuracy.value <= pooled.accuracy.high
    arrays = np.load(out / result.arrays)
    assert arrays["embedding"].shape == (36, 2)
    assert arrays["stamped_0"].shape == (72, 2)  # every image twice, as it is and with the logo
    assert arrays["stamped_labels"].tolist() == arrays["labels"].tolist()
    first = balanced_accuracy(arrays["labels"], arrays["predicted"])
    assert first == pytest.approx(pooled.per_seed[0])
    for pair in result.pairs:
        matrix = arrays[pair.array]
        assert matrix.shape == tuple(np.prod(g) for g in pair.grids)
        assert pair.title in (*result.classes, "with logo:tag")
    with_tag = result.pairs[0]
    assert with_tag.title == "with logo:tag"
    assert with_tag.tags[0] != with_tag.tags[1]  # of different classes
    red = np.array([255, 0, 0])
    for row in with_tag.rows:  # the logo is on both pictures: a red frame around yellow
        assert np.abs(arrays["pictures"][row][14, 2].astype(int) - red).max() < 60
    assert result.conservation < 1e-4
    profiles = arrays["profiles"].reshape(len(arrays["profiles"]), -1)
    np.testing.assert_allclose(profiles.sum(1), 1, atol=1e-4)
    assert 0 <= result.artefacts[0].share <= 1
    assert result.artefacts[0].area == pytest.approx(0.25)  # 10 × 5 px on patches of 4 px, 4 of 16
    mitigation = result.mitigation
    assert [(t.layer, t.k) for t in mitigation.trials] == [("", 0), ("stage1.relu1", 1), ("stage1.relu1", 2)]
    assert (mitigation.spec, mitigation.chosen) == ("prune:stage1.relu1:1", 1)  # as asked for, not the best
    assert load_encoder(f"pfungst:{out / 'mended'}").edits[0]["filters"] == result.mitigation.filters
    assert not (out / ".parts").exists()
    assert not (out / ".factors").exists()


def test_gates_read_the_metrics(audited):
    result, _ = audited
    drop = result.pooled(AS_IS).accuracy.value - result.pooled(Variant(condition="logo:tag")).accuracy.value
    gates = Gates.read(maximum=[f"condition-drop={drop + 0.01}"], minimum=["accuracy=1.1"])
    outcome = check(result, gates)
    assert [o.passed for o in outcome] == [True, False]


def test_the_verdict_is_one_of_the_words(audited):
    verdict = audited[0].verdict
    assert verdict.level in get_args(Level)
    assert "random weights" in verdict.headline


def test_patients_are_never_on_both_sides(data, tmp_path):
    settings = config(data, tmp_path)
    items, _ = usable(open_set(settings).items, settings)
    _, plan = make_plan(items, settings)
    patients = np.array([i.groups["patient"] for i in items])
    assert len(plan.rounds) == 3
    for folds in plan.rounds:
        tested = np.concatenate([test for _, test in folds])
        assert sorted(tested) == list(range(len(items)))
        for train, test in folds:
            assert not set(patients[train]) & set(patients[test])
    _, _, pairs = zip(*similar_pairs(np.eye(len(items)), np.arange(len(items)), plan.units, 3), strict=True)
    assert len(pairs) == 3


def test_scores_against_a_count_by_hand(data, tmp_path):
    """Embeddings that hold the label perfectly for two classes and not at all for the third."""
    settings = config(data, tmp_path, seeds=8)
    items, _ = usable(open_set(settings).items, settings)
    _, plan = make_plan(items, settings)
    code = {"a": 0, "b": 1, "c": 1}
    x = 20 * np.eye(2)[[code[i.label] for i in items]] + np.random.default_rng(0).normal(
        0, 2, (len(items), 2)
    )
    found = predict(plan, {AS_IS: x, Variant(condition="swapped"): x[:, ::-1]}, AS_IS)
    pooled, swapped = score(SimpleNamespace(plan=plan, found=found, columns={}, positive=None))
    said = found.predicted[AS_IS][0]
    assert (said[plan.labels == "a"] == "a").all()
    by_hand = np.mean([(said[plan.labels == c] == c).mean() for c in "abc"])
    assert pooled.per_seed[0] == pytest.approx(by_hand)
    assert swapped.accuracy.value < 0.5
    assert swapped.mark == "↓↓"


def test_pruning_is_chosen_on_training_images_only(tmp_path, stamp, monkeypatch):
    """The setting with the best validation accuracies is taken, and no test image was seen for it."""
    listing = mini_images(tmp_path / "data")
    rows = list(csv.DictReader(listing.open()))
    with listing.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, [*rows[0], "split"])
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow({**row, "split": "test" if i // 2 % 3 == 0 else "train"})
    picked: list[str] = []
    real = Source.pick

    def pick(self, index, names=None, size=None):
        picked.extend(self.items[i].split for i in index)
        return real(self, index, names, size)

    def begin(*a):
        picked.clear()
        return mending.mitigate(*a)

    monkeypatch.setattr(audit, "mitigate", begin)
    monkeypatch.setattr(prepare.Study, "with_mended", lambda *a: (_ for _ in ()).throw(InterruptedError))
    monkeypatch.setattr(Source, "pick", pick)
    out = tmp_path / "out"
    with pytest.raises(InterruptedError):
        run(config(listing, out, condition=[stamp], mitigate="prune:auto"))
    assert set(picked) == {"train"}
    _, text = next((out / ".parts").rglob("sweep*.json")).read_text().split("\n")
    store = json.loads(text)
    trials = store["trials"]
    worth = [t["accuracy"] + t["conditions"]["logo:tag"] for t in trials]
    assert worth[store["chosen"]] == max(worth[1:])
    assert {t["layer"] for t in trials[1:]} == {f"stage{i}.relu{j}" for i in (1, 2, 3) for j in (1, 2)}
    places = {t["where"] for t in trials if t["layer"] == "stage1.relu1"}
    assert places == {
        "everywhere",
        "from row 9 to the bottom, left of column 12",
    }  # the logo: rows 10–15, columns 1–11 of 16


def test_what_to_prune_is_read():
    auto = Wish.parse("prune:auto")
    assert (auto.layer, auto.k, auto.pasted) == (None, None, False)
    five = Wish.parse("prune:auto:5:region")
    assert (five.layer, five.k, five.pasted) == (None, 5, True)
    layer = Wish.parse("prune:stage1.relu1:auto:rows=9-")
    assert (layer.layer, layer.k, layer.frame.rows) == ("stage1.relu1", None, (9, None))
    assert Wish.parse("prune:a.b:3").k == 3
    for text in ("prune:a", "prune:a:many", "prune:auto:5:depth=1-2", "blur:3"):
        with pytest.raises(ConfigError, match="what to prune"):
            Wish.parse(text)


def test_an_interrupted_audit_resumes_to_the_same_result(audited, data, stamp, tmp_path, monkeypatch):
    options = {"condition": [stamp], "mitigate": "prune:stage1.relu1:1"}
    real = audit.explain
    monkeypatch.setattr(audit, "explain", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(config(data, tmp_path, **options))
    monkeypatch.setattr(audit, "explain", real)
    monkeypatch.setattr(mending, "sweep", None)  # the sweep is taken over, not computed again
    result = run(config(data, tmp_path, resume=True, **options))
    assert numbers(result) == numbers(audited[0])


def test_burnt_in_marks_are_found_and_anatomy_is_not():
    images = torch.full((2, 3, 100, 100), 0.3)
    images[0, :, 5:11, 8:11] = 1
    images[1, :, 30:80, 30:80] = 1  # large and bright
    marks = burnt_in(images)
    assert marks[0, 5:11, 8:11].all()
    assert marks[0].sum() == 18
    assert not marks[1].any()
    assert in_patches(border(100), 10).sum() == 36
    assert in_patches(marks[0], 10, least=0).sum() == 4


def test_marks_are_looked_for_before_they_blur(tmp_path):
    """A mark of 8 px on 512 px is gone at 32 px, and is found at its place all the same."""
    items = []
    for i in range(2):
        picture = np.full((512, 512, 3), 60, np.uint8)
        if i == 0:
            picture[20:28, 470:478] = 255
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        items.append(Item(f"{i}", tmp_path / f"{i}.png", "a"))
    source = Source(items, {"original": Condition.parse("pillow-bilinear")}, 32, [])
    assert not burnt_in(source.pick([0])["original"]).any()
    marks = _marks(SimpleNamespace(source=source), [0, 1], 4)
    assert marks.nonzero().tolist() == [[0, 0, 7]]  # row 0–3 and column 28–31 of 32


def test_patches_are_at_most_sixteen_to_a_side(data, tmp_path):
    settings = config(data, tmp_path, patches=None)
    assert [settings.patch(s) for s in (32, 96, 224, 100)] == [2, 6, 14, 10]


# --- bad input -------------------------------------------------------------------------------------------


def only(data, target, keep):
    rows = list(csv.DictReader(data.open()))
    with (data.parent / target).open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows([row for row in rows if keep(row)])
    return data.parent / target


def test_one_image_only(data, tmp_path):
    with pytest.raises(DataError, match="two classes"):
        run(config(only(data, "one.csv", lambda r: r["path"] == "a00.png"), tmp_path))


def test_a_class_with_one_image_is_left_out_and_said(data, tmp_path):
    listing = only(data, "single.csv", lambda r: r["label"] != "c" or r["path"] == "c00.png")
    result = run(config(listing, tmp_path, seeds=1, keep_together="none"))
    assert result.classes == ["a", "b"]
    assert any("class 'c' has one image only" in note for note in result.notes)


def test_group_columns_missing_or_constant(data, tmp_path):
    with pytest.raises(ConfigError, match="no column 'device'"):
        run(config(data, tmp_path, groups="device"))
    result = run(config(data, tmp_path, groups="constant,scanner", seeds=1))
    assert result.columns == ["scanner"]
    assert any("'constant' has one value only in the tested images" in note for note in result.notes)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"labels": "nothing"}, DataError, "nothing"),
        ({"keep_together": "nobody"}, ConfigError, "nobody"),
        ({"mitigate": "prune:stage1.relu1:1"}, ConfigError, "needs a condition"),
        ({"condition": "jpeg:30", "mitigate": "prune:stage9:1"}, InputError, "no layer"),
        ({"condition": "jpeg:30", "mitigate": "prune:stage1.relu1:1:region"}, ConfigError, "pastes no logo"),
        ({"condition": "jpg:30"}, ConfigError, "jpg"),
        ({"encoder": "nowhere:net"}, ConfigError, "nowhere"),
        ({"positive": "z"}, ConfigError, "no image has the label 'z'"),
        ({"images": None}, ConfigError, "either images or texts"),
        ({"probe": "forest"}, ConfigError, "probe"),
    ],
)
def test_wrong_options_are_named(data, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        run(config(data, tmp_path, **options))
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"condition": ["logo:tag.png,width=0.9,margin=30"], "size": None}, "larger than the picture"),
        ({"patches": 17}, "larger than the images"),
    ],
)
def test_what_does_not_fit_the_encoders_images(data, tmp_path, monkeypatch, options, words):
    logo(tmp_path / "tag.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Source, "open", lambda *a: pytest.fail("images were read"))
    with pytest.raises(ConfigError, match=words):
        run(config(data, tmp_path / "out", **options))


class Odd(nn.Module):
    """Gives NaN, or a width that depends on the image."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x):
        flat = x.flatten(1)
        if self.how == "nan":
            return torch.where(x[:, :1, 0, 0] > -2, torch.nan, flat)
        return flat[:, : 3 + len(x) % 4]


@pytest.mark.parametrize(("how", "words"), [("nan", "not finite.*a00"), ("dynamic", "changing width")])
def test_bad_representations_are_named(data, tmp_path, monkeypatch, how, words):
    odd = Encoder(Odd(how), Preprocessing(size=16, condition="pillow-bilinear"), name="odd")
    monkeypatch.setattr(SimilarityConfig, "open_encoder", lambda self: odd)
    monkeypatch.setattr("pfungst.audit.similarity.embeddings._BATCH", 7)
    with pytest.raises(InputError, match=words):
        run(config(data, tmp_path))


def test_an_unsafe_checkpoint_is_refused(data, tmp_path):
    class Code:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"weights": Code()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError):
        run(config(data, tmp_path / "out", checkpoint=tmp_path / "bad.pt"))


def test_texts_need_their_columns(tmp_path):
    from pfungst.audit.similarity.texts import read_pairs

    file = tmp_path / "pairs.csv"
    file.write_text("first,second\na,b\n")
    with pytest.raises(DataError, match="'relation'"):
        read_pairs(file)
    file.write_text("first,second,relation\na,,same\nb,c,same\n")
    with pytest.raises(DataError, match="lines \\[2\\]"):
        read_pairs(file)


def test_the_result_is_plain_json(audited):
    data = json.loads((audited[1] / "result.json").read_text())
    assert data["kind"] == "similarity"
    assert {"view", "sex"}.isdisjoint(data["columns"])
