import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from label_sample import picture
from pfungst.errors import DataError, InputError
from pfungst.label import Study, read_task
from pfungst.pool import (
    Direction,
    PoolModel,
    direction,
    index,
    score,
    search,
    to_label_task,
    to_spurious_folder,
)
from pfungst.pool.search import product
from pool_sample import Tiny, folder_pool, other, tiny

spurious = pytest.importorskip("pfungst.spurious")
pytest.importorskip("pfungst.conditions")
data = pytest.importorskip("pfungst.data")

MODELS = [PoolModel("tiny", tiny, "pillow-bilinear", 16), PoolModel("other", other, "opencv-nearest", 16)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A scored pool of 90 images, two of them broken, and the neural PCA of the first model."""
    root = tmp_path_factory.mktemp("search")
    pool = index(folder_pool(root / "source", 90, bad=(5, 50)), root / "pool", shard_rows=20)
    score(pool.folder, MODELS, batch_size=16, device="cpu")
    head = spurious.FeatureHead(Tiny(0), example=torch.rand(2, 3, 16, 16))
    phi = torch.rand(120, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(120) % 3
    npca = spurious.NeuralPCA(n_components=4).fit(head, phi, labels)
    return pool, npca


def by_hand(pool, npca, k, component, agree):
    """α of every image from the stored features, in float64, without any of the search's code."""
    import pyarrow.parquet as pq

    rows, found = {}, []
    for name in ("tiny", "other"):
        tables = [
            pq.read_table(p).to_pylist() for p in sorted((pool.folder / "scores" / name).glob("*.parquet"))
        ]
        rows[name] = [r for t in tables for r in t]
    features = np.concatenate([np.load(p) for p in sorted((pool.folder / "scores" / "tiny").glob("*.npy"))])
    weight = npca.head_.weight[k].double().numpy()
    v = npca.components_[k][component].double().numpy()
    mean = npca.mean_[k].double().numpy()
    for one, two, phi in zip(rows["tiny"], rows["other"], features.astype(np.float64), strict=True):
        votes = (one["predicted"] == k) + (two["predicted"] == k)
        if one["error"] is None and votes >= agree:
            found.append((one["id"], v.sum() * (v @ (weight * phi - mean))))
    return sorted(found, key=lambda f: (-f[1], f[0]))


@pytest.mark.parametrize("agree", [0, 1, 2])
@pytest.mark.parametrize("component", [0, 3])
def test_search_is_the_sort_of_all_alphas(world, agree, component):
    pool, npca = world
    for k in range(3):
        expected = by_hand(pool, npca, k, component, agree)
        hits = search(pool.folder, direction(npca, k, component), "tiny", agree=agree, top=10)
        assert [h.id for h in hits] == [i for i, _ in expected[:10]]
        np.testing.assert_allclose(
            [h.alpha for h in hits], [a for _, a in expected[:10]], rtol=1e-4, atol=1e-5
        )
        for hit in hits:
            assert sum(p == k for p in hit.predictions.values()) >= agree
    assert len(search(pool.folder, direction(npca, 0, 0), "tiny", top=1000)) == 88


def test_only_the_models_asked_vote(world):
    pool, npca = world
    found = search(pool.folder, direction(npca, 1, 0), "tiny", agree=1, models=["other"], top=100)
    assert {h.predictions["other"] for h in found} <= {1}
    assert len(found) == len(by_hand_votes(pool, "other", 1))


def by_hand_votes(pool, name, k):
    import pyarrow.parquet as pq

    tables = [pq.read_table(p).to_pylist() for p in (pool.folder / "scores" / name).glob("*.parquet")]
    return [r for t in tables for r in t if r["predicted"] == k]


def test_the_wrong_model_is_refused(world):
    pool, npca = world
    with pytest.raises(DataError, match="another model"):
        search(pool.folder, direction(npca, 0, 0), "other")
    with pytest.raises(DataError, match="no scores of 'absent'"):
        search(pool.folder, direction(npca, 0, 0), "absent")
    with pytest.raises(InputError, match="dims"):
        search(pool.folder, Direction(0, 0, np.ones(5, np.float32), 0.0), "tiny")
    for wrong in ({"agree": 3}, {"top": 0}, {"agree": -1}):
        with pytest.raises(InputError, match="agree is at most"):
            search(pool.folder, direction(npca, 0, 0), "tiny", **wrong)


def test_product_in_blocks_is_the_product(tmp_path):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1001, 33)).astype(np.float16)
    d = rng.standard_normal(33).astype(np.float32)
    np.testing.assert_allclose(
        product(np.array_split(features, 5), d), features.astype(np.float64) @ d, rtol=1e-4, atol=1e-4
    )


def test_from_search_over_labels_to_a_data_set(world, tmp_path):
    pool, npca = world
    k, component = 0, 1
    hits = search(pool.folder, direction(npca, k, component), "tiny", agree=1, top=12)
    reference = tmp_path / "reference.png"
    picture(reference, 0)
    task = to_label_task(
        pool.folder,
        hits,
        tmp_path / "task",
        k,
        "=evil<b>",
        component,
        "tiny",
        class_names={0: "a", 1: "b"},
        reference=[reference],
    )
    assert read_task(tmp_path / "task") == task
    assert [i.id for i in task.items] == [h.id for h in hits]
    for item in task.items:
        assert (tmp_path / "task" / item.file).read_bytes() == (pool.source / item.id).read_bytes()
        assert set(item.predictions.values()) <= {"a", "b", 2}  # class 2 has no name
    with pytest.raises(DataError, match="has a task"):
        to_label_task(pool.folder, hits, tmp_path / "task", k, "a", component, "tiny")

    with pytest.raises(DataError, match="no image"):
        to_spurious_folder(tmp_path / "task", tmp_path / "none")
    study = Study(tmp_path / "task", ["anna", "ben"])
    for number, item in enumerate(study.items):
        study.act("anna", item, 0, "answer", "out")
        study.act("ben", item, 0, "answer", "out" if number % 3 else "in")
    study.close()
    counts = to_spurious_folder(tmp_path / "task", tmp_path / "set")
    assert counts == {f"spurious_class_{k}_component_{component}": 8}

    def transform(image):
        return torch.from_numpy(np.asarray(image.resize((16, 16)), np.float32).transpose(2, 0, 1) / 255)

    found = spurious.SpuriousFolder(tmp_path / "set", transform)
    assert (found.components, len(found)) == ({k: [component]}, 8)
    accepted = {Image.open(tmp_path / "set" / name).tobytes() for name in found.ids}
    wanted = {Image.open(tmp_path / "task" / i.file).tobytes() for n, i in enumerate(task.items) if n % 3}
    assert accepted == wanted


