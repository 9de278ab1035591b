"""The engine on small networks: conservation, both directions, transforms, bad input."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models import efficientnet_b0, resnet18

from pfungst.errors import ConfigError, InputError, PfungstWarning, UncoveredOperation
from pfungst.relevance import (
    DCTBands,
    Epsilon,
    Gradient,
    Ignore,
    On,
    Pass,
    Patches,
    PixelBands,
    Pixels,
    Tokens,
    attribute,
    composite,
    describe,
    linearize,
)
from pfungst.relevance.engine.mode import RelevanceMode

CONV = ["epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1", "lrp_zero"]


class Net(nn.Module):
    """Conv → BN → in-place ReLU → residual `+=` → pool → flatten → linear, and what users also write."""

    def __init__(self, bias=True, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Conv2d(8, 8, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4, 5, bias=bias)
        for bn in (self.bn, self.bn2):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            bn.running_var.uniform_(0.5, 2)
            if bias:
                nn.init.normal_(bn.bias)
                bn.running_mean.normal_()
        self.eval()

    def forward(self, x):
        x = (x - self.mean) / 0.25
        x = self.relu(self.bn(self.conv(x)))
        y = self.bn2(self.block(x))
        y += x
        y = F.max_pool2d(F.relu_(y), 2)
        y = F.adaptive_avg_pool2d(y, 2)
        return self.fc(torch.flatten(y, 1))


def images(n=2, size=8, dtype=torch.float64):
    return torch.rand(n, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    return Net().double()


def close(a, b, tolerance=1e-9):
    assert a.shape == b.shape
    assert ((a - b).abs().sum() / b.abs().sum()).item() < tolerance


@pytest.mark.parametrize("name", [*CONV, "transformer"])
def test_conserves_without_biases_and_keeps_the_output(name):
    net = Net(bias=False).double()
    x = images()
    r = attribute(net, x, 2, name)
    close(r.score, net(x)[:, 2])
    assert (r.sum() - r.score).abs().max() / r.score.abs().min() < 1e-3


@pytest.mark.parametrize("name", CONV)
def test_rows_columns_and_single_heatmaps_agree(net, name):
    x = images(2, 16)
    lin = linearize(net, x, name)
    single = torch.stack([attribute(net, x, k, name, Patches(4)).values for k in range(5)], 1)
    eye = torch.eye(5, dtype=x.dtype)
    close(lin.rows(eye, Patches(4)), single)
    close(lin.columns(Patches(4)), single.flatten(2))
    close(lin.factor(Patches(4)), single.flatten(2))
    close(lin.rows(eye)[:, :, :, :4, :4].sum((-3, -2, -1)), single[..., 0, 0])
    one = torch.cat([linearize(net, x[i : i + 1], name).rows(eye, Patches(4)) for i in range(2)])
    close(one, single)


@pytest.mark.parametrize("basis", [Pixels(), Patches(3), DCTBands(count=5), PixelBands(edges=(0, 3, None))])
def test_every_basis_sums_to_the_pixels_with_three_streams(net, basis):
    x = images()
    pixels = attribute(net, x, 1, "epsilon_gamma_box")
    r = attribute(net, x, 1, "epsilon_gamma_box", basis)
    close(r.sum(), pixels.sum())
    columns = linearize(net, x, "epsilon_gamma_box").columns(basis)[:, 1]
    close(columns, r.values.flatten(1))


def test_zbox_is_the_sum_of_three_streams():
    """By hand on one linear layer: R_i = z_i / Σ z, z_i = x_i w_i − low w_i⁺ − high w_i⁻."""
    w = torch.tensor([[1.0, -2.0, 0.5]])
    layer = nn.Conv2d(3, 1, 1, bias=False)
    layer.weight.data = w.view(1, 3, 1, 1)
    x = torch.tensor([[0.3, 0.9, -0.2]]).view(1, 3, 1, 1)
    rules = composite("epsilon_gamma_box", low=-1.0, high=2.0, stabilizer=0.0)
    r = attribute(nn.Sequential(layer, nn.Flatten()), x, 0, rules, Pixels(channels=True))
    z = x.flatten() * w[0] + 1.0 * w[0].clamp(min=0) - 2.0 * w[0].clamp(max=0)
    torch.testing.assert_close(r.values.flatten(), z / z.sum() * (x.flatten() @ w[0]))


def test_epsilon_by_hand_and_the_value_is_exact():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, -1.0]])
    x = torch.tensor([[1.0, 0.5]])
    r = attribute(layer, x, 0, composite("epsilon_plus", epsilon=0.5))
    torch.testing.assert_close(r.values, torch.tensor([[2.0, -0.5]]) * 1.5 / 2.0)
    assert r.score.item() == 1.5
    torch.testing.assert_close(r.bias, torch.tensor([1.5 - 1.125]))


def test_bias_share_equals_what_the_constants_absorbed(net):
    """Independent account: every additive constant is a leaf of its own; with inputs they make up the score."""
    from pfungst.relevance.engine.run import execute

    x = images(1)
    r = attribute(net, x, 3, composite("lrp_zero"))
    run = execute(net, x, composite("lrp_zero"), biases=True)
    names, leaves = zip(*run.biases, strict=True)
    grads = torch.autograd.grad(run.output[0, 3], leaves, allow_unused=True)
    absorbed = sum((b * g).sum() for b, g in zip(leaves, grads, strict=True) if g is not None)
    assert any("fc" in n for n in names)
    torch.testing.assert_close(absorbed, r.bias[0])
    assert r.bias_share > 0.01


def test_model_is_the_same_afterwards_also_after_an_error(net):
    state = {k: v.clone() for k, v in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    calls = []
    handle = net.conv.register_forward_hook(lambda m, a, o: calls.append(o.shape))
    attribute(net, images(), 0)
    assert calls  # the user's hook ran
    with pytest.raises(InputError):
        attribute(net, images()[:, :2], 0)

    class Boom(nn.Module):
        def forward(self, x):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        attribute(nn.Sequential(net, Boom()), images(), 0)
    handle.remove()
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert flags == [p.requires_grad for p in net.parameters()]
    assert not nn.modules.module._global_forward_pre_hooks
    assert all(not hasattr(t, "_pfungst") for t in (*net.parameters(), *net.buffers()))
    assert torch.backends.mha.get_fastpath_enabled()


class Uncovered(nn.Module):
    def forward(self, x):
        return torch.lgamma(x).flatten(1)


def test_uncovered_operation_is_named_and_can_be_assigned():
    x = images()
    with pytest.raises(UncoveredOperation, match=r"'lgamma'.*module '0' \(Uncovered\)") as error:
        attribute(nn.Sequential(Uncovered()), x, 0)
    assert "assign" in str(error.value)
    rules = composite("epsilon_plus").assign("lgamma", Pass())
    r = attribute(nn.Sequential(Uncovered()), x, 0, rules)
    torch.testing.assert_close(r.sum(), x[:, 0, 0, 0].lgamma())
    with pytest.raises(InputError, match="constant"):
        attribute(nn.Sequential(Uncovered()), x, 0, rules.assign("lgamma", Ignore()))
    g = attribute(nn.Sequential(Uncovered()), x, 0, composite("epsilon_plus").assign("lgamma", Gradient()))
    torch.testing.assert_close(g.sum(), (x * x.digamma())[:, 0, 0, 0])


def test_rules_by_name_type_and_order(net):
    rules = (
        composite("epsilon_plus")
        .assign(On(name="block"), Ignore())
        .assign(On(module=nn.Linear), Epsilon(0.1))
    )
    table = describe(net, images(), rules)
    lines = {line.split()[1]: line for line in table.splitlines()[2:]}
    assert "Ignore()" in lines["block"]
    assert "Epsilon(epsilon=0.1)" in lines["fc"]
    assert "ZPlus" in lines["conv"]
    assert "bn folded in" in lines["conv"]
    with pytest.raises(ConfigError):
        composite("nope")
    with pytest.raises(ConfigError):
        attribute(net, images(), 0, composite("epsilon_plus").assign(On(name="fc"), Pass()))


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: (x * 255).to(torch.uint8), "uint8"),
        (lambda x: x[:, :2], r"cannot process inputs of shape \(2, 2, 8, 8\)"),
        (lambda x: x.masked_fill(x > 0.9, float("nan")), "NaN"),
        (lambda x: x.to("meta"), "meta"),
        (lambda x: x.numpy(), "not a tensor"),
        (lambda x: x.flatten()[:10], "batch"),
    ],
)
def test_bad_inputs(net, change, match):
    with pytest.raises(InputError, match=match):
        attribute(net, change(images()), 0)


@pytest.mark.parametrize(
    "output", [5, -6, torch.tensor([0, 7]), torch.tensor([0, 1, 2]), torch.rand(3, 5), None]
)
def test_bad_outputs(net, output):
    with pytest.raises(InputError):
        attribute(net, images(), output)


def test_training_mode_is_refused(net):
    with pytest.raises(InputError, match=r"eval\(\)"):
        attribute(net.train(), images(), 0)
    with pytest.raises(InputError, match=r"eval\(\)"):
        attribute(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 2)).double(), images(), 0)
    with pytest.raises(InputError, match="meta"):
        attribute(Net().to("meta"), images(), 0)


class Dict(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        out = self.net(x)
        return {"logits": out, "other": (out, out)}


def test_models_that_return_several_things(net):
    with pytest.raises(InputError, match="logits"):
        attribute(Dict(net), images(), 0)
    r = attribute(Dict(net), images(), lambda out: out["logits"][:, 3] - out["logits"][:, 1])
    both = attribute(net, images(), torch.tensor([0.0, -1, 0, 1, 0], dtype=torch.float64))
    close(r.values, both.values)
    lin = linearize(Dict(net), images(), output=lambda out: out["logits"])
    close(lin.output, net(images()))


def test_callers_gradient_state_does_not_matter(net):
    x = images()
    expected = attribute(net, x, 0).values
    for p in net.parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        close(attribute(net, x, 0).values, expected)
    with torch.inference_mode():
        close(attribute(net, x.clone(), 0).values, expected)
    x.requires_grad_()
    close(attribute(net, x, 0).values, expected)
    assert x.grad is None


# -- transforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon_gamma_box", "epsilon_plus_flat"])
def test_vmap_and_differentiable_give_the_same(net, name):
    x = images()
    expected = attribute(net, x, 1, name).values
    close(attribute(net, x, 1, name, differentiable=True).values, expected)
    close(torch.vmap(lambda v: attribute(net, v[None], 1, name).values[0])(x), expected)


def test_explanations_can_be_differentiated():
    """On smooth data: directional derivative of the relevance against central differences."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(4 * 36, 2)).double()
    x = images(1).requires_grad_()
    target = torch.randn(1, 8, 8, dtype=torch.float64)
    f = lambda v: (attribute(net, v, 0, "epsilon_gamma_box", differentiable=True).values * target).sum()
    (g,) = torch.autograd.grad(f(x), x)
    d = torch.randn_like(x)
    with torch.no_grad():
        numeric = (f(x + 1e-6 * d) - f(x - 1e-6 * d)) / 2e-6
    torch.testing.assert_close((g * d).sum(), numeric, rtol=1e-4, atol=1e-7)


