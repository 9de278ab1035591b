"""Fourier transforms and complex numbers: linear nets are exactly gradient × input, in both directions."""

import pytest
import torch
from torch import nn

from pfungst.relevance import Pixels, Tokens, attribute, linearize

fft = torch.fft
W = torch.randn(6, 8, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
HANN = torch.hann_window(16, dtype=torch.float64)


def stft(x, **options):
    return torch.stft(x.flatten(1), 16, 4, window=HANN, return_complex=True, **options)


LINEAR = {
    "fft": lambda x: (x + fft.fft(x)).real,
    "fft2": lambda x: fft.fft2(x).imag,
    "fftn": lambda x: fft.fftn(x, dim=(1, 2)).real + fft.ifftn(x, dim=(1,)).imag,
    "ifft": lambda x: torch.real(fft.ifft(x, norm="ortho")) + torch.imag(fft.ifft2(input=x)),
    "irfft": lambda x: fft.irfft(fft.rfft(x) * (1 + 2j), n=8),
    "irfft2": lambda x: fft.irfft2(fft.rfft2(x) * W[:, :5], s=(6, 8)),
    "irfftn": lambda x: fft.irfftn(fft.rfftn(x, dim=(1, 2)), dim=(1, 2)),
    "global filter": lambda x: fft.ifft2(W * fft.fft2(x)).real,
    "hfft": lambda x: fft.hfft(torch.complex(x, x.flip(1)), n=8),
    "hfft2": lambda x: fft.hfft2(torch.complex(x, 2 * x)) + fft.hfftn(x.cdouble(), dim=(1, 2)),
    "ihfft": lambda x: torch.view_as_real(fft.ihfft(x).resolve_conj()),
    "ihfft2": lambda x: fft.ihfft2(x).real + fft.ihfftn(x, dim=(1, 2)).imag,
    "shift": lambda x: fft.ifftshift(fft.fftshift(fft.fft(x), dim=(1, 2)), dim=1).imag,
    "conjugate": lambda x: (fft.fft(x).conj() * W).imag + torch.conj_physical(x * W).real,
    "adjoint": lambda x: (fft.fft(x).mH @ W).real + (fft.fft(x).adjoint() @ W).imag,
    "matrix": lambda x: (W.mT @ fft.fft(x)).real,
    "view": lambda x: torch.view_as_complex(x.unflatten(-1, (4, 2))).imag,
    "polar": lambda x: torch.polar(x, torch.ones_like(x)).imag,
    "parts": lambda x: torch.cat([fft.fft(x), fft.ifft(x)], 1)[:, ::2].imag.sum(1),
    "division": lambda x: (fft.fft(x) / W).real,
    "stft": lambda x: torch.view_as_real(stft(x)),
    "stft real": lambda x: (
        torch.stft(x.flatten(1), 8, window=HANN[:8], return_complex=True, center=False).real
    ),
    "istft": lambda x: torch.istft(stft(x) * 2j, 16, 4, window=HANN),
}


class Net(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        out = self.f(x).flatten(1)
        return out[:, :: max(1, out.shape[1] // 5)]


def inputs():
    return torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradient_times_input(net, x):
    x = x.clone().requires_grad_()
    out = net(x)
    grads = [torch.autograd.grad(out[:, k].sum(), x, retain_graph=True)[0] for k in range(out.shape[1])]
    return (torch.stack(grads, 1) * x[:, None]).detach()


def agree(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def check(f, rules="lrp_zero"):
    net, x = Net(f), inputs()
    lin = linearize(net, x, rules)
    agree(lin.output, net(x), 1e-12)
    expected = gradient_times_input(net, x)
    agree(lin.rows(torch.eye(lin.output.shape[1], dtype=x.dtype)), expected)
    agree(lin.columns(Tokens()), expected.sum(-1))
    for differentiable in (False, True):
        r = attribute(net, x, 1, rules, Pixels(channels=True), differentiable=differentiable)
        agree(r.values, expected[:, 1])


@pytest.mark.filterwarnings("ignore:.*batching rule for aten..unfold_backward")
@pytest.mark.parametrize("name", LINEAR)
def test_linear_transforms_are_gradient_times_input(name):
    """Regression: everything that passed through complex numbers was a constant, without a word."""
    check(LINEAR[name])


@pytest.mark.filterwarnings("ignore:.*batching rule for aten..unfold_backward")
@pytest.mark.parametrize(
    "f",
    [
        lambda x: stft(x).abs().mean(-1),
        lambda x: abs(fft.fft2(x, norm="ortho")),
        lambda x: torch.abs(fft.rfft(x) * W[:, :5]).sqrt().square(),
    ],
)
def test_magnitudes_are_homogeneous(f):
    check(f)
    r = attribute(Net(f), inputs(), 0, "transformer")
    agree(r.sum(), r.score)
    silent = attribute(Net(f), 0 * inputs(), 0, "transformer")
    assert not silent.values.any()


def test_power_spectrograms_of_raw_audio_conserve():
    torch.manual_seed(0)
    front = lambda x: (stft(x).abs() ** 2, stft(x).real.square() + stft(x).imag ** 2)
    bank = torch.rand(9, 4, dtype=torch.float64)
    for k in (0, 1):
        net = Net(lambda x, k=k: torch.einsum("nft,fm->nmt", front(x)[k], bank).sqrt())
        r = attribute(net, inputs(), 1, "transformer")
        agree(r.sum(), r.score, 1e-5)


def test_products_of_two_spectra_give_half_to_each():
    f = lambda x: fft.ifft(fft.fft(x) * fft.fft(x.flip(1)).conj()).real
    r = attribute(Net(f), inputs(), 2, "transformer", Tokens())
    agree(r.sum(), r.score)
    again = attribute(Net(f), inputs(), 2, "transformer", Tokens(), differentiable=True)
    agree(again.values, r.values)


def test_complex_weights():
    """Oracle: autograd on a linear net of complex layers."""

    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(8, 5, bias=False, dtype=torch.complex128)
            self.second = nn.Linear(5, 3, bias=False, dtype=torch.complex128)

        def forward(self, x):
            return self.second(self.first(fft.fft(x))).real.sum(1)

    net, x = Complex(), inputs()
    for rules, tolerance in (("lrp_zero", 1e-9), ("transformer", 1e-4)):
        agree(
            attribute(net, x, 1, rules, Pixels(channels=True)).values,
            gradient_times_input(net, x)[:, 1],
            tolerance,
        )
    lin = linearize(net, x, "transformer")
    agree(lin.columns(Tokens()), lin.rows(torch.eye(3, dtype=x.dtype), Tokens()))
