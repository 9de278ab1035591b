"""The anomaly audit on miniature data: numbers, resumption, provenance, bad input."""

import json
import shutil

import numpy as np
import pytest
import torch

import pfungst.audit.anomaly.run as audit
from factories import broken_files, mini_mvtec, picture, save
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.run import run
from pfungst.audit.result import load
from pfungst.errors import ConfigError, DataError, InputError, UnreadableImages
from pfungst.measure import auroc
from pfungst.relevance import Relevance


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return mini_mvtec(tmp_path_factory.mktemp("data"), train=12, good=6, defective=4, size=48)


def config(data, out, **options):
    return AnomalyConfig.build(**{"data": data, "out": out, "size": 32, "seeds": 3, "examples": 4, **options})


def numbers(result):
    return result.model_dump(exclude={"created", "seconds", "config", "notes"})


def test_the_result_is_complete_and_consistent(data, tmp_path):
    result = run(config(data, tmp_path, model="d2neighbors,kde"))
    assert numbers(load(tmp_path)) == numbers(result)
    assert [(e.category, e.model) for e in result.entries] == [
        (c, m) for c in ("bolt", "nut") for m in ("d2neighbors", "kde")
    ]
    for entry in result.entries:
        arrays = np.load(tmp_path / entry.arrays)
        assert [s.variant.key for s in entry.scores] == [
            "original",
            "deployed",
            "original-mended",
            "deployed-mended",
        ]
        first = entry.original.per_seed["auroc"][0]
        assert first == pytest.approx(auroc(arrays["labels"], arrays["scores_original"]))
        assert entry.original.auroc.value == pytest.approx(np.mean(entry.original.per_seed["auroc"]))
        assert sum(entry.spectrum.original) == pytest.approx(1)
        assert arrays["heat"].shape == arrays["mask"].shape == (len(entry.examples), 32, 32)
        joint = arrays["joint"].astype(np.float64).sum(1)
        np.testing.assert_allclose(joint, arrays["heat"], atol=2e-3 * np.abs(arrays["heat"]).max())
        assert [e.row for e in entry.examples] == list(range(len(arrays["image"])))
        for example in entry.examples:
            row = arrays["ids"].tolist().index(example.id)
            for answer in example.answers:
                key = answer.variant.key
                assert answer.score == pytest.approx(arrays[f"scores_{key}"][row])
                assert answer.flagged == (answer.score > arrays[f"threshold_{key}"])
    assert result.metrics["auroc"].value == min(e.original.auroc.value for e in result.entries)


def test_known_defects_choose_the_ridge_and_are_not_tested(data, tmp_path, monkeypatch):
    """The detector fitted with these images by hand; a category keeps one defect at least."""
    from pfungst.anomaly import DeepOneClass

    chosen, fit = [], DeepOneClass.fit

    def seen(self, X, y=None):
        found = fit(self, X, y)
        chosen.append((found.ridge_chosen_by_, 0 if y is None else int(y.sum()), found.ridge_, X, y))
        return found

    monkeypatch.setattr(DeepOneClass, "fit", seen)
    options = {"model": "one-class:backbone=small:2", "seeds": 1, "category": "bolt", "mitigate": "none"}
    result = run(config(data, tmp_path / "a", outliers=2, **options))
    (entry,) = result.entries
    assert entry.n_defect == run(config(data, tmp_path / "b", **options)).entries[0].n_defect - 2
    assert [(by, n) for by, n, *_ in chosen] == [("auroc", 2), ("likelihood", 0)]
    _, _, ridge, x, y = chosen[0]
    assert fit(DeepOneClass("small:2", device="cpu"), x, y).ridge_ == ridge
    arrays = np.load(tmp_path / "a" / entry.arrays)
    assert int(arrays["labels"].sum()) == entry.n_defect
    n = entry.n_defect + 2
    with pytest.raises(DataError, match=f"bolt has {n} defective test images, --outliers takes {n}"):
        run(config(data, tmp_path / "c", outliers=n, **options))


