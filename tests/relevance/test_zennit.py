"""Against zennit: same composite, its canonizers, relative L1 error of the heatmap."""

import pytest
import torch
import torchvision
import zennit.composites as zc
import zennit.rules as zr
import zennit.torchvision as zt
from zennit.attribution import Gradient
from zennit.core import Hook
from zennit.types import Convolution

from pfungst.relevance import Pixels, attribute, composite

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


def network(name, dtype):
    """Random statistics in every BatchNorm. Its ε is moved into the variance: zennit's folding applies it twice."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(num_classes=10)
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
