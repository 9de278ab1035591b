"""Groups of a similarity audit: joined from a file, tested over images, and what once failed on many classes."""

import csv
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pfungst.audit.similarity import prepare
from pfungst.audit.similarity.embeddings import open_set
from pfungst.audit.similarity.measure import _readable
from pfungst.audit.similarity.run import run
from pfungst.data import Item, join_columns
from pfungst.errors import ConfigError, DataError
from similarity_factory import config, mini_images


def many(folder, classes, per_class=2, size=16):
    """A folder of noise per class."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"c{c:02d}").mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(
                folder / f"c{c:02d}" / f"{i}.png"
            )
    return folder


def test_forty_five_classes_at_defaults_have_pairs(tmp_path):
    """`explain` drew one image of each class, so there was no pair: "need at least one array to stack"."""
    data = many(tmp_path / "data", 45)
    options = {"groups": "none", "seeds": 1, "explain": 40, "folds": 2}
    result = run(config(data, tmp_path / "out", **options))
    assert len(result.summaries) == 20
    assert all(s.pairs == 1 for s in result.summaries)
    run(config(data, tmp_path / "out", overwrite=True, **options | {"explain": 20}))


def test_factors_of_a_failed_run_do_not_block_the_next_one(tmp_path, monkeypatch):
    import pfungst.audit.similarity.run as audit

    data = mini_images(tmp_path / "data")
    real = audit.draw_map
    monkeypatch.setattr(audit, "draw_map", lambda *a: (_ for _ in ()).throw(ValueError("on purpose")))
    with pytest.raises(ValueError, match="on purpose"):
        run(config(data, tmp_path / "out", seeds=1))
    monkeypatch.setattr(audit, "draw_map", real)
    run(config(data, tmp_path / "out", seeds=1, overwrite=True, explain=6))
    assert not (tmp_path / "out" / ".parts").exists()


def test_a_class_that_no_draw_holds_gives_no_warning(tmp_path):
    """One image of a class in a group: "Mean of empty slice", from draws without it."""
    listing = mini_images(tmp_path / "data")
    rows = [r for r in csv.DictReader(listing.open()) if r["label"] != "c"]
    with listing.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = run(config(listing, tmp_path / "out", seeds=3, keep_together="none"))
    small = next(s for s in result.scores if min(s.counts.values()) == 1)
    assert np.isfinite(small.accuracy.value)
    assert next(g for g in result.subgroups if g.group == small.group).whole is None
    assert any("Not tested" in s and small.group in s for s in result.verdict.sentences)


def test_a_group_that_falls_makes_the_verdict_fragile(tmp_path, monkeypatch):
    """Half of the images carry what confuses the encoder; the classes are mixed alike in both halves."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    rows, code = [], []
    for c, label in enumerate("ab"):
        for i in range(80):
            name = f"{label}{i}.png"
            Image.fromarray(np.full((16, 16, 3), 40 + 90 * c + i, np.uint8)).save(folder / name)
            rows.append((name, label))
            code.append((c, i % 2))
    with (folder / "list.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("path", "label"), *rows])
    with (folder / "more.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [("path", "hats"), *((n, 3 * confused) for (n, _), (_, confused) in zip(rows, code, strict=True))]
        )

    def embed(encoder, source, *rest):
        known = dict(zip([n for n, _ in rows], code, strict=True))
        x = np.array([known[i.id] for i in source.items], float)
        values = np.stack([(2 * x[:, 0] - 1) * (1 - 0.9 * x[:, 1]), x[:, 1]], 1) + rng.normal(
            0, 0.3, (len(x), 2)
        )
        return {"original": np.hstack([values, np.zeros((len(x), 126))]).astype(np.float32)}

    monkeypatch.setattr(prepare, "embed", embed)
    options = {"groups": "hats>0", "groups_file": folder / "more.csv", "seeds": 3, "patches": 8}
    result = run(config(folder / "list.csv", tmp_path / "out", **options))
    assert result.verdict.level == "fragile", result.provenance
    assert "hats>0" in result.verdict.headline
    assert (result.verdict.about.column, result.verdict.about.entry) == ("hats>0", "hats>0")
    (group,) = result.falling
    assert group.whole.mark == "↓↓"
    assert group.whole.inside < 0.8 < 0.95 < group.whole.outside
    assert group.alike_excess.low > 0.5
    assert any("The encoder sees what they share" in s for s in result.verdict.sentences)
    assert any(p.title == "hats>0" and p.tags[0][0] != p.tags[1][0] for p in result.pairs)


def test_columns_of_another_file_are_joined_by_path(tmp_path):
    items = [Item(f"a/{n}.png", b"", "a") for n in range(3)]
    file = tmp_path / "more.csv"
    file.write_text("path,split,label,faces\na/0.png,train,x,2\na\\1.png,val,x,0\n")
    joined, notes = join_columns(items, file)
    assert [i.groups for i in joined] == [{"faces": "2"}, {"faces": "0"}, {}]
    assert [i.split for i in joined] == ["train", "validation", None]
    assert joined[0].label == "a"
    assert notes == ["more.csv does not name 1 of 3 images: a/2.png"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,faces\nb/0.png,1\n", "names none of the images"),
        ("path,faces\na/0.png,1\na/0.png,2\n", "several rows for a/0.png"),
        ("file,faces\na/0.png,1\n", "no column 'id'"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, text, words):
    items = [Item(f"a/{n}.png", b"", "a") for n in range(3)]
    (tmp_path / "more.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        join_columns(items, tmp_path / "more.csv")


def test_classes_are_chosen_before_the_limit(tmp_path):
    data = many(tmp_path / "data", 4, per_class=6)
    items = open_set(config(data, tmp_path, classes="c01,c03", limit=8)).items
    assert {i.label for i in items} == {"c01", "c03"}
    assert len(items) == 8
    with pytest.raises(ConfigError, match="'c9'"):
        open_set(config(data, tmp_path, classes="c01,c9"))


def test_numbers_part_a_column_in_two(tmp_path):
    from pfungst.audit.sources import group_columns

    items = [Item(str(n), b"", "a", groups={"faces": text}) for n, text in enumerate(("0", "2", "", "1"))]
    (values,) = group_columns(items, ["faces > 0"]).values()
    assert values.tolist() == ["faces≤0", "faces>0", "", "faces>0"]
    with pytest.raises(ConfigError, match="compares no numbers"):
        group_columns(items, ["faces>many"])
    with pytest.raises(ConfigError, match="'hats'"):
        group_columns(items, ["hats>0"])


def test_columns_of_many_values_are_cut_and_not_left_out():
    from pfungst.audit.sources import group_columns

    places = ["Hannover"] * 20 + ["Italy"] * 10 + [f"place {n}" for n in range(30)]
    items = [
        Item(str(n), b"", "a", groups={"location": p, "age": str(n), "file": f"f{n}"})
        for n, p in enumerate(places)
    ]
    columns = group_columns(items, ["auto"])
    assert set(columns) == {"location", "age"}  # names of files form no groups
    assert set(columns["location"].tolist()) == {"Hannover", "Italy", "other"}
    assert len(set(columns["age"].tolist())) == 4


def test_a_column_that_spells_the_label_is_no_group():
    from pfungst.audit.similarity.prepare import _spells

    labels = np.array(["COVID-19", "other", "COVID-19"])
    assert _spells(np.array(["COVID-19, ARDS", "SARS", "COVID-19"]), labels)
    assert not _spells(np.array(["Hannover", "Italy", "Hannover"]), labels)


def test_two_images_of_each_class_are_too_few(tmp_path):
    result = run(config(many(tmp_path / "data", 2), tmp_path / "out", groups="none", seeds=1, folds=2))
    assert result.verdict.level == "too-few"


@pytest.mark.parametrize(
    ("units", "groups"),
    [([0, 1, 1, 1, 2, 1], "112122"), ([0, 3, 1, 0, 3, 3, 0, 2, 3, 3, 1, 3, 3], "1112122121111")],
    ids=["shared", "many"],
)
def test_a_fold_that_leaves_one_group_to_learn_from_is_no_error(units, groups):
    """Whether the group can be read has no number then; the probe raised. Which of them, versions of
    scikit-learn do not agree on."""
    study = SimpleNamespace(
        plan=SimpleNamespace(units=np.array(units)),
        original=np.random.default_rng(0).normal(size=(len(units), 4)),
        config=SimpleNamespace(seed=0, probe="logreg"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says that the folds are uneven
        accuracy, chance = _readable(study, np.array(list(groups)))
    assert np.isnan(accuracy) == np.isnan(chance)