@pytest.mark.parametrize("model", ["one-class", "bag:kde+one-class"])
def test_images_too_small_for_a_network_are_refused_before_anything_is_fitted(model, tmp_path, monkeypatch):
    from pfungst.anomaly import KDE

    monkeypatch.setattr(KDE, "fit", lambda *a, **k: pytest.fail("fitted"))
    options = {"category": "stripe", "seeds": 1, "size": 28}
    with pytest.raises(InputError, match="too small"):
        run(config("digits-c", tmp_path / "out", model=f"kde,{model}", **options))
    assert not (tmp_path / "out").exists()


def test_categories_with_the_same_training_images_share_detectors(tmp_path, monkeypatch):
    """Each of digits-c is audited as if it were alone, but its detectors are fitted once for all."""
    from pfungst.anomaly import KDE

    fits = []
    original = KDE.fit
    monkeypatch.setattr(KDE, "fit", lambda self, *a, **k: fits.append(len(a[0])) or original(self, *a, **k))
    options = {"model": "kde", "size": 16, "seeds": 2}
    both = run(config("digits-c", tmp_path / "both", category="stripe,translate", **options))
    assert len(fits) == 2 * 2  # seeds, without and with mitigation
    alone = run(config("digits-c", tmp_path / "alone", category="translate", **options))
    assert len(fits) == 2 * 4
    assert numbers(both)["entries"][1]["scores"] == numbers(alone)["entries"][0]["scores"]


def test_other_training_images_get_detectors_of_their_own(data, tmp_path, monkeypatch):
    from pfungst.anomaly import KDE

    fits = []
    original = KDE.fit
    monkeypatch.setattr(KDE, "fit", lambda self, *a, **k: fits.append(len(a[0])) or original(self, *a, **k))
    run(config(data, tmp_path, model="kde"))
    assert len(fits) == 2 * 3 * 2  # categories, seeds, without and with mitigation


def test_a_detector_of_planted_defects_is_fit(data, tmp_path):
    result = run(config(data, tmp_path, model="kde"))
    assert result.mean["kde"].original.auroc.value > 0.9
    assert result.verdict.level != "unfit"


