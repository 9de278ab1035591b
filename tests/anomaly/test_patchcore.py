"""PatchCore: coreset, memory bank, explanation, files and bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pfungst.anomaly import PatchCore
from pfungst.anomaly.coreset import covering_radius, greedy_coreset, random_coreset
from pfungst.anomaly.memory_bank import MemoryBank
from pfungst.errors import ConfigError, InputError, PfungstWarning
from pfungst.mitigate import GaussianBlur
from pfungst.relevance import DCTBands, Patches, PixelBands, Pixels


def textbook(x, size, start):
    """Farthest-first traversal as it is written in books, in float64."""
    x = x.double()
    chosen, distances = [start], (x - x[start]).norm(dim=1)
    while len(chosen) < size:
        chosen.append(int(distances.argmax()))
        distances = torch.minimum(distances, (x - x[chosen[-1]]).norm(dim=1))
    return chosen, float(distances.max())


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(2, 400),
    dim=st.integers(1, 90),
    share=st.floats(0.01, 1),
    offset=st.sampled_from([0.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_coreset_is_the_textbook_one(n, dim, share, offset, seed):
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)).double() + offset
    size = max(1, int(share * n))
    core = greedy_coreset(x, size, start=0)
    chosen, radius = textbook(x, size, 0)
    assert core.indices.tolist() == chosen
    assert core.radius == pytest.approx(radius, abs=1e-6)


def test_coreset_of_many_rows_covers_like_the_textbook_one():
    x = torch.randn(3000, 80, generator=torch.Generator().manual_seed(0)).cumsum(1)
    core = greedy_coreset(x, 300, start=5)
    assert core.radius == pytest.approx(textbook(x, 300, 5)[1], rel=1e-3)
    assert core.radius == pytest.approx(float(torch.cdist(x, x[core.indices]).amin(1).max()), rel=1e-4)
    assert len(set(core.indices.tolist())) == 300
    assert random_coreset(x, 300).radius > core.radius


def test_coreset_of_duplicates_is_the_distinct_rows():
    x = torch.arange(5.0).repeat(20)[:, None]
    core = greedy_coreset(x, 50)
    assert sorted(x[core.indices, 0].tolist()) == [0, 1, 2, 3, 4]
    assert core.radius == 0


def test_coreset_tells_its_progress():
    seen = []
    greedy_coreset(torch.randn(200, 3), 50, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (50, 50)
    assert seen == sorted(seen)


@pytest.mark.parametrize("size", [0, 11])
def test_coreset_refuses_sizes(size):
    with pytest.raises(InputError, match="asked for"):
        greedy_coreset(torch.randn(10, 2), size)


def test_coreset_refuses_nan():
    with pytest.raises(InputError, match="NaN"):
        greedy_coreset(torch.tensor([[1.0], [float("nan")]]), 1)


@pytest.mark.parametrize("k", [1, 4])
def test_nearest_neighbours_against_brute_force(k, monkeypatch):
    monkeypatch.setattr("pfungst.anomaly.memory_bank._ELEMENTS", 2000)  # several slices of the bank
    generator = torch.Generator().manual_seed(0)
    bank, queries = (
        torch.randn(100, 7, generator=generator) + 50,
        torch.randn(40, 7, generator=generator) + 50,
    )
    found = MemoryBank(bank).nearest(queries, k)
    want, rows = torch.cdist(queries.double(), bank.double()).square().topk(k, largest=False)
    assert torch.equal(found.indices, rows)
    torch.testing.assert_close(found.distances.double(), want, rtol=1e-5, atol=1e-5)
    without = MemoryBank(bank).nearest(queries, k, exclude=(20, 60)).indices
    assert not ((without >= 20) & (without < 60)).any()


def test_bank_refuses_too_many_neighbours():
    with pytest.raises(InputError, match="bank of 3"):
        MemoryBank(torch.randn(3, 2)).nearest(torch.randn(1, 2), 4)


class Net(nn.Module):
    """A small network with layers by name; what follows the last layer must not run."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(12, 6, 3, 2, 1), nn.ReLU())

    def forward(self, x):
        x = self.third(self.second(self.first(x)))
        raise AssertionError("ran beyond the last layer")


