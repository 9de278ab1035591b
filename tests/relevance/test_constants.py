"""The account of constants: every additive constant of a forward is a leaf, whatever way it comes in."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pfungst.relevance import composite
from pfungst.relevance.engine.run import execute

ROW = torch.linspace(-1, 1.5, 6, dtype=torch.float64)
MASK = torch.tensor([True, False, True, True, False, False])


class Sum(nn.Module):
    """A function of tokens (N, 4, 6), pooled to (N, 6)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x).mean(1)


def filled(x):
    out = x.clone()
    out[:, 0] = ROW
    out[:, 1, 2] = 3.0
    return out


def written_into_constants(x):
    out = ROW.expand(x.shape[0], 6, 6).clone()
    out[:, 2:] = x
    return out


def added_in_place(x):
    out = ROW.expand_as(x).clone()
    out += x
    out.sub_(0.5)
    return out


FORMS = {
    "number": lambda x: x + 1.5,
    "number first": lambda x: 2 - x,
    "number after a method": lambda x: x.add(1, alpha=3).sub(0.25),
    "tensor": lambda x: x + ROW,
    "keyword": lambda x: torch.add(x, other=ROW, alpha=0.5),
    "cat": lambda x: torch.cat([ROW.expand(len(x), 1, 6), x], 1),
    "hstack": lambda x: torch.hstack([ROW.expand(len(x), 1, 6), x]),
    "stack": lambda x: torch.stack([x[:, 0], ROW.expand(len(x), 6)], 1),
    "where": lambda x: torch.where(MASK, x, ROW),
    "where a number": lambda x: torch.where(MASK, x, 0.75),
    "where, as a method": lambda x: x.where(MASK, 0.75),
    "masked_fill": lambda x: x.masked_fill(MASK, -2.0),
    "index_fill": lambda x: x.index_fill(2, torch.tensor([1, 3]), 2.5),
    "index_copy": lambda x: x.index_copy(1, torch.tensor([1]), ROW.expand(len(x), 1, 6)),
    "maximum": lambda x: torch.maximum(x, ROW),
    "minimum": lambda x: torch.minimum(ROW, x),
    "max": lambda x: torch.max(x, ROW),
    "scatter": lambda x: x.scatter(1, torch.zeros(len(x), 1, 6, dtype=torch.long), ROW.expand(len(x), 1, 6)),
    "padding": lambda x: F.pad(x, (0, 0, 1, 1), value=0.5),
    "linear": lambda x: F.linear(x, torch.eye(6, dtype=x.dtype), ROW),
    "layer_norm": lambda x: F.layer_norm(x, (6,), None, ROW),
    "written": filled,
    "written into": written_into_constants,
    "in place": added_in_place,
    "GELU by hand": lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.045 * x * x * x))),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rules", ["lrp_zero", "transformer"])
def test_inputs_and_constants_make_up_the_score(form, rules):
    model = Sum(FORMS[form]).eval()
    x = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = model(x)
    run = execute(model, x, composite(rules), biases=True)
    torch.testing.assert_close(run.output, plain)
    leaves = [*run.streams, *(leaf for _, leaf in run.biases)]
    for k in range(6):
        grads = torch.autograd.grad(run.output[:, k].sum(), leaves, retain_graph=True, allow_unused=True)
        parts = [(leaf * g).sum() for leaf, g in zip(leaves, grads, strict=True) if g is not None]
        torch.testing.assert_close(sum(parts), plain[:, k].sum(), rtol=1e-4, atol=1e-5)


def test_a_gate_that_takes_the_signals_shape_is_still_a_gate():
    """ECA writes x * gate.expand_as(x); the gate is a constant there as it is without expand_as."""

    def net(expand):
        return Sum(lambda x: x * expand(torch.sigmoid(x.mean(1, keepdim=True)), x))

    x = torch.randn(3, 4, 6, dtype=torch.float64)
    values = []
    for expand in (lambda g, x: g.expand_as(x), lambda g, x: g, lambda g, x: g.expand(x.shape)):
        run = execute(net(expand), x, composite("lrp_zero"))
        values.append(torch.autograd.grad(run.output[:, 1].sum(), run.streams)[0])
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])
