import pytest
import torch
from torch.nn import functional as F

from pfungst.encoders import load, losses
from pfungst.encoders.training import augment, train_small
from pfungst.errors import ConfigError, InputError, PfungstWarning


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_nt_xent_by_the_papers_sum():
    a, b, tau = rand(5, 4) - 0.5, rand(5, 4, seed=1) - 0.5, 0.3
    z = F.normalize(torch.stack([a, b], 1).flatten(0, 1), dim=1)  # the paper's order: 2k−1, 2k are a pair
    s = z @ z.T
    total = 0.0
    for k in range(5):
        for i, j in ((2 * k, 2 * k + 1), (2 * k + 1, 2 * k)):
            others = [torch.exp(s[i, m] / tau) for m in range(10) if m != i]
            total = total - torch.log(torch.exp(s[i, j] / tau) / sum(others))
    torch.testing.assert_close(losses.nt_xent(a, b, tau), total / 10)


def test_barlow_twins_by_the_papers_sum():
    a, b = rand(30, 4), rand(30, 4, seed=1)
    c = torch.zeros(4, 4)
    za, zb = a - a.mean(0), b - b.mean(0)
    for i in range(4):
        for j in range(4):
            c[i, j] = (za[:, i] * zb[:, j]).sum() / (
                za[:, i].square().sum().sqrt() * zb[:, j].square().sum().sqrt()
            )
    expected = sum((1 - c[i, i]) ** 2 for i in range(4))
    expected = expected + 0.01 * sum(c[i, j] ** 2 for i in range(4) for j in range(4) if i != j)
    torch.testing.assert_close(losses.barlow_twins(a, b, 0.01), expected, rtol=1e-3, atol=1e-3)


def test_clip_is_the_mean_of_two_cross_entropies():
    a, b, scale = rand(6, 4) - 0.5, rand(6, 4, seed=1) - 0.5, torch.tensor(10.0)
    logits = 10 * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(losses.clip(a, b, scale), expected)
    same = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(losses.clip(a, b, scale, same), expected)


def test_views():
    x = rand(64, 3, 16, 16)
    a, b = (augment(x, torch.Generator().manual_seed(s)) for s in (1, 2))
    again = augment(x, torch.Generator().manual_seed(1))
    assert torch.equal(a, again)
    assert a.shape == x.shape
    assert 0 <= a.min() <= a.max() <= 1
    assert (a - b).abs().mean() > 0.05
    same = augment(x, torch.Generator(), min_scale=1.0, jitter=0.0, grey=0.0, flip=False)
    assert (same - x).abs().mean() < 0.1  # only the aspect ratio changes


@pytest.mark.parametrize("method", ["simclr", "barlow", "clip"])
def test_training_lowers_the_loss_and_repeats(method, tmp_path):
    x = rand(64, 3, 16, 16) * 0.2
    x[::2, 0] += 0.7
    captions = ["a red picture" if i % 2 == 0 else "a dark picture" for i in range(64)]
    options = dict(captions=captions, method=method, width=4, batch_size=32, flip=False, min_scale=0.8)  # noqa: C408
    few = train_small(x, steps=2, **options)
    torch.manual_seed(99)
    more = train_small(x, steps=40, **options)
    torch.manual_seed(7)
    assert more.key() == train_small(x, steps=40, **options).key()
    assert more.info["loss"] < few.info["loss"]
    assert more.trained
    assert more.info["method"] == method
    again = load(f"pfungst:{more.save(tmp_path / 'e')}")
    assert torch.equal(again(x), more(x))
    if method == "clip":
        y = F.normalize(more.encode(x), dim=1)
        s = y @ y.T
        assert s[0::2, 0::2].mean() > s[0::2, 1::2].mean() + 0.05


def test_time_limit_is_said():
    with pytest.warns(PfungstWarning, match="depends on the machine"):
        encoder = train_small(rand(16, 3, 8, 8), width=2, steps=10_000, seconds=0.01)
    assert encoder.info["steps"] < 10_000


def test_bad_input():
    x = rand(16, 3, 8, 8)
    with pytest.raises(ConfigError, match="'moco'"):
        train_small(x, method="moco")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no captions for 16"):
        train_small(x, method="clip")
    with pytest.raises(InputError, match="3 captions"):
        train_small(x, ["a"] * 3, method="clip")
    for bad in (x[:4], x[:, :1], rand(16, 3, 8, 9)):
        with pytest.raises(InputError, match="cannot be trained on"):
            train_small(bad)
    with pytest.raises(InputError, match="reach from"):
        train_small(x * 255)
