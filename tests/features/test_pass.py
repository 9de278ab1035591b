"""One pass: the same bytes whoever computes it, after a kill, with damaged files; and nothing is read twice."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.conditions import conditions_for
from pfungst.audit.images import Labelled
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.similarity.embeddings import Source, embed
from pfungst.conditions import Condition
from pfungst.data import Item
from pfungst.encoders import Encoder, Preprocessing, load
from pfungst.errors import ConfigError, DataError, InputError, PfungstWarning, UnreadableImages
from pfungst.features import Store, Work, batches, run
from pfungst.features.engine import _pinned
from pfungst.spurious import FeatureHead, FeatureStore, SpuriousFolder, extract_features
from pfungst.spurious.features import read_item
from pool_sample import Tiny, Together, encoded, folder_pool
from spurious_toys import small_net

ROOT = Path(__file__).parents[2]
SMALL = Preprocessing(16, "pillow-bilinear", (0.5,) * 3, (0.25,) * 3)
BAD = (3, 17)


def items(root, count=50, bad=BAD):
    files = sorted(folder_pool(root, count, bad).rglob("*.png"))
    return [Item(f.name, f) for f in files]


def labelled(found):
    return Labelled(found, [i % 3 for i in range(len(found))], Condition.parse(SMALL.condition), SMALL.size)


def head_of(net):
    return FeatureHead(net, example=torch.rand(2, 3, 16, 16))


def extract(head, data, folder, **options):
    options = {
        "batch_size": 8,
        "commit_every": 1,
        "device": "cpu",
        "progress": False,
        "skip_bad": True,
    } | options
    store = extract_features(head, data, folder, **options)
    return store, [(folder / f).read_bytes() for f in ("features.npy", "index.parquet", "store.json")]


@pytest.fixture
def found(tmp_path):
    return items(tmp_path / "files")


# --- the same bytes --------------------------------------------------------------------------------------


def test_loading_processes_change_no_byte(tmp_path, found):
    head, data = head_of(Tiny()), labelled(found)
    store, here = extract(head, data, tmp_path / "0")
    assert (len(store), len(store.meta["skipped"])) == (48, 2)
    assert extract(head, data, tmp_path / "2", workers=2)[1] == here
    with pytest.raises(UnreadableImages, match="2 images cannot be read"):
        extract(head, data, tmp_path / "all", workers=2, skip_bad=False)
    encoder = Encoder(small_net(4), SMALL)
    conditions = conditions_for("pillow-bilinear", ["jpeg:20"], 16)
    good = [item for item in found if item.id[:4] not in {f"{i:04d}" for i in BAD}]
    one, two = (embed(encoder, Source(good, conditions, 16, [], w), None, "cpu") for w in (0, 2))
    assert {name: x.tobytes() for name, x in one.items()} == {name: x.tobytes() for name, x in two.items()}


@pytest.mark.slow
def test_a_ray_cluster_changes_no_byte(tmp_path, found, ray):
    (tmp_path / "mine.py").write_text(
        "import pool_sample\nclass Mine(pool_sample.Tiny):\n    pass\ndef mine():\n    return Mine()\n"
    )
    net = load(f"{tmp_path}/mine.py:mine", "classifier", size=16).model  # workers cannot import the file
    head, data = head_of(net), labelled(found)
    here = extract(head, data, tmp_path / "0")[1]
    assert extract(head, data, tmp_path / "ray", ray="auto")[1] == here
    with pytest.raises(UnreadableImages, match="2 images cannot be read"):
        extract(head, data, tmp_path / "all", ray="auto", skip_bad=False)
    encoder, conditions = Encoder(small_net(4), SMALL), conditions_for("pillow-bilinear", ["jpeg:20"], 16)
    good = [item for item in found if item.id[:4] not in {f"{i:04d}" for i in BAD}]
    one, two = (embed(encoder, Source(good, conditions, 16, [], 0, r), None, "cpu") for r in (None, "auto"))
    assert {name: x.tobytes() for name, x in one.items()} == {name: x.tobytes() for name, x in two.items()}
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_nodes_give_the_classifier_audits_features(tmp_path, ray, nodes, killed):
    head, data = head_of(Together()), labelled(items(tmp_path / "files", 120))
    here = extract(head, data, tmp_path / "here", batch_size=4)[1]
    there, done = tmp_path / "there", []

    def due():
        done[:] = [len(list(there.glob("part-*.parquet")))]
        return done[0] >= 4

    killer = nodes.kill_when(due) if killed else None
    assert extract(head, data, there, batch_size=4, ray="auto")[1] == here
    assert len(list((tmp_path / "nodes").iterdir())) == 2
    if killer is not None:
        killer.join(60)
        assert 4 <= done[0] < 20  # of 30 batches
        assert sum(node["Alive"] for node in ray.nodes()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_nodes_give_the_similarity_audits_embeddings(tmp_path, ray, nodes, monkeypatch, killed):
    monkeypatch.setattr("pfungst.audit.similarity.embeddings._BATCH", 4)
    encoder, conditions = Encoder(Together(), SMALL), conditions_for("pillow-bilinear", ["jpeg:20"], 16)
    found, done = items(tmp_path / "files", 60, ()), []
    here = embed(encoder, Source(found, conditions, 16, [], 0, None), None, "cpu")
    killer = nodes.kill_when(lambda: len(done) >= 3) if killed else None
    there = embed(encoder, Source(found, conditions, 16, [], 0, "auto"), None, "cpu", done.append)
    assert {name: x.tobytes() for name, x in here.items()} == {name: x.tobytes() for name, x in there.items()}
    assert len(list((tmp_path / "nodes").iterdir())) == 2
    if killer is not None:
        killer.join(60)
        assert sum(node["Alive"] for node in ray.nodes()) == 1


def test_a_pass_that_is_killed_leaves_no_process_and_goes_on_to_the_same_bytes(tmp_path, found):
    code = (
        f"import sys; sys.path[:0] = {[*sys.path, str(Path(__file__).parent)]!r}\n"
        "from test_pass import *\n"
        "if __name__ == '__main__':\n"
        f"    data = labelled([Item(f.name, f) for f in sorted(Path({str(tmp_path)!r}, 'files').rglob('*.png'))])\n"
        f"    extract(head_of(Tiny()), data, Path({str(tmp_path)!r}, 'killed'), workers=2)\n"
    )
    (tmp_path / "job.py").write_text(code)
    environment = os.environ | {"POOL_SAMPLE_WAIT": "0.5"}
    job = subprocess.Popen([sys.executable, str(tmp_path / "job.py")], env=environment)
    until = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("part-*.parquet"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    assert len(children) >= 2
    os.kill(job.pid, signal.SIGKILL)
    job.wait()

    def alive(child):
        with contextlib.suppress(OSError):
            return bool(Path(f"/proc/{child}/cmdline").read_bytes())

    until = time.monotonic() + 5
    while any(map(alive, children)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, children))
    with pytest.raises(DataError, match=r"unfinished feature pass \((15|16|22|23|24|31) images\)"):
        FeatureStore(tmp_path / "killed")
    head, data = head_of(Tiny()), labelled(found)
    read = []
    data._read = lambda item, real=data._read: read.append(item) or real(item)
    resumed = extract(head, data, tmp_path / "killed")[1]
    assert 0 < len(read) < 40
    assert resumed == extract(head, labelled(found), tmp_path / "whole")[1]


def test_batches_for_a_gpu_are_pinned_by_another_thread_in_their_order(found, monkeypatch):
    seen = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda images: seen.append(threading.get_ident()) or images
    )
    load = lambda row: read_item(labelled(found), row)
    here, pinned = (list(f(batches(load, range(50), 8))) for f in (iter, _pinned))
    assert len(seen) == 7
    assert threading.get_ident() not in seen
    assert [(b.rows, b.known, b.problems) for b in here] == [(b.rows, b.known, b.problems) for b in pinned]
    assert all(torch.equal(a.images, b.images) for a, b in zip(here, pinned, strict=True))
    with pytest.raises(ZeroDivisionError):
        list(_pinned(batches(lambda row: load(row) if 1 // (20 - row) else load(0), range(50), 8)))


def test_a_store_on_disk_holds_no_values_in_memory(tmp_path):
    """They were kept beside the files: 200,000 images of 512 features took 200 MB that were never read."""
    store, keys = Store(tmp_path), [bytes([i]) for i in range(9)]
    rows = np.arange(27, dtype=np.float16).reshape(9, 3)
    for i in range(3):
        store.add(keys[3 * i : 3 * i + 3], rows[3 * i : 3 * i + 3])
    assert not any(isinstance(array, np.ndarray) for array in store._arrays)
    for known in (store, Store(tmp_path)):
        np.testing.assert_array_equal(known.values(keys[::-1]), rows[::-1])
        assert known.widths(keys) == [3]


# --- damage ----------------------------------------------------------------------------------------------


def torn(file):
    file.write_bytes(file.read_bytes()[:-20])


def shorter(file):
    np.save(file, np.load(file)[:-1])


def flipped(file):
    """One bit of the last value, which the size does not tell."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("file", ["features.npy", "index.parquet"])
