"""Modified weights that are kept between calls follow every change of the weights."""

import pytest
import torch
from torch import nn

from pfungst.relevance import attribute


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * 36, 3),
    ).eval()  # fmt: skip


def optimise(net):
    optimiser = torch.optim.SGD(net.parameters(), 0.5)
    net(X).square().sum().backward()
    optimiser.step()


def swap(net):
    w = net[3].weight.data
    w[:, :4], w[:, 4:8] = w[:, 4:8].clone(), w[:, :4].clone()


CHANGES = {
    "in place": lambda net: net[3].weight.data.mul_(-1),
    "one value": lambda net: net[3].weight.data[5, 4, 1, 1].add_(1.0),
    "exchanged channels": swap,
    "flipped kernels": lambda net: net[3].weight.data.copy_(net[3].weight.data.flip(1)),
    "new data": lambda net: setattr(net[3].weight, "data", torch.randn_like(net[3].weight)),
    "through numpy": lambda net: net[3].weight.detach().numpy().__imul__(-1),
    "no_grad": lambda net: torch.no_grad()(lambda: net[3].weight.add_(0.1))(),
    "optimiser": optimise,
    "state": lambda net: net.load_state_dict({k: v * -1.0 if v.is_floating_point() else v for k, v in net.state_dict().items() if "running_var" not in k} | {"1.running_var": net[1].running_var}),
    "batch norm": lambda net: net[1].running_var.mul_(3.0),
    "double": lambda net: net.double(),
    "new parameter": lambda net: setattr(net[3], "weight", nn.Parameter(net[3].weight.detach() * -2)),
}  # fmt: skip

X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("rules", ["epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_of_the_weights_is_seen(change, rules):
    net = network()
    before = attribute(net, X, 1, rules).values
    change(net)
    x = X.to(net[0].weight.dtype)
    after = attribute(net, x, 1, rules).values
    fresh = network().to(x.dtype)
    fresh.load_state_dict(net.state_dict())
    torch.testing.assert_close(after, attribute(fresh, x, 1, rules).values)
    assert x.dtype != before.dtype or not torch.allclose(after, before)
