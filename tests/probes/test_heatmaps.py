import pytest
import torch

from pfungst.encoders import load
from pfungst.errors import InputError
from pfungst.probes import LinearSVM, LogisticRegression, explain_probe
from pfungst.relevance import Patches


@pytest.fixture(scope="module")
def setting():
    """Images of class b have a bright red corner; everything else is noise."""
    encoder = load("small:8", size=16, seed=0)
    x = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.3
    y = ["a", "b"] * 20
    x[1::2, 0, :4, :4] = 1.0
    return encoder, x, y


@pytest.mark.parametrize("probe", [LinearSVM(C=1.0), LogisticRegression(C=100.0, fit_intercept=True)])
def test_finds_what_the_probe_reads(setting, probe):
    encoder, x, y = setting
    probe = probe.fit(encoder.encode(x), y)
    r = explain_probe(probe, encoder, x, target="b", basis=Patches(4), batch_size=7)
    decision = torch.as_tensor(probe.decision_function(encoder.encode(x)))
    torch.testing.assert_close(r.score.double(), decision.double(), rtol=1e-3, atol=1e-3)
    assert r.conservation_error().max() < 1e-2
    means = [r.values[first::2].mean(0) for first in (0, 1)]
    assert (means[1] - means[0]).flatten().argmax() == 0
    other = explain_probe(probe, encoder, x[:3], target=["a"] * 3, basis=Patches(4))
    torch.testing.assert_close(other.score, -r.score[:3], rtol=1e-3, atol=1e-3)
    predicted = explain_probe(probe, encoder, x, basis=Patches(4))
    assert (predicted.score > 0).all()


def test_bad_targets(setting):
    encoder, x, y = setting
    probe = LogisticRegression().fit(encoder.encode(x), y)
    with pytest.raises(InputError, match="no class 'c'"):
        explain_probe(probe, encoder, x, target="c")
    with pytest.raises(InputError, match="2 labels for 40"):
        explain_probe(probe, encoder, x, target=["a", "b"])
