"""Numbers kept on disk are never those of another network or of other images, in every place that keeps them."""

import contextlib
import copy
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import classifier_factory as squares
import similarity_factory
from pfungst.audit.classifier import run as classifier_audit
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.conditions import conditions_for
from pfungst.audit.similarity import mend as mending
from pfungst.audit.similarity import run as similarity_audit
from pfungst.audit.similarity.embeddings import Source, embed
from pfungst.data import Item
from pfungst.encoders import Encoder, Preprocessing
from pfungst.errors import DataError, InputError
from pfungst.pool import PoolModel, index, open_pool, read_component, score, to_label_task
from pfungst.pool.component import model_of
from pfungst.pool.search import Hit
from pfungst.spurious import (
    FeatureHead,
    NeuralPCA,
    SpuFix,
    extract_features,
    read_components,
    write_components,
)
from pool_sample import Tiny, folder_pool, parquet_pool, scores_of, tar_pool, tiny
from spurious_toys import items, small_net


def changed_below(net):
    """The same network but for one weight in its middle: head and structure are equal."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[2].weight[3, 2, 1, 1] += 1.0
    return other


def overwrite(path, seed):
    """Another image of the same size in bytes, with the old time, as an unpacked archive leaves it."""
    size, stat = path.stat().st_size, path.stat()
    colour = tuple(np.random.default_rng(seed).integers(0, 255, 3).tolist())
    Image.new("RGB", Image.open(path).size, colour).save(path, "PNG")
    content = path.read_bytes()
    path.write_bytes(content[:size] + b"\0" * (size - len(content)))
    assert path.stat().st_size == size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# --- embeddings ------------------------------------------------------------------------------------------


class Body(torch.nn.Module):
    """Representations that depend on a weight, on a buffer that is not saved, on a plain tensor and on a number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = small_net(4)
        self.register_buffer("offset", torch.zeros(4), persistent=False)
        self.plain, self.gain = torch.ones(4), 1.0

    def forward(self, x):
        return self.net(x) * self.gain * self.plain + self.offset