def interrupted(settings, monkeypatch):
    """Runs an audit that dies in its second category; returns the calls of `evaluate`, to which later ones are added."""
    real, calls = audit.evaluate, []

    def dies_in_the_second_category(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(audit, "evaluate", dies_in_the_second_category)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    return calls


def test_an_interrupted_audit_resumes_to_the_same_result(data, tmp_path, monkeypatch):
    whole = run(config(data, tmp_path / "whole"))
    calls = interrupted(config(data, tmp_path / "broken"), monkeypatch)
    assert not (tmp_path / "broken" / "result.json").exists()
    result = run(config(data, tmp_path / "broken", resume=True))
    assert len(calls) == 3
    assert numbers(result) == numbers(whole)
    assert not (tmp_path / "broken" / ".parts").exists()


def written(folder):
    arrays = {file.name: dict(np.load(file)) for file in sorted((folder / "arrays").glob("*.npz"))}
    return {(name, n): value.tobytes() for name, values in arrays.items() for n, value in values.items()}


def test_processes_change_no_byte_and_take_over_what_is_finished(data, tmp_path, monkeypatch):
    options = {"model": "d2neighbors,kde", "device": "cpu"}
    here = run(config(data, tmp_path / "here", **options))
    there = run(config(data, tmp_path / "there", workers=2, **options))
    assert numbers(there) == numbers(here)
    assert written(tmp_path / "there") == written(tmp_path / "here")
    interrupted(config(data, tmp_path / "broken", **options), monkeypatch)
    result = run(config(data, tmp_path / "broken", workers=2, resume=True, **options))
    assert any("1 finished parts were taken over" in note for note in result.notes)
    assert numbers(result) == numbers(here)


def test_categories_with_the_same_training_images_stay_together(tmp_path):
    from pfungst.audit.anomaly.prepare import open_sets
    from pfungst.data.roles import same_training

    three = open_sets(config("digits-c", tmp_path, category="stripe,translate,fog", size=16))
    assert [[s.name for s in group] for group in same_training(three)] == [[s.name for s in three]]


def test_an_error_in_another_process_is_the_same_named_error(tmp_path):
    made, said = folder(tmp_path / "data", 12, 12, 12, black), []
    for workers in (0, 2):
        with pytest.raises(InputError, match="features are constant over the") as error:
            run(
                config(
                    made, tmp_path / str(workers), model="kde,one-class:backbone=resnet18", workers=workers
                )
            )
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_nodes_change_no_byte_of_an_audit(data, tmp_path, ray, nodes, monkeypatch, killed):
    monkeypatch.chdir(data.parent)
    options = {"model": "d2neighbors,kde,patchcore:coreset=0.5,dim=32,layer_dim=32", "device": "cpu"}
    here = run(config(data.name, tmp_path / "here", **options))
    there = tmp_path / "there"
    killer = nodes.kill_when(lambda: any(there.glob(".parts/*/*.json"))) if killed else None
    assert numbers(run(config(data.name, there, ray="auto", **options))) == numbers(here)
    assert written(there) == written(tmp_path / "here")
    if killer is not None:
        killer.join(60)
        assert sum(node["Alive"] for node in ray.nodes()) == 1


def test_an_interrupted_audit_of_images_that_changed_since_is_computed_anew(data, tmp_path, monkeypatch):
    """Regression: finished categories were taken over for other images under the same names."""
    import shutil

    from PIL import Image, ImageOps

    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    calls = interrupted(config(folder, tmp_path / "out"), monkeypatch)
    first = calls[0][0].test.items[0].image.parents[2].name
    for file in (folder / first / "test").rglob("*.png"):
        with Image.open(file) as image:
            ImageOps.invert(image.convert("RGB")).save(file)
    resumed = run(config(folder, tmp_path / "out", resume=True))
    assert numbers(resumed) == numbers(run(config(folder, tmp_path / "fresh")))


def test_the_same_seed_gives_the_same_numbers(data, tmp_path):
    one, two = (run(config(data, tmp_path / name, category="nut")) for name in "ab")
    assert numbers(one) == numbers(two)


def test_a_mitigation_filtered_once_equals_one_inside_the_detector(data, tmp_path, monkeypatch):
    """All seeds but the first get filtered images instead of the filter: the scores must be the same."""
    import torch

    from pfungst.anomaly import detector_from_spec
    from pfungst.audit.anomaly.mend import filtered
    from pfungst.mitigate import GaussianBlur, LowPass

    x = torch.rand(9, 3, 32, 32)
    for layer in (GaussianBlur(), LowPass(100)):
        for name in ("d2neighbors", "d2neighbors:p=1", "kde"):
            inside = detector_from_spec(name, features=layer).fit(x[:6]).anomaly_score(x)
            before = detector_from_spec(name).fit(filtered(layer, x[:6])).anomaly_score(filtered(layer, x))
            torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-3)


def table(tmp_path, confounded):
    """Good parts from sessions a and b, defects from both; in session b all images are brighter."""
    rows = ["path,split,label,mask,session"]
    n = 0
    for split, label, session, count in [
        ("train", "good", "a", 14),
        ("test", "good", "a", 8),
        ("test", "good", "b", 8),
        ("test", "hole", "a", 8),
        ("test", "hole", "b", 8),
    ]:
        for _ in range(count):
            n += 1
            image, mask = picture(n, 32, defect=label == "hole")
            if confounded and session == "b":
                image = np.clip(image.astype(int) + 60, 0, 255).astype(np.uint8)
            save(tmp_path / f"{session}_{n:03d}.png", image)
            mask_name = ""
            if label == "hole":
                mask_name = f"{session}_{n:03d}_mask.png"
                save(tmp_path / mask_name, mask.astype(np.uint8) * 255)
            rows.append(f"{session}_{n:03d}.png,{split},{label},{mask_name},{session}")
    (tmp_path / "parts.csv").write_text("\n".join(rows))
    return tmp_path / "parts.csv"


