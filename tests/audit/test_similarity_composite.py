"""The rules of the explanation on the command line: those of the encoder's engine, and refused early."""

import numpy as np
import pytest

import pfungst.audit.similarity.run as similarity
from pfungst.data import ImageSet, open_images
from pfungst.encoders import load as load_encoder
from pfungst.errors import ConfigError
from pfungst.relevance import Patches
from pfungst.similarity import SimilarityExplainer
from similarity_factory import config, mini_images


def test_pairs_are_explained_by_the_rules_that_were_asked_for(tmp_path):
    data = mini_images(tmp_path / "data")
    options = {
        "encoder": "small:4",
        "seeds": 1,
        "groups": "none",
        "explain": 6,
        "size": 16,
        "patches": 4,
        "rank": 0,
    }
    result = similarity.run(config(data, tmp_path / "out", composite="epsilon_plus", **options))
    assert "epsilon_plus" in result.composite
    (images,) = open_images(data)
    items = {item.id: item for item in images.items}
    pair = result.pairs[0]
    encoder = load_encoder("small:4", size=16)
    x = (
        ImageSet("two", [items[pair.first], items[pair.second]])
        .prepare(encoder.preprocessing.condition, 16)
        .images
    )
    found = {}
    for name in ("epsilon_plus", "auto"):
        explainer = SimilarityExplainer(encoder, basis=Patches(4), metric="cosine", composite=name)
        factors = explainer.factor(x)
        found[name] = explainer.pair((factors, 0), (factors, 1)).values[0].numpy()
    ours = np.load(tmp_path / "out" / result.arrays)[pair.array]
    np.testing.assert_allclose(ours, found["epsilon_plus"], atol=1e-5)
    assert not np.allclose(found["auto"], found["epsilon_plus"], atol=1e-4)


def test_unknown_rules_are_refused_before_anything_is_loaded(tmp_path):
    data = mini_images(tmp_path / "data")
    with pytest.raises(ConfigError, match="paper_resnett"):
        similarity.run(config(data, tmp_path / "out", encoder="small:4", composite="paper_resnett"))
