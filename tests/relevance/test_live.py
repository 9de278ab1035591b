"""Live units give what whole images give, and are chosen where they save work."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18, vgg11_bn

from pfungst.relevance import Patches, Pixels, linearize
from pfungst.relevance.program import live, patches, tape, units

ROOM = 2 << 30


class Residual(nn.Module):
    """Blocks with and without a strided shortcut, of any kernel, stride and dilation."""

    def __init__(self, channels, kernel, stride, dilation):
        super().__init__()
        pad = dilation * (kernel // 2)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.first = nn.Conv2d(channels, 6, kernel, stride, pad, dilation)
        self.second = nn.Conv2d(6, 2 * channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, stride)
        self.third = nn.Conv2d(2 * channels, 2 * channels, (1, 3), padding=(0, 1))
        self.fc = nn.Linear(2 * channels, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        short = self.shortcut(x)
        x = self.second(F.relu(self.first(x)))
        x = F.relu(x + short[..., : x.shape[2], : x.shape[3]])
        x = F.relu(x + self.third(x))
        return self.fc(x.mean((2, 3)))


def programs(lin, monkeypatch):
    """The largest span, whatever it costs."""
    for name in ("CALL", "SELECT"):
        monkeypatch.setattr(units, name, 0.0)
    monkeypatch.setattr(live, "_TURN", 0.0)
    monkeypatch.setattr(live, "_CAUTION", 0.0)
    return lin.tape.span(ROOM)


def gradients(pieces):
    """Of all streams that there are, one after the other."""
    return torch.cat([torch.cat([g for g in grads if g is not None], 2) for grads in pieces])


@pytest.mark.parametrize("name", ["epsilon_plus", "epsilon_plus_flat", "lrp_zero", "epsilon_gamma_box"])
@settings(max_examples=12, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    size=st.integers(7, 12),
    inputs=st.integers(1, 3),
    vectors=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_live_units_give_what_whole_images_give(name, kernel, stride, dilation, size, inputs, vectors, seed):
    torch.manual_seed(seed)
    net = Residual(5, kernel, stride, dilation).double().eval()
    lin = linearize(net, torch.rand(inputs, 3, size, size, dtype=torch.float64), name)
    cotangents = torch.randn(vectors, inputs, 4, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(live, "MANY", 1)
        patch.setattr(tape, "MANY", 1)
        span = programs(lin, patch)
        if span is None:  # rules that leave nothing between two single values
            return
        got = gradients(lin.tape.reverse(cotangents, 13 << 20, ROOM))
        expected = gradients(lin.tape.reverse(cotangents))
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_a_span_covers_the_blocks_between_pooling_and_mean(monkeypatch):
    torch.manual_seed(0)
    lin = linearize(Residual(5, 3, 2, 1).eval(), torch.rand(1, 3, 12, 12), "epsilon_plus")
    span = programs(lin, monkeypatch)
    kinds = {type(op).__name__ for op in lin.tape.ops[span.start : span.stop]}
    assert "Convolution" in kinds <= {"Convolution", "Scale", "Combine"}


def test_dead_units_are_left_out():
    c = torch.zeros(3, 2, 2)
    c[0, 0, 1] = c[2, 0, 1] = c[1, 1, 0] = 1.0
    found = units.Units(c != 0)
    assert len(found) == 3
    assert found.start == [0, 0, 2, 3, 3]
    assert found.channel.tolist() == [0, 2, 1]
    assert found.counts.tolist() == [[0, 2], [1, 0]]
    images = torch.arange(24.0).view(2, 3, 2, 2)
    g = found.gather([images])
    assert g.shape == (3, units.LINE)
    assert g[:, :2].T.tolist() == [[1, 9, 6], [13, 21, 18]]
    (back,) = found.scatter(g, 2)
    torch.testing.assert_close(back, images * c)


def test_nothing_live_gives_zeros():
    nothing = units.Units(torch.zeros(2, 3, 3, dtype=torch.bool))
    some = units.Units(torch.ones(2, 3, 3, dtype=torch.bool))
    out = torch.full((18, 16), 7.0)
    units.Link(nothing, some, torch.ones(2, 3, 3)).run(torch.empty(0, 16), out, True)
    assert not out.any()


@pytest.mark.parametrize("model", [resnet18, vgg11_bn])
def test_many_outputs_equal_few_at_a_time(model):
    """More than `MANY` vectors take the way over live units where it pays; the result does not depend on it."""
    torch.manual_seed(0)
    net = model(num_classes=160).eval()
    if model is vgg11_bn:
        net.classifier = nn.Linear(25088, 160)  # its 120 million weights are no matter of live units
    lin = linearize(net, torch.rand(1, 3, 64, 64), "epsilon_plus_flat")
    eye = torch.eye(160)
    many = lin.rows(eye, Pixels())
    few = torch.cat([lin.rows(part, Pixels()) for part in eye.split(20)], 1)
    error = (many - few).abs().flatten(2).sum(2) / few.abs().flatten(2).sum(2)
    assert error.max() < 1e-4
    assert lin.tape.span(ROOM) is not None


def test_little_room_does_without_live_units():
    torch.manual_seed(0)
    lin = linearize(resnet18().eval(), torch.rand(1, 3, 64, 64), "epsilon_plus")
    assert lin.tape.span(1 << 20) is None


def test_a_mean_of_all_positions_has_no_dead_units():
    """A network without ReLU has nothing to save, so whole images are kept."""
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten(1))
    lin = linearize(net.eval(), torch.rand(1, 3, 16, 16), "lrp_zero")
    assert lin.tape.span(ROOM) is None


@pytest.mark.parametrize("name", ["epsilon_plus_flat", "lrp_zero", "epsilon_gamma_box"])
@settings(max_examples=12, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    inputs=st.integers(1, 3),
    patch=st.sampled_from([2, 3]),
    seed=st.integers(0, 99),
)
def test_tangents_on_live_units_give_what_whole_images_give(
    name, kernel, stride, dilation, inputs, patch, seed
):
    torch.manual_seed(seed)
    net = Residual(5, kernel, stride, dilation).double().eval()
    lin = linearize(net, torch.rand(inputs, 3, 12, 12, dtype=torch.float64), name)
    expected = lin.columns(Patches(patch))  # fewer patches than `SOME`
    with pytest.MonkeyPatch.context() as monkey, torch.no_grad():
        monkey.setattr(tape, "SOME", 1)
        if programs(lin, monkey) is None:
            return
        took = []
        monkey.setattr(live.LiveProgram, "forward", counted(live.LiveProgram.forward, took))
        torch.testing.assert_close(lin.columns(Patches(patch)), expected, rtol=1e-10, atol=1e-12)
        assert took


@pytest.mark.parametrize(("inputs", "patch"), [(2, 8), (1, 11)])
def test_patches_go_on_one_by_one_on_live_units_in_the_rows_that_they_reach(inputs, patch, monkeypatch):
    """They are taken out of the stage before without an image of their own, and its vectors outside are zero."""
    torch.manual_seed(0)
    net = resnet18(num_classes=5).double().eval()
    lin = linearize(net, torch.rand(inputs, 3, 72, 56, dtype=torch.float64), "epsilon_gamma_box")
    monkeypatch.setattr(tape, "SOME", 10_000)
    expected = lin.columns(Patches(patch))
    taken, reached = [], []
    for module in (tape, patches):
        monkeypatch.setattr(module, "SOME", 8)
    monkeypatch.setattr(patches, "_WORTH", 100.0)
    programs(lin, monkeypatch)
    collect, forward = units.Units.collect, units.Taps.forward
    monkeypatch.setattr(units.Units, "collect", counted(collect, taken))
    monkeypatch.setattr(units.Taps, "forward", lambda *args: reached.append(args[-1]) or forward(*args))
    torch.testing.assert_close(lin.columns(Patches(patch)), expected, rtol=1e-10, atol=1e-12)
    assert len(taken) == inputs
    rows, columns = Patches(patch).shape((3, 72, 56))
    some = [end - begin for reach in reached if reach is not None for begin, end in reach]
    assert 0 < min(some) < max(some) <= rows * columns


def counted(method, calls):
    return lambda *args: calls.append(1) or method(*args)


def test_units_that_nothing_reads_are_dead():
    """The sum in front of a ReLU is needed where the ReLU passes it on, and nowhere else."""
    torch.manual_seed(0)
    lin = linearize(Residual(5, 3, 1, 1).eval(), torch.rand(1, 3, 12, 12), "epsilon_gamma_box")
    with pytest.MonkeyPatch.context() as monkey:
        span = programs(lin, monkey)
    sums = [n for n in span.first.nodes.values() if len(n.edges) > 1]
    assert sums
    assert all(len(n.units) < n.units.shape[0] * 144 for n in sums)
