"""Explained values are the model's own, however its operations are called (kinds B and C)."""

import math
import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pfungst.errors import InputError, PfungstError, UncoveredOperation
from pfungst.relevance import attribute, linearize

G = torch.Generator().manual_seed(0)
S = torch.randn(2, 6, 8, dtype=torch.float64, generator=G)
IM = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=G)


class Fn(nn.Module):
    """A model from a function of a linear map of its input."""

    def __init__(self, f):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(8, 8, bias=False).double()
        self.f = f

    def forward(self, x):
        return self.f(self.first(x) if x.ndim == 3 else x)


def gradient_times_input(net, x, weights):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad((net(x).flatten(1) * weights).sum(), x)
    return g * x


def explained(f, x=S, rules="lrp_zero"):
    """Score as the plain model's, both directions alike; returns relevance, gradient × input and the score."""
    net = Fn(f).eval()
    with torch.no_grad():
        plain = net(x).flatten(1)
    w = torch.rand(plain.shape[1], dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    r = attribute(net, x, lambda out: (out.flatten(1) * w).sum(1), rules)
    torch.testing.assert_close(r.score, plain @ w)
    rows = linearize(net, x, rules).rows(w[None])[:, 0]
    torch.testing.assert_close(rows.flatten(1).sum(1), r.sum())
    values = rows if x.ndim == 3 else r.values
    return values, lambda: gradient_times_input(net, x, w), r


# -- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_with_running_statistics_uses_them(dims, affine):
    layer = getattr(nn, f"InstanceNorm{dims}d")
    torch.manual_seed(0)
    norm = layer(3, affine=affine, track_running_stats=True).double().eval()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, *[5] * dims, dtype=torch.float64)
    net = nn.Sequential(norm, nn.Flatten(), nn.Linear(3 * 5**dims, 3).double()).eval()
    for rules in ("lrp_zero", "transformer", "epsilon_plus"):
        r = attribute(net, x, 1, rules)
        torch.testing.assert_close(r.score, net(x)[:, 1].detach())
    own = nn.Sequential(
        layer(3, affine=affine).double(), nn.Flatten(), nn.Linear(3 * 5**dims, 3).double()
    ).eval()
    r = attribute(own, x, 1, "lrp_zero")
    torch.testing.assert_close(r.score, own(x)[:, 1].detach())


MASKS = {
    "left padded": torch.tensor([[[False] * 2 + [True] * 4] * 2 + [[True] * 6] * 4] * 2)[:, None],
    "all of a row masked": torch.tensor([[[False] * 6] * 3 + [[True] * 6] * 3] * 2)[:, None],
    "float with -inf": torch.full((6, 6), -math.inf).triu(1),
    "float rows of -inf": torch.cat([torch.full((2, 6), -math.inf), torch.zeros(4, 6)]),
    "finite floats": torch.randn(6, 6, generator=G),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masked_attention_has_pytorchs_values(mask):
    mask = mask if mask.dtype == torch.bool else mask.double()

    def attend(a):
        q = a[:, None]
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)[:, 0]

    values, _, r = explained(attend, rules="transformer")
    assert torch.isfinite(values).all()
    assert ((r.sum() - r.score).abs() < 1e-4 * r.score.abs() + 1e-9).all()


@pytest.mark.parametrize("options", [{"is_causal": True}, {"scale": 0.3}, {"is_causal": True, "scale": 2.0}])
def test_attention_options_keep_their_values(options):
    explained(lambda a: F.scaled_dot_product_attention(a, a, value=a, **options), rules="transformer")


def test_grouped_queries_keep_their_values():
    def attend(a):
        q, k = a.reshape(2, 6, 4, 2).transpose(1, 2), a[..., :4].reshape(2, 6, 2, 2).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    explained(attend, rules="transformer")


