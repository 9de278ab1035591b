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


def test_the_dot_product_is_explained_where_it_is_asked_for(tmp_path):
    """The pair of highest product of representations, found by loops, and values that sum to it, as the page says."""
    from pfungst.report import write

    data = mini_images(tmp_path / "data")
    options = {"encoder": "small:4", "seeds": 1, "groups": "none", "explain": 6, "size": 16, "patches": 4}
    made = config(data, tmp_path / "out", metric="dot", **options)
    result = similarity.run(made)
    (images,) = open_images(data)
    mine = [item for item in images.items if item.label == "a"]
    encoder = load_encoder("small:4", size=16)
    x = ImageSet("a", mine).prepare(encoder.preprocessing.condition, 16).images
    phi = encoder.encode(x).double().numpy()
    units = [item.groups["patient"] for item in mine]
    products = {
        (mine[i].id, mine[j].id): float(sum(p * q for p, q in zip(phi[i], phi[j], strict=True)))
        for i in range(len(mine))
        for j in range(i + 1, len(mine))
        if units[i] != units[j]
    }
    best = max(products, key=products.get)
    pair = next(p for p in result.pairs if p.title == "a")
    assert (pair.first, pair.second) == best
    assert pair.similarity == pytest.approx(products[best], rel=1e-4)
    assert result.conservation < 1e-4
    page = write(tmp_path / "out", result).read_text()
    assert "dot product" in page
    assert "BiLRP of the dot product" in " ".join(result.notes)
    assert "cosine similarity" not in page


def test_unknown_rules_are_refused_before_anything_is_loaded(tmp_path):
    data = mini_images(tmp_path / "data")
    with pytest.raises(ConfigError, match="paper_resnett"):
        similarity.run(config(data, tmp_path / "out", encoder="small:4", composite="paper_resnett"))