BODIES = {
    "a weight": lambda b: b.net[2].weight.data.mul_(2),
    "a buffer that is not saved": lambda b: b.offset.add_(1),
    "a tensor that is no buffer": lambda b: b.plain.mul_(2),
    "a number": lambda b: setattr(b, "gain", 2.0),
    "a hook": lambda b: b.net[2].register_forward_hook(lambda m, a, out: out * 2),
}
SMALL = Preprocessing(12, "pillow-bilinear", (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("what", BODIES)
def test_embeddings_of_a_changed_encoder_are_computed_again(tmp_path, what):
    encoder, images = Encoder(Body(), SMALL), torch.stack([i[1] for i in items(6)])
    encoder.encode(images, cache=tmp_path, device="cpu")
    BODIES[what](encoder.features)
    torch.testing.assert_close(
        encoder.encode(images, cache=tmp_path, device="cpu"),
        encoder.encode(images, device="cpu"),
        rtol=0,
        atol=0,
    )


def test_embeddings_follow_replaced_and_reordered_files_and_the_preparation(tmp_path):
    folder = folder_pool(tmp_path / "files", 7)
    files = sorted(folder.rglob("*.png"))
    encoder = Encoder(Body(), SMALL)

    def embeddings(order, cache, encoder=encoder):
        found = [Item(files[i].name, files[i]) for i in order]
        source = Source(
            found,
            conditions_for(encoder.preprocessing.condition, ["jpeg:20"], encoder.size),
            encoder.size,
            [],
        )
        return embed(encoder, source, cache, "cpu")

    first = embeddings(range(7), tmp_path / "cache")
    overwrite(files[2], 99)
    for order in (range(7), [6, 2, 0]):
        found, true = embeddings(order, tmp_path / "cache"), embeddings(order, None)
        for name in true:
            np.testing.assert_allclose(found[name], true[name], rtol=1e-6)
    assert not np.allclose(first["original"][2], embeddings(range(7), None)["original"][2])
    nearest = Encoder(encoder.features, Preprocessing(12, "opencv-nearest", SMALL.mean, SMALL.std))
    np.testing.assert_allclose(
        embeddings(range(7), tmp_path / "cache", nearest)["original"],
        embeddings(range(7), None, nearest)["original"],
        rtol=1e-6,
    )


def test_a_sweep_is_not_taken_over_for_other_images(tmp_path, monkeypatch):
    data = similarity_factory.mini_images(tmp_path / "data")
    stamp = f"logo:{similarity_factory.logo(tmp_path / 'logo.png')},width=0.5,margin=1"
    options = {"condition": [stamp], "mitigate": "prune:stage1.relu1:1", "explain": 2}
    monkeypatch.setattr(similarity_audit, "explain", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        similarity_audit.run(similarity_factory.config(data, tmp_path / "out", **options))
    for file in data.parent.glob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    swept, real = [], mending.sweep
    monkeypatch.setattr(mending, "sweep", lambda *a: swept.append(1) or real(*a))
    with pytest.raises(KeyboardInterrupt):
        similarity_audit.run(similarity_factory.config(data, tmp_path / "out", resume=True, **options))
    assert swept


# --- features --------------------------------------------------------------------------------------------


class Files:
    """Labelled images on disk that say which they are; they count what was read."""

    def __init__(self, folder, size=12, labels=None):
        self.files, self.size = sorted(folder.rglob("*.png")), size
        self.ids = [f.name for f in self.files]
        self.labels = labels or [i % 5 for i in range(len(self.files))]
        self.reads = []

    def __len__(self):
        return len(self.files)

    def identity(self, i):
        item = Item(self.ids[i], self.files[i])
        return item.identity(), self.size, self.labels[i]

    def __getitem__(self, i):
        self.reads.append(i)
        image = Image.open(self.files[i]).convert("RGB").resize((self.size, self.size))
        return self.ids[i], torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, self.labels[i]


class Anonymous(Files):
    identity = None


def head_of(net):
    return FeatureHead(net, example=torch.rand(2, 3, 12, 12))


def same_as_anew(head, data, folder, tmp_path):
    """The store in a folder, which must hold what a pass into an empty folder would."""
    found = extract_features(head, data, folder, batch_size=4, dtype="float32", device="cpu", progress=False)
    anew = tmp_path / f"anew{len(list(tmp_path.iterdir()))}"
    true = extract_features(head, data, anew, batch_size=4, dtype="float32", device="cpu", progress=False)
    np.testing.assert_allclose(found.features, true.features, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.confidence, true.confidence, rtol=1e-5)
    assert (found.ids, found.labels.tolist()) == (true.ids, true.labels.tolist())
    assert found.predicted.tolist() == true.predicted.tolist()
    return found


@pytest.mark.parametrize("unfinished", [False, True])
def test_features_of_another_backbone_under_the_same_head_are_refused(tmp_path, unfinished):
    net, rows = small_net(), items(12)
    other = changed_below(net)
    assert head_of(net).linear.fingerprint() == head_of(other).linear.fingerprint()
    stopped = (rows[i // (i < 8 or not unfinished)] for i in range(12))
    with pytest.raises(ZeroDivisionError) if unfinished else contextlib.nullcontext():
        extract_features(head_of(net), stopped, tmp_path / "s", batch_size=2, device="cpu", progress=False)
    with pytest.raises(InputError, match="another model"):
        extract_features(head_of(other), rows, tmp_path / "s", device="cpu", progress=False)


@pytest.mark.parametrize("kind", [Files, Anonymous])
def test_features_follow_replaced_images_order_labels_and_preparation(tmp_path, kind):
    folder = folder_pool(tmp_path / "files", 14)
    head, store = head_of(small_net()), tmp_path / "store"
    same_as_anew(head, kind(folder), store, tmp_path)
    again = kind(folder)
    first = extract_features(head, again, store, device="cpu", progress=False, dtype="float32")
    assert not again.reads or kind is Anonymous
    old = np.array(first.features)
    overwrite(kind(folder).files[3], 7)
    assert not np.allclose(same_as_anew(head, kind(folder), store, tmp_path).features[3], old[3])
    data = kind(folder)
    for part in (data.files, data.ids, data.labels):
        part.reverse()
    same_as_anew(head, data, store, tmp_path)
    same_as_anew(
        head, kind(folder, labels=[(i + 1) % 5 for i in range(14)]), store, tmp_path
    )  # another class list
    same_as_anew(head, kind(folder, size=10), store, tmp_path)
    kind(folder).files[5].unlink()
    assert len(same_as_anew(head, kind(folder), store, tmp_path)) == 13


def test_only_what_changed_is_computed_again(tmp_path):
    folder = folder_pool(tmp_path / "files", 14)
    head = head_of(small_net())
    same_as_anew(head, Files(folder), tmp_path / "store", tmp_path)
    overwrite(Files(folder).files[3], 7)
    data = Files(folder)
    data.files.reverse(), data.ids.reverse(), data.labels.reverse()
    extract_features(head, data, tmp_path / "store", device="cpu", progress=False, dtype="float32")
    assert data.reads == [10]


def test_images_in_memory_under_the_same_names(tmp_path):
    head = head_of(small_net())
    for rows in (items(9), items(9, seed=1), iter(items(9, seed=2))):
        rows = list(rows)
        for given in (rows, iter(rows)):
            store = extract_features(
                head, given, tmp_path / "s", dtype="float32", device="cpu", progress=False
            )
            with torch.no_grad():
                phi = head.features(torch.stack([r[1] for r in rows]))
            np.testing.assert_allclose(store.features, phi, rtol=1e-5, atol=1e-7)


def test_components_fixes_and_lists_of_another_backbone_are_refused(tmp_path):
    net, rows = small_net(), items(60)
    head, other = head_of(net), head_of(changed_below(net))
    store = extract_features(head, rows, tmp_path / "s", device="cpu", progress=False)
    npca = NeuralPCA(2).fit(head, store)
    npca.save(tmp_path / "npca")
    SpuFix(head, npca, {0: [0]}, reference="mean").save(tmp_path / "fix")
    write_components(tmp_path / "list.json", {0: [0]}, npca.model_fingerprint_)
    with pytest.raises(InputError, match="another model"):
        NeuralPCA(2).fit(other, store)
    with pytest.raises(InputError, match="another model"):
        NeuralPCA.load(tmp_path / "npca", other)
    with pytest.raises(InputError, match="model"):
        SpuFix(other, npca, {0: [0]}, reference="mean")
    with pytest.raises(InputError, match="another model"):
        SpuFix.load(tmp_path / "fix", other)
    with pytest.raises(InputError, match="another model"):
        read_components(tmp_path / "list.json", other.fingerprint())
    assert read_components(tmp_path / "list.json", head.fingerprint()) == {0: [0]}
    NeuralPCA.load(tmp_path / "npca", head)
    SpuFix.load(tmp_path / "fix", head)


# --- the classifier audit --------------------------------------------------------------------------------


def audit(root, out, **options):
    base = {
        "model": f"{root}/toy.py:biased", "train": root / "train", "val": root / "val", "out": out, "size": squares.SIZE,
        "steps": 0, "n_components": 3, "candidates": 2, "shown": 2, "device": "cpu", "features": root / "features",
    }  # fmt: skip
    return classifier_audit.run(ClassifierConfig.build(**base | options))


NUMBERS = {"created", "seconds", "config", "notes", "fingerprint"}


def test_an_audit_with_kept_features_measures_the_present_network_and_images(tmp_path):
    root = squares.make(tmp_path / "data", train=6, val=5)
    first = audit(root, tmp_path / "a")
    assert first.accuracy.value == 1.0
    source = (root / "toy.py").read_text()
    (root / "toy.py").write_text(source.replace("[-1.0, 2.0, -1.0]", "[-1.0, -1.0, -1.0]"))  # blind to green
    second = audit(root, tmp_path / "b")
    true = audit(root, tmp_path / "c", features=None)
    assert second.model_dump(exclude=NUMBERS) == true.model_dump(exclude=NUMBERS)
    assert second.accuracy.value < 0.8
    (root / "toy.py").write_text(source)
    for i in range(5):
        shutil.copy(root / f"val/red/{i:02d}.png", root / f"val/blue/{i:02d}.png")
    assert audit(root, tmp_path / "d").accuracy.value == pytest.approx(10 / 15)


def test_finished_classes_are_not_taken_over_for_another_network(tmp_path, monkeypatch):
    root = squares.make(tmp_path / "data", train=6, val=5)
    monkeypatch.setattr(classifier_audit, "measure", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        audit(root, tmp_path / "a", features=None)
    monkeypatch.undo()
    source = (root / "toy.py").read_text()
    (root / "toy.py").write_text(source.replace("[-1.0, 2.0, -1.0]", "[-0.5, 1.5, -0.5]"))
    found = audit(root, tmp_path / "a", features=None, resume=True)
    true = audit(root, tmp_path / "b", features=None)
    assert found.model_dump(exclude=NUMBERS) == true.model_dump(exclude=NUMBERS)
    assert not any("taken over" in note for note in found.notes)


# --- the pool --------------------------------------------------------------------------------------------


class Below(Tiny):
    """The head of Tiny on another backbone."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.conv.weight[4] *= -1


def below():
    return Below()


class Louder(Tiny):
    """The weights of Tiny, computed with otherwise."""

    def forward(self, x):
        return self.head(self.conv(x).relu().amax((2, 3)))


def louder():
    return Louder()


TINY = PoolModel("tiny", tiny, "pillow-bilinear", 16)
OPTIONS = {"batch_size": 8, "device": "cpu"}


@pytest.mark.parametrize("source", [below, louder])
@pytest.mark.parametrize("half", [False, True])
def test_a_pool_never_mixes_two_networks_under_one_name(tmp_path, source, half):
    pool = index(folder_pool(tmp_path / "source", 20), tmp_path / "pool", shard_rows=6)
    score(pool.folder, [TINY], **OPTIONS)
    if half:
        (pool.folder / "scores" / "tiny" / "part-000002.parquet").unlink()
    before = scores_of(pool.folder)
    with pytest.raises(DataError, match="another model"):
        score(pool.folder, [PoolModel("tiny", source, "pillow-bilinear", 16)], **OPTIONS)
    assert scores_of(pool.folder) == before
    with pytest.raises(DataError, match="another model"):
        score(pool.folder, [PoolModel("tiny", tiny, "opencv-nearest", 16)], **OPTIONS)
    score(pool.folder, [TINY], **OPTIONS)


@pytest.mark.parametrize("make", [folder_pool, tar_pool, parquet_pool])
@pytest.mark.parametrize("half", [False, True])
def test_scores_of_replaced_images_are_refused(tmp_path, make, half):
    pool = index(make(tmp_path / "source", 20), tmp_path / "pool", shard_rows=6)
    score(pool.folder, [TINY], **OPTIONS)
    if half:
        (pool.folder / "scores" / "tiny" / "part-000003.parquet").unlink()
    file = pool.source / pool.shard(0)[2].file
    stat, content = file.stat(), bytearray(file.read_bytes())
    if make is folder_pool:
        overwrite(file, 5)
    else:
        content[-1] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=r"changed since .* indexed") as caught:
        score(pool.folder, [TINY], **OPTIONS)
    assert file.name in str(caught.value)
    hit = Hit(pool.shard(0)[2].id, 0, 2, 1.0, {"tiny": 0})
    with pytest.raises(DataError, match="changed since"):
        to_label_task(pool.folder, [hit], tmp_path / "task", 0, "zero", 0, "tiny")
    shutil.rmtree(pool.folder / "scores")
    with pytest.raises(DataError, match=r"changed since .* indexed"):
        score(pool.folder, [TINY], **OPTIONS)


def test_a_component_of_another_backbone_is_not_searched_for(tmp_path):
    pool = index(folder_pool(tmp_path / "source", 20), tmp_path / "pool", shard_rows=6)
    score(pool.folder, [TINY], **OPTIONS)
    rows = [(f"{i}", image, label % 3) for i, (_, image, label) in enumerate(items(40, 3, 16))]
    for source, fits in ((tiny, True), (below, False)):
        head = FeatureHead(source(), example=torch.rand(2, 3, 16, 16))
        store = extract_features(head, rows, tmp_path / source.__name__, device="cpu", progress=False)
        NeuralPCA(2).fit(head, store).save(tmp_path / f"npca-{source.__name__}")
        found = read_component(tmp_path / f"npca-{source.__name__}", "0", 0).direction
        if fits:
            assert model_of(open_pool(pool.folder), found) == "tiny"
        else:
            with pytest.raises(DataError, match="0 have"):
                model_of(open_pool(pool.folder), found)