@pytest.mark.parametrize("confounded", [True, False])
def test_a_score_that_follows_the_session_is_told(tmp_path, confounded):
    result = run(config(table(tmp_path, confounded), tmp_path / "out", mitigate="none"))
    found = result.entries[0].provenance
    assert [p.column for p in found] == ["session"]  # the file-name prefix says the same and is not repeated
    assert found[0].follows == confounded
    assert ("follows the session, not the defect" in result.verdict.headline) == confounded


def test_real_tiles_follow_the_session(shared, tmp_path):
    """Nobody planted this: the score of real magnetic tiles follows the acquisition session (METHODS 6)."""
    source = shared / "data" / "magnetic_tile" / "mixed.csv"
    result = run(config(source, tmp_path, size=64, seeds=1, groups="session", mitigate="none"))
    entry = result.entries[0]
    assert result.verdict.level == "unfit"
    assert "follows the session, not the defect" in result.verdict.headline
    assert 0.4 < entry.original.auroc.value < 0.65
    means = {g.name: g.mean_score for g in entry.provenance[0].groups}
    assert means["exp6"] > 1.5 * means["exp1"]


def test_all_unreadable_images_are_named_before_anything_is_computed(data, tmp_path, monkeypatch):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    names = [p.name for p in broken_files(broken / "nut" / "test" / "good")]
    monkeypatch.setattr(audit, "evaluate", lambda *a: pytest.fail("computed before checking"))
    with pytest.raises(UnreadableImages) as error:
        run(config(broken, tmp_path / "out"))
    for name in names:
        assert name in str(error.value)
    assert not (tmp_path / "out" / "result.json").exists()


def test_bad_images_can_be_skipped_and_are_counted(data, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    names = broken_files(broken / "nut" / "test" / "good")
    result = run(config(broken, tmp_path / "out", skip_bad=True))
    assert len(result.skipped) == len(names)
    assert {s.id.split("/")[-1] for s in result.skipped} == {p.name for p in names}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "d2neighbour"}, ConfigError, "did you mean 'd2neighbors'"),
        ({"model": "d2neighbors:q=1"}, ConfigError, "unknown parameter 'q'"),
        ({"mitigate": "blurr"}, ConfigError, "did you mean 'blur'"),
        ({"mitigate": "blur:3"}, ConfigError, "numbers"),
        ({"deployed": "pillow-bilinar"}, ConfigError, "pillow-bilinear"),
        ({"category": "screw"}, DataError, "screw"),
        ({"groups": "session"}, ConfigError, "no column 'session'"),
        ({"data": "/nowhere"}, DataError, "/nowhere"),
    ],
)
def test_wrong_options_stop_before_writing(data, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run(config(**{"data": data, "out": tmp_path / "out", **options}))
    assert not (tmp_path / "out").exists()


def test_a_test_set_without_defects_is_refused(data, tmp_path):
    poor = tmp_path / "data"
    shutil.copytree(data / "nut", poor / "nut")
    for kind in ("hole", "scratch"):
        shutil.rmtree(poor / "nut" / "test" / kind)
        shutil.rmtree(poor / "nut" / "ground_truth" / kind)
    with pytest.raises(DataError, match="lacks a defective test image"):
        run(config(poor, tmp_path / "out"))


def test_the_result_is_valid_json_even_with_numbers_that_do_not_exist(data, tmp_path):
    run(config(data, tmp_path, category="nut", seeds=1))
    json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    "model", ["autoencoder:epochs=2", "patchcore:coreset=0.5,dim=32,layer_dim=32", "bag:kde+d2neighbors"]
)
def test_every_detector_goes_through_the_audit(data, tmp_path, model):
    result = run(config(data, tmp_path, model=model, category="nut", seeds=1))
    entry = result.entries[0]
    assert entry.model == model
    arrays = np.load(tmp_path / entry.arrays)
    assert len(np.unique(arrays["scores_original"])) > 3
    assert np.isfinite(arrays["heat"]).all()


