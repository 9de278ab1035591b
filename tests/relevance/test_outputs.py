"""Which score and which inputs: outputs of any shape, several inputs, results that are not finite."""

import math

import pytest
import torch
from torch import nn

from pfungst.errors import ConfigError, InputError, NotFinite
from pfungst.relevance import (
    COMPOSITES,
    Composite,
    DCTBands,
    Epsilon,
    On,
    Pixels,
    Relevance,
    Tokens,
    attribute,
    composite,
    describe,
    gradcam,
    linearize,
    register,
)
from pfungst.relevance.outputs import cotangent

ALL = Pixels(channels=True)


class Named(nn.Module):
    """A model from a function of named inputs."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)
        self.double().eval()

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def dense():
    """(N, 5, H, W) from (N, 3, H, W), without biases: gradient × input is exact."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(6, 5, 1, bias=False)
    return nn.Sequential(*layers).double().eval()


def oracle(model, x, score):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(score(model(x)).sum(), x)
    return (g * x).detach()


MASK = torch.arange(7 * 9).reshape(7, 9) % 4 == 0
EACH = torch.stack([MASK, ~MASK])
WEIGHTS = random(2, 5, 7, 9, seed=3)


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ((2,), lambda o: o[:, 2].sum((1, 2))),
        ((-1,), lambda o: o[:, 4].sum((1, 2))),
        ((2, 3), lambda o: o[:, 2, 3].sum(1)),
        ((2, 3, 8), lambda o: o[:, 2, 3, 8]),
        ((2, -1, -2), lambda o: o[:, 2, 6, 7]),
        ((slice(1, 3), 3, 8), lambda o: o[:, 1:3, 3, 8].sum(1)),
        ((slice(None), slice(2, None)), lambda o: o[:, :, 2:].sum((1, 2, 3))),
        ((torch.tensor([1, 4]),), lambda o: torch.stack([o[0, 1], o[1, 4]]).sum((1, 2))),
        ((2, torch.tensor([0, 6]), 1), lambda o: torch.stack([o[0, 2, 0, 1], o[1, 2, 6, 1]])),
        ((2, MASK), lambda o: (o[:, 2] * MASK).sum((1, 2))),
        ((2, EACH), lambda o: (o[:, 2] * EACH).sum((1, 2))),
        ((2, 3, MASK[0]), lambda o: (o[:, 2, 3] * MASK[0]).sum(1)),
        ((torch.tensor([1, 4]), EACH), lambda o: (torch.stack([o[0, 1], o[1, 4]]) * EACH).sum((1, 2))),
        (WEIGHTS, lambda o: (o * WEIGHTS).sum((1, 2, 3))),
        (WEIGHTS[0], lambda o: (o * WEIGHTS[0]).sum((1, 2, 3))),
        (WEIGHTS > 0, lambda o: (o * (WEIGHTS > 0)).sum((1, 2, 3))),
        (lambda o: o[:, 2].sum((1, 2)), lambda o: o[:, 2].sum((1, 2))),
    ],
)
def test_dense_outputs_equal_autograd(dense, output, score):
    x = random(2, 3, 7, 9)
    expected = oracle(dense, x, score)
    r = attribute(dense, x, output, "lrp_zero", ALL)
    torch.testing.assert_close(r.values, expected)
    torch.testing.assert_close(r.score, score(dense(x)).detach())
    again = attribute(dense, x, output, "lrp_zero", ALL, differentiable=True)
    torch.testing.assert_close(again.values, expected)


@pytest.mark.parametrize("axes", [(4,), (4, 5), (4, 5, 6), (4, 3, 2, 5), (4, 1, 1)])
def test_a_place_is_an_index_along_the_axes_in_their_order(axes):
    out = random(3, *axes)
    for depth in range(1, len(axes) + 1):
        index = tuple((7 * i + 3) % size for i, size in enumerate(axes))[:depth]
        picked = out[(slice(None), *index)].reshape(3, -1).sum(1)
        torch.testing.assert_close((out * cotangent(out, index)).flatten(1).sum(1), picked)


