"""composite="auto": the rules that conserve on the network at hand, and the warning where chosen rules do not."""

import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from pfungst.errors import PfungstWarning, UncoveredOperation
from pfungst.relevance import (
    DCTBands,
    Ignore,
    On,
    Pass,
    PixelBands,
    attribute,
    composite,
    describe,
    linearize,
)
from pfungst.relevance.engine.run import execute


class Net(nn.Module):
    """Convolution, a depthwise one, a strided shortcut, a linear layer; activations and normalisation as asked for."""

    def __init__(self, activation, last=None, norm=nn.BatchNorm2d, gate=False, bias=True, width=32, kernel=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=bias)
        self.norm = norm(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias)
        self.project = nn.Conv2d(width, width, kernel, stride=2, padding=kernel // 2, bias=bias)
        self.shortcut = nn.Conv2d(width, width, 1, stride=2, bias=bias)
        self.gate = nn.Conv2d(width, width, 1) if gate else None
        self.head = nn.Linear(width, 4, bias=bias)
        self.activation, self.last = activation, activation if last is None else last
        for p in self.parameters():
            if p.ndim == 1 and bias:
                nn.init.normal_(p, 0.3, 0.3)
        self.double().eval()

    def forward(self, x):
        x = self.activation(self.norm(self.conv(x)))
        y = self.project(self.last(self.depthwise(x)))
        if self.gate is not None:
            y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        y += self.shortcut(x)
        return self.head(self.activation(y).mean((2, 3)))


def images(n=2, size=12):
    return torch.rand(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def nothing(x):
    return x


def layer_norm(width):
    return nn.Sequential(_Last(), nn.LayerNorm(width), _First())


class _Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class _First(nn.Module):
    def forward(self, x):
        return x.permute(0, 3, 1, 2)


MLP = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval()

NETWORKS = {
    "relu": (lambda: Net(F.relu), "epsilon_plus_flat"),
    "relu in place": (lambda: Net(F.relu_), "epsilon_plus_flat"),
    "relu6": (lambda: Net(nn.ReLU6(inplace=True)), "epsilon_plus_flat"),
    "clamp": (lambda: Net(lambda t: t.clamp(min=0)), "epsilon_plus_flat"),
    "squeeze and excitation": (lambda: Net(F.relu, gate=True), "epsilon_plus_flat"),
    "a depthwise convolution without ReLU": (lambda: Net(F.relu, nothing), "epsilon_gamma"),
    "few channels": (lambda: Net(F.relu, width=8, kernel=1), "epsilon_gamma"),
    "silu": (lambda: Net(F.silu), "epsilon_gamma"),
    "gelu": (lambda: Net(F.gelu), "epsilon_gamma"),
    "hardswish": (lambda: Net(F.hardswish), "epsilon_gamma"),
    "silu by hand": (lambda: Net(lambda t: t * t.sigmoid()), "epsilon_gamma"),
    "leaky relu": (lambda: Net(F.leaky_relu), "epsilon_gamma"),
    "sigmoid": (lambda: Net(torch.sigmoid), "epsilon_gamma"),
    "group norm": (lambda: Net(F.relu, norm=lambda c: nn.GroupNorm(4, c)), "epsilon_gamma"),
    "layer norm": (lambda: Net(F.gelu, norm=layer_norm), "transformer"),
    "rows of a table": (lambda: MLP, "epsilon_plus"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_choice_follows_from_the_operations_and_conserves(name):
    make, expected = NETWORKS[name]
    net, x = make(), images()
    r = attribute(net, x, 1)
    assert r.composite == expected
    if name not in ("silu by hand", "sigmoid"):  # their constants are accounted for elsewhere
        assert r.lost < 1e-3
    torch.testing.assert_close(r.values, attribute(net, x, 1, expected).values)
    assert attribute(net, x, 1, differentiable=True).composite == expected
    assert linearize(net, x).composite == expected
    assert describe(net, x).startswith(f"composite {expected}\n")


@pytest.mark.parametrize("name", ["relu", "relu6", "silu", "gelu", "hardswish", "leaky relu"])
def test_without_biases_the_values_sum_to_the_score(name):
    activation = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "gelu": F.gelu}
    activation |= {"hardswish": F.hardswish, "leaky relu": F.leaky_relu}
    net, x = Net(activation[name], bias=False), images(1)
    nn.init.zeros_(net.norm.bias)
    r = attribute(net, x, 1)
    torch.testing.assert_close(r.sum(), net(x)[:, 1].detach(), rtol=1e-3, atol=0)


def test_what_is_lost_is_measured_against_leaves_of_the_biases():
    net, x = Net(F.silu), images(1)
    for name in ("epsilon_plus", "epsilon_gamma", "paper_resnet"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            r = attribute(net, x, 1, name, measure=True)
        run = execute(net, x, composite(name), biases=True)
        leaves = [leaf for _, leaf in run.biases]
        grads = torch.autograd.grad(run.output[0, 1], leaves, allow_unused=True)
        absorbed = sum((b * g).sum() for b, g in zip(leaves, grads, strict=True) if g is not None)
        lost = (r.score - r.sum() - absorbed).abs() / r.score.abs()
        assert r.lost == pytest.approx(lost.item(), rel=1e-6, abs=1e-9)


def test_the_choice_follows_when_the_same_module_changes():
    net, x = Net(F.silu), images()
    assert attribute(net, x, 1).composite == "epsilon_gamma"
    net.activation = net.last = F.relu
    r = attribute(net, x, 1)
    assert r.composite == "epsilon_plus_flat"
    torch.testing.assert_close(r.values, attribute(net, x, 1, "epsilon_plus_flat").values)
    net.activation = F.gelu
    assert linearize(net, x).composite == "epsilon_gamma"


def test_the_choice_does_not_depend_on_the_values():
    net = Net(F.relu)
    chosen = {attribute(net, x, k).composite for x in (images(), -images(), 100 * images()) for k in range(4)}
    assert chosen == {"epsilon_plus_flat"}


@pytest.mark.parametrize("basis", [DCTBands(count=4), PixelBands(count=3)])
def test_flat_is_not_chosen_in_frequency(basis, recwarn):
    net, x = Net(F.relu), images()
    assert attribute(net, x, 1, basis=basis).composite == "epsilon_plus"
    assert not [w for w in recwarn if issubclass(w.category, PfungstWarning)]
    with pytest.warns(PfungstWarning, match="frequency zero"):
        linearize(net, x).columns(DCTBands(count=4))
    with pytest.warns(PfungstWarning, match="frequency zero"):
        linearize(net, x).rows(torch.eye(4, dtype=x.dtype), DCTBands(count=4))


def test_a_composite_that_loses_is_named_once_with_the_share():
    net, x = Net(F.relu), images()
    rules = composite("epsilon_plus").assign(On(name="project"), Ignore())
    with pytest.warns(PfungstWarning, match=r"'epsilon_plus \(adapted\)' loses \d+\.\d%") as caught:
        r = attribute(net, x, 1, rules)
    assert caught[0].filename == __file__
    assert r.lost > 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attribute(net, x, 1, rules).lost is None
        assert attribute(net, x, 1, rules, measure=False).lost is None
        assert attribute(net, x, 1).lost < 1e-3
    with pytest.warns(PfungstWarning, match="loses"):
        attribute(net, x, 1, rules, measure=True)
    with pytest.warns(PfungstWarning, match="loses"):  # another network of the same kind
        attribute(Net(F.relu), x, 1, rules)


def test_rules_can_be_assigned_before_the_choice():
    class Exp(nn.Module):
        def forward(self, x):
            return torch.expm1(x)

    x = images()
    net = nn.Sequential(Net(F.silu).conv, Exp(), nn.Conv2d(32, 4, 1).double(), nn.Flatten()).eval()
    rules = composite("auto").assign("expm1", Pass()).assign(On(name="none"), Ignore())
    r = attribute(net, x, 0, rules)
    assert r.composite == "epsilon_gamma (adapted)"
    assert r.lost < 1e-3
    with pytest.raises(UncoveredOperation, match="special"):
        attribute(nn.Sequential(net, Bessel()), x, 0)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "vgg11_bn", "alexnet", "densenet121", "mobilenet_v2"]
)
def test_torchvision_networks_keep_their_rules(name):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.1)
    r = attribute(net, torch.rand(1, 3, 96, 96), 3)
    assert r.composite == "epsilon_plus_flat"
    assert r.lost < 1e-3
