"""Writes in place: into the network's input, into constants, into views; weights that the input computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pfungst.errors import InputError
from pfungst.relevance import Pixels, attribute, linearize

MEAN = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(3, 1, 1)


class Net(nn.Module):
    """A function of images before a convolution, whose outputs are pooled to (N, 4)."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.conv = function, nn.Conv2d(3, 4, 3).double()

    def forward(self, x):
        return self.conv(self.function(x)).relu().mean((2, 3))


def images():
    return torch.rand(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def blanked(x):
    x[:, :, 2:4] = 0.25
    return x


def remembered(x):
    """A state that is kept in parts of one constant tensor, as recurrent language models do."""
    state = torch.zeros(2, 3, 6, 6, 2, dtype=x.dtype)
    before = state[..., 0]
    state[..., 1] = x + before
    return state[..., 1] * 2


FORMS = {
    "input, in place": (lambda x: x.sub_(MEAN).mul_(2), lambda x: (x - MEAN) * 2),
    "normalised, then in place": (lambda x: x.sub(MEAN).mul_(2), lambda x: (x - MEAN) * 2),
    "view of the input": (lambda x: x.view(2, 3, 36).sub_(0.5).view(2, 3, 6, 6), lambda x: x - 0.5),
    "part of the input": (
        blanked,
        lambda x: torch.cat([x[:, :, :2], torch.full_like(x[:, :, 2:4], 0.25), x[:, :, 4:]], 2),
    ),
    "state": (remembered, lambda x: (x * 1.0) * 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_writes_are_explained_like_the_same_network_without_them(form):
    written, plain = (Net(f).eval() for f in FORMS[form])
    x = images()
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(plain(leaf)[:, 1].sum(), leaf)
    r = attribute(written, x, 1, "lrp_zero", Pixels(channels=True))
    torch.testing.assert_close(x, images())
    torch.testing.assert_close(r.score, plain(x)[:, 1].detach())
    shift = x - MEAN if "place" in form else x  # behind a normalisation relevance is read there
    torch.testing.assert_close(r.values, g * shift)


def test_what_is_overwritten_after_its_use_is_refused_by_name():
    """Autograd cannot differentiate it either; a clone mends it."""

    def net(copied):
        def function(x):
            state = torch.ones(2, 3, 6, 6, 2, dtype=x.dtype)
            scale = state[..., 0].clone() if copied else state[..., 0]
            y = x * scale
            state[..., 0] = x
            return y + state[..., 0]

        return Net(function).eval()

    x = images()
    for explain in (
        lambda model: attribute(model, x, 1, "lrp_zero"),
        lambda model: linearize(model, x, "lrp_zero").rows(torch.eye(4, dtype=x.dtype)),
    ):
        with pytest.raises(InputError, match=r"overwrites, in place(.|\n)*clone"):
            explain(net(copied=False))
        explain(net(copied=True))


@pytest.mark.parametrize("operation", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("gated", [True, False])
def test_convolutions_with_weights_of_the_input_are_products(operation, gated):
    """Half to the image and half to what made the weights, or all to the image where they are a gate."""
    torch.manual_seed(0)
    bank = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    bank = bank if operation == "conv2d" else bank.transpose(0, 1).contiguous()

    class Dynamic(nn.Module):
        def forward(self, x):
            scale = x.mean()
            weight = bank * (torch.sigmoid(scale) if gated else scale)
            return getattr(F, operation)(x, weight).mean((2, 3))

    x = images()[:1]
    score = Dynamic()(x)[:, 1]
    r = attribute(Dynamic(), x, 1, "lrp_zero", Pixels(channels=True))
    torch.testing.assert_close(r.score, score)
    kernel = bank[1] if operation == "conv2d" else bank[:, 1]
    scale = torch.sigmoid(x.mean()) if gated else x.mean()
    leaf = x.clone().requires_grad_()
    full = getattr(F, operation)(leaf, kernel[None] if operation == "conv2d" else kernel[:, None]) * scale
    (g,) = torch.autograd.grad(full.mean(), leaf)
    direct = g * x
    if not gated:  # the other half is spread by the mean over the image
        direct = direct / 2 + score / 2 * x / x.sum()
    torch.testing.assert_close(r.values, direct)