def test_tokens_then_classes():
    net = nn.Linear(6, 3, bias=False).double()
    x = random(2, 4, 6)
    r = attribute(net, x, (1, 2), "lrp_zero", Tokens())
    torch.testing.assert_close(r.score, net(x)[:, 1, 2].detach())
    assert r.values[:, [0, 2, 3]].abs().max() == 0
    torch.testing.assert_close(
        attribute(net, x, (slice(None), 2), "lrp_zero", Tokens()).values, net(x)[..., 2].detach()
    )


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (2, 5, 4), (2, 2, 3, 4, 5)])
@pytest.mark.parametrize("output", [2, None, -1, torch.tensor([0, 1]), [0, 1]])
def test_an_index_that_leaves_the_position_open_is_refused_and_the_remedy_works(shape, output):
    out = random(*shape)
    with pytest.raises(InputError, match=r"shape \(2, ") as error:
        cotangent(out, output)
    written = error.value.remedy.split("output=")
    k = min(2, shape[1] - 1)
    expected = out[:, k].flatten(1).sum(1)
    torch.testing.assert_close(
        (out * cotangent(out, eval(written[1].split(" ")[0]))).flatten(1).sum(1), expected
    )
    torch.testing.assert_close(eval(written[-1])(out), expected)


@pytest.mark.parametrize(
    ("output", "match"),
    [
        ((5,), "index 5 is out of range on axis 1"),
        ((0, 7), "axis 2"),
        ((0, 0, -10), r"-10 is out of range on axis 3[\s\S]*0 … 8"),
        ((0, 0, 0, 0), "4 entries"),
        ((), "0 entries"),
        ((0, torch.tensor([7, 0])), "index 7 is out of range on axis 2"),
        ((MASK, 0), "last entry"),
        ((0, MASK.T), r"mask of shape \(9, 7\)"),
        (torch.rand(7, 9), r"weights of shape \(7, 9\)"),
        (torch.full((5, 7, 9), float("nan")), "NaN"),
        (torch.zeros(2, 5, 7, 9, dtype=torch.long), "boolean or floating"),
        ((slice(9, None),), "empty"),
        ("cat", "no index"),
        (True, "no index"),
        (("cat",), "no index"),
        ((0, ...), "no index"),
        (slice(2), "no index"),
        (lambda o: o[:, 2], r"shape \(2, 7, 9\)"),
        (lambda o: o, r"lambda out: \(…\)\[:, 2\]\.sum\(\(1, 2\)\)"),
    ],
)
def test_dense_outputs_that_do_not_fit(dense, output, match):
    with pytest.raises(InputError, match=match):
        attribute(dense, random(2, 3, 7, 9), output)


def test_a_dictionary_of_maps_is_refused_with_the_callable_to_write(dense):
    net = Named(lambda self, x: {"out": self.net(x), "aux": self.net(x)}, net=dense)
    x = random(2, 3, 7, 9)
    with pytest.raises(InputError, match="'out', 'aux'") as error:
        attribute(net, x, 2)
    written = error.value.remedy.split("output=")[1].split(";")[0]
    assert written == "lambda out: out['out'][:, 2].sum((1, 2))"
    torch.testing.assert_close(attribute(net, x, eval(written)).values, attribute(dense, x, (2,)).values)
    with pytest.raises(InputError, match="no callable"):
        linearize(net, x, output=2)
    with pytest.raises(InputError, match="no callable"):
        describe(net, x, output=2)


def test_linearize_flattens_in_order_and_says_the_shape(dense):
    x = random(2, 3, 7, 9)
    lin = linearize(dense, x, "lrp_zero")
    assert lin.shape == (2, 5, 7, 9)
    assert lin.output.shape == (2, 315)
    row = torch.zeros(1, 315, dtype=x.dtype)
    row[0, 2 * 63 + 3 * 9 + 8] = 1
    torch.testing.assert_close(lin.rows(row)[:, 0], attribute(dense, x, (2, 3, 8), "lrp_zero", ALL).values)


