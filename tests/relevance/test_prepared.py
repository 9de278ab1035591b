"""Weights kept from call to call are those of the model as it is now; work that two consumers share is done once."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pfungst.relevance import Patches, Pixels, attribute, linearize
from pfungst.relevance.prepared import _KEPT


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 40, 3, bias=False), nn.BatchNorm2d(40), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(40, 48, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48 * 16, 5)]
    net = nn.Sequential(*layers).eval()
    net[1].running_var.uniform_(0.5, 2)
    return net


def step(net):
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    F.cross_entropy(net(torch.rand(4, 3, 8, 8)), torch.arange(4)).backward()
    optimizer.step()


def exchange(net):
    w = net[3].weight
    w.data[:, [0, 4]] = w.data[:, [4, 0]]  # the same values elsewhere in each row


CHANGES = {
    "in place": lambda net: net[3].weight.detach().mul_(-1),
    ".data in place, which counts no version": lambda net: net[3].weight.data.mul_(-1),
    "shared memory": lambda net: net[3].weight.detach().numpy().__imul__(-1),
    "one value": lambda net: net[3].weight.data[7, 3, 1].add_(0.5),
    ".data replaced": lambda net: setattr(net[3].weight, "data", -net[3].weight.data),
    "exchanged": exchange,
    "flipped": lambda net: net[3].weight.data.copy_(net[3].weight.data.flip(1)),
    "optimizer": step,
    "load_state_dict": lambda net: net.load_state_dict({k: v * 0.5 for k, v in net.state_dict().items()}),
    "type": lambda net: net.double(),
    "folded BatchNorm": lambda net: net[1].running_var.mul_(3),
    "replaced parameter": lambda net: setattr(net[3], "weight", nn.Parameter(-net[3].weight.detach())),
}


@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_never_missed(net, name, change):
    x = torch.rand(2, 3, 8, 8)
    before = attribute(net, x, 1, name, measure=False).values
    CHANGES[change](net)
    x = x.to(net[3].weight.dtype)
    got = attribute(net, x, 1, name, measure=False).values
    fresh = copy.deepcopy(net)  # of which nothing is kept
    torch.testing.assert_close(got, attribute(fresh, x, 1, name, measure=False).values, rtol=0, atol=0)
    assert change == "type" or not torch.equal(got, before)


def test_what_is_kept_goes_with_the_model(net):
    model = copy.deepcopy(net)
    attribute(model, torch.rand(1, 3, 8, 8), 1, "epsilon_plus", measure=False)
    assert model[3].weight in _KEPT
    count = len(_KEPT)
    del model
    gc.collect()
    assert len(_KEPT) < count


@pytest.mark.parametrize(("name", "each"), [("epsilon_plus", 2), ("epsilon_gamma_box", 2), ("lrp_zero", 1)])
def test_maps_under_an_in_place_relu_are_evaluated_once(net, name, each):
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution.default and args[1].shape[1] == 40:
                calls.append(func)
            return func(*args, **(kwargs or {}))

    with Count():
        attribute(net, torch.rand(1, 3, 8, 8), 1, name, measure=False)
    assert len(calls) == each


class Shared(nn.Module):
    """Values that are read again after what could have overwritten them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.a(x)
        y = F.relu(x + 0.5)
        z = y + self.norm(self.b(y)) + x
        flat = z.reshape(len(z), 4, -1)
        return self.fc((flat + z.flatten(2) * 2).mean(2) + z.relu().mean((2, 3)))


@pytest.mark.parametrize("name", ["lrp_zero", "transformer", "epsilon_plus"])
def test_forward_mode_equals_reverse_mode_where_values_are_shared(name):
    torch.manual_seed(0)
    net = Shared().double().eval()
    net.norm.running_var.uniform_(0.5, 2)
    lin = linearize(net, torch.randn(2, 3, 8, 8, dtype=torch.float64), name)
    rows = lin.rows(torch.eye(3, dtype=torch.float64), Pixels(channels=True)).flatten(2)
    torch.testing.assert_close(lin.columns(Pixels(channels=True)), rows, rtol=1e-9, atol=1e-11)
    patches = lin.rows(torch.eye(3, dtype=torch.float64), Patches(2)).flatten(2)
    torch.testing.assert_close(lin.columns(Patches(2)), patches, rtol=1e-9, atol=1e-11)