def test_compiled_models_and_autocast(net):
    x = images()
    expected = attribute(net, x, 1)
    compiled = torch.compile(net, backend="eager")
    close(attribute(compiled, x, 1).values, expected.values)
    whole = torch.compile(lambda v: 2 * attribute(net, v, 1).values, backend="aot_eager")
    close(whole(x), 2 * expected.values)
    net32 = net.float()
    with torch.autocast("cpu", torch.bfloat16):
        r = attribute(net32, x.float(), 1, "epsilon_plus")
    full = attribute(net32, x.float(), 1, "epsilon_plus")
    assert torch.nn.functional.cosine_similarity(r.values.flatten().float(), full.values.flatten(), 0) > 0.98


def test_frequency_basis_warns_with_flat_first_layer(net):
    with pytest.warns(PfungstWarning, match="frequency zero"):
        attribute(net, images(), 0, "epsilon_plus_flat", DCTBands(count=4))


# -- the vocabulary -------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.qkv = nn.Linear(8, 24, bias=False)
        self.mha = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, bias=False, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x):
        if self.kind == "encoder":
            return self.head(self.encoder(x).mean(1))
        if self.kind == "mha":
            return self.head(self.mha(x, x, x)[0].mean(1))
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.kind == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.einsum("bhij,bhjd->bhid", (torch.einsum("bhid,bhjd->bhij", q, k) / 2).softmax(-1), v)
        return self.head(y.transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("kind", ["encoder", "mha", "sdpa", "einsum"])
def test_attention_conserves_in_both_directions(kind):
    torch.manual_seed(0)
    net = Attention(kind).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    r = attribute(net, x, 1, "transformer", Tokens())
    assert r.conservation_error().max() < 1e-9
    assert ((r.sum() - r.score).abs() / r.score.abs()).max() < 1e-3
    lin = linearize(net, x, "transformer")
    close(lin.output, net(x))
    close(lin.columns(Tokens())[:, 1], r.values)
    close(lin.rows(torch.eye(3, dtype=x.dtype), Tokens())[:, 1], r.values)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.silu(x),
        lambda x: F.hardswish(x),
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        lambda x: F.group_norm(x, 2) + x,
        lambda x: F.rms_norm(x, x.shape[1:]),
        lambda x: F.layer_norm(x, x.shape[1:]),
        lambda x: F.normalize(x.flatten(1)),
        lambda x: x / x.norm(dim=1, keepdim=True),
        lambda x: (x.flatten(1) ** 2).sum(1, keepdim=True),
        lambda x: x * x.roll(1, 2),
        lambda x: (x - x.mean((2, 3), keepdim=True)) * torch.rsqrt(x.var((2, 3), keepdim=True) + 1e-5),
        lambda x: torch.cat([F.avg_pool2d(x, 2), F.max_pool2d(x, 2)], 1),
        lambda x: F.hardtanh(x, 0.0, 6.0, True),
        lambda x: F.leaky_relu(x, 0.1, True),
        lambda x: x.clone().add_(x).mul_(2.0),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear").permute(0, 2, 3, 1)[..., :2],
        lambda x: 3.0 * x - x / 2 + torch.where(x > 0, x, 0.5 * x),
        lambda x: F.pixel_shuffle(x, 2).abs(),
    ],
)
def test_every_operation_conserves_and_keeps_its_value(f):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.weight = None

        def forward(self, x):
            return f(self.conv(x)).flatten(1)

    net, x = Model().double(), images()
    w = torch.rand(net(x).shape[1], dtype=x.dtype)
    lin = linearize(net, x, "transformer")
    close(lin.output, net(x))
    r = attribute(net, x, w, "transformer")
    assert ((r.sum() - r.score).abs() / r.score.abs()).max() < 1e-4
    close(lin.rows(w[None])[:, 0].sum(1), r.values)
    close(lin.columns(Patches(4)) @ torch.ones(4, dtype=x.dtype), lin.columns(Patches(8))[..., 0], 1e-8)


