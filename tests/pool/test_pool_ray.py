"""Scoring on Ray: on one machine, and on a local cluster of two nodes, one of which is killed in the middle."""

import pytest

from pfungst.errors import DataError, InputError
from pfungst.pool import PoolModel, index, score
from pfungst.pool.parts import part_path
from pool_sample import folder_pool, scores_of

MODELS = [
    PoolModel("tiny", "pool_sample:tiny", "pillow-bilinear", 16),
    PoolModel("other", "pool_sample:other", "opencv-nearest", 16),
]
OPTIONS = {"batch_size": 4, "device": "cpu", "threads": 1}


def pools(root, count, shard_rows, bad=()):
    source = folder_pool(root / "source", count, bad)
    return [index(source, root / name, shard_rows=shard_rows) for name in ("here", "ray")]


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pfungst.features.workers.find_spec", lambda name: None)
    pool = index(folder_pool(tmp_path / "source", 2), tmp_path / "pool")
    with pytest.raises(InputError, match=r"pfungst\[ray\]"):
        score(pool.folder, MODELS, ray="auto", **OPTIONS)


@pytest.mark.slow
def test_a_cluster_of_its_own_gives_the_same_scores(tmp_path, ray):
    here, there = pools(tmp_path, 24, 8, bad=(9,))
    score(here.folder, MODELS, **OPTIONS)
    steps = []
    summary = score(there.folder, MODELS, ray="auto", progress=lambda *a: steps.append(a), **OPTIONS)
    assert not ray.is_initialized()  # what score started, it stopped
    assert summary.errors == {"tiny": 1, "other": 1}
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert scores_of(there.folder) == scores_of(here.folder)
    # Nothing is left to do, and Ray is not even started for it.
    assert score(there.folder, MODELS, ray="127.0.0.1:1", **OPTIONS).shards == 0


@pytest.mark.slow
def test_a_node_that_dies_changes_nothing(tmp_path, ray, nodes):
    here, there = pools(tmp_path, 120, 4, bad=(9,))
    together = [PoolModel("tiny", "pool_sample:together", "pillow-bilinear", 16), MODELS[1]]
    score(here.folder, together, **OPTIONS)
    done_at_death = []

    def done():
        return sum(part_path(there, "tiny", s).is_file() for s in range(there.shards))

    def due():
        # No part is finished before both nodes have loaded the models; from then on both are amid a shard.
        done_at_death[:] = [done()]
        return done_at_death[0] >= 6

    killer = nodes.kill_when(due)
    summary = score(there.folder, together, ray="auto", **OPTIONS)
    killer.join(60)
    assert len(list((tmp_path / "nodes").iterdir())) == 2
    assert 6 <= done_at_death[0] < there.shards - 10
    assert sum(node["Alive"] for node in ray.nodes()) == 1
    assert summary.errors == {"tiny": 1, "other": 1}
    assert scores_of(there.folder) == scores_of(here.folder)
    assert score(there.folder, together, ray="auto", **OPTIONS).shards == 0


def test_an_address_without_a_cluster_is_said(tmp_path, ray):
    pool = index(folder_pool(tmp_path / "source", 2), tmp_path / "pool")
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused"):
        score(pool.folder, MODELS, ray="127.0.0.1:1", **OPTIONS)


@pytest.mark.slow
def test_an_image_that_kills_workers_ends_the_job_with_a_message(tmp_path, ray):
    pool = index(folder_pool(tmp_path / "source", 24), tmp_path / "pool", shard_rows=24)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    deadly = PoolModel("tiny", "pool_sample:deadly", "pillow-bilinear", 16)
    with pytest.raises(DataError, match=r"Ray gave up with \d shards to go"):
        score(pool.folder, [deadly], ray="auto", **OPTIONS)
    assert ray.is_initialized()  # a connection of the caller stays
