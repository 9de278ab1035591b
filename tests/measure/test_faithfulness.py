"""Faithfulness by hand on models whose best order is known, and baselines against captum."""

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import nn

from pfungst.errors import InputError
from pfungst.measure.faithfulness import (
    Flipping,
    faithfulness,
    gradient_times_input,
    integrated_gradients,
    random_maps,
    randomised,
    weight_randomisation,
)

SIDE, PATCH = 12, 3  # 16 patches


def linear(seed=0, n=12):
    """A linear score, images, and the exact contribution (N, H, W) of each pixel against the image's mean."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(2, SIDE, SIDE, generator=g, dtype=torch.float64)
    x = torch.rand(n, 2, SIDE, SIDE, generator=g, dtype=torch.float64)
    exact = (w * (x - x.mean((2, 3), keepdim=True))).sum(1)
    return (lambda z: (w * z).sum((1, 2, 3))), x, exact


def per_patch(maps):
    k = SIDE // PATCH
    return np.asarray(maps).reshape(-1, k, PATCH, k, PATCH).sum((2, 4)).reshape(-1, k * k)


def area(curve):
    return ((curve[:, 1:] + curve[:, :-1]) / 2).mean(1)


def test_areas_of_a_linear_model_are_those_by_hand():
    score, x, exact = linear()
    found = faithfulness(score, x, exact, patch=PATCH, fill="mean", steps=16)
    gain = -np.sort(-per_patch(exact), axis=1)  # most relevant first
    start = score(x).numpy()[:, None]
    most = np.hstack([start, start - gain.cumsum(1)])
    least = np.hstack([start, start - gain[:, ::-1].cumsum(1)])
    assert found.deletion == pytest.approx(area(most).mean())
    np.testing.assert_allclose(found.curves[0], most.mean(0))
    np.testing.assert_allclose(found.gaps, (area(least) - area(most)) / 2)
    assert found.value == pytest.approx(found.gaps.mean() / found.ranges.mean())
    assert found.most.value + found.least.value == pytest.approx(found.value)
    # insertion: into the image where all is replaced, most relevant first; forwards it is least relevant first backwards
    insertion = np.hstack([most[:, -1:], most[:, -1:] + gain.cumsum(1)])
    assert found.insertion == pytest.approx(area(insertion).mean())
    assert found.beats_random
    assert "beats a random order" in str(found)


def test_no_order_is_better_than_the_exact_one_and_the_reverse_is_its_opposite():
    score, x, exact = linear()
    flipping = Flipping(score, x, patch=PATCH, fill="mean", steps=16)
    best = flipping.of(exact)
    worse = flipping.of(exact + 0.3 * torch.randn_like(exact))
    reverse = flipping.of(-exact)
    assert (best.gaps >= worse.gaps - 1e-12).all()
    np.testing.assert_allclose(reverse.gaps, -best.gaps)
    assert not reverse.beats_random
    assert "worse than a random order" in str(reverse)
    assert best.over(worse).low > 0
    with pytest.raises(InputError, match="not measured together"):
        best.over(Flipping(score, x, patch=4, fill="mean").of(exact))


def test_a_map_that_knows_nothing_does_not_beat_random():
    found = []
    for seed in range(60):
        score, x, _ = linear(seed)
        found.append(faithfulness(score, x, random_maps(x, seed + 1000), patch=PATCH, fill="mean", seed=seed))
    assert sum(f.beats_random for f in found) <= 5  # 2.5 % by design; P(more than 5 of 60) < 1 % at 3.5 %
    assert abs(np.mean([f.value for f in found])) < 0.01
    assert any("does not beat a random order" in str(f) for f in found)


def test_a_constant_map_is_ordered_at_random_not_by_position():
    weight = torch.zeros(1, SIDE, SIDE)
    weight[:, : SIDE // 2] = 1.0  # all that counts is on top

    def score(z):
        return (weight * z).sum((1, 2, 3))

    x = torch.rand(24, 1, SIDE, SIDE) + torch.linspace(2, 0, SIDE)[:, None]
    assert not faithfulness(score, x, torch.ones(24, SIDE, SIDE), patch=PATCH, fill="mean").beats_random


@pytest.mark.parametrize("fill", ["inpaint", "blur", "mean"])
def test_every_replacement_finds_what_a_network_reads(fill):
    """The score is the contrast in one corner: the map of that corner is faithful, that of another is not."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(12, 3, 16, 16, generator=g)

    def score(z):
        return z[:, :, :8, :8].var((2, 3)).sum(1)

    corner = torch.zeros(12, 16, 16)
    corner[:, :8, :8] = 1.0
    flipping = Flipping(score, x, patch=4, fill=fill)
    assert flipping.of(corner).value > 0.2
    assert flipping.of(corner).beats_random
    assert not flipping.of(corner.flip(1, 2)).beats_random


