"""Names of functional calls: how they are told from functions, and which need no rule of their own."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Fourier transforms and what goes with complex numbers: linear in the real and imaginary parts.
FOURIER = _words(
    """
    fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft
    fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2
    fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn fft_fftshift fft_ifftshift
    istft real imag get:real get:imag view_as_real view_as_complex complex
    conj _conj conj_physical resolve_conj resolve_neg adjoint cfloat cdouble chalf
    """
)

#: Linear in the tensors that depend on the input, or selecting among them: left to autograd.
LINEAR = (
    _words(
        """
    get:T get:mT get:H get:mH t view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze
    permute transpose movedim expand expand_as repeat repeat_interleave tile contiguous clone
    to type type_as float double half bfloat16 cpu cuda alias
    cat stack hstack vstack dstack column_stack chunk split split_with_sizes tensor_split unbind select narrow
    getitem index_select gather take_along_dim masked_select diagonal tril triu flip fliplr flipud rot90 roll
    sum mean nanmean cumsum neg pos rsub sub add where masked_fill scatter scatter_add index_add
    index_copy index_fill select_scatter slice_scatter
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    fractional_max_pool2d fractional_max_pool3d fractional_max_pool2d_with_indices
    fractional_max_pool3d_with_indices max_pool2d_with_indices max_pool1d_with_indices max_pool3d_with_indices max_unpool2d
    adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices
    pad constant_pad_nd interpolate upsample upsample_nearest2d upsample_bilinear2d grid_sample grid_sampler grid_sampler_2d
    grid_sampler_3d affine_grid_generator nansum msort quantile nanquantile aminmax
    fold unfold im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
    max min amax amin maximum minimum topk sort kthvalue median dropout feature_dropout alpha_dropout
    dropout2d dropout1d dropout3d feature_alpha_dropout broadcast_to broadcast_tensors atleast_1d atleast_2d
    atleast_3d swapaxes meshgrid block_diag abs einsum_linear as_strided diff
    pad_sequence _pad_packed_sequence
    requires_grad_ retain_grad
    """
    )
    | FOURIER
)

#: Operations of `LINEAR` that may turn values ≥ 0 into negative ones, by a sign, a weight or a constant of
#: theirs.
MAY_TURN_SIGN = (
    _words(
        """
    neg sub rsub diff interpolate upsample grid_sample grid_sampler grid_sampler_2d
    grid_sampler_3d affine_grid_generator where masked_fill index_fill pad constant_pad_nd scatter
    scatter_add index_add index_copy select_scatter slice_scatter
    """
    )
    | FOURIER
)

#: Operations of `LINEAR` that put constants beside what depends on the input.
AFFINE = _words(
    """
    add sub rsub cat stack hstack vstack dstack column_stack where masked_fill pad constant_pad_nd index_fill scatter
    scatter_add index_add index_copy select_scatter slice_scatter maximum minimum diff block_diag
    """
)

#: Operations of `LINEAR` whose second tensor only says what the result shall be like.
LIKE = _words("to type_as view_as expand_as reshape_as")

#: Results that do not depend differentiably on the input: shapes, comparisons, indices.
CONSTANT = _words(
    """
    size dim ndimension numel nelement stride storage_offset is_contiguous is_floating_point is_complex
    data_ptr item nelement ndim len eq ne lt le gt ge isnan isinf isfinite argmax argmin argsort nonzero any all
    detach sign signbit heaviside zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full
    new_empty new_tensor bool int long isin equal allclose is_same_size get_device
    element_size repr str format hash is_nonzero has_names one_hot bernoulli histc bincount is_sparse
    result_type can_cast is_inference is_signed is_conj is_neg is_tensor register_hook
    """
)

#: Elementwise functions through which relevance passes.
ACTIVATIONS = _words(
    """
    relu relu6 leaky_relu rrelu prelu elu selu celu gelu silu mish hardswish hardtanh softsign tanhshrink
    hardshrink softshrink tanh sigmoid hardsigmoid softplus logsigmoid log_sigmoid clamp clamp_min clamp_max threshold
    sqrt rsqrt reciprocal round floor ceil trunc fake_quantize_per_tensor_affine
    fake_quantize_per_channel_affine atan erf erfc exp exp2 expm1 log1p sin cos sinh cosh asinh nan_to_num
    special_expit special_erf special_erfc special_exp2 special_expm1 special_log1p
    """
)

_ALIASES = {
    "radd": "add", "rmul": "mul", "rtruediv": "rdiv", "truediv": "div", "true_divide": "div", "divide": "div",
    "multiply": "mul", "subtract": "sub", "iadd": "add_", "isub": "sub_", "imul": "mul_", "itruediv": "div_",
    "idiv": "div_", "ifloordiv": "floor_divide_", "floordiv": "floor_divide", "ipow": "pow_", "negative": "neg",
    "imod": "remainder_", "mod": "remainder", "concat": "cat", "concatenate": "cat", "swapaxes": "transpose",
    "swapdims": "transpose", "moveaxis": "movedim", "absolute": "abs", "clip": "clamp", "arctan": "atan",
    "permute_copy": "permute", "view_copy": "view", "_unsafe_view": "view", "_to_copy": "to", "_softmax": "softmax",
    "_log_softmax": "log_softmax", "fix": "trunc", "row_stack": "vstack", "true_divide_": "div_", "divide_": "div_",
    "multiply_": "mul_", "subtract_": "sub_", "negative_": "neg_", "absolute_": "abs_", "clip_": "clamp_",
}  # fmt: skip
#: Python's conversions; their functional namesakes mean something else.
_CONVERSIONS = {"__float__", "__int__", "__bool__", "__complex__", "__index__", "__nonzero__", "__long__"}


@cache
def operation_name(func: Any) -> str:
    """The canonical name of a functional call: "conv2d", "add", "relu_" …"""
    name = getattr(func, "__name__", str(func))
    if isinstance(func, torch._ops.OpOverload):  # "relu.default", in exported programs
        name = name.split(".")[0]
    if name in ("__get__", "__set__"):
        return ("get:" if name == "__get__" else "set:") + getattr(func.__self__, "__name__", "?")
    if name in _CONVERSIONS:
        return "item"
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
    return _ALIASES.get(name, name)
