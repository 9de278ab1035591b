"""Which score is explained: the meaning of ``output=``.

A model returns (N, *axes). An index names a place along those axes in their order, whatever they mean: the
class of (N, K), the class, row and column of (N, C, H, W), the token and the class of (N, L, K). Axes that
are left out at the end are summed over, and so are those at which a slice stands.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfungst.errors import InputError
from pfungst.relevance.engine.inputs import transformed
from pfungst.relevance.engine.run import written


def cotangent(out: Tensor, output: Any) -> Tensor:
    """The weights with which the numbers a model returned make up the explained scores.

    Args:
        out: (N, *axes), what the model returned.
        output: the score.

            - int: the class, where the model returns (N, K) or (N,);
            - integers (N,): one class per input, there too;
            - tuple: integers (or integers (N,), one per input) and slices along the axes after the first;
              what is left out is summed: ``(3,)`` is class 3 of (N, C, H, W) summed over all positions, ``(3,
              5, 7)`` at one position, ``(0, 3)`` is class 3 at token 0 of (N, L, K), ``(slice(None), 3)`` at
              all tokens. The last entry may be a mask or weights over the axes that are left, ``(3, mask)``
              with mask (H, W) or (N, H, W);
            - mask or weights of the shape of `out`, or of one input's output;
            - None, where there is one number per input.

    Returns:
        Weights of the shape of `out`.

    Raises:
        InputError: an index out of range, a shape that does not fit, or a choice that is not unique.
    """
    sizes = tuple(out.shape[1:])
    if output is None:
        if out[:1].numel() != 1 and len(out):
            raise _ambiguous(out, "no output is chosen")
        return torch.ones_like(out)
    if isinstance(output, tuple):
        return _along(out, output)
    if isinstance(output, slice) or output is Ellipsis or isinstance(output, bool | str):
        raise _ambiguous(out, f"output={output!r} is no index")
    try:
        chosen = torch.as_tensor(output, device=out.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _ambiguous(out, f"output={output!r} is no index: {error}") from None
    if chosen.is_floating_point() or chosen.dtype == torch.bool:
        return _weights(out, chosen, (), "output weights")
    if chosen.ndim > 1 or (chosen.ndim == 1 and len(chosen) != len(out)):
        raise InputError(
            f"output indices of shape {tuple(chosen.shape)} do not fit {len(out)} inputs",
            "pass one index per input, (N,); masks and weights must be boolean or floating",
        )
    if sum(size != 1 for size in sizes[1:]):
        raise _ambiguous(out, "a single index does not say which position")
    return _along(out, (chosen,)) if sizes else _along(out[:, None], (chosen,))[:, 0]


def _along(out: Tensor, index: tuple[Any, ...]) -> Tensor:
    """Weights that are one where the index points."""
    n, sizes = len(out), tuple(out.shape[1:])
    weights = torch.ones_like(out)
    if not index or len(index) > len(sizes):
        raise _ambiguous(out, f"an index of {len(index)} entries does not fit")
    for axis, (entry, size) in enumerate(zip(index, sizes, strict=False), 1):
        view = [1] * out.ndim
        view[axis] = size
        if isinstance(entry, slice):
            hot = torch.zeros(size, dtype=out.dtype, device=out.device)
            hot[entry] = 1
            if not hot.any():
                raise InputError(
                    f"the slice {entry} of axis {axis} is empty", f"the output has shape {tuple(out.shape)}"
                )
            weights = weights * hot.reshape(view)
            continue
        if isinstance(entry, bool | str) or entry is None or entry is Ellipsis:
            raise _ambiguous(out, f"{entry!r} is no index")
        t = torch.as_tensor(entry, device=out.device)
        if t.is_floating_point() or t.dtype == torch.bool:
            if axis != len(index):
                raise _ambiguous(out, "a mask must be the last entry of the index")
            return weights * _weights(out, t, index[: axis - 1], "the mask")
        if t.ndim == 1 and len(t) == n:
            view[0] = n
        elif t.ndim:
            raise _ambiguous(out, f"the index of axis {axis} has shape {tuple(t.shape)}")
        wrong = (t < -size) | (t >= size)
        if not transformed(t) and bool(wrong.any()):
            raise InputError(
                f"output index {t[wrong].flatten()[0].item()} is out of range on axis {axis}",
                f"the output has shape {tuple(out.shape)}: 0 … {size - 1}",
            )
        hot = torch.nn.functional.one_hot(t.long() % size, size).to(out.dtype)
        weights = weights * hot.reshape(view)
    return weights


def _weights(out: Tensor, weights: Tensor, before: tuple[Any, ...], what: str) -> Tensor:
    """A mask or weights over the axes after those that `before` took, as weights of the shape of `out`."""
    n, rest = len(out), tuple(out.shape[1 + len(before) :])
    if tuple(weights.shape) not in (rest, (n, *rest)):
        raise InputError(
            f"{what} of shape {tuple(weights.shape)} do not fit outputs of shape {tuple(out.shape)}",
            f"pass {rest} or {(n, *rest)}",
        )
    if not transformed(weights) and not bool(torch.isfinite(weights).all()):
        raise InputError(
            f"{what} contain NaN or infinity", "use finite weights, zero for what does not count"
        )
    weights = weights.to(out)
    if weights.ndim > len(rest):
        weights = weights.reshape(n, *[1] * len(before), *rest)
    return weights.expand_as(out)


def spelling(shape: tuple[int, ...]) -> str:
    """How to choose one score of outputs of this shape."""
    if len(shape) < 3:
        return f"choose one of the outputs of shape {shape}, for example output=0 or output={written(shape)}"
    k, spots = min(2, shape[1] - 1), ", ".join("0" for _ in shape[2:])
    return (
        f"choose along the axes after the first: output=({k},) sums over the rest, output=({k}, {spots}) is "
        "one "
        f"position, output=({k}, mask) sums over a mask of shape {shape[2:]}; or write "
        f"output={written(shape)}"
    )


def _ambiguous(out: Tensor, why: str) -> InputError:
    shape = tuple(out.shape)
    return InputError(f"the model returns outputs of shape {shape} and {why}", spelling(shape))