def test_the_components_file_goes_through_spufix(world, tmp_path):
    from pfungst.label import ComponentItem, ComponentTask, ShownImage, export, write_task

    _, npca = world
    picture(tmp_path / "images" / "x.png", 1)
    shot = ShownImage(file="images/x.png", id="x")
    items = [
        ComponentItem(id=f"{k}-{c}", class_index=k, class_name=str(k), component=c, alpha=[1.0], confidence=[0.9], images=[shot])
        for k in (0, 2)
        for c in (0, 1, 3)
    ]  # fmt: skip
    fingerprint = npca.model_fingerprint_
    write_task(tmp_path, ComponentTask(title="t", model=fingerprint, items=items))
    study = Study(tmp_path, ["anna"])
    for item in study.items:
        study.act("anna", item, 0, "answer", "not" if item == "2-0" else "spurious")
    study.close()
    export(tmp_path, tmp_path / "out")
    path = tmp_path / "out" / "components.json"
    components = spurious.read_components(path, fingerprint)
    assert components == {0: [0, 1, 3], 2: [1, 3]}
    spurious.write_components(tmp_path / "again.json", components, fingerprint)
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())
    model = Tiny(0).eval()
    fixed = spurious.SpuFix(model, npca, components)
    x = torch.rand(5, 3, 16, 16)
    with torch.inference_mode():
        phi = npca.model.features(x) if npca.model else model.conv(x).relu().mean((2, 3))
        expected = model(x).clone()
        for k, chosen in components.items():
            expected[:, k] -= npca.alpha_features(phi, k)[:, chosen].clamp(min=0).sum(1)
        torch.testing.assert_close(fixed(x), expected, rtol=1e-4, atol=1e-4)


def test_an_export_follows_the_answers_and_touches_nothing_else(world, tmp_path):
    pool, npca = world
    hits = search(pool.folder, direction(npca, 0, 1), "tiny", agree=1, top=4)
    task = to_label_task(pool.folder, hits, tmp_path / "task", 0, "a", 1, "tiny")
    study, out = Study(tmp_path / "task", ["anna"]), tmp_path / "set"
    for item in task.items[:3]:
        study.act("anna", item.id, 0, "answer", "out")
    assert to_spurious_folder(tmp_path / "task", out) == {"spurious_class_0_component_1": 3}
    folder = out / "spurious_class_0_component_1"
    (folder / "own.png").write_bytes(b"mine")
    study.act("anna", task.items[0].id, 1, "undo")
    study.act("anna", task.items[0].id, 2, "answer", "in")
    study.act("anna", task.items[3].id, 0, "answer", "out")
    assert to_spurious_folder(tmp_path / "task", out) == {"spurious_class_0_component_1": 3}
    wanted = {Path(i.file).name for i in task.items[1:]} | {"own.png"}
    assert {f.name for f in folder.iterdir()} == wanted
    assert (folder / "own.png").read_bytes() == b"mine"
    foreign = folder / Path(task.items[0].file).name
    foreign.write_bytes(b"another image of that name")
    study.act("anna", task.items[0].id, 3, "undo")
    study.act("anna", task.items[0].id, 4, "answer", "out")
    with pytest.raises(DataError, match="not those that an export wrote"):
        to_spurious_folder(tmp_path / "task", out)
    assert foreign.read_bytes() == b"another image of that name"
    assert {f.name for f in folder.iterdir()} == wanted | {foreign.name}
    foreign.unlink()
    assert to_spurious_folder(tmp_path / "task", out) == {"spurious_class_0_component_1": 4}
    study.close()


def test_a_pool_is_itself_whatever_its_name_means_to_duckdb(tmp_path):
    """`p[1]` was read as the pattern that finds `p1`."""
    model = PoolModel("tiny", tiny, "pillow-bilinear", 16)
    for name, count in (("p1", 4), ("p[1]", 9), ("a*b?", 7)):
        index(folder_pool(tmp_path / "images" / name, count), tmp_path / name, shard_rows=4)
        assert score(tmp_path / name, [model], device="cpu").rows == count
        hits = search(tmp_path / name, Direction(0, 0, np.ones(8, np.float32), 0.0), "tiny")
        assert len(hits) == count


def test_features_of_the_same_size_that_changed_are_noticed(world, tmp_path):
    """Regression: a search knew its features by their size alone."""
    pool, npca = world
    copied = Path(shutil.copytree(pool.folder, tmp_path / "pool"))
    component = direction(npca, 1, 0)
    first = search(copied, component, "tiny", top=5)
    assert first == search(copied, component, "tiny", top=5)
    file = sorted((copied / "scores" / "tiny").glob("*.npy"))[1]
    content = bytearray(file.read_bytes())
    content[-2:] = b"\x12\x34"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{file.name} is not what was written"):
        search(copied, component, "tiny", top=5)
