"""Looks of whole images: measured against NumPy and SciPy, and proved on networks made by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.stats import norm
from torch import nn

from pfungst.measure.limits import APART, PARTED, PLACED
from pfungst.spurious import FeatureHead, Looked, NeuralPCA, Witness, evidence, two_groups
from pfungst.spurious.looks import LOOKS, at_place, measure, parted, parted_at, two_peaks

SIDE = 24


def pictures(n, seed, square=False, cast=()):
    """Grey pictures of their own brightness and slight tint; a bright square in the middle, a cast on rows."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.35, 0.6, (n, 1, 1, 1)) + rng.normal(0, 0.02, (n, 3, 1, 1))
    x = x + rng.normal(0, 0.03, (n, 3, SIDE, SIDE))
    if square:
        x[..., 9:15, 9:15] += 0.35
    x[list(cast), 0] += 0.25
    x[list(cast), 2] -= 0.25
    return torch.from_numpy(x.clip(0, 1)).float()


class Senses(nn.Module):
    """Two features: the square in the middle, and how much more red than blue there is."""

    def forward(self, x):
        square = x[..., 9:15, 9:15].mean((1, 2, 3)) - x.mean((1, 2, 3))
        return 10 * torch.stack([square, (x[:, 0] - x[:, 2]).mean((1, 2))], 1).relu()


def proofs(cast, seed, witnesses=0):
    """Evidence of both components of class 0, whose training images have the square, and a cast on some; the
    witnesses know the same."""
    net = nn.Sequential(Senses(), nn.Linear(2, 3)).eval()
    net[1].weight.data = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-0.2, 0.0]])
    net[1].bias.data = torch.tensor([-2.0, 0.0, 0.0])
    train = torch.cat(
        [pictures(120, seed, True, range(0, 120, 2) if cast == "half" else range(120 * (cast == "all")))]
    )
    others, val = pictures(120, seed + 1), pictures(24, seed + 2, True, range(24))
    x, y = torch.cat([train, others]), [0] * 120 + [1] * 60 + [2] * 60
    head = FeatureHead(net, example=x[:2])
    with torch.no_grad():
        npca = NeuralPCA(2).fit(head, head.features(x), y)
        alpha = npca.alpha(train, 0).double().numpy()
    looked = Looked(measure(train), measure(others), alpha)
    return npca, evidence(
        npca, 0, [0, 1], val, pictures(60, seed + 3), [Witness(net, 0)] * witnesses, looked=looked
    )


def test_a_cast_on_half_of_a_class_is_proved_by_giving_it_to_other_classes():
    npca, found = proofs("half", 0)
    best = max(found, key=lambda e: e.rank)
    assert best.word == "spurious", best.reason
    assert best.how == "colours"
    assert best.parted >= PARTED
    assert best.flips[0] > best.flips[1]
    assert "a look (colours) given to other images carries" in best.reason
    assert npca.components_[0][best.component].abs().argmax() == 1  # the one that reads red
    other = next(e for e in found if e is not best)
    assert other.word != "spurious"  # what the class rises by does not go through the square


def test_the_colour_that_all_images_of_a_clean_class_have_is_not_called():
    _, found = proofs("all", 0)
    assert all(
        e.how == "region" and e.parted == 0 and e.placed < PLACED for e in found
    )  # one group: no look is tried
    _, found = proofs("all", 0, witnesses=2)
    assert not any(e.word == "spurious" for e in found)


def test_a_look_parts_a_class_only_where_two_groups_have_it_and_other_classes_do_not():
    rng = np.random.default_rng(0)
    plain = lambda n: rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], n)
    others, own = plain(300), plain(200)
    assert parted(own, others, own @ [1, -1]).value < PARTED / 2  # it varies as other classes do
    own[:100, 0] += 2  # far across what varies together
    alpha = np.r_[np.ones(100), np.zeros(100)] + rng.normal(0, 0.5, 200)
    found = parted(own, others, alpha)
    assert found.value > 2 * PARTED
    np.testing.assert_allclose(found.change, [2, 0], atol=0.4)
    others[:150, 0] += 2
    assert parted(own, others, alpha).value < PARTED
    assert parted(np.zeros((50, 2)), others, np.arange(50.0)).value == 0


