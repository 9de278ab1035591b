import pytest
import timm
import torch
import torchvision
from torch import nn

from pfungst.errors import InputError
from pfungst.spurious import FeatureHead
from spurious_toys import Vectors, small_net


def check(model, x, layer):
    head = FeatureHead(model, example=x)
    assert head.layer == layer
    with torch.no_grad():
        phi, logits = head.features_and_logits(x)
        expected = model(x)
    expected = getattr(expected, "logits", expected)
    torch.testing.assert_close(logits, expected)
    assert phi.shape == (len(x), head.linear.n_features)
    torch.testing.assert_close(head.linear.logits(phi), expected, atol=1e-4, rtol=1e-4)
    return head


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("resnet18", "fc", 64),
        ("alexnet", "classifier.6", 64),
        ("mobilenet_v3_small", "classifier.3", 64),
        ("efficientnet_b0", "classifier.1", 64),
        ("convnext_tiny", "classifier.2", 64),
        ("swin_t", "head", 64),
        ("vit_b_32", "heads.head", 224),
    ],
)
def test_torchvision_families(name, layer, size):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    if name.startswith("vit"):  # untrained, it starts at zero: that is accepted too
        assert FeatureHead(model).temperature == 1
        nn.init.normal_(model.heads.head.weight)
    check(model, torch.rand(2, 3, size, size), layer)


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("resnet18", "fc", 64),
        ("convnext_atto", "head.fc", 64),
        ("vit_tiny_patch16_224", "head", 224),
        ("resnetv2_50x1_bit", "head.fc", 64),  # a 1×1 convolution
        ("mobilenetv3_small_050", "classifier", 64),
    ],
)
def test_timm_families(name, layer, size):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    head = check(model, torch.rand(2, 3, size, size), layer)
    assert model.get_classifier() is head.module


def test_size_comes_from_the_model_when_no_example_is_given():
    assert FeatureHead(timm.create_model("test_vit", num_classes=7)).linear.n_classes == 7


def test_hugging_face_classifier():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=6,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    check(model, torch.rand(2, 3, 32, 32), "classifier")
    assert FeatureHead(model).layer == "classifier"


def test_temperature_is_found_and_kept():
    torch.manual_seed(0)
    model = Vectors(torch.randn(4, 6), torch.randn(4), temperature=0.7156)
    x = torch.rand(3, 6, 1, 1)
    head = check(model, x, "fc")
    assert head.temperature == pytest.approx(0.7156, rel=1e-5)
    one = FeatureHead(model, example=x[:1])
    assert one.temperature == pytest.approx(0.7156, rel=1e-5)


def test_head_without_bias_and_named_layer():
    net = small_net(bias=False)
    x = torch.rand(2, 3, 12, 12)
    assert check(net, x, "6").bias is None
    assert FeatureHead(net, "6", x).layer == "6"


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        z = self.fc(x.flatten(1))
        return z / z.norm(dim=1, keepdim=True)


def ends_in(*after):
    """A model that is made when it is called, with the weights of the seed."""
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4), *(make() for make in after))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (ends_in(lambda: nn.Softmax(1)), "softmax"),
        (ends_in(lambda: nn.LogSoftmax(1)), "log-softmax"),
        (ends_in(nn.Tanh), "unexplained"),
        (Normalised, "unexplained"),
        (ends_in(lambda: nn.Linear(4, 4), nn.Flatten, nn.ReLU), "not linear"),
        (nn.Flatten, "no linear layer"),
    ],
)
def test_logits_that_are_not_linear_are_refused_with_the_reason(make, reason):
    torch.manual_seed(0)  # of the weights too: a ReLU after logits that happen to be positive changes nothing
    model = make()
    with pytest.raises(InputError, match=reason):
        FeatureHead(model, example=torch.rand(5, 6, 1, 1))


def test_unknown_layer_and_wrong_size():
    net = small_net()
    x = torch.rand(2, 3, 12, 12)
    with pytest.raises(InputError, match="no layer 'fc'"):
        FeatureHead(net, "fc", x)
    with pytest.raises(InputError, match="not a linear layer"):
        FeatureHead(net, "0", x)
    with pytest.raises(InputError, match="does not run on images of shape"):
        FeatureHead(net, example=torch.rand(2, 1, 12, 12))


def test_features_are_differentiable_and_leave_no_hooks():
    net = small_net()
    x = torch.rand(2, 3, 12, 12, requires_grad=True)
    FeatureHead(net, example=x.detach()).features(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_fingerprint_follows_the_weights():
    a, b = FeatureHead(small_net(seed=0), example=torch.rand(2, 3, 12, 12)), small_net(seed=1)
    other = FeatureHead(b, example=torch.rand(2, 3, 12, 12))
    assert a.linear.fingerprint() != other.linear.fingerprint()
    assert (
        a.linear.fingerprint()
        == FeatureHead(small_net(seed=0), "6", torch.rand(2, 3, 12, 12)).linear.fingerprint()
    )
