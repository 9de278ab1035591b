"""Edits that follow from a finding, on networks whose right mend is known."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from pfungst.anomaly import detector_from_spec
from pfungst.discover import ClassSubject
from pfungst.discover.mend import Pairs, Tone, _refit, _Rows, class_edits, score_edits
from pfungst.measure import auroc
from pfungst.spurious import FeatureHead


class TwoFeatures(nn.Module):
    """Features: the upper left corner (a mark) and the lower right one (the object); class 1 reads both."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[0.0, 0.0], [8.0, 6.0]]))
            self.fc.bias.copy_(torch.tensor([0.0, -3.0]))

    def forward(self, x):
        return self.fc(torch.stack([x[:, 0, :2, :2].mean((1, 2)), x[:, 0, -2:, -2:].mean((1, 2))], 1))


def pairs(n=16, seed=0):
    noise = 0.1 * torch.rand(3, n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    removed, bare = noise[0].clone(), noise[1:].clone()
    removed[:, :, -2:, -2:] = 1
    own, put = removed.clone(), bare.clone()
    own[:, :, :2, :2] = put[..., :2, :2] = 1
    return Pairs(own, removed, bare, put)


def test_every_edit_of_a_network_with_a_mark_and_an_object_takes_the_mark_and_leaves_the_object():
    net = TwoFeatures().eval()
    head, made = FeatureHead(net, example=torch.rand(4, 1, 8, 8)), pairs()
    psi = lambda x: head.linear.psi(head.features(x).detach(), 1).mean(0).numpy()
    contrast = psi(made.own) - psi(made.removed)
    edits = class_edits([ClassSubject(head, 1)], made, psi(made.removed), contrast, (), 8)
    assert len(edits) == 3
    for edit in edits:
        assert edit.turned == (1.0, 0.0), edit.name
        assert edit.right == (1.0, 1.0), edit.name
        assert edit.n == 16
    assert any("pruning of 1 penultimate" in e.name for e in edits)
    assert net.fc.weight.tolist() == [[0.0, 0.0], [8.0, 6.0]]  # the model is left as it was


def test_the_refit_minimises_what_it_says():
    """SciPy's minimum of the same weighted logistic loss, written by hand."""
    rng, k = np.random.default_rng(0), 1
    head = nn.Linear(3, 3)
    rows = lambda x: _Rows(torch.from_numpy(x).float(), torch.zeros(len(x), dtype=torch.long))
    groups = {n: (rows(rng.normal(i, 1, (6 + i, 3))),) for i, n in enumerate(("own", "removed", "bare", "put"))}  # fmt: skip
    plain = lambda f: head(f.phi).detach()
    found = _refit(plain, k, groups)
    x = np.concatenate([groups[n][0].phi.numpy() for n in groups]).astype(float)
    y = np.concatenate([np.full(len(groups[n][0].phi), n in ("own", "removed")) for n in groups])
    w = np.concatenate([np.full(len(groups[n][0].phi), 0.25 / len(groups[n][0].phi)) for n in groups])
    z = plain(rows(x)).double().numpy()
    rest, scale = np.logaddexp(z[:, 0], z[:, 2]), x.std(0, ddof=1)

    def loss(p):
        odds = z[:, 1] + (x / scale) @ p[:3] + p[3] - rest
        return (w * np.logaddexp(0, np.where(y, -odds, odds))).sum() + 1e-3 * (p[:3] ** 2).sum()

    best = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    expected = z[:, 1] + (x / scale) @ best[:3] + best[3]
    np.testing.assert_allclose(found(rows(x))[:, 1], expected, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(found(rows(x))[:, [0, 2]], z[:, [0, 2]], rtol=1e-5)


def test_a_low_pass_is_tried_for_bands_and_takes_high_frequencies():
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1

    class Fine(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)
            with torch.no_grad():
                self.fc.weight.copy_(torch.tensor([[0.0, 0.0], [80.0, 30.0]]))
                self.fc.bias.copy_(torch.tensor([0.0, -15.0]))

        def forward(self, x):
            return self.fc(torch.stack([(x * checks).mean((1, 2, 3)), x.mean((1, 2, 3))], 1))

    flat = lambda n, level: torch.full((n, 1, 16, 16), level)
    made = Pairs(flat(8, 0.6) + 0.2 * checks, flat(8, 0.6), flat(16, 0.3).view(2, 8, 1, 16, 16), (flat(16, 0.3) + 0.2 * checks).view(2, 8, 1, 16, 16))  # fmt: skip
    subject = ClassSubject(FeatureHead(Fine().eval(), example=torch.rand(4, 1, 16, 16)), 1)
    edits = class_edits([subject], made, None, None, (7,))
    low = next(e for e in edits if e.name.startswith("low-pass"))
    assert low.turned == (1.0, 0.0)
    assert low.right == (1.0, 1.0)


def test_tone_gives_images_the_mean_and_spread_of_others():
    x, y = torch.rand(5, 3, 8, 8), torch.rand(9, 3, 8, 8) * 0.3 + 0.2
    out = Tone.of(y)(x)
    np.testing.assert_allclose(out.mean((2, 3)), y.mean((2, 3)).mean(0).expand(5, 3), atol=1e-5)
    np.testing.assert_allclose(out.std((2, 3)), y.std((2, 3)).mean(0).expand(5, 3), atol=1e-5)


def test_edits_of_a_detector_whose_session_is_brighter():
    rng = np.random.default_rng(0)
    ramp = np.linspace(-0.2, 0.2, 16)
    made = lambda n, level: torch.from_numpy(rng.normal(level + ramp, 0.03, (n, 1, 16, 16))).float()
    train, images = made(40, 0.3), torch.cat([made(20, 0.3), made(20, 0.55), made(20, 0.3)])
    images[40:, :, 4:8, 4:8] += 0.3
    labels = np.repeat([0, 0, 1], 20)
    fit = lambda layer, x: detector_from_spec("d2neighbors", features=layer, device="cpu").fit(x)
    edits = {e.name: e for e in score_edits(fit, train, images, labels, np.arange(20, 40), "tone")}
    tone = edits["every image brought to the tone of the training images"]
    assert tone.turned[0] == 1.0
    assert tone.turned[1] < 0.3
    assert tone.right[1] > tone.right[0]
    assert tone.n == 10
    assert edits["refit with half of the cluster's images"].turned[1] < 0.5
    asked = np.setdiff1d(np.arange(60), np.arange(20, 40)[::2])
    plain = fit(None, train).anomaly_score(images).numpy()
    assert tone.right[0] == pytest.approx(auroc(labels[asked], plain[asked]))