@pytest.mark.parametrize("harm", [torn, shorter, flipped, Path.unlink])
def test_damaged_features_are_named_and_computed_again(tmp_path, found, file, harm):
    if harm is shorter and file == "index.parquet":
        pytest.skip("is no array")
    head, data = head_of(Tiny()), labelled(found)
    _, before = extract(head, data, tmp_path / "s")
    harm(tmp_path / "s" / file)
    with pytest.raises(DataError, match="call extract_features again"):
        FeatureStore(tmp_path / "s")
    gone = file == "index.parquet" and harm is Path.unlink  # then nothing says that there were rows
    with contextlib.nullcontext() if gone else pytest.warns(PfungstWarning, match="computed again"):
        assert extract(head, data, tmp_path / "s")[1] == before


@pytest.mark.parametrize("harm", [torn, flipped])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_damaged_embeddings_are_computed_again(tmp_path, suffix, harm):
    encoder, images = Encoder(small_net(4), SMALL), torch.rand(6, 3, 16, 16)
    first = encoder.encode(images, cache=tmp_path, device="cpu")
    (file,) = tmp_path.rglob(f"*{suffix}")
    harm(file)
    with pytest.warns(PfungstWarning, match=rf"{file.stem}.*; it is computed again"):
        assert torch.equal(encoder.encode(images, cache=tmp_path, device="cpu"), first)
    assert len(Store(file.parent)) == 6


