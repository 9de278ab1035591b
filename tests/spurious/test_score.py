import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from pfungst.errors import DataError, InputError, UnreadableImages
from pfungst.spurious import (
    SpuriousFolder,
    class_probabilities,
    read_components,
    score_probabilities,
    spurious_score,
    write_components,
)
from pfungst.spurious.score import auc_interval
from spurious_toys import items, small_net


def to_tensor(image):
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("spurious_class_1_component_2", "spurious_class_3_component_0"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    (tmp_path / "readme.txt").write_text("not a class")
    return tmp_path


def test_folder_layout(folder):
    data = SpuriousFolder(folder, to_tensor)
    assert len(data) == 12
    assert data.components == {1: [2], 3: [0]}
    name, image, label = data[7]
    assert (name, label, tuple(image.shape)) == ("spurious_class_3_component_0/1.png", 3, (3, 12, 12))


def test_a_folder_is_read_with_all_endings_of_pictures_that_the_rest_reads(folder):
    first = folder / "spurious_class_3_component_0" / "0.png"
    with Image.open(first) as image:
        image.save(first.with_suffix(".ppm"))
        image.convert("P").save(first.with_suffix(".gif"))
    assert len(SpuriousFolder(folder, to_tensor)) == 14


def test_score_of_a_model_on_a_folder_is_that_of_its_probabilities(folder):
    net, data = small_net(), SpuriousFolder(folder, to_tensor)
    rows = items(60)
    score = spurious_score(net, rows, data, batch_size=7, device="cpu")
    assert sorted(score.classes) == [1, 3]
    for k, entry in score.classes.items():
        with torch.no_grad():
            p = net(torch.stack([x for _, x, label in rows if label == k])).softmax(1)[:, k]
            q = net(torch.stack([x for _, x, label in data if label == k])).softmax(1)[:, k]
        truth = [1] * len(p) + [0] * len(q)
        assert entry.auc == pytest.approx(roc_auc_score(truth, torch.cat([p, q])), abs=1e-6)
        assert (entry.n_positive, entry.n_negative) == (12, 6)
    assert score.mauc == pytest.approx(np.mean([c.auc for c in score.classes.values()]))
    assert score.interval[0] <= score.mauc <= score.interval[1]
    assert "published_mAP" in repr(score)


def test_classes_missing_in_validation(folder):
    net, data = small_net(), SpuriousFolder(folder, to_tensor)
    rows = [r for r in items(60) if r[2] != 3]
    with pytest.raises(DataError, match=r"1 classes with spurious images have no validation images: \[3\]"):
        spurious_score(net, rows, data, device="cpu")
    assert list(spurious_score(net, rows, data, missing="skip", device="cpu").classes) == [1]
    with pytest.raises(DataError, match="no images with spurious features"):
        score_probabilities({1: [0.5]}, {})
    with pytest.raises(InputError, match="not finite"):
        score_probabilities({1: [0.5]}, {1: [np.nan]})


def test_bad_folders(folder, tmp_path):
    with pytest.raises(DataError, match="no folders named like"):
        SpuriousFolder(tmp_path / "absent", to_tensor)
    (folder / "spurious_class_3_component_0" / "2.png").write_bytes(b"broken")
    with pytest.raises(UnreadableImages, match=r"2\.png"):
        list(SpuriousFolder(folder, to_tensor))
    (folder / "spurious_class_1_component_2" / "5.png").write_bytes(b"")
    with pytest.raises(UnreadableImages, match="2 images cannot be read"):
        spurious_score(small_net(), items(20), SpuriousFolder(folder, to_tensor), device="cpu")
    with pytest.raises(InputError, match="do not fit a model of 5 classes"):
        class_probabilities(small_net(), [("a", torch.rand(3, 12, 12), 5)], device="cpu")


def test_published_number_depends_on_the_counts_and_the_auc_does_not():
    p, q = np.linspace(0, 1, 400), np.linspace(0, 1, 600)
    score = score_probabilities({0: p}, {0: q})
    assert score.mauc == pytest.approx(0.5, abs=1e-3)
    assert score.published_mAP == pytest.approx(0.4, abs=0.01)


def test_interval_covers_and_stays_open_at_perfect_separation():
    low, high = auc_interval(1.0, 50, 75)
    assert 0.9 < low < 1
    assert high == 1
    assert auc_interval(0.0, 50, 75)[1] == pytest.approx(1 - low)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):  # two normals one apart: AUC = Φ(1/√2) = 0.7602
        p, q = rng.standard_normal(50) + 1, rng.standard_normal(75)
        low, high = auc_interval(float((p[:, None] > q).mean()), 50, 75)
        covered += low <= 0.7602 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_gain_is_paired():
    rng = np.random.default_rng(0)
    p, q = rng.random(50), rng.random(75)
    before = score_probabilities({0: p}, {0: q}, seed=1)
    after = score_probabilities({0: p}, {0: q - 0.05}, seed=2)
    gain, low, high = after.gain_over(before)
    assert gain == pytest.approx(after.mauc - before.mauc)
    assert 0 < low < gain < high
    assert high - low < before.interval[1] - before.interval[0]
    assert before.gain_over(before) == (0, 0, 0)
    with pytest.raises(InputError, match="different images"):
        after.gain_over(score_probabilities({0: p[:9]}, {0: q}))


def test_components_file(tmp_path):
    mine = {"classes": 5, "features": 12, "head_sha256": "ab" * 32}
    path = tmp_path / "c.json"
    write_components(path, {3: [4, 1, 1], 0: [2]}, mine)
    assert read_components(path, mine) == {0: [2], 3: [1, 4]}
    with pytest.raises(InputError, match="made for another model: 5 classes, 12 features, head abababababab"):
        read_components(path, mine | {"head_sha256": "cd" * 32})
    path.write_text('{"format": "pfungst.components/1", "components": {"a": [1]}}')
    with pytest.raises(InputError, match="class 'a'"):
        read_components(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="has format None"):
        read_components(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_components(tmp_path / "absent.json")


def test_published_components_need_the_switch(tmp_path):
    path = tmp_path / "c.npy"
    np.save(path, np.array({94: [1, 2], 5: np.int64(3), 7: []}, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="can run code"):
        read_components(path)
    assert read_components(path, allow_pickle=True) == {94: [1, 2], 5: [3]}


def test_interval_never_leaves_the_unit_range():
    """Regression: bootstrap weights that sum to 1 + 1e-16 gave upper ends above 1."""
    rng = np.random.default_rng(0)
    for n in (7, 11, 13, 49):
        p, q = rng.uniform(0.6, 1, n), rng.uniform(0, 0.4, n + 1)
        score = score_probabilities({0: p, 1: p}, {0: q, 1: q})
        assert 0 <= score.interval[0] <= score.interval[1] <= 1
