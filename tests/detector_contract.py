"""What every registered detector must do; `check` runs all of it on one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn

from pfungst.anomaly import KDE, D2Neighbors, Detector
from pfungst.errors import ConfigError, InputError, PfungstError, PfungstWarning
from pfungst.registry import DETECTORS
from pfungst.relevance import Basis, DCTBands, Patches, PixelBands, Pixels

SIDE = 16
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
BASES: tuple[Basis, ...] = (
    Pixels(), Pixels(channels=True), Patches(5), DCTBands(count=4), PixelBands(count=3)
)  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU(), nn.Flatten()
    )


#: Parameters that make a detector small enough to be tested often; others are tested with their defaults.
SMALL: dict[str, dict[str, Any]] = {
    "autoencoder": {"epochs": 2, "code": 8},
    "bag": {"detectors": [("kde", KDE()), ("d2", D2Neighbors(p=1))]},
    "mixture": {"components": 2},
    "one-class": {"backbone": net(), **PLAIN},
    "patchcore": {"backbone": net(), "layers": "1+3", "dim": 12, "layer_dim": 8, "coreset": 0.5, **PLAIN},
    "tiled": {"detector": KDE(), "tile": 8, "overlap": 2},
}


def make(name: str, **more: Any) -> Detector:
    return DETECTORS.get(name)(**(SMALL.get(name, {}) | more))


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def fits_and_scores(name: str, _folder: Any) -> None:
    detector = make(name)
    assert detector.fit(images(20)) is detector
    assert detector.sample_shape_ == (3, SIDE, SIDE)
    assert detector.threshold_ == pytest.approx(torch.tensor(detector.training_scores_).quantile(0.95).item())
    scores = detector.anomaly_score(images(5, 1))
    assert isinstance(scores, Tensor)
    assert scores.shape == (5,)
    assert len(set(scores.tolist())) == 5
    torch.testing.assert_close(
        torch.as_tensor(detector.anomaly_score(images(5, 1).numpy())), scores.cpu(), check_dtype=False
    )
    assert torch.equal(detector.predict(images(5, 1)) == -1, scores > detector.threshold_)
    assert torch.equal(make(name).fit(images(20)).anomaly_score(images(5, 1)), scores)
    far = torch.stack([torch.zeros(3, SIDE, SIDE), torch.ones(3, SIDE, SIDE)])
    assert detector.anomaly_score(far).max() > detector.anomaly_score(images(20)).median()


def conserves_in_every_basis(name: str, _folder: Any) -> None:
    detector = make(name).fit(images(20))
    x = images(3, 1)
    read = 0
    for basis in BASES:
        try:
            detector.check_basis(basis)
        except InputError:
            with pytest.raises(InputError):
                detector.explain(x, basis)
            continue
        read += 1
        found = detector.explain(x, basis)
        assert found.values.shape == (3, *basis.shape((3, SIDE, SIDE)))
        torch.testing.assert_close(
            found.score.cpu().double(), detector.anomaly_score(x).cpu().double(), rtol=1e-5, atol=1e-6
        )
        total = found.values.double().flatten(1).sum(1) + found.bias.double()
        torch.testing.assert_close(total, found.score.double(), rtol=1e-5, atol=1e-5)
    assert read >= 2


def saves_and_loads(name: str, folder: Any) -> None:
    detector = make(name).fit(images(20))
    x = images(3, 1)
    detector.save(folder / "d")
    modules = {k: net() for k, v in detector.get_params().items() if isinstance(v, nn.Module)}
    for cls in (Detector, type(detector)):
        again = cls.load(folder / "d", **modules)
        assert type(again) is type(detector)
        assert torch.equal(again.anomaly_score(x), detector.anomaly_score(x))
        found, wanted = again.explain(x), detector.explain(x)
        assert torch.equal(found.values, wanted.values)
        assert torch.equal(found.bias, wanted.bias)
        assert again.threshold_ == detector.threshold_
        assert (again.training_scores_ == detector.training_scores_).all()
        assert again.get_params(deep=False).keys() == detector.get_params(deep=False).keys()
        for key, value in detector.get_params(deep=False).items():
            if key not in (*modules, detector.nested):
                assert getattr(again, key) == value, key
    again.save(folder / "e")
    twice = Detector.load(folder / "e", **modules)
    assert torch.equal(twice.anomaly_score(x), detector.anomaly_score(x))
    assert torch.equal(clone(again).fit(images(20)).anomaly_score(x), detector.anomaly_score(x)) or modules


def is_cloned_and_configured(name: str, _folder: Any) -> None:
    detector = make(name).fit(images(20))
    copy = clone(detector)
    assert not copy.__sklearn_is_fitted__()
    assert torch.equal(copy.fit(images(20)).anomaly_score(images(3, 1)), detector.anomaly_score(images(3, 1)))
    params = copy.get_params(deep=False)
    assert copy.set_params(quantile=0.5, **{k: v for k, v in params.items() if k != "quantile"}) is copy
    assert copy.fit(images(20)).threshold_ == pytest.approx(
        torch.tensor(detector.training_scores_).quantile(0.5).item()
    )
    with pytest.raises(InputError, match="quantile"):
        copy.set_params(quantile=95).fit(images(20))


def survives_degenerate_data(name: str, _folder: Any) -> None:
    grey = torch.full((12, 3, SIDE, SIDE), 0.5)
    for few in (grey, images(1), images(2), grey[:, :1]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PfungstWarning)
            try:
                detector = make(name).fit(few)
            except PfungstError:
                continue
        assert torch.isfinite(detector.anomaly_score(few)).all()
        assert torch.isfinite(detector.explain(few[:1]).values).all()
    detector = make(name).fit(images(20))
    bad = images(20)
    bad[7, 1, 3, 3] = float("nan")
    for call in (make(name).fit, detector.anomaly_score, detector.explain, detector.predict):
        with pytest.raises(InputError, match=r"NaN.*index 7"):
            call(bad)
    with pytest.raises(InputError, match="shape"):
        detector.anomaly_score(torch.rand(2, 3, SIDE, SIDE + 1))
    with pytest.raises(InputError, match="empty"):
        detector.anomaly_score(images(20)[:0])


def does_not_mind_the_batch(name: str, _folder: Any) -> None:
    detector = make(name).fit(images(20))
    x = images(7, 1)
    scores, found = detector.anomaly_score(x), detector.explain(x)
    for i in range(7):
        torch.testing.assert_close(
            detector.anomaly_score(x[i : i + 1]), scores[i : i + 1], rtol=1e-5, atol=1e-6
        )
        alone = detector.explain(x[i : i + 1]).values
        torch.testing.assert_close(alone, found.values[i : i + 1], rtol=1e-4, atol=1e-5)
    for size in (1, 3):
        if "batch_size" in detector.get_params(deep=False):
            detector.set_params(batch_size=size)
            torch.testing.assert_close(detector.anomaly_score(x), scores, rtol=1e-5, atol=1e-6)


def takes_a_device(name: str, _folder: Any) -> None:
    wanted = make(name).fit(images(20)).anomaly_score(images(3, 1))
    inner = [k for k in make(name).get_params() if k == "device" or k.endswith("__device")]
    for key in inner:
        on_cpu = clone(make(name)).set_params(**{key: "cpu"}).fit(images(20))
        exact = not torch.cuda.is_available() and name != "autoencoder"
        torch.testing.assert_close(
            on_cpu.anomaly_score(images(3, 1)),
            wanted,
            **({"rtol": 0, "atol": 0} if exact else {"rtol": 0.1, "atol": 1}),
        )
        with pytest.raises(ConfigError, match="device"):
            clone(make(name)).set_params(**{key: "abacus"}).fit(images(20))


CHECKS = (
    fits_and_scores,
    conserves_in_every_basis,
    saves_and_loads,
    is_cloned_and_configured,
    survives_degenerate_data,
    does_not_mind_the_batch,
    takes_a_device,
)