def test_gradcam_takes_the_same_outputs(dense):
    x = random(2, 3, 8, 8)
    cam = gradcam(dense, x, "0", (2,))
    torch.testing.assert_close(cam, gradcam(dense, x, "0", lambda out: out[:, 2].sum((1, 2))))
    with pytest.raises(InputError, match="position"):
        gradcam(dense, x, "0", 2)


# -- several inputs -------------------------------------------------------------------------------


@pytest.fixture
def both():
    """An image and a row of a table, with biases and a normalisation of each inside."""
    torch.manual_seed(0)

    def forward(self, image, table, scale=None):
        image = (image - 0.4) / 0.2
        a = self.conv(image).relu().mean((2, 3))
        out = self.head(torch.cat([a, self.lin(table).relu()], 1))
        return out if scale is None else out * scale[:, None]

    return Named(forward, conv=nn.Conv2d(3, 4, 3), lin=nn.Linear(5, 6), head=nn.Linear(10, 3))


IMAGE, TABLE = random(2, 3, 8, 8, seed=1).abs(), random(2, 5, seed=2)


@pytest.mark.parametrize("name", ["auto", "lrp_zero", "epsilon_plus_flat", "epsilon_gamma_box", "gradient"])
def test_each_input_gets_what_it_gets_alone(both, name):
    """Oracle: the other input as a constant inside a model of one input."""
    together = attribute(both, (IMAGE, TABLE), 1, name)
    image = attribute(
        Named(lambda self, x: self.net(x, TABLE), net=both), IMAGE, 1, composite_of(together, name)
    )
    table = attribute(
        Named(lambda self, x: self.net(IMAGE, x), net=both), TABLE, 1, composite_of(together, name)
    )
    a, b = together
    torch.testing.assert_close(a.values, image.values)
    torch.testing.assert_close(b.values, table.values)
    assert torch.equal(a.bias, b.bias)
    torch.testing.assert_close(a.sum() + b.sum() + a.bias, a.score)
    torch.testing.assert_close(a.elsewhere, b.sum())
    assert a.conservation_error().max() < 1e-9
    named = attribute(both, {"table": TABLE, "image": IMAGE}, 1, name)
    assert list(named) == ["table", "image"]
    torch.testing.assert_close(named["image"].values, a.values)
    graph = attribute(both, (IMAGE, TABLE), 1, name, differentiable=True)
    mapped = torch.vmap(lambda i, t: [r.values[0] for r in attribute(both, (i[None], t[None]), 1, name)])
    for r, g, v in zip(together, graph, mapped(IMAGE, TABLE), strict=True):
        torch.testing.assert_close(g.values.detach(), r.values)
        torch.testing.assert_close(v.detach(), r.values)


def composite_of(parts, name):
    return parts[0].composite if name == "auto" else name


def test_bases_and_choice_of_inputs(both):
    x = {"image": IMAGE, "table": TABLE}
    r = attribute(both, x, 0, basis={"image": DCTBands(count=3)})
    assert r["image"].values.shape == (2, 3)
    assert r["table"].basis == Pixels()
    assert r["image"].composite == "epsilon_plus"
    r = attribute(both, (IMAGE, TABLE), 0, basis=(ALL, None))
    assert r[0].values.shape == IMAGE.shape
    (only,) = attribute(both, (IMAGE, TABLE), 0, explain=-1)
    torch.testing.assert_close(only.values, attribute(both, (IMAGE, TABLE), 0, only.composite)[1].values)
    assert only.elsewhere.abs().max() == 0
    assert list(attribute(both, x, 0, explain=["image"])) == ["image"]
    lin = linearize(both, x, "lrp_zero", explain="table")
    torch.testing.assert_close(
        lin.rows(torch.eye(3, dtype=torch.float64))[:, 1], attribute(both, x, 1, "lrp_zero")["table"].values
    )
    assert "lin" in describe(both, x)