def test_the_object_in_the_middle_parts_no_class_by_its_colour():
    own, others = pictures(120, 0, True), pictures(120, 1)
    own[::2, 0, 9:15, 9:15] += 0.2
    own[1::2, 1, 9:15, 9:15] += 0.2
    alpha = np.tile([1.0, 0.0], 60)
    values = [parted(measure(own)[of], measure(others)[of], alpha).value for of in ("levels", "energies")]
    assert max(values) < PARTED


@pytest.mark.parametrize(
    ("shape", "found"), [("same", True), ("in all", False), ("elsewhere", False), ("others too", False)]
)
def test_what_is_in_one_place_of_some_images_parts_the_class(shape, found):
    """A corner mark whose α is spread evenly: α has no two groups, the pixels of its place do."""
    rng = np.random.default_rng(0)
    own, others = pictures(120, 0, True), pictures(240, 1)
    has = np.arange(120) % 2 == 0
    for i in np.flatnonzero(has | (shape == "in all")):
        y, x = rng.integers(0, 18, 2) if shape == "elsewhere" else (1, 18)
        own[i, 0, y : y + 5, x : x + 5] = 0.9
    if shape == "others too":
        others[::2, 0, 1:6, 18:23] = 0.9
    alpha = rng.uniform(0, 1, 120) + 0.3 * has
    heat = torch.zeros(SIDE, SIDE)
    heat[1:6, 18:23] = 1
    assert two_groups(alpha) < APART
    value = parted_at(measure(own)["pixels"], measure(others)["pixels"], alpha, heat)
    assert (value >= PLACED) is found, value


class Marked(nn.Module):
    """One feature: red at a place in the middle and, as much, brightness at the left."""

    def forward(self, x):
        found = x[:, 0, 9:14, 12:17].mean((1, 2)) + 2 * x[..., 4:20, 1:4].mean((1, 2, 3))
        return torch.stack([found, x.mean((1, 2, 3))], 1)


