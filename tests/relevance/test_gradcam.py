"""GradCAM against captum and numpy, on layouts that shapes alone do not tell."""

import math
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
import torchvision
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pfungst.errors import InputError, PfungstError
from pfungst.relevance import gradcam

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Rearranged(nn.Module):
    """A convolution whose map passes through a layer `seen` that holds it in another layout."""

    def __init__(self, body, there, back, classes=3):
        super().__init__()
        self.body, self.seen, self.back = body, There(there), back
        self.head = nn.LazyLinear(classes)

    def forward(self, x):
        a = self.body(x)
        a = self.back(self.seen(a), a.shape)
        return self.head(torch.cat([a.flatten(1), a.flatten(2).amax(2)], 1).tanh())


class There(nn.Module):
    def __init__(self, there):
        super().__init__()
        self.there = there

    def forward(self, a):
        return self.there(a)


def first(a):
    return a, lambda t, shape: t


def tokens(before, after, constant, order=None):
    """(N, C, *grid) → (N, L, C) with other tokens around, which the head ignores."""

    def there(a):
        t = a.flatten(2).transpose(1, 2)
        t = t if order is None else t[:, order[: t.shape[1]] if len(order) == t.shape[1] else order]
        beside = torch.ones_like(t[:, :1]) if constant else t.mean(1, keepdim=True)
        return torch.cat([beside] * before + [t] + [beside] * after, 1)

    def back(t, shape):
        t = t[:, before : t.shape[1] - after]
        if order is not None:
            t = t[:, torch.argsort(order)]
        return t.transpose(1, 2).reshape(shape)

    return there, back


def permuted(*axes):
    inverse = list(np.argsort(axes))
    return (lambda a: a.permute(axes)), (lambda t, shape: t.permute(inverse))


def sequence_first():
    return (lambda a: a.flatten(2).permute(2, 0, 1)), (lambda t, shape: t.permute(1, 2, 0).reshape(shape))


def windows(size):
    """Windows of size² positions, with those of an input along the batch axis, as windowed attention has them."""

    def there(a):
        n, c, h, w = a.shape
        a = a.reshape(n, c, h // size, size, w // size, size)
        return a.permute(0, 2, 4, 3, 5, 1).reshape(-1, size * size, c)

    def back(t, shape):
        n, c, h, w = shape
        t = t.reshape(n, h // size, w // size, size, size, c)
        return t.permute(0, 5, 1, 3, 2, 4).reshape(shape)

    return there, back


def window_order(h, w, size):
    """Order of the tokens of an h × w grid in which windows follow each other, as in Hiera."""
    i = torch.arange(h * w).reshape(h // size, size, w // size, size)
    return i.permute(0, 2, 1, 3).flatten()


def grid_of(body, x):
    with torch.no_grad():
        return tuple(body(x).shape[2:])


def example(rng):
    """A random network, input and layout, and whether its layout is one that GradCAM should explain."""
    dim = int(rng.choice([1, 2, 2, 2, 2, 3]))
    n = int(rng.choice([1, 5]))
    sides = {1: (8, 40), 2: (6, 26), 3: (5, 10)}[dim]
    size = [int(rng.integers(*sides)) for _ in range(dim)]
    if rng.random() < 0.4:
        size = [size[0]] * dim
    channels = int(rng.choice([2, 4, 6, 8, 12]))
    torch.manual_seed(int(rng.integers(1 << 30)))
    strides = [
        int(s) for s in (rng.integers(1, 4, dim) if rng.random() < 0.4 else [rng.integers(1, 4)] * dim)
    ]
    body = [CONV[dim](3, channels, 3, strides, 1)]
    for _ in range(int(rng.integers(0, 3))):
        body += [nn.ReLU(), CONV[dim](channels, channels, 3, 1, 1)]
    body = nn.Sequential(*body)
    x = torch.randn(n, 3, *size)
    grid = grid_of(body, x)
    if rng.random() < 0.25 and grid[0] <= 12:  # as many channels as rows
        body.append(CONV[dim](channels, grid[0], 1))
    if rng.random() < 0.3:
        body.append(nn.ReLU())
    kinds = ["first", "last", "tokens", "flat", "sequence"] + (
        ["swapped", "windows", "order", "shuffled"] if dim == 2 else []
    )
    kind = str(
        rng.choice(
            kinds, p=None if dim == 1 or dim == 3 else [0.2, 0.25, 0.25, 0.06, 0.06, 0.06, 0.04, 0.04, 0.04]
        )
    )
    fair = True
    if kind == "first":
        pair = permuted(*range(dim + 2))
    elif kind == "last":
        pair = permuted(0, *range(2, dim + 2), 1)
    elif kind == "flat":
        pair = (lambda a: a.flatten(2)), (lambda t, shape: t.reshape(shape))
    elif kind == "sequence":
        pair = sequence_first()
    elif kind == "swapped":
        pair = permuted(0, 1, 3, 2)
    elif kind == "tokens":
        before, after = [(0, 0), (1, 0), (1, 0), (2, 0), (5, 0), (0, 1), (0, 2)][int(rng.integers(7))]
        pair = tokens(before, after, bool(rng.random() < 0.5))
    else:
        fair = False
        divides = [s for s in (2, 3, 4) if all(g % s == 0 and g > s for g in grid)]
        if kind == "shuffled" or not divides:
            pair = tokens(0, 0, True, torch.randperm(math.prod(grid)))
        elif kind == "order":
            pair = tokens(0, 0, True, window_order(*grid, divides[0]))
        else:
            pair = windows(divides[-1])
    fair = fair and min(grid) > 1
    net = Rearranged(body, *pair).double().eval()
    x = x.double()
    net(x)
    return net, x, kind, fair


def run(count, seed, report=None):
    rng = np.random.default_rng(seed)
    tally = Counter()
    for i in range(count):
        net, x, kind, fair = example(rng)
        target = int(rng.integers(3))
        expected = LayerGradCam(net, net.body).attribute(x, target, attr_dim_summation=True)[:, 0].detach()
        try:
            cam = gradcam(net, x, "seen", target, resize=False, relu=False)
        except PfungstError as error:
            tally["refused", fair] += 1
            if report:
                report(
                    f"{i} {kind} refused {tuple(x.shape)} {tuple(expected.shape)}: {str(error).splitlines()[0]}"
                )
            continue
        right = cam.shape == expected.shape and torch.allclose(cam, expected, rtol=1e-6, atol=1e-9)
        tally["explained" if right else "WRONG", fair] += 1
        if report and not right:
            report(f"{i} {kind} WRONG {tuple(x.shape)} {tuple(cam.shape)} not {tuple(expected.shape)}")
    return tally


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(run(int(sys.argv[1]), int(sys.argv[2]), print))
