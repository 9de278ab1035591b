"""Outputs of the published code of Kauffmann et al. 2025 on real magnetic tiles."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pfungst.anomaly import D2Neighbors
from pfungst.measure import best_f1_threshold, f1, fnr
from pfungst.relevance import PixelBands, Pixels
from pfungst.relevance.dct import zigzag_rank


def prepare(path, how):
    image = Image.open(path).convert("RGB")
    if how == "nearest":
        array = cv2.resize(np.asarray(image), (64, 64), interpolation=cv2.INTER_NEAREST)
    else:
        array = np.array(image.resize((64, 64), Image.Resampling.BILINEAR))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def expected(golden):
    with np.load(golden / "d2neighbors_golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def images(shared, expected):
    root = shared / "data" / "magnetic_tile" / "tile"
    out = {"train": torch.stack([prepare(root / "train" / f, "nearest") for f in expected["train_files"]])}
    for how in ("nearest", "antialias"):
        out[how] = torch.stack([prepare(root / "test" / f, how) for f in expected["test_files"]])
    return out


@pytest.mark.parametrize("p", [1, 2, 4])
def test_scores_and_decisions(p, expected, images):
    detector = D2Neighbors(p=p).fit(images["train"])
    assert detector.gamma_ == pytest.approx(float(expected[f"l{p}_gamma"]), rel=1e-4)
    labels = expected["labels"]
    scores = {how: detector.anomaly_score(images[how]).numpy() for how in ("nearest", "antialias")}
    threshold = best_f1_threshold(labels, scores["nearest"])
    assert threshold == pytest.approx(float(expected[f"l{p}_threshold"]), rel=1e-3)
    for how, values in scores.items():
        reference = expected[f"l{p}_scores_{how}"]
        np.testing.assert_allclose(values, reference, rtol=1e-3)
        flagged = values > threshold
        np.testing.assert_array_equal(flagged, reference > float(expected[f"l{p}_threshold"]))
        assert f1(labels, flagged) == pytest.approx(float(expected[f"l{p}_f1_{how}"]), abs=1e-9)
        assert fnr(labels, flagged) == pytest.approx(float(expected[f"l{p}_fnr_{how}"]), abs=1e-9)


def test_relevance(expected, images):
    detector = D2Neighbors().fit(images["train"])
    pixels = detector.explain(images["nearest"], Pixels()).values.numpy()
    reference = expected["l2_pixel_relevance"]
    assert np.abs(pixels - reference).sum() <= 1e-3 * np.abs(reference).sum()
    lows, highs = expected["bands"].T
    basis = PixelBands(edges=(*(int(v) for v in lows), int(highs[-1])))
    assert basis.edges[1:] == tuple(highs)
    bands = detector.explain(images["nearest"][12:], basis).values.numpy()
    reference = expected["l2_band_relevance_last12"]
    assert np.abs(bands - reference).sum() <= 1e-3 * np.abs(reference).sum()


def test_zigzag_order(expected):
    np.testing.assert_array_equal(zigzag_rank(64, 64), expected["zigzag_rank"])