def test_a_mark_whose_alpha_is_spread_evenly_is_called():
    """Regression: corner marks and watermarks that carried all of a class were first of the ranking and not called."""

    def made(n, seed, marked=slice(0)):
        x, rng = pictures(n, seed), np.random.default_rng(seed)
        left = rng.uniform(0.2, 0.8, (n, 1, 1, 1)) + rng.normal(0, 0.03, (n, 3, 16, 3))
        x[:, :, 4:20, 1:4] = torch.from_numpy(left).float()
        x[marked, 0, 9:14, 12:17] = 0.9
        return x.clamp(0, 1)

    net = nn.Sequential(Marked(), nn.Linear(2, 3)).eval()
    net[1].weight.data = torch.tensor([[6.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    net[1].bias.data = torch.tensor([-10.0, 0.0, 0.0])
    train, others = made(160, 0, slice(0, None, 2)), made(200, 1)
    head = FeatureHead(net, example=train[:2])
    with torch.no_grad():
        x, y = torch.cat([train, others]), [0] * 160 + [1] * 100 + [2] * 100
        npca = NeuralPCA(1).fit(head, head.features(x), y)
        alpha = npca.alpha(train, 0).double().numpy()
    apart = [two_groups(alpha[:, 0])]
    tried = lambda looked: evidence(
        npca, 0, [0], made(24, 2, slice(None)), made(60, 3), apart=apart, looked=looked
    )[0]
    before, now = tried(None), tried(Looked(measure(train), measure(others), alpha))
    assert before.word == "unclear"
    assert "so the region may be the object" in before.reason
    assert now.word == "spurious", now.reason
    assert apart[0] < APART
    assert now.parted < PARTED
    assert now.placed >= PLACED


def test_a_place_is_the_strongest_cells_of_its_map():
    x = torch.rand(3, 3, 64, 96)
    heat = torch.zeros(64, 96)
    heat[:8, :12] = torch.rand(8, 12) + 1  # 4 by 4 cells of 2 by 3 pixels
    heat[56:, 84:] = torch.rand(8, 12) + 3
    found = at_place(measure(x)["pixels"], heat).reshape(3, 3, 32)
    cells = x.reshape(3, 3, 32, 2, 32, 3).mean((3, 5))
    expected = torch.cat([cells[..., :4, :4].flatten(2), cells[..., 28:, 28:].flatten(2)], 2)
    np.testing.assert_allclose(np.sort(found, 2), np.sort(expected.numpy(), 2), atol=1e-6)


@pytest.mark.parametrize("distance", [2.5, 3.0, 4.0])
def test_two_peaks_of_two_bells_are_as_far_apart_as_they_are(distance):
    bell = norm.ppf((np.arange(400) + 0.5) / 400)
    two = np.concatenate([bell, bell + distance])
    expected = np.sqrt((distance**2 - 4) / (distance**2 + 4))
    assert two_peaks(two) == pytest.approx(expected, abs=0.03)
    assert two_peaks(bell) < 0.05
    assert two_peaks(np.ones(9)) == 0


def test_levels_are_numpys_quantiles_outside_the_middle_and_energies_scipys():
    x = torch.rand(2, 3, 60, 60, generator=torch.Generator().manual_seed(0))
    outside = np.ones((60, 60), bool)
    outside[9:51, 9:51] = False
    found, images = measure(x), x.double().numpy()
    expected = np.quantile(images[..., outside], [0, 0.05, 0.5, 0.95, 1], axis=-1)
    np.testing.assert_allclose(found["levels"].reshape(2, 3, 5), np.moveaxis(expected, 0, -1), atol=1e-6)
    corners = np.stack(
        [images[..., y, z] for y in (slice(10), slice(-10, None)) for z in (slice(10), slice(-10, None))]
    )
    smooth = [corners]
    for sigma, radius in ((0.6, 2), (1.2, 4), (2.4, 7), (4.8, 9)):
        one = gaussian_filter1d(corners, sigma, axis=-1, mode="mirror", radius=radius)
        smooth.append(gaussian_filter1d(one, sigma, axis=-2, mode="mirror", radius=radius))
    power = [((a - b) ** 2).mean((0, 2, 3, 4)) for a, b in pairwise(smooth)]
    np.testing.assert_allclose(found["energies"], np.log(power).T / 2, atol=1e-4)


def test_changes_change_what_they_say():
    x = 0.3 + 0.3 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    looks = {look.name: look for look in LOOKS}
    for look in LOOKS:
        nothing = np.zeros(measure(x)[look.of].shape[1])
        torch.testing.assert_close(look.change(x, nothing), x)
    by = np.tile([0.1, 0, 0, 0, 0.05], 3)
    warm = looks["colours"].change(x, by)
    torch.testing.assert_close(warm.amin((2, 3)), x.amin((2, 3)) + 0.1)
    torch.testing.assert_close(warm.amax((2, 3)), x.amax((2, 3)) + 0.05)
    soft = looks["sharpness"].change(x, np.array([-2.0, 0, 0, 0]))
    assert (measure(soft)["energies"][:, 0] < measure(x)["energies"][:, 0] - 0.7).all()
    grainy = looks["noise"].change(x, np.full(4, 0.5))
    rise = measure(grainy)["energies"] - measure(x)["energies"]
    np.testing.assert_allclose(rise.mean(0), 0.5, atol=0.2)
    torch.testing.assert_close(looks["noise"].change(x, np.full(4, -1.0)), x)  # noise is not taken away
