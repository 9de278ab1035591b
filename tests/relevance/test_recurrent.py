"""Recurrent layers are explained as their cells written by hand (captum #143, shap #3679)."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pfungst.errors import InputError
from pfungst.relevance import Tokens, attribute, composite, describe, linearize

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": nn.RNN}


def make(kind, features, units, **options):
    torch.manual_seed(3)
    if kind in ("tanh", "relu"):
        options["nonlinearity"] = kind
    return KINDS[kind](features, units, **options).double().eval()


def step(kind, x, state, w_ih, w_hh, b_ih, b_hh, w_hr=None):
    """One cell, from the formulas in the documentation of torch."""
    a, b = F.linear(x, w_ih, b_ih), F.linear(state[0], w_hh, b_hh)
    if kind == "lstm":
        i, f, g, o = (a + b).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (h if w_hr is None else F.linear(h, w_hr), c)
    if kind == "gru":
        (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
        z = (az + bz).sigmoid()
        return ((1 - z) * (an + (ar + br).sigmoid() * bn).tanh() + z * state[0],)
    return ((a + b).tanh() if kind == "tanh" else (a + b).relu(),)


class ByHand(nn.Module):
    """A recurrent layer as a Python loop over its cells, for (batch, time, features)."""

    def __init__(self, layer, kind):
        super().__init__()
        self.layer, self.kind = layer, kind

    def weights(self, number, suffix):
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
        found = [getattr(self.layer, f"{n}_l{number}{suffix}", None) for n in names]
        return [*found, getattr(self.layer, f"weight_hr_l{number}{suffix}", None)]

    def forward(self, x, *start):
        directions = 2 if self.layer.bidirectional else 1
        ends = []
        for number in range(self.layer.num_layers):
            outs = []
            for suffix in ("", "_reverse")[:directions]:
                k = number * directions + len(outs)
                sizes = [self.layer.proj_size or self.layer.hidden_size] if self.layer.mode == "LSTM" else []
                sizes.append(self.layer.hidden_size)
                state = tuple(s[k] for s in start) or tuple(x.new_zeros(len(x), n) for n in sizes)
                order = range(x.shape[1])[:: -1 if suffix else 1]
                found = {}
                for t in order:
                    state = step(self.kind, x[:, t], state, *self.weights(number, suffix))
                    found[t] = state[0]
                outs.append(torch.stack([found[t] for t in range(x.shape[1])], 1))
                ends.append(state)
            x = torch.cat(outs, -1)
        return x, *(torch.stack(s) for s in zip(*ends, strict=True))


class Read(nn.Module):
    """Everything that a recurrent layer returns, through a linear head."""

    def __init__(self, layer, start=(), dependent=False):
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.start, self.dependent = layer, start, dependent
        size = getattr(layer, "layer", layer)
        self.head = nn.Linear(
            (size.proj_size or size.hidden_size) * (2 if size.bidirectional else 1), 3
        ).double()
        self.turn = not isinstance(layer, ByHand) and not layer.batch_first

    def forward(self, x):
        start = tuple(x.mean(1)[:, : s.shape[-1]] * s if self.dependent else s for s in self.start)
        if isinstance(self.layer, ByHand):
            out, *ends = self.layer(x, *start)
        else:
            given = () if not start else ((start,) if len(start) > 1 else start)
            out, ends = self.layer(x.transpose(0, 1) if self.turn else x, *given)
            out = out.transpose(0, 1) if self.turn else out
            ends = ends if isinstance(ends, tuple) else (ends,)
        return self.head(out[:, 1]) + self.head(out.mean(1)) + sum(e.sum((0, 2))[:, None] for e in ends)


def agree(a, b, tolerance=1e-9):
    assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


def check(net, reference, x, rules="transformer"):
    agree(net(x), reference(x))
    lin = linearize(net, x, rules)
    agree(lin.output, net(x), 1e-12)
    rows = lin.rows(torch.eye(3, dtype=x.dtype), Tokens())
    agree(lin.columns(Tokens()), rows)
    agree(rows[:, 1], attribute(reference, x, 1, rules, Tokens()).values, 1e-6)
    agree(attribute(net, x, 1, rules, Tokens(), differentiable=True).values, rows[:, 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": True},
        {"batch_first": False, "bias": False, "num_layers": 2},
        {"batch_first": True, "bidirectional": True, "num_layers": 2, "dropout": 0.3},
    ],
)
def test_layers_are_explained_as_their_cells_by_hand(kind, options):
    layer = make(kind, 5, 4, **options)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    check(Read(layer), Read(ByHand(layer, kind)), x, composite("transformer", epsilon=1e-9))
    if not options.get("bias", True):
        r = attribute(Read(layer), x, 0, composite("transformer", epsilon=1e-12))
        bias = Read(layer).head.bias[0] * 2
        agree(r.sum() + bias, r.score, 1e-6)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_initial_states(kind, dependent):
    layer = make(kind, 5, 4, batch_first=True, num_layers=2)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    start = tuple(torch.randn(2, 2, 4, dtype=torch.float64) for _ in range(2 if kind == "lstm" else 1))
    check(Read(layer, start, dependent), Read(ByHand(layer, kind), start, dependent), x)


def test_projected_states():
    layer = make("lstm", 5, 4, proj_size=3, batch_first=True, bidirectional=True, num_layers=2)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    check(Read(layer), Read(ByHand(layer, "lstm")), x)


class Packed(nn.Module):
    def __init__(self, layer, lengths, ordered):
        super().__init__()
        self.layer, self.lengths, self.ordered = layer, lengths, ordered

    def forward(self, x):
        packed = pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=self.ordered)
        assert isinstance(packed, PackedSequence)
        out, ends = self.layer(packed)
        ends = ends[0] if isinstance(ends, tuple) else ends
        return pad_packed_sequence(out, batch_first=True)[0].sum(1) + ends.sum(0).repeat(1, 2)


class OneByOne(nn.Module):
    """Each sequence alone, cut to its length."""

    def __init__(self, layer, lengths):
        super().__init__()
        self.layer, self.lengths = layer, lengths

    def forward(self, x):
        parts = []
        for row, length in zip(x, self.lengths, strict=True):
            out, *ends = self.layer(row[None, :length])
            parts.append(out.sum(1) + ends[0].sum(0).repeat(1, 2))
        return torch.cat(parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(5, 3, 3, 1), (2, 5, 1, 4)])
def test_packed_sequences(kind, lengths):
    layer = make(kind, 3, 2, batch_first=True, bidirectional=True, num_layers=2)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    ordered = list(lengths) == sorted(lengths, reverse=True)
    net = Packed(layer, torch.tensor(lengths), ordered)
    reference = OneByOne(ByHand(layer, kind), lengths)
    agree(net(x), reference(x))
    lin = linearize(net, x, "transformer")
    rows = lin.rows(torch.eye(4, dtype=x.dtype), Tokens())
    agree(lin.columns(Tokens()), rows)
    agree(rows[:, 2], attribute(reference, x, 2, "transformer", Tokens()).values, 1e-6)
    for row, length in zip(rows, lengths, strict=True):
        assert not row[:, length:].any()


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (nn.LSTMCell(4, 4), "lstm"),
        (nn.GRUCell(4, 4), "gru"),
        (nn.RNNCell(4, 4), "tanh"),
        (nn.RNNCell(4, 4, nonlinearity="relu"), "relu"),
    ],
)
def test_cells(cell, kind):
    class Loop(nn.Module):
        def __init__(self, by_hand):
            super().__init__()
            self.cell, self.by_hand = cell, by_hand

        def forward(self, x):
            state = (x[:, 0], x[:, 1])[: 2 if kind == "lstm" else 1]
            for t in range(x.shape[1]):
                if self.by_hand:
                    c = self.cell
                    state = step(kind, x[:, t], state, c.weight_ih, c.weight_hh, c.bias_ih, c.bias_hh)
                else:
                    state = self.cell(x[:, t], state if kind == "lstm" else state[0])
                    state = state if isinstance(state, tuple) else (state,)
            return sum(state)[:, :3]

    cell.double()
    x = torch.randn(2, 4, 4, dtype=torch.float64)
    check(Loop(False), Loop(True), x)


def test_a_recurrent_first_layer_gets_the_rule_of_the_first_layer():
    layer = make("gru", 5, 4, batch_first=True)
    table = describe(Read(layer), torch.randn(2, 6, 5, dtype=torch.float64), "epsilon_plus_flat")
    assert table.count("gru") == 1
    r = attribute(Read(layer), torch.randn(2, 6, 5, dtype=torch.float64), 0, "epsilon_plus_flat")
    assert (r.values - r.values.mean(-1, keepdim=True)).abs().max() < 1e-9


def test_dropout_between_layers_is_named():
    layer = make("lstm", 5, 4, batch_first=True, num_layers=2, dropout=0.5)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    with pytest.raises(InputError, match=r"dropout.*lstm[\s\S]*eval\(\)"):
        attribute(Read(layer.train()), x, 0, "transformer")