def test_tiles_are_refused_before_anything_is_fitted(data, tmp_path):
    with pytest.raises(InputError, match="not defined for tiles"):
        run(config(data, tmp_path, model="kde,bag:kde+tiled:tile=16,overlap=4:kde", category="nut", seeds=1))
    assert not list(tmp_path.iterdir())


def test_embedded_digits_are_audited(tmp_path):
    result = run(
        config(
            "digits-c",
            tmp_path,
            model="kde",
            category="stripe",
            seeds=1,
            size=28,
            deployed="opencv-nearest+noise:0.1",
        )
    )
    assert result.mean["kde"].original.auroc.value > 0.8
    assert result.mean["kde"].original.clever_hans is not None


def test_the_explanation_of_the_score_beats_a_random_order_and_another_map_does_not(
    data, tmp_path, monkeypatch
):
    """The number is that of the heatmap: squares of pixels, spread by chance, explain nothing."""
    from pfungst.anomaly import KDE

    options = {"model": "kde", "seeds": 1, "category": "nut"}
    true = run(config(data, tmp_path / "true", **options))
    found = true.entries[0].faithfulness
    assert found.beats_random
    assert found.images == 8  # the defective ones
    assert true.metrics["faithfulness"].value == found.value
    explain = KDE._explain

    def shuffled(self, x, basis):
        relevance = explain(self, x, basis)
        values = relevance.values.flatten(1)
        order = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)).argsort(1)
        values = values.gather(1, order).view_as(relevance.values)
        return Relevance(values, relevance.score, basis, relevance.bias)

    monkeypatch.setattr(KDE, "_explain", shuffled)
    chance = run(config(data, tmp_path / "chance", **options))
    assert not chance.entries[0].faithfulness.beats_random
    assert chance.verdict.level != "clever-hans"
    if chance.verdict.level in ("sound", "fragile"):
        assert "does not beat a random order" in " ".join(chance.verdict.sentences)


# --- odd data: a verdict that says so, or a named error, never "sound" ------------------------------------


def folder(root, train, good, defective, draw=picture):
    """An MVTec category whose images are drawn by `draw`: (seed, size, defect) → image and mask."""
    counts = {"train/good": train, "test/good": good, "test/hole": defective}
    for number, (place, count) in enumerate(counts.items()):
        for i in range(count):
            save(root / f"part/{place}/{i:03d}.png", draw(100 * number + i, 32, "hole" in place)[0])
    return root


@pytest.mark.parametrize("count", [1, 5])
def test_two_and_ten_test_images_are_too_few(tmp_path, count):
    """Regression: one good and one defective image, told apart, were called sound."""
    result = run(
        config(folder(tmp_path / "data", 12, count, count), tmp_path / "out", model="kde", mitigate="none")
    )
    assert result.verdict.level == "too-few"
    assert result.verdict.about.numbers == {"good": count, "defective": count}
    assert (result.entries[0].faithfulness is None) == (2 * count < 6)


def test_two_images_in_all_are_a_named_error(tmp_path):
    with pytest.raises(DataError, match="lacks 2 normal training images"):
        run(config(folder(tmp_path / "data", 1, 0, 1), tmp_path / "out"))