# --- what is read ----------------------------------------------------------------------------------------


def test_images_of_a_spurious_folder_are_read_once(tmp_path, monkeypatch):
    for i in range(8):
        file = tmp_path / "set" / f"spurious_class_{i % 2}_component_0" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(i, 16))
    real, read = SpuriousFolder.__getitem__, []
    monkeypatch.setattr(SpuriousFolder, "__getitem__", lambda self, i: read.append(i) or real(self, i))
    head = head_of(Tiny())

    def rows(gain):
        read.clear()

        def transform(image):
            return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 * gain

        return np.array(
            extract(head, SpuriousFolder(tmp_path / "set", transform), tmp_path / "s")[0].features
        )

    first = rows(1)
    assert len(set(read)) == 8
    assert np.array_equal(rows(1), first)
    assert not read
    (tmp_path / "set" / "spurious_class_1_component_0" / "3.png").write_bytes(encoded(99, 16))
    assert (rows(1) != first).any(1).sum() == len(read) == 1
    assert (rows(0.5) != first).any(1).all()
    assert len(read) == 8


def test_batches_lie_on_a_grid_and_bad_rows_do_not_shift_it():
    def load(row):
        if row == 5:
            raise OSError("torn")
        return row * 10, torch.full((1, 2, 2), float(row))

    found = list(batches(load, [1, 2, 4, 5, 6, 9], 4))
    assert [b.rows for b in found] == [[1, 2], [4, 6], [9]]
    assert [b.problems for b in found] == [[], [(5, "torn")], []]
    assert found[1].known == [40, 60]
    assert found[1].images[:, 0, 0, 0].tolist() == [4, 6]
    sizes = Work(lambda row: (None, torch.zeros(1, 2 + row, 2)), len, id)
    with pytest.raises(InputError, match="different sizes"):
        list(run(sizes, range(2), 2, device="cpu"))


# --- the options -----------------------------------------------------------------------------------------


def test_workers_and_ray_are_options_of_every_audit_and_refused_where_they_do_nothing(tmp_path):
    needed = {"model": "m:f", "train": "t", "val": "v"}
    assert ClassifierConfig.build(**needed).workers == "auto"
    assert ClassifierConfig.build(**needed, workers="2").workers == 2
    for wrong in ("-1", "many"):
        with pytest.raises(ConfigError, match="workers"):
            ClassifierConfig.build(**needed, workers=wrong)
    texts = {"encoder": "sentence-transformers:x", "texts": "pairs.csv"}
    assert AnomalyConfig.build(data="d", workers=3, ray="auto").ray == "auto"
    SimilarityConfig.build(**texts, workers=0)
    for name, value in (("workers", 3), ("ray", "auto")):
        with pytest.raises(ConfigError, match=rf"--{name} does nothing here: texts"):
            SimilarityConfig.build(**texts, **{name: value})
    one, two = (ClassifierConfig.build(**needed, workers=w) for w in (0, 4))
    assert one.fingerprint() == two.fingerprint()


def test_ray_is_asked_for_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("pfungst.audit.config.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pfungst\[ray\]"):
        ClassifierConfig.build(model="m:f", train="t", val="v", ray="auto")


STARTED = """
import multiprocessing, os, sys, time
from pfungst.features.workers import end_with_parent
def work(file):
    open(file, "w").write(str(os.getpid()))
    time.sleep(0.7)
    end_with_parent()
    time.sleep(60)
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    context.Process(target=work, args=(sys.argv[1],)).start()
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["spawn", "fork", "forkserver"])
def test_a_worker_ends_even_if_its_parent_was_killed_while_it_started(tmp_path, how):
    (tmp_path / "job.py").write_text(STARTED)
    file = tmp_path / "pid"
    job = subprocess.Popen([sys.executable, str(tmp_path / "job.py"), str(file), how])
    until = time.monotonic() + 60
    while not (file.exists() and file.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    child = Path("/proc", file.read_text(), "cmdline")
    job.kill()
    job.wait()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if not child.read_bytes():
                break
        except OSError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker is still there")
