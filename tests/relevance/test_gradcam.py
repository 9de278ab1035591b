"""GradCAM against captum and numpy, on layouts that shapes alone do not tell."""

import math
from collections import Counter

import numpy as np
import pytest
import timm
import torch
import torchvision
from captum.attr import LayerGradCam
from torch import nn
from torch.utils.checkpoint import checkpoint

from pfungst.errors import InputError, PfungstError
from pfungst.relevance import gradcam

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Rearranged(nn.Module):
    """A convolution whose map passes through a layer `seen` that holds it in another layout."""

    def __init__(self, body, there, back, classes=3):
        super().__init__()
        self.body, self.seen, self.back = body, There(there), back
        self.head = nn.LazyLinear(classes)

    def forward(self, x):
        a = self.body(x)
        a = self.back(self.seen(a), a.shape)
        return self.head(torch.cat([a.flatten(1), a.flatten(2).amax(2)], 1).tanh())


class There(nn.Module):
    def __init__(self, there):
        super().__init__()
        self.there = there

    def forward(self, a):
        return self.there(a)


def first(a):
    return a, lambda t, shape: t


def tokens(before, after, constant, order=None):
    """(N, C, *grid) → (N, L, C) with other tokens around, which the head ignores."""

    def there(a):
        t = a.flatten(2).transpose(1, 2)
        t = t if order is None else t[:, order[: t.shape[1]] if len(order) == t.shape[1] else order]
        beside = torch.ones_like(t[:, :1]) if constant else t.mean(1, keepdim=True)
        return torch.cat([beside] * before + [t] + [beside] * after, 1)

    def back(t, shape):
        t = t[:, before : t.shape[1] - after]
        if order is not None:
            t = t[:, torch.argsort(order)]
        return t.transpose(1, 2).reshape(shape)

    return there, back


def permuted(*axes):
    inverse = list(np.argsort(axes))
    return (lambda a: a.permute(axes)), (lambda t, shape: t.permute(inverse))


def sequence_first():
    return (lambda a: a.flatten(2).permute(2, 0, 1)), (lambda t, shape: t.permute(1, 2, 0).reshape(shape))


