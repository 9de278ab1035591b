"""Operations that abbreviate a formula, elementwise functions, similarities: values, both directions, conservation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pfungst.errors import InputError, UncoveredOperation
from pfungst.relevance import Pass, Tokens, attribute, composite, linearize
from pfungst.relevance.engine.run import execute


class Net(nn.Module):
    """A function of two linear maps of the input, (N, T, F) → (N, K)."""

    def __init__(self, f, features=4, bias=False):
        super().__init__()
        torch.manual_seed(2)
        self.f = f
        self.a, self.b = (nn.Linear(features, features, bias=bias) for _ in range(2))
        self.double().eval().requires_grad_(False)

    def forward(self, x):
        return self.f(self.a(x), self.b(x)).flatten(1)


RULES = composite("transformer", epsilon=1e-12)


def inputs(*shape):
    return torch.randn(shape or (2, 3, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def agree(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def check(net, x):
    """Values, directions, and Σ relevance of the input and of the constants = score. Returns both, (N, K)."""
    lin = linearize(net, x, RULES)
    agree(lin.output, net(x), 1e-12)
    k = lin.output.shape[1]
    rows = lin.rows(torch.eye(k, dtype=x.dtype), Tokens())
    agree(lin.columns(Tokens()), rows)
    weights = torch.arange(1.0, k + 1, dtype=x.dtype)
    agree(attribute(net, x, weights, RULES, Tokens()).values, (rows * weights[:, None]).sum(1))
    second = attribute(net, x, weights, RULES, Tokens(), differentiable=True)
    agree(second.values, (rows * weights[:, None]).sum(1))
    run = execute(net, x, RULES, biases=True)
    leaves = [leaf for _, leaf in run.biases]
    parts = torch.autograd.grad((run.output * weights).sum(), [run.streams[0], *leaves], allow_unused=True)
    total = sum((g * v).sum() for g, v in zip(parts, [x, *leaves], strict=True) if g is not None)
    agree(total, (lin.output * weights).sum(), 1e-8)
    return rows.sum(-1), lin.output


C = inputs(4)
#: call forms of one operation, each with the formula that it abbreviates
FORMS = [
    (lambda a, b: torch.addcmul(a, b, C), lambda a, b: a + b * C),
    (lambda a, b: torch.addcmul(a, C, tensor2=b, value=0.5), lambda a, b: a + 0.5 * (C * b)),
    (lambda a, b: a.addcmul(tensor1=b, tensor2=a), lambda a, b: a + b * a),
    (lambda a, b: a.clone().addcmul_(b, C, value=-2.0), lambda a, b: a - 2.0 * (b * C)),
    (lambda a, b: torch.addcmul(input=C, tensor1=a, tensor2=b.sigmoid()), lambda a, b: C + a * b.sigmoid()),
    (lambda a, b: torch.addcdiv(a, b, 2 + C.abs()), lambda a, b: a + b / (2 + C.abs())),
    (lambda a, b: a.addcdiv(b, 2 + a.square(), value=3), lambda a, b: a + 3 * (b / (2 + a.square()))),
    (lambda a, b: a.clone().addcdiv_(C, tensor2=C, value=2), lambda a, b: a + 2 * (C / C)),
    (lambda a, b: torch.lerp(a, b, 0.3), lambda a, b: a + 0.3 * (b - a)),
    (lambda a, b: torch.lerp(a, end=b, weight=C), lambda a, b: a + C * (b - a)),
    (lambda a, b: a.lerp(C, b), lambda a, b: a + b * (C - a)),
    (lambda a, b: a.lerp(weight=b.sigmoid(), end=b), lambda a, b: a + b.sigmoid() * (b - a)),
    (lambda a, b: a.clone().lerp_(b, a), lambda a, b: a + a * (b - a)),
    (lambda a, b: torch.addcmul(a, b, C, out=torch.empty_like(a)), lambda a, b: a + b * C),
    (lambda a, b: torch.lerp(a, b, C, out=torch.empty(0, dtype=a.dtype)), lambda a, b: a + C * (b - a)),
    (lambda a, b: F.glu(torch.cat([a, b], -1)), lambda a, b: a * b.sigmoid()),
    (lambda a, b: F.glu(input=torch.cat([a, b], 1), dim=1), lambda a, b: a * b.sigmoid()),
    (lambda a, b: F.glu(torch.cat([a, b], 1), 1), lambda a, b: a * b.sigmoid()),
]


@pytest.mark.parametrize(("operation", "formula"), FORMS)
def test_operations_are_explained_as_the_formula_they_abbreviate(operation, formula):
    x = inputs()
    mine = check(Net(operation), x)
    for a, b in zip(mine, check(Net(formula), x), strict=True):
        agree(a, b)


@pytest.mark.parametrize("name", ["addmv", "addr"])
def test_sums_with_a_product_of_vectors(name):
    m, v = inputs(4, 4), inputs(4)

    class Vectors(nn.Module):
        def __init__(self, written):
            super().__init__()
            self.written = written

        def forward(self, x):
            out = []
            for row in x:
                if name == "addmv":
                    full = row[0] * 0.5 + 2 * (m @ row[1])
                    short = torch.addmv(row[0], m, vec=row[1], beta=0.5, alpha=2)
                else:
                    full = row[:4] * 0.5 + 2 * torch.outer(v, row[1])
                    short = row[:4].addr(v, row[1], beta=0.5, alpha=2)
                out.append(full if self.written else short)
            return torch.stack(out).flatten(1)

    x = inputs(2, 4, 4)
    for a, b in zip(check(Vectors(False), x), check(Vectors(True), x), strict=True):
        agree(a, b)


def test_lerp_with_a_dependent_gate_conserves():
    """Regression: the sum was 3.1 times the score, without a word."""
    total, score = check(Net(lambda a, b: torch.lerp(a, b, torch.sigmoid(a * b))), inputs())
    agree(total, score, 1e-6)


# -- elementwise ----------------------------------------------------------------------------------

ELEMENTWISE = [
    F.logsigmoid, F.softplus, torch.sigmoid, F.hardsigmoid, torch.exp, torch.exp2, torch.cos, torch.cosh,
    torch.sin, torch.sinh, torch.erf, torch.erfc, torch.expm1, torch.tanh, F.celu, F.mish,
    torch.special.expit, torch.special.erf,
    lambda t: F.softplus(t, beta=2.0, threshold=1.0),
    lambda t: F.threshold(t, 0.1, 0.7), lambda t: F.threshold(t, -0.1, 0.7), lambda t: F.threshold(t, 0.0, -3.0),
    lambda t: t.clamp(0.2, 0.9), lambda t: torch.clamp(t, max=-0.1), lambda t: torch.clip(input=t, min=C.abs()),
    lambda t: F.hardtanh(t, 0.5, 6.0), lambda t: torch.nan_to_num(t, nan=1.0), lambda t: 2.0**t, lambda t: torch.pow(t, 3),
]  # fmt: skip


@pytest.mark.parametrize("f", ELEMENTWISE)
def test_what_an_activation_gives_for_nothing_is_a_constant(f):
    """Relevance of an entry is f(x) − f(0); where x is zero it receives nothing."""
    x = inputs()
    x[0, 0, 1] = 0.0

    class Only(nn.Module):
        def forward(self, x):
            return f(x).flatten(1)

    zero = f(torch.zeros(4, dtype=x.dtype)).expand_as(x)
    r = attribute(Only(), x, torch.ones(12, dtype=x.dtype), "transformer", Tokens())
    agree(r.values, (f(x) - zero).sum(-1), 1e-6)
    agree(r.score, f(x).sum((1, 2)))
    check(Net(lambda a, b: f(a) + b), x)


def test_pass_hands_over_everything_where_it_is_asked_for():
    r = attribute(
        Net(lambda a, b: torch.sigmoid(a)), inputs(), torch.ones(12), RULES.assign("sigmoid", Pass())
    )
    agree(r.sum(), r.score, 1e-6)


def test_exponentials_are_constants_as_factors():
    """A softmax by hand is a constant weight, like torch's own."""

    def by_hand(a, b):
        e = torch.exp(a - a.amax(-1, keepdim=True))
        return (e / e.sum(-1, keepdim=True)) @ b.mT

    x = inputs()
    for a, b in zip(check(Net(by_hand), x), check(Net(lambda a, b: a.softmax(-1) @ b.mT), x), strict=True):
        agree(a, b)
    for a, b in zip(
        check(Net(lambda a, b: F.softmin(a, dim=1) * b), x),
        check(Net(lambda a, b: (-a).softmax(1) * b), x),
        strict=True,
    ):
        agree(a, b)


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: torch.remainder(a, 0.3),
        lambda a, b: a % b.square(),
        lambda a, b: torch.fmod(a, other=b),
        lambda a, b: a - 0.3 * (a // 0.3),
        lambda a, b: torch.floor_divide(a, 0.2) + b,
        lambda a, b: a * torch.heaviside(b, torch.ones((), dtype=a.dtype)) + torch.trunc(b) * a,
        lambda a, b: a.prod(-1) + b.prod(1, keepdim=True).sum(-1),
        lambda a, b: (a * torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=a.dtype)).prod(dim=2),
        lambda a, b: torch.cumprod(a, dim=1) + b.cumprod(-1),
        lambda a, b: a.cummax(1)[0] + torch.cummin(b, dim=-1).values,
        lambda a, b: torch.diff(a, dim=1, prepend=b[:, :1]).sum(2) + torch.trapezoid(b, dx=0.5),
        lambda a, b: torch.trapezoid(y=a, x=C) * torch.sgn(b[..., 0]),
        lambda a, b: torch.trapezoid(a, C, dim=-1) + torch.cumulative_trapezoid(y=b)[..., 0],
        lambda a, b: torch.hypot(a, b) + a.hypot(torch.full((), 2.0, dtype=a.dtype)),
    ],
)
def test_other_operations_conserve(f):
    check(Net(f), inputs())


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("lgamma", torch.lgamma),
        ("log", lambda a: torch.log(a.abs() + 1)),
        ("logsumexp", lambda a: torch.logsumexp(a, -1)),
        ("logaddexp", lambda a: torch.logaddexp(a, a)),
        ("logcumsumexp", lambda a: torch.logcumsumexp(a, 1)),
        ("log_softmax", lambda a: a.log_softmax(-1)),
        ("frac", torch.frac),
        ("pow", lambda a: a.abs() ** a),
        ("trapezoid", lambda a: torch.trapezoid(a, a)),
        ("polar", lambda a: torch.polar(a, a).real),
        ("angle", lambda a: torch.fft.fft(a).angle()),
        ("exp", lambda a: torch.exp(1j * a).real),
        ("fft_fft|sgn", lambda a: torch.sgn(torch.fft.fft(a)).real),
        ("stft", lambda a: torch.stft(a[:, 0], 4, window=a[0, 1], return_complex=True).abs()),
    ],
)
def test_what_has_no_rule_is_refused_by_name(name, f):
    with pytest.raises(UncoveredOperation, match=name):
        attribute(Net(lambda a, b: f(a)), inputs(), torch.ones(12), "transformer")


