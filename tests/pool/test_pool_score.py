import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pfungst.errors import ConfigError, DataError, InputError, PfungstWarning
from pfungst.pool import PoolModel, index, open_pool, score
from pfungst.pool.parts import features_path, part_path
from pool_sample import Tiny, folder_pool, other, parquet_pool, scores_of, tiny

pytest.importorskip("pfungst.spurious")
conditions = pytest.importorskip("pfungst.conditions")
data = pytest.importorskip("pfungst.data")

TINY = PoolModel("tiny", tiny, "pillow-bilinear", 16)
OTHER = PoolModel("other", "pool_sample:other", "opencv-nearest+jpeg:60", 12)
OPTIONS = {"batch_size": 8, "device": "cpu"}


def parts(pool, name):
    tables = [pq.read_table(part_path(pool, name, s)).to_pylist() for s in range(pool.shards)]
    features = [np.load(features_path(pool, name, s)) for s in range(pool.shards)]
    return [row for table in tables for row in table], np.concatenate(features)


def test_two_models_with_their_own_preparation_equal_the_plain_loop(tmp_path):
    pool = index(parquet_pool(tmp_path / "source", 30), tmp_path / "pool", shard_rows=11)
    summary = score(pool.folder, [TINY, OTHER], **OPTIONS)
    assert (summary.rows, summary.shards, summary.skipped) == (30, 3, 0)
    places = [p for s in range(pool.shards) for p in pool.shard(s)]
    for model, network in ((TINY, Tiny(0)), (OTHER, Tiny(1))):
        condition = conditions.Condition.parse(model.condition)
        rows, features = parts(pool, model.name)
        assert [row["id"] for row in rows] == [p.id for p in places]
        from pfungst.pool.read import read

        images = [
            condition(data.read_image(c), model.size, key=p.id)
            for p, c in zip(places, read(pool, places), strict=True)
        ]
        with torch.inference_mode():
            x = torch.stack(images)
            phi = network.conv(x).relu().mean((2, 3))
            confidence, predicted = network.head(phi).softmax(1).max(1)
        assert [row["predicted"] for row in rows] == predicted.tolist()
        np.testing.assert_allclose([row["confidence"] for row in rows], confidence, rtol=1e-5)
        np.testing.assert_allclose(features, phi, rtol=1e-3)
        assert features.dtype == np.float16


def test_a_broken_image_is_a_row_with_an_error(tmp_path):
    pool = index(folder_pool(tmp_path / "source", 20, bad=(3, 4, 19)), tmp_path / "pool", shard_rows=6)
    (pool.source / "0" / "0000.png").unlink()
    assert score(pool.folder, [TINY], **OPTIONS).errors == {"tiny": 4}
    rows, features = parts(pool, "tiny")
    assert {row["id"] for row in rows if row["error"]} == {
        "0/0000.png",
        "0/0003.png",
        "1/0004.png",
        "1/0019.png",
    }
    for row, phi in zip(rows, features, strict=True):
        assert (row["predicted"] is None) == np.isnan(phi).all() == (row["error"] is not None)


def test_finished_parts_are_skipped_and_new_models_added(tmp_path):
    pool = index(folder_pool(tmp_path / "source", 20), tmp_path / "pool", shard_rows=6)
    score(pool.folder, [TINY], **OPTIONS)
    before = scores_of(pool.folder)
    stamp = part_path(pool, "tiny", 0).stat().st_mtime_ns
    part_path(pool, "tiny", 2).unlink()
    summary = score(pool.folder, [TINY], **OPTIONS)
    assert (summary.shards, summary.skipped) == (1, 3)
    assert scores_of(pool.folder) == before
    score(pool.folder, [TINY, OTHER], **OPTIONS)
    assert part_path(pool, "tiny", 0).stat().st_mtime_ns == stamp
    assert {k: v for k, v in scores_of(pool.folder).items() if "tiny" in k} == before


@pytest.mark.parametrize("harm", ["cut", "flipped", "missing"])
def test_damaged_features_are_computed_again(tmp_path, harm):
    """Regression: a part was finished once its table was there, whatever lay in the array beside it."""
    pool = index(folder_pool(tmp_path / "source", 12), tmp_path / "pool", shard_rows=6)
    score(pool.folder, [TINY], **OPTIONS)
    before, file = scores_of(pool.folder), features_path(pool, "tiny", 1)
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-2] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(PfungstWarning, match=r"part-000001.npy .*; it is computed again"):
        summary = score(pool.folder, [TINY], **OPTIONS)
    assert (summary.shards, summary.skipped) == (1, 1)
    assert scores_of(pool.folder) == before


def test_another_model_under_the_same_name_is_refused(tmp_path):
    pool = index(folder_pool(tmp_path / "source", 8), tmp_path / "pool", shard_rows=4)
    score(pool.folder, [TINY], **OPTIONS)
    part_path(pool, "tiny", 0).unlink()
    with pytest.raises(DataError, match="head was"):
        score(pool.folder, [PoolModel("tiny", other, "pillow-bilinear", 16)], **OPTIONS)
    with pytest.raises(DataError, match="condition was"):
        score(pool.folder, [PoolModel("tiny", tiny, "opencv-nearest", 16)], **OPTIONS)
    with pytest.raises(DataError, match="scores already"):
        index(tmp_path / "source", pool.folder)
    with pytest.raises(InputError, match="at least one model"):
        score(pool.folder, [])
    with pytest.raises(InputError, match="no name"):
        PoolModel("../x", tiny)
    with pytest.raises(ConfigError, match="names no classifier"):
        PoolModel("x", "pool_sample:absent").load()