def test_replacements_are_what_they_say():
    x = torch.rand(6, 3, 10, 14, dtype=torch.float64)
    ramp = torch.linspace(0, 1, 14, dtype=torch.float64).expand(6, 3, 10, 14).contiguous()
    gone = torch.zeros(6, 1, 10, 14, dtype=torch.bool)
    gone[:, :, 4:6, 4:8] = True
    rows, total = torch.arange(6), lambda z: z.sum((1, 2, 3))
    for fill in ("inpaint", "blur", "mean"):
        out = Flipping(total, x, patch=4, fill=fill)._replace(rows, gone)
        outside = ~gone.expand_as(x)
        assert torch.equal(out[outside], x[outside])
    blurred = Flipping(total, x, patch=4, fill="blur").reference
    expected = gaussian_filter(x.numpy(), (0, 0, 2, 2), mode="nearest", truncate=3.0)
    np.testing.assert_allclose(blurred, expected, atol=1e-12)
    smooth = Flipping(total, ramp, patch=4, fill="inpaint")._replace(rows, gone)
    assert float((smooth - ramp).abs().max()) < 0.12  # the mean of the image is up to 0.27 off there
    everything = Flipping(total, x, patch=4, fill="inpaint")._replace(rows, torch.ones_like(gone))
    np.testing.assert_allclose(everything, x.mean((2, 3), keepdim=True).expand_as(x))


def test_results_do_not_depend_on_the_batch_and_repeat_with_the_seed():
    score, x, exact = linear()
    a, b = (faithfulness(score, x, exact, patch=5, batch_size=size, seed=3) for size in (7, 512))
    np.testing.assert_allclose(a.gaps, b.gaps)  # 5 does not divide 12: smaller patches at the edges
    np.testing.assert_allclose((a.value, a.low, a.high), (b.value, b.low, b.high))


def test_each_image_has_its_own_score():
    """Two opposite scores, one for each half of the images: as measured one by one."""
    score, x, exact = linear(n=16)
    target = torch.arange(16) % 2
    sign = 1.0 - 2 * target.double()

    def both(z):
        return torch.stack([score(z), -score(z)], 1)

    maps = gradient_times_input(both, x, target, baseline=x.mean((2, 3), keepdim=True))
    torch.testing.assert_close(maps, exact * sign[:, None, None])
    found = faithfulness(both, x, maps, patch=PATCH, target=target, fill="mean", batch_size=7)
    plain = faithfulness(score, x, exact, patch=PATCH, fill="mean")
    assert found.beats_random
    np.testing.assert_allclose(found.gaps[::2], plain.gaps[::2])
    with pytest.raises(InputError, match=r"not \(B, K\)"):
        faithfulness(score, x, exact, patch=PATCH, target=target)


def test_errors_name_the_value():
    score, x, exact = linear()
    with pytest.raises(InputError, match="3 images are too few"):
        faithfulness(score, x[:3], exact[:3], patch=PATCH)
    with pytest.raises(InputError, match="never changes the score"):
        faithfulness(lambda z: torch.ones(len(z)), x, exact, patch=PATCH)
    with pytest.raises(InputError, match=r"\(64, 1\), not \(B,\)"):
        faithfulness(lambda z: score(z)[:, None], x, exact, patch=PATCH)
    with pytest.raises(InputError, match="NaN or infinite"):
        faithfulness(lambda z: score(z) * torch.nan, x, exact, patch=PATCH)
    with pytest.raises(InputError, match="maps"):
        faithfulness(score, x, exact[:, :6], patch=PATCH)
    with pytest.raises(InputError, match="'median'"):
        faithfulness(score, x, exact, patch=PATCH, fill="median")
    with pytest.raises(InputError, match="patch=12"):
        faithfulness(score, x, exact, patch=12)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8 * 64, 4)
    ).double()


