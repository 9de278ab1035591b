"""GradCAM, InputXGradient and IntegratedGradients of captum where they coincide with ours."""

import pytest
import torch
import torchvision
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam
from torch import nn

from pfungst.errors import InputError
from pfungst.relevance import Pixels, attribute, gradcam


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_gradcam(resnet):
    x, target = images(), torch.tensor([1, 2])
    expected = LayerGradCam(resnet, resnet.layer3).attribute(x, target, relu_attributions=True)[:, 0]
    torch.testing.assert_close(gradcam(resnet, x, "layer3", target, resize=False), expected.detach())
    assert gradcam(resnet, x, resnet.layer3, target).shape == (2, 64, 64)


def test_gradcam_of_a_score_in_place_layers_and_errors(resnet):
    x = images()
    by_index = gradcam(resnet, x, "layer4", 3)
    torch.testing.assert_close(gradcam(resnet, x, "layer4", lambda out: out[:, 3]), by_index)
    assert gradcam(resnet, x, "bn1", 3).shape == (2, 64, 64)  # an in-place ReLU follows
    for layer, match in [("nowhere", "no layer"), ("fc", "without positions")]:
        with pytest.raises(InputError, match=match):
            gradcam(resnet, x, layer, 3)


def test_gradcam_on_tokens():
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4).eval()
    nn.init.normal_(vit.heads.head.weight)
    x = torch.randn(2, 3, 32, 32)
    cam = gradcam(vit, x, "encoder.layers.encoder_layer_0", 1, resize=False, relu=False)
    assert cam.shape == (2, 4, 4)
    kept = []
    layer = vit.encoder.layers[0]
    handle = layer.register_forward_hook(lambda m, a, o: kept.append(o))
    score = vit(x)[:, 1].sum()
    (g,) = torch.autograd.grad(score, kept)
    handle.remove()
    a, g = kept[0][:, 1:].detach(), g[:, 1:]
    torch.testing.assert_close(cam, (a * g.mean(1, keepdim=True)).sum(-1).unflatten(1, (4, 4)))


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
