"""Whole-model conservation and agreement of both directions on the supported families."""

import pytest
import torch
import torchvision
from torch import nn

from pfungst.relevance import Patches, Tokens, attribute, composite, describe, linearize

#: (library, model, composite, size); activations other than ReLU need rules for both signs: Gamma or Epsilon
FAST = [
    ("torchvision", "alexnet", "epsilon_plus", 64),
    ("torchvision", "resnet18", "epsilon_plus", 64),
    ("torchvision", "densenet121", "epsilon_plus", 32),
    ("torchvision", "efficientnet_b0", "transformer", 32),
    ("torchvision", "mobilenet_v2", "epsilon_plus", 32),
    ("torchvision", "mobilenet_v3_small", "transformer", 32),
    ("torchvision", "swin_t", "transformer", 32),
    ("timm", "vit_tiny_patch16_224", "transformer", 224),
    ("timm", "convnext_atto", "transformer", 64),
    ("timm", "mobilenetv3_small_100", "transformer", 32),
    ("timm", "resnet18", "epsilon_plus", 64),
]
SLOW = [
    ("torchvision", "vgg11", "epsilon_plus", 64),
    ("torchvision", "vgg11_bn", "epsilon_plus", 64),
    ("torchvision", "wide_resnet50_2", "epsilon_plus", 64),
    ("torchvision", "convnext_tiny", "transformer", 64),
    ("torchvision", "swin_v2_t", "transformer", 64),
    ("torchvision", "vit_b_16", "transformer", 224),
    ("timm", "vgg11_bn", "epsilon_plus", 64),
    ("timm", "densenet121", "epsilon_plus", 64),
    ("timm", "efficientnet_b0", "transformer", 64),
    ("timm", "swin_tiny_patch4_window7_224", "transformer", 224),
]


def prepare(net, x):
    """Statistics from data, a head and layer scales that are not zero, no biases or additive constants."""
    for m in net.modules():
        if isinstance(m, nn.Linear) and m.weight.abs().max() == 0:
            nn.init.normal_(m.weight, 0, 0.05)
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
    net.train()
    with torch.no_grad():
        net(x.repeat(3, 1, 1, 1) + torch.randn(3 * len(x), *x.shape[1:], dtype=x.dtype))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.zero_()
    without_constants(net)
    return net.eval()


def without_constants(net):
    words = (
        "bias",
        "class_token",
        "cls_token",
        "pos_emb",
        "positional",
        "class_embedding",
        "token_type",
        "position",
    )
    for name, p in net.named_parameters():
        if any(w in name for w in words):
            nn.init.zeros_(p)


def make(library, name):
    torch.manual_seed(0)
    if library == "timm":
        return pytest.importorskip("timm").create_model(name, num_classes=4).double()
    return getattr(torchvision.models, name)(num_classes=4).double()


def check(net, x, rules, tolerance=1e-3, basis=None):
    basis = basis or Patches(x.shape[-1] // 2)
    lin = linearize(net, x, rules)
    expected = net(x)
    assert (lin.output - expected).abs().max() / expected.abs().max() < 1e-6
    rows = lin.rows(torch.eye(lin.output.shape[1], dtype=x.dtype)[1:2], basis)[:, 0].flatten(1)
    gap = (rows.sum(1) - expected[:, 1]).abs() / expected[:, 1].abs()
    assert gap.max() < tolerance
    columns = lin.columns(basis)[:, 1]
    assert ((columns - rows).abs().sum() / rows.abs().sum()) < 1e-4
    single = attribute(net, x[:1], 1, rules, basis)
    assert ((single.values.flatten(1) - rows[:1]).abs().sum() / rows[:1].abs().sum()) < 1e-4


@pytest.mark.parametrize(
    ("library", "name", "rules", "size"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_family(library, name, rules, size):
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    check(prepare(make(library, name), x), x, composite(rules, epsilon=1e-9))


class Wrapped(nn.Module):
    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, embeddings):
        return self.bert(inputs_embeds=embeddings).last_hidden_state[:, 0]


def test_huggingface_bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    net = Wrapped(transformers.BertModel(config)).double().eval()
    without_constants(net)
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    check(net, x, "transformer", basis=Tokens())


def clip_resnet():
    resnet = pytest.importorskip("open_clip.modified_resnet")
    torch.manual_seed(0)
    net = resnet.ModifiedResNet([1, 1, 1, 1], 8, 4, image_size=64, width=8).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    return prepare(net, x), x


def test_clip_modified_resnet_does_not_double_at_residual_sums():
    net, x = clip_resnet()
    rules = composite("epsilon_plus", epsilon=1e-9, stabilizer=1e-9)
    check(net, x, rules)
    table = describe(net, x, rules)
    assert "attention weights constant" in table
    assert table.count("Norm()") > 4  # the residual sums


def test_clip_vision_transformer():
    model = pytest.importorskip("open_clip.transformer")
    torch.manual_seed(0)
    net = model.VisionTransformer(32, 8, 32, 2, 4, 2.0, output_dim=8).double().eval()
    without_constants(net)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    check(net, x, "transformer")