def test_softmin_as_a_score_is_refused():
    with pytest.raises(InputError, match="softmax"):
        attribute(Net(lambda a, b: F.softmin(a, -1)), inputs(), 0, "transformer")


# -- similarities ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: F.cosine_similarity(a, inputs(3, 4), dim=-1),
        lambda a, b: torch.cosine_similarity(inputs(3, 4), x2=a, dim=2),
        lambda a, b: F.cosine_similarity(a, b),
        lambda a, b: F.cosine_similarity(a[:, :, None], b[:, None], dim=-1, eps=1e-6),
        lambda a, b: nn.CosineSimilarity(2)(a, a + b),
        lambda a, b: torch.cdist(a, b),
        lambda a, b: torch.cdist(x1=a, x2=b, p=1.0),
        lambda a, b: torch.cdist(a, a, 3.0),
        lambda a, b: torch.cdist(a, b, p=math.inf),
        lambda a, b: F.pairwise_distance(a, b, eps=0.0, keepdim=True),
        lambda a, b: nn.PairwiseDistance(p=1.0, eps=0.0)(a, b),
        lambda a, b: torch.stack([torch.pdist(t) for t in a]),
        lambda a, b: torch.stack([torch.dist(s, t, p=2)[None] for s, t in zip(a, b, strict=True)]),
    ],
)  # fmt: skip
def test_similarities_and_distances_of_two_dependent_vectors_conserve(f):
    total, score = check(Net(f), inputs())
    agree(total, score, 1e-6)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("kind", ["cdist", "pairwise", "swapped"])
