"""Replayed explanations are those of attribute; what does not fit the recording is refused."""

import pytest
import torch
from torch import nn

from pfungst.errors import InputError
from pfungst.relevance import Patches, Replay, attribute

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(96, 5)).eval()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["auto", "epsilon_gamma_box", "transformer"])
def test_equals_attribute(net, device, name):
    net.to(device)
    x = torch.randn(3, 2, 3, 14, 14, device=device)
    replay = Replay(net, x[0], 1, name, Patches(4))
    for batch in x:
        for output in (None, 2, torch.tensor([4, 0])):
            got = replay(batch, output)
            expected = attribute(net, batch, 1 if output is None else output, name, Patches(4))
            torch.testing.assert_close(got.values, expected.values, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(got.score, expected.score, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(got.bias, expected.bias, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_changed_weights_are_seen(net, device):
    net.to(device)
    x = torch.randn(2, 3, 14, 14, device=device)
    replay = Replay(net, x, 1, "epsilon_plus")
    changes = [
        lambda w: w.data.mul_(-1),  # counts no version
        lambda w: setattr(w, "data", w.data * 2),
        lambda w: w.detach().add_(0.1),
        lambda w: net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}),
    ]
    for change in changes:
        change(net[0].weight)
        change(net[1].weight)
        torch.testing.assert_close(
            replay(x).values, attribute(net, x, 1, "epsilon_plus").values, rtol=1e-4, atol=1e-6
        )
    net.train()
    with pytest.raises(InputError, match="eval"):
        replay(x)


@pytest.mark.parametrize("device", DEVICES)
def test_what_does_not_fit_is_refused(net, device):
    net.to(device)
    x = torch.randn(2, 3, 14, 14, device=device)
    replay = Replay(net, x, 1)
    for wrong in (x[:1], x.double(), x[..., :-1]):
        with pytest.raises(InputError, match="does not fit what was recorded"):
            replay(wrong)
    with pytest.raises(InputError, match="NaN"):
        replay(x * float("nan"))
    with pytest.raises(InputError, match="callable"):
        replay(x, lambda out: out[:, 0])
    mean = Replay(net, x, lambda out: out[:, :2].sum(1))
    expected = attribute(net, x, torch.tensor([1.0, 1, 0, 0, 0], device=device))
    torch.testing.assert_close(mean(x).values, expected.values, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_decisions_by_value_are_not_recorded():
    class Early(nn.Linear):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(InputError, match="cannot be recorded"):
        Replay(Early(4, 3).cuda().eval(), torch.ones(2, 4, device="cuda"), 0)