@st.composite
def networks(draw):
    torch.manual_seed(draw(st.integers(0, 10**6)))
    layers, channels = [], 3
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "bn", "relu", "max", "avg", "group", "residual"]))
        if kind == "conv":
            out = draw(st.integers(1, 5))
            stride, dilation = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
            layers.append(nn.Conv2d(channels, out, 3, stride, 2, dilation, bias=False))
            channels = out
        elif kind == "bn":
            bn = nn.BatchNorm2d(channels)
            bn.running_var.uniform_(0.5, 2)
            layers.append(bn)
        elif kind == "group":
            layers.append(nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels, bias=False))
            channels *= 2
        elif kind == "residual":
            layers.append(Residual(channels))
        else:
            layers.append({"relu": nn.ReLU(), "max": nn.MaxPool2d(3, 2, 1), "avg": nn.AvgPool2d(2, 1)}[kind])
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3, bias=False))


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return x + F.relu(self.conv(x))


@settings(max_examples=15, deadline=None)
@given(net=networks(), name=st.sampled_from(["lrp_zero", "epsilon_plus", "epsilon_alpha2_beta1"]))
def test_random_networks(net, name):
    net = net.double().eval()
    x = images(2, 12)
    lin = linearize(net, x, name)
    close(lin.output + 1, net(x) + 1)
    rows = lin.rows(torch.eye(3, dtype=x.dtype), Patches(4))
    assert (rows.flatten(2) - lin.columns(Patches(4))).abs().max() < 1e-8 * (1 + rows.abs().max())
    single = attribute(net, x[1:], 1, name, Patches(4)).values
    assert (rows[1:, 1] - single).abs().max() < 1e-8 * (1 + single.abs().max())
    if name == "lrp_zero":
        assert (rows.sum((-2, -1)) - lin.output).abs().max() < 1e-8