def test_distances_to_constants_have_the_exact_derivative(kind, p):
    """Oracle: autograd. What the constants take is accounted for as theirs (`check`)."""
    u = inputs(12, 4)[9:]

    def f(a):
        if kind == "pairwise":
            return F.pairwise_distance(a, u, p=p)
        return torch.cdist(a, u.expand(len(a), 3, 4), p=p) if kind == "cdist" else torch.cdist(u, a, p=p).mT

    class Only(nn.Module):
        def forward(self, x):
            return f(x).flatten(1)

    x = inputs().requires_grad_()
    (g,) = torch.autograd.grad(f(x).sum(), x)
    k = f(x).flatten(1).shape[1]
    r = attribute(Only(), x.detach(), torch.ones(k, dtype=x.dtype), RULES, Tokens())
    agree(r.values, (g * x).sum(-1).detach())
    if kind != "pairwise":  # its ε is a constant of its own
        check(Only(), x.detach())


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, math.inf])
def test_distances_are_finite_at_zero(p):
    x = inputs()
    net = Net(lambda a, b: torch.cdist(a, a, p=p) + F.pairwise_distance(a, a, p, 0.0)[..., None])
    r = attribute(net, x, torch.ones(9), RULES)
    assert torch.isfinite(r.values).all()
    agree(r.sum(), r.score, 1e-6)
    zero = Net(lambda a, b: torch.hypot(a, b) + torch.fft.fft(a).abs())
    assert not attribute(zero, 0 * x, torch.ones(12), RULES).values.any()


