"""Two audits compared, and new images held against an audit's reference."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

import classifier_factory
import pfungst as pf
import similarity_factory
from factories import mini_mvtec, picture, save
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.run import run as run_anomaly
from pfungst.audit.check import Gates, check
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.run import run as run_classifier
from pfungst.audit.compare import compare
from pfungst.audit.mended import Mended, folders
from pfungst.audit.result import load
from pfungst.audit.similarity.run import run as run_similarity
from pfungst.audit.watch import watch
from pfungst.audit.whatnext import commands
from pfungst.cli import app
from pfungst.errors import ConfigError, DataError
from pfungst.measure import auroc
from pfungst.report import write


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    """Two detectors on the same images: the second sees next to nothing through its blur."""
    root = tmp_path_factory.mktemp("compare")
    data = mini_mvtec(root / "data", ("bolt",), train=12, good=30, defective=15, size=40)
    common = {"data": data, "size": 32, "seeds": 1, "examples": 1, "groups": "none"}
    run_anomaly(AnomalyConfig.build(**common, mitigate="blur:3,0.5", out=root / "a"))
    run_anomaly(AnomalyConfig.build(**common, mitigate="lowpass:1", model="kde", out=root / "b"))
    return root


def test_two_audits_of_one_detector_show_no_difference(audits):
    result = compare(audits / "a", audits / "a")
    assert result.paired
    assert {c.word for c in result.changes} == {"no difference shown"}
    assert all(c.change.value == 0 and c.change.low <= 0 <= c.change.high for c in result.changes)
    assert result.verdict.level == "sound"
    assert result.metrics["worse"].value == 0


def test_what_got_worse_is_found_with_its_images(audits, tmp_path):
    result = compare(audits / "a", audits / "b", tmp_path)
    worse = {c.measure for c in result.words("worse") if "mended" in c.variant}
    assert "balanced-accuracy" in worse
    assert result.verdict.level == "fragile"
    one = next(c for c in result.changes if c.measure == "auroc" and c.variant == "deployed, mended")
    scores = [np.load(audits / side / load(audits / side).entries[0].arrays) for side in "ab"]
    for value, arrays in zip((one.before, one.after), scores, strict=True):
        assert value == pytest.approx(float(auroc(arrays["labels"], arrays["scores_deployed-mended"])))
    flips = next(f for f in result.flips if f.variant == "deployed, mended")
    right = [(a["scores_deployed-mended"] > a["threshold_deployed-mended"]) == a["labels"] for a in scores]
    assert (flips.lost, flips.gained) == ((right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum())
    assert set(flips.lost_ids) <= set(scores[0]["ids"][right[0] & ~right[1]])
    again = load(tmp_path)
    assert not check(again, Gates.read(minimum=["balanced-accuracy-change=-0.01"]))[0].passed
    html = write(tmp_path).read_text()
    assert "What changed" in html
    assert "right → wrong" in html


def test_the_interval_has_a_width_where_every_image_agrees(audits, tmp_path):
    """Regression: FPR 0.00 → 1.00 was told with +1.00 to +1.00. Here all 30 normal and 30 defective images are
    right before and flagged after."""
    for side, flagged in (("a", 0), ("b", 1)):
        shutil.copytree(audits / side, tmp_path / side)
        (entry,) = load(tmp_path / side).entries
        arrays = dict(np.load(tmp_path / side / entry.arrays))
        for key in [k for k in arrays if k.startswith("scores_")]:
            arrays[key] = np.maximum(arrays["labels"], flagged) * 2.0
            arrays[key.replace("scores", "threshold")] = np.array(1.0)
        np.savez(tmp_path / side / entry.arrays, **arrays)
    result = compare(tmp_path / "a", tmp_path / "b")
    one = {c.measure: c for c in result.changes if c.variant == "deployed"}
    end = stats.binomtest(0, 30).proportion_ci(method="wilson").high
    assert (one["fpr"].before, one["fpr"].after) == (0, 1)
    assert (one["fpr"].change.low, one["fpr"].change.high) == pytest.approx((1 - np.hypot(end, end), 1))
    assert (one["fnr"].change.low, one["fnr"].change.high) == pytest.approx((-end, end))
    balanced = one["balanced-accuracy"].change  # mean of −1, up to −1 + √2 end, and of 0 ± end
    assert (balanced.low, balanced.high) == pytest.approx((-0.5 - end / 2, -0.5 + np.sqrt(3) * end / 2))
    for name in ("auroc", "f1"):
        assert one[name].change.low < one[name].change.value < one[name].change.high
    assert one["fpr"].word == one["auroc"].word == "worse"


def test_audits_of_other_images_are_compared_unpaired(audits, tmp_path):
    data = mini_mvtec(tmp_path / "data", ("bolt",), train=12, good=20, defective=10, size=40)
    for file in (data / "bolt/test").rglob("*.png"):
        file.rename(file.with_name(f"new{file.name}"))
    for file in (data / "bolt/ground_truth").rglob("*.png"):
        file.rename(file.with_name(f"new{file.name}"))
    config = {"size": 32, "seeds": 1, "examples": 1, "groups": "none", "mitigate": "blur:3,0.5"}
    run_anomaly(AnomalyConfig.build(data=data, out=tmp_path / "c", **config))
    result = compare(audits / "a", tmp_path / "c")
    assert not result.paired
    assert not result.flips
    assert all(c.change.low < c.change.high or c.change.value == 0 for c in result.changes)


def test_classifiers_and_encoders_are_compared_too(tmp_path):
    data = classifier_factory.make(tmp_path / "classifier", val=12)
    for name in ("biased", "clean"):
        config = ClassifierConfig.build(
            model=f"{data / 'toy.py'}:{name}", train=data / "train", val=data / "val", size=16, n_components=4,
            original="pillow-bilinear", spurious=data / "spurious", witness="none", out=tmp_path / name,
        )  # fmt: skip
        run_classifier(config)
    result = compare(tmp_path / "biased", tmp_path / "clean")
    assert result.changes[0].measure == "balanced-accuracy"
    assert result.flips[0].n == 36
    images = similarity_factory.mini_images(tmp_path / "similarity")
    run_similarity(similarity_factory.config(images, tmp_path / "s"))
    assert compare(tmp_path / "s", tmp_path / "s").flips[0].lost == 0
    with pytest.raises(ConfigError, match="of kind classifier"):
        compare(tmp_path / "biased", tmp_path / "s")


def new_images(folder, seed, dark=False, suffix="png", n=40):
    for i in range(n):
        image = picture(seed + i, 40)[0]
        save(folder / f"{i}.{suffix}", (image * (0.4 if dark else 1)).astype(np.uint8))
    return folder


def test_images_of_the_same_kind_raise_no_alarm_and_others_do(audits, tmp_path):
    same = watch(audits / "a", new_images(tmp_path / "same", 5000), tmp_path / "w")
    assert same.verdict.level == "sound", same.verdict
    assert same.n == 40
    assert same.reference == 30
    other = watch(audits / "a", new_images(tmp_path / "dark", 5000, dark=True, suffix="bmp"), tmp_path / "d")
    assert other.verdict.level == "fragile"
    names = {q.name for q in other.shifted}
    assert {"score", "file: format"} <= names
    assert other.abnormal.value > 0.9
    html = write(tmp_path / "d").read_text()
    assert "Where its relevance lies" in html
    assert load(tmp_path / "d").metrics["shift-answer"].value > 0.9


def test_what_the_reference_does_not_tell_is_not_compared_and_said(tmp_path):
    """Regression: of images in memory every file had another format."""
    rng = np.random.default_rng(0)
    train, test = [picture(rng, 40)[0] for _ in range(12)], [picture(rng, 40)[0] for _ in range(40)]
    labels = [0] * 30 + [1] * 10
    pf.audit_anomaly(train, test, labels, out=tmp_path / "a", size=32, seeds=1, examples=1)
    result = watch(tmp_path / "a", new_images(tmp_path / "new", 5000))
    assert "file: format" not in {q.name for q in result.quantities}
    assert any("only the new images tell it" in n and "file: format" in n for n in result.notes), result.notes


def test_pictures_of_12_bits_are_watched_in_the_range_of_the_audit(tmp_path):
    """Regression: new pictures were shown in their own range, and the mended model read them in that of 16 bits."""
    rng = np.random.default_rng(0)

    def scan(path, top):
        path.parent.mkdir(parents=True, exist_ok=True)
        values = (rng.random((40, 40)) * top).astype(np.uint16)
        Image.fromarray(values).save(path)

    for i in range(20):
        scan(tmp_path / f"data/train/good/{i}.png", 4000)
        scan(tmp_path / f"data/test/good/{i}.png", 4000)
        scan(tmp_path / f"data/test/bad/{i}.png", 2500)
        scan(tmp_path / f"new/{i}.png", 2000)
    options = {"size": 32, "seeds": 1, "examples": 1, "groups": "none", "mitigate": "blur:3,0.5"}
    run_anomaly(AnomalyConfig.build(data=tmp_path / "data", out=tmp_path / "a", **options))
    mended = Mended.load(folders(tmp_path / "a")[0])
    assert mended.about.window == (0, 4095)
    level = np.asarray(Image.open(tmp_path / "new/3.png")).astype(float).mean() / 4095
    bright = next(
        q for q in watch(tmp_path / "a", tmp_path / "new").quantities if q.name == "file: brightness"
    )
    assert bright.after == pytest.approx(level, abs=0.02)  # of 2047, it would be twice that
    x = np.rint(np.asarray(Image.open(tmp_path / "new/3.png")) * (255 / 4095)).astype(np.uint8)
    said = mended.read(tmp_path / "new/3.png")["score"]
    assert said == pytest.approx(float(mended(mended.prepare(Image.fromarray(x).convert("RGB")))[0]))


def test_exit_codes_of_compare_and_watch(audits, tmp_path):
    def run(*args):
        return CliRunner().invoke(app, [*map(str, args)])

    images = new_images(tmp_path / "dark", 5000, dark=True)
    assert run("watch", audits / "a", images, "--out", tmp_path / "w").exit_code == 1
    assert run("watch", audits / "a", images, "--out", tmp_path / "w", "--fail-on", "unfit").exit_code == 0
    assert (tmp_path / "w/report.html").exists()
    pair = (audits / "a", audits / "b", "--out", tmp_path / "c")
    assert run("compare", *pair).exit_code == 0
    assert run("compare", *pair, "--fail-on", "fragile").exit_code == 1
    assert json.loads((tmp_path / "c/result.json").read_text())["kind"] == "comparison"


def test_titles_hold_no_paths_and_what_next_names_the_own_folder(audits, tmp_path):
    result = compare(audits / "a", audits / "b", tmp_path / "c")
    assert "/" not in result.title
    assert any(str(tmp_path / "c") in line for line in commands(result))


def test_too_few_new_images_are_an_error(audits, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    with pytest.raises(DataError, match="at least 10"):
        watch(audits / "a", tmp_path)


def test_a_result_of_another_kind_is_not_replaced(audits, tmp_path):
    """Regression: `compare A B --out A` and `watch A NEW --out A` wrote their result over the audit's."""
    kept = (audits / "a/result.json").read_bytes()
    with pytest.raises(ConfigError, match="holds a result of kind anomaly"):
        compare(audits / "a", audits / "b", audits / "a")
    with pytest.raises(ConfigError, match="holds a result of kind anomaly"):
        watch(audits / "a", new_images(tmp_path / "new", 5000), audits / "a")
    assert (audits / "a/result.json").read_bytes() == kept
    compare(audits / "a", audits / "b", tmp_path / "c")
    compare(audits / "a", audits / "b", tmp_path / "c")  # its own kind