def test_a_buffer_cast_like_the_input_stays_a_constant():
    """Regression: kernel.to(x) made the weights of a convolution look as if they were computed from x."""

    class Blur(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kernel", torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64))

        def forward(self, x):
            kernel = self.kernel.to(x).type_as(x).view(1, 1, -1, 1).expand(x.shape[1], 1, -1, 1)
            return nn.functional.conv2d(x, kernel, groups=x.shape[1]).flatten(1).sum(1, keepdim=True)

    x = torch.rand(2, 3, 8, 8)
    r = attribute(Blur(), x, output=0, composite="gradient")
    torch.testing.assert_close(r.sum(), r.score)


def test_a_pass_leaves_no_cycle_that_holds_its_graph(monkeypatch):
    """Memory once grew by the graph of every batch until Python's collector came by."""
    made: list[weakref.ref[RelevanceMode]] = []
    init = RelevanceMode.__init__

    def noted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(RelevanceMode, "__init__", noted)
    x = torch.rand(2, 3, 32, 32)
    gc.collect()
    gc.disable()
    try:
        for net in (
            resnet18(),
            efficientnet_b0(),
            nn.Sequential(nn.Flatten(), nn.LayerNorm(3072), nn.Linear(3072, 5)),
        ):
            attribute(net.eval(), x, 1, "auto", PixelBands(count=4))
        assert made
        assert not any(mode() is not None for mode in made)
    finally:
        gc.enable()