def test_test_images_of_one_class_only_are_a_named_error(tmp_path):
    with pytest.raises(DataError, match="lacks a defective test image"):
        run(config(folder(tmp_path / "good", 6, 12, 0), tmp_path / "out"))
    with pytest.raises(DataError, match="lacks a normal test image"):
        run(config(folder(tmp_path / "bad", 6, 0, 12), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def black(*_):
    return np.zeros((32, 32, 3), np.uint8), None


def same_tests(seed, size, defect):
    """Training images that differ, test images that are all the same."""
    return picture(seed if seed < 100 else 100, size)


@pytest.mark.parametrize("draw", [black, same_tests])
@pytest.mark.parametrize(
    "model", ["d2neighbors", "kde", "autoencoder:epochs=1", "patchcore:coreset=0.5,dim=32,layer_dim=32"]
)
def test_images_that_do_not_differ_are_unfit(tmp_path, draw, model):
    """Regression: a score that is the same for every image was explained as if it told something."""
    data = folder(tmp_path / "data", 12, 12, 12, draw)
    result = run(config(data, tmp_path / "out", model=model, seeds=1))
    assert result.verdict.level == "unfit"
    assert result.entries[0].original.auroc.value == 0.5
    assert result.entries[0].exposure.outside_mask is None


def test_images_that_do_not_differ_make_a_one_class_model_a_named_error(tmp_path):
    with pytest.raises(InputError, match="features are constant over the"):
        run(
            config(
                folder(tmp_path / "data", 12, 12, 12, black),
                tmp_path / "out",
                model="one-class:backbone=resnet18",
            )
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_numbers_are_a_named_error(data, tmp_path, monkeypatch, value):
    """A detector whose scores are NaN would otherwise flag nothing and rank at random."""
    from pfungst.anomaly import KDE

    score = KDE._score

    def broken(self, x):
        scores = score(self, x)
        scores[0] = value
        return scores

    monkeypatch.setattr(KDE, "_score", broken)
    with pytest.raises(InputError, match=r"scores of 1 of \d+ samples are NaN or infinite"):
        run(config(data, tmp_path / "out", model="kde", seeds=1))
    assert not (tmp_path / "out" / "result.json").exists()


def test_the_frequency_chart_is_the_mean_over_the_defective_images(data, tmp_path):
    """Regression: it was the sum over all test images, good ones too; the paper's is over anomalous ones, and per image.

    By hand: SciPy's DCT of the differences to every training image, weighted by softmin's shares.
    """
    from scipy.fft import dctn

    from pfungst.anomaly import D2Neighbors
    from pfungst.audit.anomaly.explain import BANDS
    from pfungst.data import open_images
    from pfungst.relevance.dct import band_masks

    result = run(config(data, tmp_path, category="nut", protocol="published", mitigate="none", seeds=1))
    (entry,) = result.entries
    images = next(s for s in open_images(data) if s.name == "nut").prepare("opencv-nearest", 32)
    train = images[images.splits == "train"].images
    test = images[images.splits == "test"]
    detector = D2Neighbors().fit(train)
    x, u = (t.double().numpy() for t in (test.images, train))
    x, u = (np.asarray(detector._normalise(torch.from_numpy(a))) for a in (x, u))
    difference = x[:, None] - u[None]
    distance = (difference**2).sum((2, 3, 4))
    weight = np.exp(-detector.gamma_ * (distance - distance.min(1, keepdims=True)))
    weight = weight / weight.sum(1, keepdims=True) / distance
    energy = (dctn(difference, axes=(3, 4), norm="ortho") ** 2).sum(2)
    masks = band_masks(BANDS.resolve(32, 32), 32, 32, torch.zeros((), dtype=torch.float64)).numpy()
    share = np.einsum("nj,njhw,bhw->nb", weight, energy, masks)
    share /= share.sum(1, keepdims=True)
    np.testing.assert_allclose(entry.spectrum.original, share[test.labels == 1].mean(0), atol=1e-4)
    for example in entry.examples:
        np.testing.assert_allclose(example.bands, share[test.ids.index(example.id)], atol=1e-4)


def test_masks_without_relevance_give_no_share_and_no_warning():
    """Regression: "Mean of empty slice" where no heatmap has positive relevance."""
    import warnings
    from types import SimpleNamespace

    from pfungst.audit.anomaly.explain import _outside_mask

    masked = np.array([True, True])
    study = SimpleNamespace(masked=masked, test=SimpleNamespace(masks=torch.ones(2, 4, 4, dtype=torch.bool)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert _outside_mask(study, torch.zeros(2, 4, 4)) is None