def windows(size):
    """Windows of size² positions, with those of an input along the batch axis, as windowed attention has them."""

    def there(a):
        n, c, h, w = a.shape
        a = a.reshape(n, c, h // size, size, w // size, size)
        return a.permute(0, 2, 4, 3, 5, 1).reshape(-1, size * size, c)

    def back(t, shape):
        n, c, h, w = shape
        t = t.reshape(n, h // size, w // size, size, size, c)
        return t.permute(0, 5, 1, 3, 2, 4).reshape(shape)

    return there, back


def window_order(h, w, size):
    """Order of the tokens of an h × w grid in which windows follow each other, as in Hiera."""
    i = torch.arange(h * w).reshape(h // size, size, w // size, size)
    return i.permute(0, 2, 1, 3).flatten()


def grid_of(body, x):
    with torch.no_grad():
        return tuple(body(x).shape[2:])


def example(rng):
    """A random network, input and layout, and whether its layout is one that GradCAM should explain."""
    dim = int(rng.choice([1, 2, 2, 2, 2, 3]))
    n = int(rng.choice([1, 5]))
    sides = {1: (8, 40), 2: (6, 26), 3: (5, 10)}[dim]
    size = [int(rng.integers(*sides)) for _ in range(dim)]
    if rng.random() < 0.4:
        size = [size[0]] * dim
    channels = int(rng.choice([2, 4, 6, 8, 12]))
    torch.manual_seed(int(rng.integers(1 << 30)))
    strides = [
        int(s) for s in (rng.integers(1, 4, dim) if rng.random() < 0.4 else [rng.integers(1, 4)] * dim)
    ]
    body = [CONV[dim](3, channels, 3, strides, 1)]
    for _ in range(int(rng.integers(0, 3))):
        body += [nn.ReLU(), CONV[dim](channels, channels, 3, 1, 1)]
    body = nn.Sequential(*body)
    x = torch.randn(n, 3, *size)
    grid = grid_of(body, x)
    if rng.random() < 0.25 and grid[0] <= 12:  # as many channels as rows
        body.append(CONV[dim](channels, grid[0], 1))
    if rng.random() < 0.3:
        body.append(nn.ReLU())
    kinds = ["first", "last", "tokens", "flat", "sequence"] + (
        ["swapped", "windows", "order", "shuffled"] if dim == 2 else []
    )
    kind = str(
        rng.choice(
            kinds, p=None if dim == 1 or dim == 3 else [0.2, 0.25, 0.25, 0.06, 0.06, 0.06, 0.04, 0.04, 0.04]
        )
    )
    fair = True
    if kind == "first":
        pair = permuted(*range(dim + 2))
    elif kind == "last":
        pair = permuted(0, *range(2, dim + 2), 1)
    elif kind == "flat":
        pair = (lambda a: a.flatten(2)), (lambda t, shape: t.reshape(shape))
    elif kind == "sequence":
        pair = sequence_first()
    elif kind == "swapped":
        pair = permuted(0, 1, 3, 2)
    elif kind == "tokens":
        before, after = [(0, 0), (1, 0), (1, 0), (2, 0), (5, 0), (0, 1), (0, 2)][int(rng.integers(7))]
        pair = tokens(before, after, bool(rng.random() < 0.5))
    else:
        fair = False
        divides = [s for s in (2, 3, 4) if all(g % s == 0 and g > s for g in grid)]
        if kind == "shuffled" or not divides:
            pair = tokens(0, 0, True, torch.randperm(math.prod(grid)))
        elif kind == "order":
            pair = tokens(0, 0, True, window_order(*grid, divides[0]))
        else:
            pair = windows(divides[-1])
    fair = fair and min(grid) > 1
    net = Rearranged(body, *pair).double().eval()
    x = x.double()
    net(x)
    return net, x, kind, fair


def run(count, seed, report=None):
    rng = np.random.default_rng(seed)
    tally = Counter()
    for i in range(count):
        net, x, kind, fair = example(rng)
        target = int(rng.integers(3))
        expected = LayerGradCam(net, net.body).attribute(x, target, attr_dim_summation=True)[:, 0].detach()
        try:
            cam = gradcam(net, x, "seen", target, resize=False, relu=False)
        except PfungstError as error:
            tally["refused", fair] += 1
            if report:
                report(
                    f"{i} {kind} refused {tuple(x.shape)} {tuple(expected.shape)}: {str(error).splitlines()[0]}"
                )
            continue
        right = cam.shape == expected.shape and torch.allclose(cam, expected, rtol=1e-6, atol=1e-9)
        tally["explained" if right else "WRONG", fair] += 1
        if report and not right:
            report(f"{i} {kind} WRONG {tuple(x.shape)} {tuple(cam.shape)} not {tuple(expected.shape)}")
    return tally


def test_layouts_that_shapes_do_not_tell():
    """210 random shapes, strides and layouts, some with the tokens in windows or shuffled: right or refused."""
    tally = run(210, 11)
    assert not [k for k in tally if k[0] == "WRONG"], tally
    explained, refused = tally["explained", True], tally["refused", True]
    assert explained >= 0.8 * (explained + refused), tally
    assert tally["refused", False] >= 10, tally  # none of the orders that are no grid got a map


@pytest.mark.slow
def test_more_layouts_that_shapes_do_not_tell():
    tally = sum((run(300, seed) for seed in range(20, 30)), Counter())
    assert not [k for k in tally if k[0] == "WRONG"], tally


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


def test_resnet(resnet):
    x, target = randn(2, 3, 64, 64), torch.tensor([1, 2])
    expected = LayerGradCam(resnet, resnet.layer3).attribute(x, target, relu_attributions=True)[:, 0]
    torch.testing.assert_close(gradcam(resnet, x, "layer3", target, resize=False), expected.detach())
    assert gradcam(resnet, x, resnet.layer3, target).shape == (2, 64, 64)
    by_index = gradcam(resnet, x, "layer4", 3)
    torch.testing.assert_close(gradcam(resnet, x, "layer4", lambda out: out[:, 3]), by_index)
    assert gradcam(resnet, x, "bn1", 3).shape == (2, 64, 64)  # an in-place ReLU follows
    for layer, match in [("nowhere", "no layer"), ("fc", "without positions"), ("avgpool", "no positions")]:
        with pytest.raises(InputError, match=match):
            gradcam(resnet, x, layer, 3)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 5])
def test_convolutions_resize_to_the_input(dim, n):
    torch.manual_seed(0)
    size = (20, 14, 12)[:dim]
    conv, norm, pool = (
        CONV[dim],
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dim - 1],
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dim - 1],
    )
    net = nn.Sequential(
        conv(3, 8, 3, 2, 1),
        norm(8),
        nn.ReLU(inplace=True),
        conv(8, 6, 3, 1, 1),
        pool(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()
    x = randn(n, 3, *size)
    for layer in ("0", "1", "3"):
        oracle = LayerGradCam(net, net[int(layer)])
        expected = oracle.attribute(x, 2, relu_attributions=True).detach()
        small = gradcam(net, x, layer, 2, resize=False)
        torch.testing.assert_close(small, expected[:, 0])
        mode = ("linear", "bilinear", "trilinear")[dim - 1]
        torch.testing.assert_close(
            gradcam(net, x, layer, 2)[:, None], oracle.interpolate(expected, size, mode)
        )
    memory = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dim)
    if memory:  # how numbers lie in memory is no layout
        torch.testing.assert_close(
            gradcam(net, x.contiguous(memory_format=memory), "3", 2, resize=False), small
        )


def by_hand(model, layer, x, target, prefix, grid):
    """Numpy on the tokens (N, L, C) of a layer and their gradient."""
    kept = []
    handle = layer.register_forward_hook(lambda m, a, o: kept.append(o[0] if isinstance(o, tuple) else o))
    out = model(x)
    handle.remove()
    (g,) = torch.autograd.grad(out[:, target].sum(), kept)
    a, g = kept[0].detach().numpy(), g.numpy()
    k = prefix + math.prod(grid)
    return (a[:, prefix:k] * g[:, prefix:k].mean(1, keepdims=True)).sum(-1).reshape(len(x), *grid)


@pytest.mark.parametrize(
    ("name", "options", "prefix"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}, 1),
        ("vit_tiny_patch16_224", {"depth": 2, "class_token": False, "global_pool": "avg"}, 0),
        ("vit_tiny_patch16_224", {"depth": 2, "dynamic_img_size": True}, 1),
        ("deit_tiny_distilled_patch16_224", {"depth": 2}, 2),
        ("vit_small_patch14_reg4_dinov2", {"depth": 2, "embed_dim": 48, "num_heads": 2}, 5),
    ],
)
@pytest.mark.parametrize("size", [(6, 10), (6, 6)])
def test_vision_transformers(name, options, prefix, size):
    torch.manual_seed(0)
    patch = 14 if "14" in name else 16
    shape = (size[0] * patch, size[1] * patch)
    model = timm.create_model(name, img_size=shape, num_classes=3, **options).eval()
    x = randn(2, 3, *shape)
    expected = by_hand(model, model.blocks[0], x, 1, prefix, size)
    cam = gradcam(model, x, "blocks.0", 1, resize=False, relu=False)
    np.testing.assert_allclose(cam.numpy(), expected, rtol=1e-4, atol=1e-7)
    assert gradcam(model, x, "blocks.0", 1).shape == (2, *shape)