# -- random call forms ----------------------------------------------------------------------------

_GRAMMAR = {
    "addcmul": ("tensor1", "tensor2"),
    "addcdiv": ("tensor1", "tensor2"),
    "lerp": ("end", "weight"),
}


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(_GRAMMAR)),
    by_name=st.integers(0, 2),
    form=st.sampled_from(["function", "method", "in place"]),
    kinds=st.tuples(*[st.sampled_from(["dependent", "constant", "gate"])] * 3),
    shape=st.sampled_from([(2, 3, 4), (1, 5, 4), (3, 1, 4)]),
)
def test_every_call_form_conserves(name, by_name, form, kinds, shape):
    def f(a, b):
        made = [
            {"dependent": t, "constant": 1 + C.abs().expand_as(t).clone(), "gate": t.sigmoid()}[kind]
            for t, kind in zip((a, b, a + b), kinds, strict=True)
        ]
        if "dependent" not in kinds:
            made[0] = a
        first, *rest = made
        keyword = dict(zip(_GRAMMAR[name][by_name:], rest[by_name:], strict=True))
        call = (
            getattr(torch, name)
            if form == "function"
            else getattr(torch.Tensor, name + "_" * (form == "in place"))
        )
        return call(first.clone(), *rest[:by_name], **keyword)

    check(Net(f), inputs(*shape))
