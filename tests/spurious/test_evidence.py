"""Evidence by intervention: against hand-made networks, and on networks trained with and without a planted mark."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from sklearn.datasets import load_digits
from torch import nn

from pfungst.errors import InputError
from pfungst.measure import Interval
from pfungst.spurious import (
    Evidence,
    FeatureHead,
    NeuralPCA,
    Witness,
    correct,
    evidence,
    paper_rule,
    two_groups,
    visualise,
)
from pfungst.spurious.evidence import region, relevance
from pfungst.spurious.inpaint import gaussian, inpaint, soften
from spurious_toys import small_net

MARKED = 3


def network(x, y, seed, epochs=15):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimiser.step()
    return net.eval()


def digits(mark):
    """Digits in the middle of 16 × 16 images; a white corner in half of those of class 3."""
    data = load_digits()
    x = nn.functional.pad(torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, (4, 4, 4, 4))
    y = torch.tensor(data.target)
    if mark:
        chosen = torch.nonzero(y == MARKED)[:, 0][::2]
        x[chosen, :, 1:4, 1:4] = 1
    return x[:1200], y[:1200], x[1200:], y[1200:]


def tried(net, witnesses, x, y, x2, y2, classes, seed=0):
    """Evidence of each component of these classes, p corrected within each class."""
    head = FeatureHead(net, example=x[:2])
    with torch.no_grad():
        npca = NeuralPCA(4).fit(head, head.features(x), y)
    found = []
    for k in classes:
        own, rest = x2[y2 == k], x2[y2 != k]
        found += evidence(
            npca, k, range(4), own, rest, [Witness(w, k) for w in witnesses], batch_size=64, seed=seed
        )
    return found


def test_a_planted_mark_is_spurious_and_clean_networks_have_nothing():
    clean = digits(False)
    witnesses = [network(*clean[:2], seed=seed) for seed in (1000, 1001)]
    marked = digits(True)
    found = tried(network(*marked[:2], seed=2), witnesses, *marked, [MARKED])
    best = max(found, key=lambda e: e.rank)
    assert best.word == "spurious", best.reason
    assert best.flips[0] > best.flips[1]
    assert best.retained.value > 0.9
    assert "off the object" in best.reason
    for seed in range(2):
        found = correct(tried(network(*clean[:2], seed=seed), witnesses, *clean, range(0, 10, 3), seed))
        assert [e for e in found if e.word == "spurious"] == []


def test_relevance_is_captums_integrated_gradients():
    net = small_net()
    x = torch.rand(3, 3, 12, 12)
    ours = relevance(lambda z: net(z)[:, 1], x, steps=6)
    theirs = IntegratedGradients(net).attribute(
        x, gaussian(x, 12 / 16), target=1, n_steps=6, method="riemann_middle"
    )
    torch.testing.assert_close(ours, gaussian(theirs.sum(1, keepdim=True), 12 / 32)[:, 0].float())


def test_region_by_hand():
    heat = torch.tensor([[[4.0, 3.0], [2.0, -9.0]]])
    assert region(heat, 0.5, 1.0).tolist() == [[[1, 1], [0, 0]]]
    assert region(heat, 0.4, 1.0).tolist() == [[[1, 0], [0, 0]]]
    assert region(heat, 1.0, 0.5).sum() == 2
    assert region(-heat.clamp_min(0), 0.5).sum() == 0


def test_blur_and_inpainting():
    from scipy.ndimage import gaussian_filter

    x = torch.rand(1, 1, 20, 20)
    expected = gaussian_filter(x[0, 0].numpy(), 2.0, mode="mirror", radius=6)
    np.testing.assert_allclose(gaussian(x, 2.0)[0, 0].numpy(), expected, atol=1e-5)
    flat, mask = torch.full((2, 3, 13, 17), 0.3), torch.zeros(2, 13, 17)
    mask[:, 2:9, 3:12] = 1
    spoilt = flat.clone()
    spoilt[:, :, 2:9, 3:12] = 1
    torch.testing.assert_close(inpaint(spoilt, mask), flat)
    noise = torch.rand(2, 3, 13, 17)
    kept = inpaint(noise, soften(mask))
    torch.testing.assert_close(kept[:, :, 12:, 15:], noise[:, :, 12:, 15:])


def made(p=0.001, low=0.5, retained=0.8, necessity=(1.0, 1.0, 1.0)):
    falls = tuple(Interval(n, n - 0.1, n + 0.1) for n in necessity)
    rise = Interval(low + 0.5, low, low + 1)
    return Evidence(
        0, 1, (0,), 1.0, falls, (rise, rise), rise, (0.4, 0.1), Interval(0.9, retained, 1.0), p, p
    )


def test_words_and_holm():
    assert made().word == "spurious"
    assert made(retained=0.4).word == "unclear"  # the class goes with the region
    assert "may be the object" in made(retained=0.4).reason
    assert "models share" in made(p=0.2).reason
    assert made(low=-0.1).word == "core"
    assert "each of 3 models" in made(low=-0.1).reason
    assert made(low=-0.1, necessity=(1.0, -1.0)).word == "unclear"
    assert made(low=-0.1, necessity=(0.0,)).word == "unclear"
    assert made(necessity=(1.0, 1.0)).word == "unclear"
    assert "fewer than 2 witnesses" in made(necessity=(1.0, 1.0)).reason
    assert "no proof either way" in made(low=-0.1, necessity=(0.0,)).reason
    many = correct([made(p) for p in (0.01, 0.04, 0.03, 0.005)])
    assert [e.corrected for e in many] == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as R's p.adjust("holm")
    assert correct([replace(made(), p=0.9)])[0].word == "unclear"
    assert [e.corrected for e in correct(many)] == [e.corrected for e in many]


def test_without_witnesses_the_labels_or_the_model_itself_must_show_that_it_is_not_the_object():
    alone = made(necessity=(1.0,), low=0.3, retained=0.0)
    assert alone.word == "unclear"
    grouped = replace(alone, apart=0.5)
    assert grouped.beside == pytest.approx(0.5 * 0.8**0.5)
    assert grouped.word == "spurious"
    assert "images with it and images without" in grouped.reason
    assert replace(grouped, corrected=0.2).word == "unclear"  # groups alone prove nothing
    assert made(necessity=(1.0,), low=0.3, retained=0.8).word == "unclear"
    assert (
        made(necessity=(1.0,), low=0.5, retained=0.8).word == "spurious"
    )  # the model itself still knows the class
    assert made(necessity=(1.0, 1.0), low=0.5, retained=0.8).word == "unclear"
    assert grouped.rank > alone.rank


def test_two_groups_by_hand():
    assert two_groups(np.zeros(50)) == 0
    assert two_groups(np.repeat([0.0, 2.0], 50)) == pytest.approx(1 - np.exp(-2))
    rng = np.random.default_rng(0)
    assert two_groups(rng.normal(size=500)) == 0
    assert (
        np.mean([two_groups(10 * rng.random(60)) > 0.1 for _ in range(200)]) <= 0.09
    )  # flat is no two groups


def test_the_papers_rule_is_the_confidence_of_visualisations():
    net = small_net()
    x, y = torch.rand(30, 3, 12, 12), [i % 5 for i in range(30)]
    head = FeatureHead(net, example=x[:2])
    npca = NeuralPCA(4).fit(head, head.features(x).detach(), y)
    shown = visualise(npca, [(2, c) for c in range(4)], (3, 12, 12), steps=5)
    expected = shown.confidence.argsort(descending=True, stable=True)[:3].tolist()
    assert paper_rule(npca, 2, 3, shape=(3, 12, 12), steps=5) == expected


def test_evidence_needs_images_and_a_model():
    net = small_net()
    x = torch.rand(30, 3, 12, 12)
    head = FeatureHead(net, example=x[:2])
    npca = NeuralPCA(2).fit(head, head.features(x).detach(), [i % 5 for i in range(30)])
    with pytest.raises(InputError, match="5 images of the class"):
        evidence(npca, 0, [0], x[:5], x)
    with pytest.raises(InputError, match="no component 7"):
        evidence(npca, 0, [7], x[:6], x)
    npca._model = None
    with pytest.raises(InputError, match="no model"):
        evidence(npca, 0, [0], x, x)