@pytest.mark.parametrize(
    ("x", "options", "match"),
    [
        ((IMAGE, TABLE[:1]), {}, r"\{0: 2, 1: 1\}"),
        ((IMAGE, TABLE), {"explain": 2}, "none of the inputs"),
        ({"image": IMAGE, "table": TABLE}, {"explain": "x"}, "'image', 'table'"),
        ((IMAGE, TABLE.long()), {"explain": 1}, "int64"),
        ((IMAGE.long(), TABLE.long()), {}, "none of the inputs is a floating tensor"),
        ((IMAGE, TABLE * math.nan), {}, "input 1 contain NaN"),
        ((IMAGE, TABLE), {"basis": (ALL,)}, "1 entries"),
        ({"image": IMAGE, "table": TABLE}, {"basis": {"x": ALL}}, "basis="),
        ((IMAGE, TABLE[:, :3]), {}, r"1: \(2, 3\)"),
        (IMAGE, {"explain": "image"}, "single input"),
        ((IMAGE, TABLE, torch.tensor(2.0)), {}, "explain="),
    ],
)
def test_inputs_that_do_not_fit(both, x, options, match):
    with pytest.raises(InputError, match=match):
        attribute(both, x, 0, **options)


def test_linearize_takes_one_input(both):
    with pytest.raises(InputError, match="explain="):
        linearize(both, (IMAGE, TABLE))


def test_an_input_without_use_has_relevance_zero():
    net = Named(lambda self, a, b: self.lin(a), lin=nn.Linear(5, 2))
    used, unused = attribute(net, (TABLE, IMAGE), 1)
    assert unused.values.shape == (2, 8, 8)
    assert unused.values.abs().max() == 0
    torch.testing.assert_close(used.sum() + used.bias, used.score)
    with pytest.raises(InputError, match="constant"):
        attribute(Named(lambda self, a, b: torch.ones(2, 3).double()), (TABLE, IMAGE), 1)
    with pytest.raises(InputError, match="does not depend"):
        attribute(Named(lambda self, a, b: torch.ones(2, 3).double()), (TABLE, IMAGE), 1, "gradient")


def test_masks_ids_and_flags_are_constants():
    """As in Hugging Face models: embeddings, an integer mask, ids of positions and a flag."""

    def forward(self, inputs_embeds, attention_mask, position_ids=None, verbose=False):
        assert verbose is None
        x = inputs_embeds + self.position(position_ids)
        scores = (self.q(x) @ self.k(x).transpose(1, 2)).masked_fill(attention_mask[:, None] == 0, -1e9)
        return self.head((scores.softmax(-1) @ x)[:, 0])

    net = Named(
        forward, q=nn.Linear(6, 6), k=nn.Linear(6, 6), position=nn.Embedding(4, 6), head=nn.Linear(6, 3)
    )
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    x = {"inputs_embeds": random(2, 4, 6), "attention_mask": mask, "position_ids": torch.arange(4)[None]}
    found = attribute(net, {**x, "verbose": None}, 2, basis=Tokens())
    assert list(found) == ["inputs_embeds"]
    r = found["inputs_embeds"]
    assert r.composite == "transformer"
    assert r.values[1, 2:].abs().max() < 1e-9
    assert r.values[0].abs().min() > 0
    assert r.lost < 1e-5


def test_a_residual_around_the_input_is_no_normalisation():
    """With a single row, x + f(x) has the shape of a shift per channel."""
    net = Named(lambda self, x: self.head(x + self.f(x)), f=nn.Linear(5, 5), head=nn.Linear(5, 2))
    single = torch.cat([attribute(net, TABLE[i : i + 1], 1, "lrp_zero").values for i in range(2)])
    torch.testing.assert_close(single, attribute(net, TABLE, 1, "lrp_zero").values)
    torch.testing.assert_close(single, oracle(net, TABLE, lambda out: out[:, 1]))
    a, b = attribute(
        Named(lambda self, a, b: self.head(a + b), head=net.head), (TABLE[:1], TABLE[1:]), 1, "lrp_zero"
    )
    torch.testing.assert_close(a.values, TABLE[:1] * net.head.weight[1].detach())
    torch.testing.assert_close(b.values, TABLE[1:] * net.head.weight[1].detach())


