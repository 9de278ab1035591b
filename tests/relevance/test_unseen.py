"""What a model does out of the engine's sight is recognised or named, never a constant without a word (kinds A, E)."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pfungst.errors import InputError, PfungstError, UncoveredOperation
from pfungst.relevance import attribute, composite, gradcam, linearize


class Model(nn.Module):
    """A convolution, a function of it, and a readout."""

    def __init__(self, f, bias=True):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(6)
        self.norm.running_mean.normal_()
        self.fc = nn.Linear(6, 3, bias=bias)
        self.f = f
        self.eval()

    def forward(self, x):
        a = self.norm(self.conv(x))
        return self.fc((self.f(a) + a).mean((2, 3)))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        p = torch.sigmoid(x)
        return g * (p + x * p * (1 - p))


class Hidden(torch.autograd.Function):
    """The same, with a forward that torch's dispatcher does not see."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() / (1 + torch.exp(-x.detach()).numpy()))

    backward = Swish.backward


class Reversed(torch.autograd.Function):
    """Gradient reversal: the identity, with another derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class Mixed(torch.autograd.Function):
    """Not elementwise."""

    @staticmethod
    def forward(ctx, x):
        return x.flip(-1) * 2

    @staticmethod
    def backward(ctx, g):
        return g.flip(-1) * 2


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x.mul_(2.0)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@torch.jit.script
def scripted(x):
    return x * torch.sigmoid(x)


@torch.jit.script
def scripted_mix(x):
    return x.flip(-1)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
RULES = ["transformer", "epsilon_plus", "epsilon_gamma", "lrp_zero"]


def same(a, b, tolerance=1e-5):
    torch.testing.assert_close(a.values, b.values, rtol=1e-3, atol=tolerance * float(b.values.abs().max()))
    torch.testing.assert_close(a.score, b.score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("f", [Swish.apply, Hidden.apply, scripted], ids=["function", "hidden", "scripted"])
def test_elementwise_functions_out_of_sight_get_the_rule_of_activations(f, rules):
    same(attribute(Model(f), X, 1, rules), attribute(Model(F.silu), X, 1, rules))


@pytest.mark.parametrize("rules", RULES)
def test_an_identity_with_another_derivative_is_explained_as_what_it_computes(rules):
    same(attribute(Model(Reversed.apply), X, 1, rules), attribute(Model(lambda a: 1 * a), X, 1, rules))


def traced():
    torch.manual_seed(3)
    return torch.jit.trace(nn.Conv2d(6, 6, 3, padding=1).eval(), torch.randn(2, 6, 8, 8))


def numpy_inside(a):
    return torch.from_numpy(a.detach().numpy() * 2)


@pytest.mark.parametrize(
    "f",
    [
        Mixed.apply,
        InPlace.apply,
        scripted_mix,
        traced(),
        torch.vmap(lambda row: row * 2),
        torch.vmap(lambda row: torch.relu(row).flip(-1), in_dims=1, out_dims=1),
        lambda a: torch.func.vmap(torch.vmap(torch.sin))(a),
        lambda a: torch.func.jvp(torch.sin, (a,), (torch.ones_like(a),))[1],
        lambda a: torch.stack([scripted(r).flip(-1) if i else scripted_mix(r) for i, r in enumerate(a)]),
    ],
    ids=[
        "function",
        "dirty",
        "scripted",
        "traced",
        "vmap",
        "vmap over channels",
        "vmap twice",
        "jvp",
        "rows",
    ],
)
@pytest.mark.parametrize("rules", ["transformer", "epsilon_plus"])
def test_what_cannot_be_seen_is_named(f, rules):
    with pytest.raises(PfungstError, match=r"seen|vmap|jvp|rule"):
        attribute(Model(f), X, 1, rules)
    with pytest.raises(PfungstError):
        linearize(Model(f), X, rules)


def test_numpy_inside_a_model_is_named():
    class Outside(nn.Module):
        def forward(self, x):
            return torch.as_tensor(x.numpy()).flatten(1)

    with pytest.raises(PfungstError, match="numpy"):
        attribute(Outside(), X, 1, "lrp_zero")


@pytest.mark.parametrize(
    "f",
    [
        lambda a: a + torch.tensor(a.tolist()),
        lambda a: (lambda b: (setattr(b, "data", b.data * 2), b)[1])(a * 1.0),
        lambda a: (lambda b: (torch._foreach_mul_([b], 2.0), b)[1])(a * 1.0),
        lambda a: torch.cond(torch.tensor(True), lambda t: t * 2, lambda t: t * 3, (a,)),
        lambda a: a.clone().resize_(2, 6, 64).view_as(a),
        lambda a: F.prelu(a, a.mean().view(1)),
        lambda a: a.scatter_reduce(1, torch.zeros(2, 6, 8, 8, dtype=torch.long), a, "prod"),
    ],
    ids=["tolist", "data", "foreach", "cond", "resize", "prelu", "scatter_reduce"],
)
def test_what_has_no_rule_or_goes_around_autograd_is_named(f):
    with pytest.raises(UncoveredOperation):
        attribute(Model(lambda a: f(a) + a), X, 1, "transformer")


def test_constants_out_of_sight_stay_constants():
    """A mask by vmap, weights by a script, a graph over parameters made before: none depends on the input."""
    weight = nn.Parameter(torch.rand(6, 1, 1))
    earlier = weight * 2

    def f(a):
        mask = torch.vmap(lambda i: (i % 2).float())(torch.arange(6))
        return a * mask.view(6, 1, 1) * scripted(weight) * earlier

    plain = (torch.arange(6) % 2).float().view(6, 1, 1) * (weight * torch.sigmoid(weight) * earlier).detach()
    same(attribute(Model(f), X, 1, "transformer"), attribute(Model(lambda a: a * plain), X, 1, "transformer"))


def test_tensors_kept_from_an_earlier_run_are_constants():
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = None
            self.fc = nn.Linear(4, 3, bias=False)

        def forward(self, x):
            y = self.fc(x)
            out = y if self.kept is None else y + self.kept
            self.kept = y
            return out

    x = torch.randn(2, 4)
    net = Memory()
    first = attribute(net, x, 1, "lrp_zero", measure=False)
    again = attribute(net, 2 * x, 1, "lrp_zero", measure=False)
    torch.testing.assert_close(again.values, 2 * first.values)
    torch.testing.assert_close(again.bias, first.score, rtol=1e-4, atol=1e-6)


# -- activation checkpointing, no_grad, inference mode -----------------------------------------------


def block(a):
    return F.relu(F.conv2d(a, torch.full((6, 6, 3, 3), 0.05), padding=1) * 0.5 + a)


class Wrapped(Model):
    def __init__(self, how):
        super().__init__(block)
        self.how = how

    def forward(self, x):
        def first(x):
            return self.norm(self.conv(x))

        run = {
            "plain": lambda f, a: f(a),
            "checkpoint": lambda f, a: checkpoint(f, a, use_reentrant=False),
            "reentrant": lambda f, a: checkpoint(f, a, use_reentrant=True),
            "no_grad": lambda f, a: torch.no_grad()(f)(a),
            "set_grad_enabled": self.switched_off,
            "inference_mode": lambda f, a: torch.inference_mode()(f)(a),
        }[self.how]
        a = run(first, x)
        return self.fc(run(self.f, a).mean((2, 3)))

    @staticmethod
    def switched_off(f, a):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        out = f(a)
        torch.set_grad_enabled(before)
        return out


HOW = ["checkpoint", "reentrant", "no_grad", "set_grad_enabled", "inference_mode"]


@pytest.mark.parametrize("rules", [*RULES, "epsilon_plus_flat", "epsilon_gamma_box"])
@pytest.mark.parametrize("how", HOW)
def test_memory_saving_and_gradient_switches_do_not_change_the_explanation(how, rules):
    plain = Wrapped("plain")
    same(attribute(Wrapped(how), X, 1, rules), attribute(plain, X, 1, rules))
    rows = linearize(plain, X, rules).rows(torch.eye(3))
    got = linearize(Wrapped(how), X, rules).rows(torch.eye(3))
    torch.testing.assert_close(got, rows, rtol=1e-3, atol=1e-5 * float(rows.abs().max()))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("how", HOW)
def test_plain_gradients_and_gradcam_too_or_a_remedy(how):
    if how == "reentrant":
        with pytest.raises(InputError, match="use_reentrant=False"):
            attribute(Wrapped(how), X, 1, "gradient")
        return
    same(attribute(Wrapped(how), X, 1, "gradient"), attribute(Wrapped("plain"), X, 1, "gradient"))
    expected = gradcam(Wrapped("plain"), X, "conv", 1)
    torch.testing.assert_close(gradcam(Wrapped(how), X, "conv", 1), expected, rtol=1e-4, atol=1e-6)


def test_models_made_in_inference_mode_are_explained():
    with torch.inference_mode():
        inside = Model(F.relu)
    same(attribute(inside, X, 1, "epsilon_plus"), attribute(Model(F.relu), X, 1, "epsilon_plus"))


# -- threads ----------------------------------------------------------------------------------------


def test_two_threads_explain_at_once_and_leave_nothing_behind():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()
    jobs = [(Model(F.relu), X, "epsilon_plus"), (encoder, torch.randn(2, 5, 8), "transformer")]
    pick = lambda out: out.flatten(1)[:, 1]
    expected = [attribute(net, x, pick, rules).values for net, x, rules in jobs]
    found, names = [[], []], []

    def work(i):
        net, x, rules = jobs[i]
        for _ in range(8):
            found[i].append(attribute(net, x, pick, rules).values)
        try:
            attribute(Model(torch.lgamma) if i == 0 else nn.Sequential(Lgamma()), X, 1, "epsilon_plus")
        except UncoveredOperation as error:
            names.append(str(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in (0, 1):
        assert len(found[i]) == 16
        for values in found[i]:
            torch.testing.assert_close(values, expected[i])
    assert sum("(Lgamma)" in n for n in names) == 2
    assert sum("(Model)" in n for n in names) == 2
    assert not nn.modules.module._global_forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()


class Lgamma(nn.Module):
    def forward(self, x):
        return torch.lgamma(x).flatten(1)


# -- adapters, quantised layers, exported programs ----------------------------------------------------


class LoRA(nn.Module):
    """W x + B A x · s, with W frozen, as in peft; with `magnitude` as in DoRA."""

    def __init__(self, base, magnitude=False):
        super().__init__()
        torch.manual_seed(2)
        self.base, self.magnitude = base, magnitude
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)
        self.m = nn.Parameter(torch.rand(base.out_features) + 0.5)

    def forward(self, x):
        out = self.base(x) + 0.5 * self.b(self.a(x))
        if self.magnitude:
            weight = self.base.weight + 0.5 * self.b.weight @ self.a.weight
            out = out * (self.m / weight.norm(dim=1)).view(1, -1)
        return out


@pytest.mark.parametrize("magnitude", [False, True])
def test_adapters_conserve(magnitude):
    torch.manual_seed(0)
    net = nn.Sequential(
        LoRA(nn.Linear(6, 8, bias=False), magnitude), nn.ReLU(), nn.Linear(8, 3, bias=False)
    ).eval()
    x = torch.randn(4, 6)
    r = attribute(net, x, 1, "lrp_zero")
    xs = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(net(xs)[:, 1].sum(), xs)
    torch.testing.assert_close(r.values, x * g)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_named_and_fake_quantisation_passes():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    x = torch.randn(2, 6)
    with pytest.raises(UncoveredOperation, match="linear_dynamic"):
        attribute(quantised, x, 1, "lrp_zero")

    class Fake(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127))

    r = attribute(Fake(), x, 1, composite("lrp_zero"))
    torch.testing.assert_close(r.score, Fake()(x)[:, 1])
    q = torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)
    torch.testing.assert_close(r.values, attribute(net, q, 1, "lrp_zero").values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decomposed", [False, True])
def test_exported_programs_are_explained_or_named(decomposed):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).eval()
    program = torch.export.export(net, (X,))
    program = program.run_decompositions() if decomposed else program
    try:
        r = attribute(program.module(), X, 1, "epsilon_plus")
    except UncoveredOperation:
        assert decomposed
        return
    same(r, attribute(net, X, 1, "epsilon_plus"))


def test_a_compiled_layer_inside_a_model_is_explained_by_its_module():
    net = Model(F.relu)
    inner = Model(F.relu)
    inner.conv = torch.compile(inner.conv, backend="eager")
    same(attribute(inner, X, 1, "epsilon_plus"), attribute(net, X, 1, "epsilon_plus"))
