import json

import numpy as np
import pytest
import torch

from pfungst.errors import DataError, InputError
from pfungst.pool import PoolModel, direction, index, read_component, score
from pfungst.pool.component import model_of
from pfungst.spurious import FeatureHead, NeuralPCA
from pool_sample import Tiny, folder_pool, other, tiny


@pytest.fixture(scope="module")
def npca():
    head = FeatureHead(Tiny(0), example=torch.rand(2, 3, 16, 16))
    phi = torch.rand(60, 8, generator=torch.Generator().manual_seed(3))
    return NeuralPCA(n_components=4).fit(head, phi, torch.arange(60) % 3)


@pytest.fixture
def audit(npca, tmp_path):
    """The files of a classifier audit that the pool reads."""
    folder = tmp_path / "audit"
    npca.save(folder / "npca")
    entries = [{"index": 1, "name": "cat"}, {"index": 2, "name": "0"}]
    (folder / "result.json").write_text(json.dumps({"entries": entries}))
    return folder


def test_a_component_by_name_or_index(npca, audit):
    for source, text in ((audit, "cat"), (audit, "1"), (audit / "npca", "1")):
        found = read_component(source, text, 2)
        wanted = direction(npca, 1, 2)
        assert (found.direction.class_index, found.direction.component) == (1, 2)
        np.testing.assert_allclose(found.direction.d, wanted.d, rtol=1e-6)
        assert found.direction.head_sha256 == npca.model_fingerprint_["head_sha256"]
        assert found.class_name == ("cat" if source == audit else "class 1")
    # A class that is called like another's index is meant by its name.
    assert read_component(audit, "0", 0).direction.class_index == 2


def test_what_is_not_there_is_said(audit, tmp_path):
    with pytest.raises(DataError, match="give the --out of `pfungst audit classifier`"):
        read_component(tmp_path, "cat", 0)
    with pytest.raises(InputError, match=r"no class 'dog'\n.*known: cat, 0"):
        read_component(audit, "dog", 0)
    with pytest.raises(InputError, match="class 1 has no component 4"):
        read_component(audit, "cat", 4)
    with pytest.raises(InputError, match="cannot be read"):
        read_component(tmp_path / "absent", "1", 0)


def test_the_audited_model_is_found_among_those_that_scored(npca, audit, tmp_path):
    pool = index(folder_pool(tmp_path / "source", 6), tmp_path / "pool")
    wanted = read_component(audit, "cat", 0).direction
    score(pool.folder, [PoolModel("other", other, None, 16)], device="cpu")
    with pytest.raises(DataError, match=r"\(other\) 0 have the head"):
        model_of(pool, wanted)
    score(pool.folder, [PoolModel("mine", tiny, None, 16)], device="cpu")
    assert model_of(pool, wanted) == "mine"
    score(pool.folder, [PoolModel("larger", tiny, None, 24)], device="cpu")
    with pytest.raises(DataError, match=r"2 have the head .*\n.*--model"):
        model_of(pool, wanted)