def _score_slowly(folder):
    torch.set_num_threads(1)
    os.environ["POOL_SAMPLE_WAIT"] = "0.05"
    score(folder, [TINY, OTHER], batch_size=4, device="cpu")


def test_kill_9_ten_times_gives_the_same_scores(tmp_path):
    source = folder_pool(tmp_path / "source", 60, bad=(7,))
    for name in ("whole", "killed"):
        index(source, tmp_path / name, shard_rows=3)
    score(tmp_path / "whole", [TINY, OTHER], **{**OPTIONS, "batch_size": 4})
    fork = multiprocessing.get_context("fork")
    chance = random.Random(0)
    killed = 0
    pool = open_pool(tmp_path / "killed")
    for _ in range(10):
        done = sum(part_path(pool, "tiny", s).is_file() for s in range(pool.shards))
        process = fork.Process(target=_score_slowly, args=(tmp_path / "killed",))
        process.start()
        # Wait until it works, then a random moment more: in a batch, in a write, between two files.
        for _ in range(3000):
            now = sum(part_path(pool, "tiny", s).is_file() for s in range(pool.shards))
            if now > done or not process.is_alive():
                break
            time.sleep(0.01)
        time.sleep(chance.random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed == 10
    score(tmp_path / "killed", [TINY, OTHER], **{**OPTIONS, "batch_size": 4})
    assert scores_of(tmp_path / "killed") == scores_of(tmp_path / "whole")


def test_a_full_disk_is_said_and_the_rest_resumes(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root rights")
    try:
        pool = index(folder_pool(tmp_path / "source", 120), small / "pool", shard_rows=4)
        with pytest.raises(DataError, match="disk is full"):
            score(pool.folder, [TINY], **OPTIONS)
        assert not list(pool.folder.rglob("*.part"))
        done = sum(part_path(pool, "tiny", s).is_file() for s in range(pool.shards))
        assert 0 < done < pool.shards
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        summary = score(pool.folder, [TINY], **OPTIONS)
        assert (summary.skipped, summary.shards) == (done, pool.shards - done)
        found = scores_of(pool.folder)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    pool = index(tmp_path / "source", tmp_path / "pool", shard_rows=4)
    score(pool.folder, [TINY], **OPTIONS)
    assert scores_of(pool.folder) == found


@pytest.mark.slow
def test_worker_processes_give_the_same_scores_and_one_that_dies_is_said(tmp_path):
    pool = index(folder_pool(tmp_path / "source", 40), tmp_path / "pool", shard_rows=5)
    score(pool.folder, [TINY, OTHER], **OPTIONS)
    expected = scores_of(pool.folder)
    shutil.rmtree(pool.folder / "scores")
    assert score(pool.folder, [TINY, OTHER], workers=2, **OPTIONS).shards == 8
    assert scores_of(pool.folder) == expected
    shutil.rmtree(pool.folder / "scores")
    with pytest.raises(DataError, match="worker process died"):
        score(
            pool.folder,
            [PoolModel("tiny", "pool_sample:deadly", "pillow-bilinear", 16)],
            workers=2,
            **OPTIONS,
        )
    shutil.rmtree(pool.folder / "scores" / "tiny")  # its code is another one
    score(pool.folder, [TINY, OTHER], **OPTIONS)
    assert scores_of(pool.folder) == expected


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    pool = index(folder_pool(tmp_path / "source", 60), tmp_path / "pool", shard_rows=2)
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from pfungst.pool import PoolModel, score\n"
        "if __name__ == '__main__':\n"
        f"    score({str(pool.folder)!r}, [PoolModel('tiny', 'pool_sample:slow', 'pillow-bilinear', 16)], workers=2,"
        " batch_size=1, device='cpu')\n"
    )
    (tmp_path / "job.py").write_text(code)
    job = subprocess.Popen(
        [sys.executable, str(tmp_path / "job.py")], env=os.environ | {"POOL_SAMPLE_WAIT": "0.3"}
    )
    until = time.monotonic() + 120
    while not part_path(pool, "tiny", 1).is_file() and time.monotonic() < until:
        time.sleep(0.1)
    children = [int(p) for p in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]
    assert len(children) >= 2
    job.kill()
    job.wait()

    def alive(child):
        with contextlib.suppress(OSError):
            return bool(Path(f"/proc/{child}/cmdline").read_bytes())

    until = time.monotonic() + 20
    while any(map(alive, children)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, children))
    assert (
        score(pool.folder, [PoolModel("tiny", "pool_sample:slow", "pillow-bilinear", 16)], **OPTIONS).skipped
        >= 2
    )


def test_pictures_of_more_than_8_bits_are_rows_with_an_error(tmp_path):
    """Regression: 12 bits in a file of 16 were shown to the model as 17 levels, and otherwise than in an audit."""
    source = folder_pool(tmp_path / "source", 6)
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 16).save(source / "deep.png")
    pool = index(source, tmp_path / "pool")
    assert score(pool.folder, [TINY], **OPTIONS).errors == {"tiny": 1}
    rows, _ = parts(pool, "tiny")
    assert [row["id"] for row in rows if "more than 8 bits" in (row["error"] or "")] == ["deep.png"]
