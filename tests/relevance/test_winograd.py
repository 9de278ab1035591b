"""The fast convolution is a convolution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pfungst.relevance.program.convolution import stride_one
from pfungst.relevance.program.winograd import TallConvolution


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    out=st.integers(1, 5),
    height=st.integers(2, 14),
    width=st.integers(2, 9),
    padding=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    seed=st.integers(0, 999),
)
def test_equals_the_direct_convolution(batch, channels, out, height, width, padding, seed):
    torch.manual_seed(seed)
    x, w = torch.randn(batch, channels, height, width).double(), torch.randn(out, channels, 3, 3).double()
    got = TallConvolution(w, padding)(x)
    torch.testing.assert_close(got, F.conv2d(x, w, None, 1, padding), rtol=1e-10, atol=1e-10)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_without_padding():
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 9, 7).double(), torch.randn(4, 3, 3, 3).double()
    torch.testing.assert_close(TallConvolution(w, (0, 0))(x), F.conv2d(x, w), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("channels", "size"), [(64, 56), (128, 28), (256, 14), (512, 7)])
def test_rounding_is_far_below_that_of_the_rules(channels, size):
    torch.manual_seed(0)
    x, w = torch.randn(4, channels, size, size), torch.randn(channels, channels, 3, 3)
    exact = F.conv2d(x.double(), w.double(), None, 1, 1)
    error = lambda y: float((y - exact).norm() / exact.norm())
    assert error(stride_one(w, (1, 1))(x)) < 4e-6


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kernel_and_type(kernel, dtype):
    torch.manual_seed(0)
    x, w = torch.randn(5, 16, 12, 12, dtype=dtype), torch.randn(18, 16, *kernel, dtype=dtype)
    padding = [k // 2 for k in kernel]
    torch.testing.assert_close(
        stride_one(w, padding)(x), F.conv2d(x, w, None, 1, padding), rtol=1e-4, atol=1e-4
    )


def test_dilated_kernels_are_convolved_directly():
    torch.manual_seed(0)
    x, w = torch.randn(5, 16, 12, 12), torch.randn(16, 16, 3, 3)
    got = stride_one(w, (2, 2), (2, 2))(x)
    torch.testing.assert_close(got, F.conv2d(x, w, None, 1, 2, 2), rtol=0, atol=0)