@pytest.mark.parametrize(
    "f",
    [
        lambda a: a // 0.3,
        lambda a: torch.floor_divide(a, 0.3),
        lambda a: torch.div(a, 0.3, rounding_mode="trunc"),
        lambda a: a.div(other=0.3, rounding_mode="floor"),
        lambda a: (a * 3).round() + a,
        lambda a: a.floor() + a.ceil() + a.trunc(),
        lambda a: F.hardtanh(a, -0.2, 0.7),
        lambda a: a.clamp(max=0.1) + a.clamp(min=-0.1),
        lambda a: torch.maximum(a, torch.full_like(a, 0.1)) + torch.minimum(a, torch.tensor(0.2).double()),
        lambda a: a + float(a.abs().max()) + a.mean().item() * a,
        lambda a: a * (a > 0) + a * (a > 0).float() * 2,
        lambda a: a.masked_fill(a > 0.5, 2.0) + F.pad(a[..., :-1], (0, 1), value=1.5),
        lambda a: torch.where(a > 0, a, -0.5) + 1.0,
        lambda a: F.group_norm(a, 3) + F.layer_norm(a, (8,), eps=1e-2) + F.rms_norm(a, (8,)),
        lambda a: torch.native_layer_norm(a, [8], None, None, 1e-5)[0],
        lambda a: F.normalize(a, 1.0, -1) + F.normalize(input=a, p=3.0, dim=1),
    ],
)
def test_values_are_those_of_the_original_call(f):
    explained(f, rules="transformer")


def test_clamps_by_dependent_bounds_give_all_to_the_winner():
    """Regression: a bound that depends on the input was a constant without a word."""
    values, exact, _ = explained(lambda a: torch.clamp(a, min=0.5 * a.roll(1, 1), max=a.roll(2, 1).abs()))
    torch.testing.assert_close(values, exact())