def test_swin_on_images_that_are_not_square():
    torch.manual_seed(0)
    options = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8), "num_classes": 5}
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=(112, 224), **options).eval()
    x = randn(1, 3, 112, 224)
    kept = []
    handle = model.layers[1].register_forward_hook(lambda m, i, o: kept.append(o))
    score = model(x)[0, 1]
    handle.remove()
    (g,) = torch.autograd.grad(score, kept)  # (N, h, w, C)
    expected = (kept[0] * g.mean((1, 2), keepdim=True)).sum(-1).detach()
    cam = gradcam(model, x, "layers.1", 1, resize=False, relu=False)
    torch.testing.assert_close(cam, expected)
    assert cam.shape == (1, 14, 28)
    with pytest.raises(InputError, match="holds 8 windows"):
        gradcam(model, x, "layers.1.blocks.0.attn", 1)


class Text(nn.Module):
    """Embeddings (N, L, D) → scores by a transformer of Hugging Face or PyTorch."""

    def __init__(self, body, width):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x)[:, 0])


@pytest.mark.parametrize("n", [1, 5])
def test_text(n):
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    model = Text(nn.TransformerEncoder(block, 2, enable_nested_tensor=False), 24).eval()
    x = randn(n, 24, 24)  # as many tokens as channels
    expected = by_hand(model, model.body.layers[0], x, 1, 0, (24,))
    cam = gradcam(model, x, "body.layers.0", 1, relu=False)
    np.testing.assert_allclose(cam.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_hugging_face():
    """Layers that return tuples and ModelOutputs."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vit = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=(48, 80), patch_size=8, num_labels=3, **small)
    ).eval()
    x = randn(2, 3, 48, 80)
    for layer in ("vit", "vit.encoder", "vit.layernorm"):
        if layer in dict(vit.named_modules()):
            cam = gradcam(vit, x, layer, lambda out: out.logits[:, 1], resize=False)
            assert cam.shape == (2, 6, 10), layer
    swin = transformers.SwinForImageClassification(
        transformers.SwinConfig(
            image_size=64, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
        )
    ).eval()
    stage = next(n for n, _ in swin.named_modules() if n.endswith("layers.0"))
    x = randn(1, 3, 64, 64)
    assert gradcam(swin, x, stage, lambda out: out.logits[:, 1], resize=False).shape == (1, 8, 8)


class Off(nn.Module):
    """A network part of which runs where gradients are off."""

    def __init__(self, how, layer):
        super().__init__()
        self.how, self.layer = how, layer
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def features(self, x):
        return self.body(x).mean((2, 3))

    def forward(self, x):
        if self.how is None:
            return self.head(self.features(x))
        if self.how in ("reentrant", "checkpoint"):
            x = x if x.requires_grad else x.clone().requires_grad_()
            return self.head(checkpoint(self.features, x, use_reentrant=self.how == "reentrant"))
        with self.how():
            features = self.features(x)
            if self.layer == "all":
                return self.head(features)
        return self.head(features)


@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode, "checkpoint"])
@pytest.mark.parametrize("layer", ["half", "all"])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_switched_off(how, layer, frozen):
    nets = []
    for h in (None, how):
        torch.manual_seed(0)
        nets.append(Off(h, layer).eval().requires_grad_(not frozen))
    x = randn(2, 3, 16, 24)
    for name in ("body.0", "body.2"):
        torch.testing.assert_close(gradcam(nets[1], x, name, 1), gradcam(nets[0], x, name, 1))
    with torch.inference_mode():
        torch.testing.assert_close(gradcam(nets[1], x.clone(), "body.2", 1), gradcam(nets[0], x, "body.2", 1))
    with torch.no_grad():
        assert not torch.is_grad_enabled()
        gradcam(nets[1], x, "body.2", 1)
        assert not torch.is_grad_enabled()
    assert all(p.grad is None for p in nets[1].parameters())


def test_reentrant_checkpointing_is_named():
    torch.manual_seed(0)
    net = Off("reentrant", "half").eval()
    x = randn(2, 3, 16, 24)
    with pytest.raises(InputError, match="use_reentrant=False"):
        gradcam(net, x, "body.2", 1)
    outer = nn.Sequential(nn.Conv2d(3, 3, 1), net).eval()
    with pytest.raises(InputError, match="use_reentrant=False"):
        gradcam(outer, x, "0", 1)
    net.how = "checkpoint"  # the remedy
    assert gradcam(net, x, "body.2", 1).any()


def test_checkpointing_of_timm():
    cams = []
    for on in (False, True):
        torch.manual_seed(0)
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5).eval()
        vit.set_grad_checkpointing(on)
        cams.append(gradcam(vit, randn(1, 3, 64, 64), "blocks.1", 1))
    torch.testing.assert_close(*cams)


class Called(nn.Module):
    """Shared, in-place and other layers that a hook may see at the wrong moment."""

    def __init__(self, f, *modules):
        super().__init__()
        self.f, self.m = f, nn.ModuleList(modules)

    def forward(self, x):
        return self.f(self.m, x)


def test_layers_called_several_times():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = Called(lambda m, x: m[0](m[0](x).relu()).mean((2, 3)), conv).eval()
    x = randn(2, 3, 8, 12)
    with pytest.raises(InputError, match=r"runs 2 times.*\n.*call=0"):
        gradcam(net, x, "m.0", 1)
    with pytest.raises(InputError, match="no call 2"):
        gradcam(net, x, "m.0", 1, call=2)
    once = Called(lambda m, x: m[1](m[0](x).relu()).mean((2, 3)), conv, nn.Conv2d(3, 3, 3, padding=1)).eval()
    once.m[1].load_state_dict(conv.state_dict())
    for call in (0, 1):
        torch.testing.assert_close(gradcam(net, x, "m.0", 1, call=call), gradcam(once, x, f"m.{call}", 1))


def test_outputs_changed_in_place_later():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)

    def inplace(m, x):
        a = m[1](m[0](x))
        a.mul_(3).add_(1)
        return (a * a).mean((2, 3))

    def plain(m, x):
        a = m[1](m[0](x))
        return ((3 * a + 1) ** 2).mean((2, 3))

    def alias(m, x):  # the layer returns its input, into which the network writes
        a = m[0](x)
        b = m[1](a)
        a.zero_()
        return ((3 * b + 1) ** 2).mean((2, 3))

    x = randn(2, 3, 8, 12)
    expected = gradcam(Called(plain, conv, nn.Identity()).eval(), x, "m.1", 1)
    for f in (inplace, alias):
        torch.testing.assert_close(gradcam(Called(f, conv, nn.Identity()).eval(), x, "m.1", 1), expected)
    before = x.clone()
    gradcam(Called(lambda m, x: m[0](x.mul_(2)).mean((2, 3)), conv).eval(), x, "m.0", 1)
    assert torch.equal(x, before)


def test_what_the_caller_says_decides():
    """A layer that mixes all positions tells nothing; the arguments of the error's remedy work."""
    torch.manual_seed(0)
    mix = nn.Linear(24, 25)
    net = Called(
        lambda m, x: m[2](m[1](m[0](x).flatten(2)).transpose(1, 2)).mean(1),
        nn.Conv2d(3, 6, 3, 2, 1),
        mix,
        nn.Identity(),
    )
    x = randn(2, 3, 8, 12)
    with pytest.raises(InputError, match="prefix="):
        gradcam(net.eval(), x, "m.2", 1)
    cam = gradcam(net, x, "m.2", 1, resize=False, relu=False, channels_last=True, grid=(4, 6), prefix=1)
    np.testing.assert_allclose(cam.numpy(), by_hand(net, net.m[2], x, 1, 1, (4, 6)), rtol=1e-4, atol=1e-7)
    for wrong in ({"grid": (5, 6), "prefix": 1}, {"grid": (3, 3)}):
        with pytest.raises(InputError):
            gradcam(net, x, "m.2", 1, **wrong)
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = randn(1, 3, 8, 12)
    found = gradcam(conv, x, "0", 1)
    torch.testing.assert_close(gradcam(conv, x, "0", 1, channels_last=False), found)
    with pytest.raises(InputError, match="channels_last=False"):
        gradcam(conv, x, "0", 1, channels_last=True, grid=(8, 12))


def test_numbers_and_inputs_that_cannot_be_explained():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x = randn(2, 3, 8, 12)
    infinite = Called(lambda m, x: (m[0](x) * 1e30).mean((2, 3)) * 1e30, conv).eval()
    with pytest.raises(InputError, match="infinite"):
        gradcam(infinite, x, "m.0", 1)
    steep = Called(lambda m, x: (m[0](x) * 0).abs().sqrt().mean((2, 3)), conv).eval()
    with pytest.raises(InputError, match="infinite"):
        gradcam(steep, x, "m.0", 1)
    cut = Called(lambda m, x: m[0](x).detach().mean((2, 3)) + x.mean(), conv).eval()
    with pytest.raises(InputError, match="does not depend"):
        gradcam(cut, x, "m.0", 1)
    with pytest.raises(InputError, match="real numbers"):
        gradcam(nn.Embedding(9, 4), torch.zeros(2, 5, dtype=torch.long), "", 1)
    maps = Called(
        lambda m, x: m[0](x)[0].mean((2, 3)), Called(lambda m, x: (m[0](x), m[0](x)[..., ::2]), conv)
    ).eval()
    with pytest.raises(InputError, match="2 maps"):
        gradcam(maps, x, "m.0", 1)