def images(count, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small(**options):
    defaults = {"layers": ["first", "second"], "layer_dim": 16, "dim": 20, "device": "cpu", "batch_size": 3}
    return PatchCore(Net(), **(defaults | options))


@pytest.fixture(scope="module")
def fitted():
    return small(mean=(0.0,) * 3, std=(1.0,) * 3).fit(images(6))


def off_share(model, x):
    """Share of the score on features that are off in the winning patch: it has no way back to the input."""
    queries, distances, rows = model._patches(model._maps(x))
    off, total = 0.0, 0.0
    score, patch = model._image_scores(queries, distances, rows)
    for n in range(len(x)):
        squares = (queries[n, patch[n]] - model.bank_.rows[rows[n, patch[n]]]).square()
        parts = (squares / squares.sum(1, keepdim=True) * distances[n, patch[n]][:, None]).sum(0)
        off += float(score[n] * parts[queries[n, patch[n]] == 0].sum() / parts.sum())
        total += float(score[n])
    return off / total


@pytest.mark.parametrize("basis", [Pixels(), Patches(8), DCTBands(count=5), PixelBands(count=3)])
def test_explanation_conserves_without_biases(fitted, basis):
    r = fitted.explain(images(4, seed=1), basis)
    torch.testing.assert_close(r.score, fitted.anomaly_score(images(4, seed=1)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(r.sum() + r.bias, r.score, rtol=1e-5, atol=1e-5)
    assert r.bias_share == pytest.approx(
        off_share(fitted, images(4, seed=1)), abs=1e-3
    )  # there are no biases


@pytest.mark.parametrize(
    "options", [{"neighbours": 3}, {"reweight": 4}, {"distance": "squared"}, {"coreset": 1.0}]
)
def test_explanation_conserves_for_every_score(options):
    model = small(mean=(0.0,) * 3, std=(1.0,) * 3, **options).fit(images(5))
    r = model.explain(images(2, seed=3))
    torch.testing.assert_close(r.score, model.anomaly_score(images(2, seed=3)), rtol=1e-5, atol=1e-5)
    assert r.bias_share == pytest.approx(off_share(model, images(2, seed=3)), abs=1e-3)


def test_relevance_lies_in_the_receptive_field_of_the_winning_patch(fitted):
    x = images(6)[:1].clone()
    x[:, :, 4:12, 20:28] = 1 - x[:, :, 4:12, 20:28]
    row, col = divmod(int(fitted.patch_scores(x)[0].argmax()), fitted.grid_[1])
    heat = fitted.explain(x).values[0].abs()
    # first: stride 2; second: stride 4; 3 × 3 neighbourhoods and the interpolation of the second layer
    reach = 4 * 4
    centre = (2 * row, 2 * col)
    far = torch.ones_like(heat, dtype=torch.bool)
    far[
        max(0, centre[0] - reach) : centre[0] + reach + 2, max(0, centre[1] - reach) : centre[1] + reach + 2
    ] = False
    assert heat.sum() > 0
    assert heat[far].sum() <= 1e-6 * heat.sum()


def test_an_unseen_patch_scores_higher_and_is_found(fitted):
    x = images(6)[:1].clone()
    assert fitted.anomaly_score(images(6)).max() < 1.5
    x[:, :, 8:16, 8:16] = 1.0
    maps = fitted.anomaly_map(x)[0]
    assert maps.shape == (32, 32)
    found = divmod(int(maps.argmax()), 32)
    assert 4 <= found[0] < 20
    assert 4 <= found[1] < 20
    assert fitted.anomaly_score(x)[0] > fitted.anomaly_score(images(6)[:1])[0]


def test_scores_are_distinct_and_deterministic(fitted):
    x = images(5, seed=9)
    scores = fitted.anomaly_score(x)
    assert len(set(scores.tolist())) == 5
    again = small(mean=(0.0,) * 3, std=(1.0,) * 3).fit(images(6)).anomaly_score(x)
    assert torch.equal(scores, again)
    torch.testing.assert_close(fitted.anomaly_score(x[:1]), scores[:1], rtol=1e-5, atol=1e-5)


def test_reweighting_is_equation_7(fitted):
    model = small(mean=(0.0,) * 3, std=(1.0,) * 3, reweight=3).fit(images(6))
    x = images(1, seed=5)
    queries, distances, rows = model._patches(model._maps(x))
    best, patch = distances.mean(2).max(1)
    bank, query = model.bank_.rows.double(), queries[0, patch[0]].double()
    nearest = bank[rows[0, patch[0], 0]]
    around = (bank - nearest).norm(dim=1).argsort()[:3]
    weights = torch.exp((query - bank[around]).norm(dim=1))
    want = (1 - torch.exp((query - nearest).norm()) / weights.sum()) * best[0]
    assert model.anomaly_score(x)[0].item() == pytest.approx(want.item(), rel=1e-4)


def test_training_scores_leave_the_image_out(fitted):
    scores = fitted.training_scores_
    assert scores.shape == (6,)
    others = small(mean=(0.0,) * 3, std=(1.0,) * 3, coreset=1.0).fit(images(6)[1:])
    whole = small(mean=(0.0,) * 3, std=(1.0,) * 3, coreset=1.0).fit(images(6))
    assert whole.training_scores_[0] == pytest.approx(others.anomaly_score(images(6)[:1]).item(), rel=1e-5)


def test_saved_and_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    with pytest.raises(Exception, match="backbone="):
        PatchCore.load(tmp_path / "model")
    again = PatchCore.load(tmp_path / "model", backbone=Net())
    x = images(3, seed=2)
    assert torch.equal(again.anomaly_score(x), fitted.anomaly_score(x))
    assert again.threshold_ == fitted.threshold_
    torch.testing.assert_close(again.explain(x).values, fitted.explain(x).values)


def test_named_backbone_saves_its_weights(tmp_path):
    with pytest.warns(PfungstWarning, match="random weights"):
        model = PatchCore("resnet18", dim=32, layer_dim=32, device="cpu", seed=3).fit(images(3, 64))
    model.save(tmp_path / "model")
    again = PatchCore.load(tmp_path / "model")
    x = images(2, 64, seed=1)
    assert torch.equal(again.anomaly_score(x), model.anomaly_score(x))


def test_blur_in_front_conserves():
    model = small(features=GaussianBlur(5, 1.0), mean=(0.0,) * 3, std=(1.0,) * 3).fit(images(4))
    r = model.explain(images(2, seed=1))
    torch.testing.assert_close(r.sum() + r.bias, r.score, rtol=1e-5, atol=1e-5)
    assert r.bias_share == pytest.approx(off_share(model, images(2, seed=1)), abs=1e-3)


def test_bank_larger_than_memory_is_selected_in_blocks():
    whole = small().fit(images(8))
    patches, row = 256, 4 * 20
    limit = int(8 * patches * row * 0.1 + 3 * patches * row * 1.15)
    with pytest.warns(PfungstWarning, match="3 blocks"):
        blocks = small(memory_limit=limit).fit(images(8))
    assert abs(len(blocks.bank_) - len(whole.bank_)) <= 3
    bank = torch.cat(list(small(coreset=1.0).fit(images(8)).bank_.rows[None]))
    assert blocks.coreset_radius_ >= covering_radius_of(bank, blocks.bank_.rows) - 1e-4


def covering_radius_of(x, centres):
    return float(torch.cdist(x, centres).amin(1).max())


def test_bank_that_cannot_fit_says_how_much_is_needed():
    with pytest.raises(InputError, match=r"needs .* GB"):
        small(memory_limit=1000).fit(images(3))
    with pytest.raises(InputError, match=r"needs .* GB"):
        small(memory_limit=100_000, coreset=1.0).fit(images(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coreset": 0.0}, "coreset"),
        ({"coreset": 1.5}, "coreset"),
        ({"distance": "cosine"}, "distance"),
        ({"neighbours": 0}, "neighbours"),
        ({"quantile": 2.0}, "quantile"),
        ({"layers": ["nowhere"]}, "no layer 'nowhere'"),
        ({"layers": []}, "layers"),
        ({"patch": 0}, "patch 0"),
        ({"neighbours": 5000}, "5000 neighbours"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises((InputError, ConfigError), match=message):
        small(**options).fit(images(2))


def test_bad_images(fitted):
    with pytest.raises(InputError, match="no images"):
        small().fit(np.zeros((4, 10)))
    with pytest.raises(InputError, match="shape"):
        fitted.anomaly_score(images(1, 40))
    with pytest.raises(InputError, match="NaN"):
        fitted.anomaly_score(torch.full((1, 3, 32, 32), float("nan")))


def test_one_image_leaves_no_threshold():
    with pytest.warns(PfungstWarning, match="threshold"):
        model = small().fit(images(1))
    assert model.threshold_ == float("inf")


def test_grey_images_serve_a_network_of_three_channels():
    grey = images(3)[:, :1]
    model = small().fit(grey)
    colour = small().fit(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model.anomaly_score(grey), colour.anomaly_score(grey.expand(-1, 3, -1, -1)))
    assert model.explain(grey[:1]).values.shape == (1, 32, 32)


def test_radius_of_a_given_selection():
    x = torch.tensor([[0.0], [1.0], [5.0]])
    assert covering_radius(x, torch.tensor([0])) == pytest.approx(5)
    assert covering_radius(x, torch.tensor([0, 2])) == pytest.approx(1)
