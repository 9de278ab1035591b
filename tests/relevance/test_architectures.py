"""Real architectures with random weights: the explained score is the model's, and it is accounted for in full.

Nothing here holds by construction. The score is compared with the plain forward. The values are added to what
reached the additive constants of the network, each of which is a leaf of its own graph, and the sum is compared
with the score. On piecewise linear networks values and constants are compared with torch.autograd.
The explained logit is the one of largest magnitude, so that little cancels in it.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from architecture_factory import PIECEWISE_LINEAR, TIMM, TRANSFORMERS, timm_model, transformers_model
from pfungst.errors import PfungstError
from pfungst.relevance import Pixels, attribute, auto, composite

FAST = [
    "resnet10t",
    "test_vit",
    "test_byobnet",
    "lcnet_035",
    "convnext_zepto_rms",
    "Bert",
    "GPT2",
    "Wav2Vec2",
]


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    return timm_model(name) if name in TIMM else transformers_model(name)


def largest(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (N, K) that make the magnitude of the largest logit the score, and that score (N,), by the plain model.

    The scores are positive, so those of a batch may be added.
    """
    with torch.no_grad():
        out = model(x)
    best = out.abs().argmax(1, keepdim=True)
    weights = torch.zeros_like(out).scatter(1, best, out.gather(1, best).sign())
    return weights, (out * weights).sum(1)


def account(
    model: nn.Module, x: torch.Tensor, weights: torch.Tensor, rules
) -> tuple[torch.Tensor, list[tuple[str, float]]]:
    """What reached the inputs, per input (N,), and each additive constant of the run, summed over the batch."""
    run, _ = auto.run(model, x, rules, biases=True)
    n = len(run.streams)
    leaves = [*run.streams, *(leaf for _, leaf in run.biases)]
    grads = torch.autograd.grad(run.output, leaves, weights, allow_unused=True)
    parts = [
        None if g is None else torch.where(g == 0, 0.0, leaf * g).detach()
        for leaf, g in zip(leaves, grads, strict=True)
    ]
    received = sum(part.flatten(1).sum(1) for part in parts[:n] if part is not None)
    constants = zip(run.biases, parts[n:], strict=True)
    return received, [(name, float(part.sum())) for (name, _), part in constants if part is not None]


@dataclass
class Outcome:
    """What became of one architecture: "explained", "refused" or "wrong", and why."""

    name: str
    verdict: str
    detail: str
    seconds: float = 0.0


#: What the remedies of the refusals say, done to the model.
REMEDIES = {"Rwkv": lambda model: setattr(model.body.config, "use_cache", False)}


def judge(name: str, rules="auto", mend: Callable[[nn.Module], None] | None = None) -> Outcome:
    model, x = make(name)
    if mend is not None:
        mend(model)
    weights, expected = largest(model, x)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            r = attribute(model, x, weights, rules, measure=False)
            received, constants = account(model, x, weights, composite(rules))
    except PfungstError as error:
        return Outcome(name, "refused" if error.remedy else "wrong", str(error).replace("\n", " "))
    except Exception as error:
        return Outcome(name, "wrong", f"{type(error).__name__}: {str(error).splitlines()[:1]}")
    if not bool(torch.isfinite(r.values).all()):
        return Outcome(name, "wrong", "values are not finite")
    off = ((r.score - expected).abs() / expected).max().item()
    exact = 1e-6 if x.dtype == torch.float64 else 1e-4
    if not off < exact:
        return Outcome(name, "wrong", f"the explained score is off the plain forward by {off:.1e}")
    scale = expected.sum().item()
    if not (r.sum() - received).abs().max().item() < exact * scale:
        return Outcome(name, "wrong", "accounting for constants changes the relevance of the input")
    inputs, absorbed = received.sum().item() / scale, sum(c for _, c in constants) / scale
    gap = abs(inputs + absorbed - 1)
    detail = f"{r.composite}: inputs {inputs:+.4f}, constants {absorbed:+.4f}, missing {gap:.1e}"
    return Outcome(name, "explained" if gap < 1e-3 else "wrong", detail)


def timed(name: str) -> Outcome:
    start = time.perf_counter()
    outcome = judge(name)
    outcome.seconds = time.perf_counter() - start
    return outcome


def contributions(model: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> list[float]:
    """What each additive parameter contributes to the score, by autograd on the plain model."""
    terms = []
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            terms.append(
                (m.bias, m.bias.detach() - m.weight * m.running_mean / (m.running_var + m.eps).sqrt())
            )
        elif isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None:
            terms.append((m.bias, m.bias))
    grads = torch.autograd.grad(model(x), [b for b, _ in terms], weights, allow_unused=True)
    return [(g * value).sum().item() for g, (_, value) in zip(grads, terms, strict=True) if g is not None]


def piecewise_linear(name: str) -> None:
    model, x = make(name)
    weights, expected = largest(model, x)
    r = attribute(model, x, weights, "lrp_zero", Pixels(channels=True))
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(leaf), leaf, weights)
    torch.testing.assert_close(r.score, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(r.values, g * x, rtol=1e-6, atol=1e-7 * float((g * x).abs().max()))
    _, constants = account(model, x, weights, composite("lrp_zero"))
    ours = sorted(value for _, value in constants if value)
    theirs = sorted(value for value in contributions(model, x, weights) if value)
    assert len(ours) == len(theirs)
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9 * float(expected.max()))


@pytest.mark.parametrize("name", FAST)
def test_score_is_accounted_for(name):
    outcome = judge(name)
    assert outcome.verdict == "explained", outcome.detail


@pytest.mark.parametrize("name", ["resnet10t", "regnetx_002", "dla46_c"])
def test_piecewise_linear_networks_are_gradient_times_input(name):
    piecewise_linear(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_every_piecewise_linear_network_is_gradient_times_input(name):
    piecewise_linear(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "names", "least"), [("timm", TIMM, 120), ("transformers", TRANSFORMERS, 50)]
)
def test_architectures(kind, names, least, subtests):
    outcomes = []
    for name in names:
        with subtests.test(name):
            outcome = timed(name)
            outcomes.append(outcome)
            assert outcome.verdict != "wrong", outcome.detail
            if outcome.verdict == "refused":
                mended = judge(name, mend=REMEDIES[name])
                assert mended.verdict == "explained", mended.detail
    for o in outcomes:
        print(f"{o.name:36} {o.verdict:9} {o.seconds:5.1f} s  {o.detail[:150]}")
    count = Counter(o.verdict for o in outcomes)
    print(f"{kind}: {len(names)} architectures, {dict(count)}")
    assert len(names) >= least
    assert count["explained"] >= 0.97 * len(names)
