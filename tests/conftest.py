import gc
import os
import threading
import time
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_finish(session):
    """What importing and collecting made stays: looking through it again and again took 4 % of the time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and goldens that lies beside the project; tests that need it skip without it."""
    root = Path(os.environ.get("PFUNGST_SHARED", Path(__file__).parents[2] / "shared"))
    if not root.is_dir():
        pytest.skip(f"needs the shared data folder, not found at {root} (set PFUNGST_SHARED)")
    return root


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"


NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.fixture
def ray(monkeypatch, tmp_path):
    """Ray with workers that find our modules, and whatever it started stopped afterwards."""
    ray = pytest.importorskip("ray")
    tests = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent / "src"), str(tests)]))
    monkeypatch.setenv("POOL_SAMPLE_NODES", str(tmp_path / "nodes"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield ray
    ray.shutdown()


class Nodes:
    """A local Ray cluster of two nodes, one of which can be killed; this process is connected to it."""

    def __init__(self, ray):
        cluster = pytest.importorskip("ray.cluster_utils").Cluster
        self.cluster = cluster(initialize_head=True, head_node_args=NODE)
        self.second = self.cluster.add_node(**NODE)
        self.cluster.wait_for_nodes()
        ray.init(address=self.cluster.address, log_to_driver=False)

    def kill_when(self, due):
        """Kill the second node as soon as `due()`; returns the thread that waits for it."""

        def kill():
            while not due():
                time.sleep(0.02)
            self.cluster.remove_node(self.second, allow_graceful=False)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        return killer


@pytest.fixture
def nodes(ray):
    nodes = Nodes(ray)
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()