# -- not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(value):
    net = Named(lambda self, x: self.lin(x), lin=nn.Linear(5, 3))
    net.lin.bias.data[1] = value
    with pytest.raises(NotFinite, match=r"score of input 0 is"):
        attribute(net, TABLE, 1, "epsilon_plus")


def test_masked_classes_beside_the_explained_one_do_not_matter():
    mask = torch.tensor([False, True, False])
    net = Named(lambda self, x: self.lin(x).masked_fill(mask, -math.inf), lin=nn.Linear(5, 3))
    r = attribute(net, TABLE, 2)
    torch.testing.assert_close(r.score, net(TABLE)[:, 2].detach())
    torch.testing.assert_close(r.values, oracle(net, TABLE, lambda out: out[:, 2]), rtol=1e-4, atol=1e-6)
    with pytest.raises(NotFinite, match="score of input 0 is -inf"):
        attribute(net, TABLE, 1)


def test_relevance_that_is_not_finite_is_refused():
    net = Named(lambda self, x: self.lin(x), lin=nn.Linear(5, 3)).float()
    net.lin.weight.data[0] = torch.tensor([3e38, -3e38, 1, 1, 1])
    x = torch.tensor([[2.0, 2.0, 1, 1, 1]])
    with pytest.raises(InputError, match=r"not finite|score of input 0"):
        attribute(net, x, 0, "lrp_zero")


def test_shares_do_not_lie():
    values, basis = torch.ones(1, 4), Pixels()
    share = lambda score, bias: (
        Relevance(values, torch.tensor([score]), basis, torch.tensor([bias])).bias_share
    )
    assert math.isnan(share(math.nan, 1.0))
    assert math.isnan(share(1.0, math.nan))
    assert math.isnan(share(math.inf, math.inf))
    assert share(0.0, -4.0) == math.inf
    assert share(0.0, 0.0) == 0
    assert share(-2.0, 1.0) == 0.5
    assert Relevance(values, torch.tensor([math.nan]), basis).conservation_error().isnan().all()


# -- names and files ------------------------------------------------------------------------------


def test_the_rules_are_saved(both, tmp_path):
    a, _ = attribute(both, (IMAGE, TABLE), 1)
    a.save(tmp_path / "r.safetensors")
    b = Relevance.load(tmp_path / "r.safetensors")
    assert (b.composite, b.lost) == (a.composite, a.lost) == ("epsilon_plus", a.lost)
    assert torch.equal(a.elsewhere, b.elsewhere)
    assert b[1:].composite == b.cpu().composite == b.inside(torch.ones(8, 8)).composite == "epsilon_plus"
    assert b[1:].conservation_error().max() < 1e-9


def test_files_of_earlier_versions_are_read(tmp_path):
    from safetensors.torch import save_file

    parts = {"values": torch.ones(1, 2), "score": torch.ones(1), "bias": torch.zeros(1)}
    save_file(parts, tmp_path / "old", {"format": "pfungst.relevance/1", "basis": '{"name": "pixels"}'})
    r = Relevance.load(tmp_path / "old")
    assert (r.composite, r.lost, r.elsewhere.item()) == ("", None, 0)


def test_a_composite_is_registered_in_one_place():
    try:

        @register("epsilon_absolute", "absolute")
        def epsilon_absolute(epsilon=1e-6):
            return Composite(((On(kind="linear"), Epsilon(epsilon)),), "epsilon_absolute")

        net = Named(lambda self, x: self.lin(x), lin=nn.Linear(5, 3))
        assert attribute(net, TABLE, 0, "absolute").composite == "epsilon_absolute"
        assert composite("epsilon_absolute", epsilon=0.5).entries[0][1] == Epsilon(0.5)
        for names in (("absolute",), ("transformer",), ()):
            with pytest.raises(ConfigError, match=r"taken|without a name"):
                register(*names)(lambda: Composite())
    finally:
        COMPOSITES.remove("epsilon_absolute")
        COMPOSITES.remove("absolute")
