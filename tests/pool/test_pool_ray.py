"""Scoring on a local cluster of two nodes, one of which is killed in the middle."""

import os
import threading
import time
from pathlib import Path

import pytest

from pfungst.pool import PoolModel, index, score, score_on_ray
from pfungst.pool.score import part_path
from pool_sample import folder_pool, scores_of

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytest.importorskip("pfungst.spurious")
pytest.importorskip("pfungst.conditions")
pytest.importorskip("pfungst.data")

ROOT = Path(__file__).parents[2]
MODELS = [
    PoolModel("tiny", "pool_sample:slow", "pillow-bilinear", 16),
    PoolModel("other", "pool_sample:other", "opencv-nearest", 16),
]


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False},
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_node_that_dies_changes_nothing(tmp_path, cluster):
    source = folder_pool(tmp_path / "source", 160, bad=(9,))
    for name in ("here", "ray"):
        index(source, tmp_path / name, shard_rows=4)
    score(tmp_path / "here", MODELS, batch_size=4, device="cpu")
    second = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    pool = index(source, tmp_path / "ray", shard_rows=4)
    at_death = []

    def kill():
        while True:
            done = sum(part_path(pool, "tiny", s).is_file() for s in range(pool.shards))
            if done >= 8:
                break
            time.sleep(0.02)
        at_death.append(done)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = score_on_ray(tmp_path / "ray", MODELS, batch_size=4)
    killer.join(60)
    assert 8 <= at_death[0] < pool.shards
    assert summary.errors == {"tiny": 1, "other": 1}
    assert scores_of(tmp_path / "ray") == scores_of(tmp_path / "here")
    # Nothing is left to do, with and without a cluster.
    assert score_on_ray(tmp_path / "ray", MODELS).shards == 0
    assert score(tmp_path / "ray", MODELS, device="cpu").shards == 0
