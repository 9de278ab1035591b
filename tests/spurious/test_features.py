import json

import numpy as np
import pytest
import torch

from pfungst.errors import DataError, InputError, UnreadableImages
from pfungst.spurious import FeatureHead, FeatureStore, extract_features, match_classes
from spurious_toys import items, small_net


@pytest.fixture
def head():
    return FeatureHead(small_net(), example=torch.rand(2, 3, 12, 12))


class Data:
    """Map-style images that say which they are, can stop or break at given places, and count what was read."""

    def __init__(self, rows, stop=None, broken=()):
        self.rows, self.stop, self.broken, self.reads = rows, stop, set(broken), []
        self.ids = [r[0] for r in rows]

    def __len__(self):
        return len(self.rows)

    def identity(self, i):
        if i in self.broken:
            raise FileNotFoundError
        return self.rows[i][1], self.rows[i][2]

    def __getitem__(self, i):
        self.reads.append(i)
        if i == self.stop:
            raise KeyboardInterrupt
        if i in self.broken:
            raise OSError("cannot identify image file")
        return self.rows[i]


def run(head, data, path, **options):
    return extract_features(head, data, path, batch_size=8, progress=False, device="cpu", **options)


def test_one_pass_stores_what_the_model_computes(head, tmp_path):
    rows = items(37)
    store = run(head, rows, tmp_path / "s")
    images = torch.stack([r[1] for r in rows])
    with torch.no_grad():
        phi, logits = head.features_and_logits(images)
    assert store.features.dtype == np.float16
    assert isinstance(store.features, np.memmap)
    np.testing.assert_allclose(store.features, phi, rtol=1e-3, atol=1e-6)
    assert store.ids == [r[0] for r in rows]
    assert store.labels.tolist() == [r[2] for r in rows]
    assert store.predicted.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(
        store.confidence, logits.softmax(1)[range(37), store.labels.tolist()], rtol=1e-5
    )
    assert store.classes == [0, 1, 2, 3, 4]
    torch.testing.assert_close(store.of_class(3), torch.from_numpy(store.features[store.labels == 3]).float())
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"features.npy", "index.parquet", "store.json"}


def test_an_interrupted_pass_continues_where_it_was(head, tmp_path):
    rows = items(50)
    with pytest.raises(KeyboardInterrupt):
        run(head, Data(rows, stop=34), tmp_path / "s", commit_every=2)
    with pytest.raises(DataError, match="unfinished feature pass \\(32 images\\)"):
        FeatureStore(tmp_path / "s")
    again = Data(rows)
    store = run(head, again, tmp_path / "s", commit_every=2)
    assert min(again.reads) == 32
    whole = run(head, rows, tmp_path / "whole")
    np.testing.assert_array_equal(store.features, whole.features)
    assert store.ids == whole.ids
    assert store.labels.tolist() == whole.labels.tolist()
    finished = Data(rows)
    run(head, finished, tmp_path / "s")
    assert not finished.reads


def test_a_plain_iterator_and_a_torn_write(head, tmp_path):
    rows = items(50)
    with pytest.raises(KeyboardInterrupt):
        run(head, (Data(rows, stop=42)[i] for i in range(50)), tmp_path / "s", commit_every=2)
    with open(tmp_path / "s" / "features.npy", "ab") as file:
        file.write(b"half a row")
    with open(tmp_path / "s" / "index.jsonl", "a") as file:
        file.write('["img')
    store = run(head, iter(rows), tmp_path / "s")
    np.testing.assert_array_equal(store.features, run(head, rows, tmp_path / "whole").features)
    assert len(store) == 50


def test_loading_processes_give_the_same(head, tmp_path):
    rows = items(40)
    store = run(head, Data(rows), tmp_path / "s", workers=1)
    np.testing.assert_array_equal(store.features, run(head, rows, tmp_path / "whole").features)


def test_unreadable_images_are_all_named_or_skipped(head, tmp_path):
    rows = items(40)
    with pytest.raises(UnreadableImages, match="3 images cannot be read") as caught:
        run(head, Data(rows, broken=[3, 17, 39]), tmp_path / "s")
    assert [name for name, _ in caught.value.problems] == ["img0003", "img0017", "img0039"]
    store = run(head, Data(rows, broken=[3, 17, 39]), tmp_path / "t", skip_bad=True)
    assert len(store) == 37
    assert [name for name, _ in store.meta["skipped"]] == ["img0003", "img0017", "img0039"]
    repaired = run(head, Data(rows), tmp_path / "s")
    np.testing.assert_array_equal(repaired.features, run(head, rows, tmp_path / "whole").features)


def test_bad_labels_identifiers_and_stores(head, tmp_path):
    rows = items(10)
    with pytest.raises(InputError, match="label 9, but the model's classes are 0 … 4"):
        run(head, [*rows, ("x", rows[0][1], 9)], tmp_path / "a")
    with pytest.raises(InputError, match="label 'cat'"):
        run(head, [("x", rows[0][1], "cat")], tmp_path / "b")
    with pytest.raises(DataError, match="'img0000' occurs twice"):
        run(head, [*rows, rows[0]], tmp_path / "c")
    with pytest.raises(DataError, match="empty"):
        run(head, [], tmp_path / "d")
    run(head, rows, tmp_path / "e")
    other = FeatureHead(small_net(seed=1), example=torch.rand(2, 3, 12, 12))
    with pytest.raises(InputError, match="another model"):
        run(other, rows, tmp_path / "e")
    with pytest.raises(InputError, match="float8"):
        run(head, rows, tmp_path / "f", dtype="float8")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "store.json").write_text(json.dumps({"format": "else"}))
    with pytest.raises(DataError, match="has format 'else'"):
        FeatureStore(tmp_path / "g")


def test_features_beyond_half_precision(tmp_path):
    net = small_net()
    with torch.no_grad():
        net[2].weight.mul_(1e7)
    head = FeatureHead(net, example=torch.rand(2, 3, 12, 12))
    with pytest.raises(InputError, match="do not fit float16"):
        run(head, items(8), tmp_path / "a")
    assert run(head, items(8), tmp_path / "b", dtype="float32").features.max() > 65504


def test_labels_are_matched_to_classes():
    assert match_classes(["b", "a", "b"], ["a", "b", "c"]) == {"a": 0, "b": 1}
    assert match_classes(["b", "a"], 2) == {"a": 0, "b": 1}
    assert match_classes(["0", "10", "2"], 1000) == {"0": 0, "10": 10, "2": 2}
    with pytest.raises(InputError, match=r"'frog'.*3 classes: 'cat', 'dog', 'horse'"):
        match_classes(["cat", "frog"], ["cat", "dog", "horse"])
    with pytest.raises(InputError, match=r"10 classes, the image set 2: 'cat', 'frog'"):
        match_classes(["cat", "frog"], 10)