def test_baselines_are_captums():
    model, x = net(), torch.rand(5, 3, SIDE, SIDE, dtype=torch.float64)

    def score(z):
        return model(z)[:, 2]

    ours = integrated_gradients(score, x, baseline=0.2, steps=24)
    theirs = IntegratedGradients(model).attribute(
        x, baselines=0.2, target=2, n_steps=24, method="riemann_middle"
    )
    torch.testing.assert_close(ours, theirs.sum(1))
    torch.testing.assert_close(
        integrated_gradients(score, x, baseline=0.2, steps=400).sum((1, 2)),
        score(x).detach() - score(torch.full_like(x, 0.2)).detach(),
        rtol=1e-5,
        atol=1e-6,
    )
    torch.testing.assert_close(
        gradient_times_input(score, x), InputXGradient(model).attribute(x, target=2).sum(1)
    )


def test_gradients_of_tensors_from_inference_mode():
    model, x = net(), torch.rand(5, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.inference_mode():
        target, same = model(x).argmax(1), x * 1
        inside = gradient_times_input(model, x, target)
    torch.testing.assert_close(gradient_times_input(model, same, target), inside)


def test_weight_randomisation_tells_a_map_of_the_model_from_one_of_the_image():
    model, x = net(), torch.rand(8, 3, SIDE, SIDE, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    own = weight_randomisation(lambda m: gradient_times_input(lambda z: m(z)[:, 1], x), model, ["0", "5"])
    assert list(own) == ["all", "0", "5"]
    assert own["all"].high < 0.5
    edges = weight_randomisation(lambda m: x.sum(1), model)
    assert edges["all"] == pytest.approx((1, 1, 1))
    turned = weight_randomisation(lambda m: x.sum(1) * (1 if m is model else -1), model)
    assert turned["all"] == pytest.approx((1, 1, 1))  # the same shape, whatever its sign
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def explain(m):
        return gradient_times_input(lambda z: m(z)[:, 1], x)

    rho = [
        spearmanr(a.flatten(), b.flatten()).statistic
        for a, b in zip(explain(model), explain(randomised(model, "5", 0)), strict=True)
    ]
    assert own["5"].value == pytest.approx(np.abs(rho).mean())


def test_randomised_weights_keep_their_values_and_lose_their_places():
    model = net()
    other = randomised(model, "2", seed=1)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)
        assert torch.equal(a, b) == (not name.startswith("2."))
    with pytest.raises(InputError, match="'head'"):
        randomised(model, "head")


def test_an_anomaly_score_falls_when_patches_become_normal_and_rises_when_they_are_painted_over():
    """Regression: to a detector grey patches are new defects, so exact relevance looked worse than random."""
    rng = np.random.default_rng(0)
    normal = torch.full((1, 1, 32, 32), 0.5)
    normal[..., 8:24, 8:24] = torch.from_numpy(rng.choice([0.1, 0.9], (16, 16))).float()  # a part on a table
    images = normal.repeat(12, 1, 1, 1)
    for i, (row, column) in enumerate(rng.integers(8, 17, (12, 2))):
        images[i, 0, row : row + 8, column : column + 8] += 0.1
    distance = lambda x: (x - normal).square().flatten(1).sum(1)
    exact = (images - normal).square().sum(1)
    made_normal = faithfulness(distance, images, exact, patch=4, fill=normal.expand_as(images))
    assert made_normal.beats_random
    assert made_normal.fill == "given"
    assert made_normal.curves[0, -1] == pytest.approx(0, abs=1e-9)
    assert faithfulness(distance, images, exact, patch=4, fill="mean").high < 0
    with pytest.raises(InputError, match="to replace patches"):
        faithfulness(distance, images, exact, patch=4, fill=normal)