def test_where_a_spatial_transformer_looks_is_a_constant():
    """Regression: relevance went through the grid as well, so that the sum was not the score."""
    theta = torch.randn(6, 4, generator=G).double()

    def transformed(x, fixed=None):
        grid = F.affine_grid((x.mean((2, 3)) @ theta.T).view(2, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid if fixed is None else fixed, align_corners=False)

    fixed = F.affine_grid((IM.mean((2, 3)) @ theta.T).view(2, 2, 3), list(IM.shape), align_corners=False)
    values, _, r = explained(transformed, IM)
    torch.testing.assert_close(values, explained(lambda x: transformed(x, fixed), IM)[0])
    torch.testing.assert_close(r.sum(), r.score)


def test_floor_divide_by_a_dependent_tensor_is_named():
    with pytest.raises(UncoveredOperation, match="floor_divide"):
        attribute(Fn(lambda a: (a // (a.abs() + 1)).flatten(1)), S, 1, "lrp_zero")


def test_values_that_are_not_the_plain_forwards_raise():
    class Random(nn.Module):
        def forward(self, x):
            return (x * torch.rand(x.shape[1])).flatten(1)

    x = torch.rand(2, 5)
    with pytest.raises(InputError, match=r"(?s)differ from those of the plain forward.*random"):
        attribute(Random(), x, 1, "lrp_zero")
    with pytest.raises(InputError, match="plain forward"):
        linearize(Random(), x, "lrp_zero")
    assert attribute(Random(), x, 1, "lrp_zero", measure=False).score.shape == (2,)


def test_a_wrong_handler_is_noticed(monkeypatch):
    from pfungst.relevance.engine import dispatch

    monkeypatch.setitem(
        dispatch.TABLE, "mul", lambda mode, func, name, args, kwargs: mode.mark(args[0] + 0.1)
    )
    with pytest.raises(InputError, match="plain forward"):
        attribute(Fn(lambda a: (a * 3.0).flatten(1)), S, 1, "lrp_zero")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_raise(value):
    with pytest.raises(PfungstError, match=r"nan|inf"):
        attribute(Fn(lambda a: (a.flatten(1) * value)[:, :3]), S, 1, "lrp_zero")


# -- call forms -------------------------------------------------------------------------------------

M = torch.randn(2, 8, 6, dtype=torch.float64, generator=G)
V = torch.randn(8, dtype=torch.float64, generator=G)

FORMS = {
    "addmm": [
        lambda a: torch.stack([torch.addmm(b.new_ones(6, 6), b, M[0], beta=0.5, alpha=0.3) for b in a]),
        lambda a: torch.stack([torch.ones(6, 6).double().addmm(mat2=M[0], mat1=b, alpha=0.3, beta=0.5) for b in a]),
        lambda a: torch.stack([torch.addmm(input=torch.ones(6, 6).double(), mat1=b, mat2=M[0], beta=0.5, alpha=0.3) for b in a]),
    ],
    "baddbmm": [
        lambda a: torch.baddbmm(a[..., :6], a, M, beta=0.5, alpha=0.3),
        lambda a: a[..., :6].baddbmm(batch2=M, batch1=a, alpha=0.3, beta=0.5),
        lambda a: torch.baddbmm(input=a[..., :6], batch1=a, batch2=M, beta=0.5, alpha=0.3),
    ],
    "baddbmm of constants": [
        lambda a: torch.baddbmm(a[..., :6], torch.ones(2, 6, 8).double(), M, beta=0.5),
        lambda a: a[..., :6].baddbmm(batch1=torch.ones(2, 6, 8).double(), batch2=M, beta=0.5),
    ],
    "addbmm": [
        lambda a: torch.addbmm(a[0, :, :6], a, M, beta=0.5, alpha=2.0)[None].expand(2, -1, -1),
        lambda a: a[0, :, :6].addbmm(batch1=a, batch2=M, beta=0.5, alpha=2.0)[None].expand(2, -1, -1),
    ],
    "addmv": [
        lambda a: torch.stack([torch.addmv(b[:, 0], b, V, beta=2.0) for b in a]),
        lambda a: torch.stack([b[:, 0].addmv(mat=b, vec=V, beta=2.0) for b in a]),
    ],
    "addr": [
        lambda a: torch.stack([torch.addr(b, torch.ones(6).double(), V, alpha=0.5) for b in a]),
        lambda a: torch.stack([b.addr(vec1=torch.ones(6).double(), vec2=V, alpha=0.5) for b in a]),
    ],
    "div": [lambda a: a / 3, lambda a: torch.div(a, other=3), lambda a: a.div(other=3), lambda a: torch.true_divide(a, 3)],
    "sub": [
        lambda a: a - 2 * a.roll(1, 1),
        lambda a: torch.sub(a, other=a.roll(1, 1), alpha=2),
        lambda a: torch.subtract(input=a, other=a.roll(shifts=1, dims=1), alpha=2),
        lambda a: torch.rsub(2 * a.roll(1, 1), a),
    ],
    "mul": [lambda a: a * V, lambda a: torch.mul(a, other=V), lambda a: a.multiply(other=V), lambda a: V * a],
    "matmul": [
        lambda a: a @ M,
        lambda a: torch.matmul(a, other=M),
        lambda a: torch.bmm(input=a, mat2=M),
        lambda a: a.bmm(mat2=M),
        lambda a: operator.matmul(a, M),
    ],
    "sum": [lambda a: a.sum(1), lambda a: torch.sum(input=a, dim=1), lambda a: torch.sum(a, 1), lambda a: a.sum(dim=1)],
    "relu": [lambda a: F.relu(a), lambda a: torch.relu(input=a), lambda a: a.clone().relu_(), lambda a: a.clamp(min=0)],
    "cat": [lambda a: torch.cat([a, 2 * a], 1), lambda a: torch.cat(tensors=(a, 2 * a), dim=1), lambda a: torch.concat([a, 2 * a], dim=1)],
    "where": [
        lambda a: torch.where(a > 0, a, 2 * a),
        lambda a: torch.where(condition=a > 0, input=a, other=2 * a),
        lambda a: a.where(a > 0, 2 * a),
        lambda a: a.where(condition=a > 0, other=2 * a),
    ],
    "linear": [
        lambda a: F.linear(a, M[0].T),
        lambda a: F.linear(input=a, weight=M[0].T),
        lambda a: F.linear(weight=M[0].T, input=a),
        lambda a: a @ M[0],
    ],
}  # fmt: skip


@pytest.mark.parametrize("forms", FORMS.values(), ids=FORMS)
def test_all_forms_of_a_call_are_explained_alike(forms):
    whole = [explained(f) for f in forms]
    for values, exact, _ in whole:
        torch.testing.assert_close(values, whole[0][0])
        if forms[0] not in FORMS["addbmm"] and forms[0] not in FORMS["addr"]:
            torch.testing.assert_close(values, exact())  # piecewise linear


@pytest.mark.parametrize(
    ("into", "plain"),
    [
        (lambda a, o: torch.add(a, a.roll(1, 1), out=o), lambda a: a + a.roll(1, 1)),
        (lambda a, o: torch.mul(a, 2.0, out=o), lambda a: a * 2.0),
        (
            lambda a, o: torch.matmul(a, M.transpose(1, 2).transpose(1, 2)[:, :, :6], out=o),
            lambda a: a @ M[:, :, :6],
        ),
        (lambda a, o: torch.sum(a, dim=1, out=o), lambda a: a.sum(1)),
        (lambda a, o: torch.cat([a, a], 1, out=o), lambda a: torch.cat([a, a], 1)),
        (lambda a, o: torch.clamp(a, min=0, out=o), lambda a: a.clamp(min=0)),
    ],
)
def test_results_written_with_out_are_explained(into, plain):
    def f(a):
        o = torch.empty(0, dtype=a.dtype)
        into(a, o)
        return o + 0 * o

    torch.testing.assert_close(explained(f)[0], explained(plain)[0])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("indices", [True, False])
def test_fractional_max_pooling(dims, indices):
    x = torch.randn(2, 3, *[8] * dims, dtype=torch.float64)
    samples = torch.rand(2, 3, dims, dtype=torch.float64)
    pool = getattr(nn, f"FractionalMaxPool{dims}d")(
        2, output_size=4, _random_samples=samples, return_indices=indices
    )

    class Net(nn.Module):
        def forward(self, x):
            out = pool(x)
            return (out[0] if indices else out).flatten(2).mean(2)

    r = attribute(Net().eval(), x, 1, "lrp_zero")
    torch.testing.assert_close(r.score, Net()(x)[:, 1])
    torch.testing.assert_close(r.sum(), r.score)


@pytest.mark.parametrize(
    "f",
    [
        lambda a: (lambda b: (b.relu_(), b)[1])(a * 1.0),
        lambda a: (lambda b: (b.view(2, -1).mul_(2.0), b)[1])(a * 1.0),
        lambda a: (lambda b, v: (b.add_(a), v)[1])(*(lambda b: (b, b.view(2, -1)))(a * 1.0)),
        lambda a: (lambda b: (b[:, 0].zero_(), b)[1])(a * 1.0),
        lambda a: (lambda b: (b.__setitem__((slice(None), 0), a[:, 1]), b)[1])(a * 1.0),
        lambda a: (lambda b: (b.transpose(1, 2).clamp_(min=0), b)[1])(a * 1.0),
        lambda a: (lambda b: (b[:, 0].fill_(2.0), b.flatten(1))[1])(a * 1.0),
    ],
)
def test_views_see_what_is_written_into_their_base_and_bases_what_is_written_into_views(f):
    values, exact, _ = explained(f)
    torch.testing.assert_close(values, exact())


def test_chains_of_writes_that_autograd_alone_could_not_follow():
    chained = lambda a: (lambda b: (b.add_(1.0).relu_().sub_(0.5).mul_(3.0), b)[1])(a.clone())
    values, _, _ = explained(chained)
    torch.testing.assert_close(values, explained(lambda a: (F.relu(a + 1.0) - 0.5) * 3.0)[0])


def test_writes_around_autograd_and_over_what_it_needs_are_named():
    with pytest.raises(UncoveredOperation, match="wrote"):
        attribute(Fn(lambda a: (lambda b: (b.data.mul_(2.0), b.flatten(1))[1])(a * 1.0)), S, 1, "lrp_zero")
    over = lambda a: (lambda b: (b.flatten(1), b.mul_(3.0), b.flatten(1))[2])(F.relu(a * 1.0))
    with pytest.raises(InputError, match="clone"):
        attribute(Fn(over), S, 1, "lrp_zero")


def test_values_that_an_in_place_activation_replaced_reach_unseen_code():
    """Regression: a function out of the engine's sight read the values from before an in-place ReLU."""
    script = torch.jit.script(lambda_free)
    values, exact, _ = explained(lambda a: (lambda b: (b.relu_(), script(b))[1])(a * 1.0))
    torch.testing.assert_close(values, exact())


def lambda_free(x):
    return x * 2.0
