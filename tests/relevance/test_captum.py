"""InputXGradient and IntegratedGradients of captum where they coincide with ours."""

import pytest
import torch
import torchvision
from captum.attr import InputXGradient, IntegratedGradients
from torch import nn

from pfungst.relevance import Pixels, attribute


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_input_x_gradient_equals_lrp_zero(resnet):
    x = images()
    expected = InputXGradient(resnet).attribute(x, target=3)
    for rules in ("lrp_zero", "gradient"):
        ours = attribute(resnet, x, 3, rules, Pixels(channels=True)).values
        assert ((ours - expected).abs().sum() / expected.abs().sum()).item() < 1e-4


def test_integrated_gradients_equal_lrp_zero_without_biases():
    """A ReLU network without biases is homogeneous: the gradient is constant on the ray from zero."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4, bias=False)
    ).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = IntegratedGradients(net).attribute(x, torch.zeros_like(x), target=2, n_steps=8)
    torch.testing.assert_close(attribute(net, x, 2, "lrp_zero", Pixels(channels=True)).values, expected)
