"""Factors by several processes, or on a cluster: the same bytes, after a kill too; errors as of one process."""

import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from pfungst.encoders import Encoder, Preprocessing, load
from pfungst.errors import DataError, InputError, PfungstWarning, UnreadableImages
from pfungst.relevance import Patches
from pfungst.similarity import Decomposition, SimilarityExplainer, explainer
from pool_sample import Together

SMALL = Preprocessing(16, "pillow-bilinear", (0.5,) * 3, (0.25,) * 3)
NET = """
from torch import nn
class Mine(nn.Sequential):
    pass
def mine():
    return Mine(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
"""


@pytest.fixture
def x():
    return torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def one_thread():
    """Bytes are compared: sums of several threads may differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def explaining(net, **options):
    encoder = net if isinstance(net, Encoder) else Encoder(net, SMALL)
    return SimilarityExplainer(encoder, basis=Patches(4), **options)


class Deadly(nn.Module):
    """Kills its process at a bright image, unless the environment forbids it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.parent = nn.Conv2d(3, 6, 3, bias=False), os.getpid()

    def forward(self, x):
        if float(x.mean()) > 1.9 and os.getpid() != self.parent and "SPARED" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.conv(x).relu().mean((2, 3))


def bare():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def test_processes_change_no_byte_also_of_a_class_that_only_a_file_defines(tmp_path, x, one_thread):
    (tmp_path / "mine.py").write_text(NET)
    ours = explaining(
        load(f"{tmp_path}/mine.py:mine", size=16), metric="cosine", sketch=Decomposition(1, checks=2)
    )
    (tmp_path / "mine.py").write_text("raise SystemExit  # what ran counts, not what the file says now")
    one, two = (ours.factor(x, 2, tmp_path / str(n), workers=n) for n in (0, 2))
    assert one.shape == (9, 8, 16)
    assert one.checks == two.checks == 2
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_a_killed_worker_is_named_and_the_same_call_goes_on_to_the_same_bytes(
    tmp_path, x, one_thread, monkeypatch
):
    ours = explaining(Deadly())
    x[5] = 1.0
    ours.factor(x, store=tmp_path / "whole")
    with pytest.raises(
        DataError, match=r"worker process died .* with \d shards to go.*\n.*same command again"
    ):
        ours.factor(x, store=tmp_path / "killed", workers=2)
    done = np.load(tmp_path / "killed" / "done.npy")
    assert done[0]
    assert not done[5]
    monkeypatch.setenv("SPARED", "1")
    real, here = ours._task, []
    monkeypatch.setattr(SimilarityExplainer, "_task", lambda s, t: here.extend(t[0]) or real(t))
    ours.factor(x, store=tmp_path / "killed", workers=2)
    assert here == [int(np.flatnonzero(~done)[0])]  # the others elsewhere
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_batches_lie_on_a_grid_whatever_was_done_before(tmp_path, x, monkeypatch):
    ours, batches = explaining(bare()), []
    real = ours._task
    monkeypatch.setattr(ours, "_task", lambda task: batches.append(task[0]) or real(task))
    ours.factor(x, 4, tmp_path)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    np.lib.format.open_memmap(tmp_path / "done.npy", "r+")[5] = False
    ours.factor(x, 4, tmp_path)
    assert batches[3:] == [[4, 5, 6, 7]]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_is_the_same_error(tmp_path, x, workers):
    x[4] = 0.5  # zero after normalisation
    with pytest.raises(
        InputError, match=r"^1 inputs have a representation of length zero\n.*metric='dot'"
    ) as found:
        explaining(bare(), metric="cosine").factor(x, store=tmp_path, workers=workers)
    assert (found.value.message[-4:], found.value.remedy) == ("zero", "use metric='dot'")


def test_what_cannot_be_sent_stays_with_a_warning(tmp_path, x):
    net = bare()
    net[0].own = lambda: None
    with pytest.warns(PfungstWarning, match="one process computes all of it; .*lambda"):
        factors = explaining(net).factor(x, store=tmp_path, workers=2)
    assert torch.equal(factors[8], explaining(net).factor(x)[8])


def test_processes_start_only_where_they_save_time(tmp_path, x, monkeypatch):
    counts = []

    def shards(make, todo, workers, device, threads, ray):
        counts.append((workers, threads))
        return map(make("cpu"), todo)

    monkeypatch.setattr(explainer, "shards", shards)
    monkeypatch.setattr(explainer, "available_memory", lambda: 64 << 30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for number, (least, workers) in enumerate([(20.0, "auto"), (0.0, "auto"), (20.0, 3)]):
        monkeypatch.setattr(explainer, "_START", least)
        explaining(bare()).factor(x, store=tmp_path / str(number), workers=workers)
    assert counts == [(0, 8), (4, 2), (3, 2)]


@pytest.mark.parametrize("error", [UnreadableImages([("a.png", "torn")]), DataError("torn", "mend it")])
def test_errors_are_whole_after_their_way_from_another_process(error):
    import pickle

    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_nodes_give_the_same_factors(tmp_path, ray, nodes, one_thread, killed):
    x = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = explaining(Together())
    ours.factor(x, 2, tmp_path / "here")

    def due():
        file = tmp_path / "there" / "done.npy"
        return file.is_file() and np.load(file).sum() >= 10

    killer = nodes.kill_when(due) if killed else None
    ours.factor(x, 2, tmp_path / "there", ray="auto")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert len(list((tmp_path / "nodes").iterdir())) == 2
    if killer is not None:
        killer.join(60)
        assert sum(node["Alive"] for node in ray.nodes()) == 1


@pytest.mark.slow
def test_an_error_on_a_cluster_is_the_same_error(tmp_path, x, ray):
    x[4] = 0.5
    with pytest.raises(InputError, match=r"^1 inputs have a representation of length zero\n.*metric='dot'"):
        explaining(bare(), metric="cosine").factor(x, store=tmp_path, ray="auto")
