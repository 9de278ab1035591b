"""Detectors of anybody: the scores of their library, an explanation where there is one, named errors where they break."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, OneClassSVM
from torch import nn

from pfungst.anomaly import Bag, OwnDetector, detector_from_spec, wrap
from pfungst.anomaly.own import check_scoring
from pfungst.errors import ConfigError, InputError
from pfungst.mitigate import GaussianBlur
from pfungst.relevance import DCTBands, Pixels

X = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FLAT = X.flatten(1).numpy()


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 192))

    def forward(self, x):
        return self.net(x).view(x.shape)


InferenceBatch = namedtuple("InferenceBatch", "pred_score pred_label anomaly_map pred_mask")


class Exported(nn.Module):
    """What anomalib exports: a module that gives an InferenceBatch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images):
        maps = self.features(images).relu().sum(1, keepdim=True)
        return InferenceBatch(maps.flatten(1).amax(1, keepdim=True), None, maps, None)


class Mean:
    """Somebody's own: distance to the mean image."""

    def fit(self, X):
        self.mean = X.mean(0)

    def score(self, X):
        return ((X - self.mean) ** 2).sum(1)


def fitted(estimator, **options):
    return OwnDetector(estimator, device="cpu", **options).fit(X)


@pytest.mark.parametrize(
    ("estimator", "score"),
    [
        (IsolationForest(n_estimators=10), lambda e: -e.decision_function(FLAT)),
        (LocalOutlierFactor(novelty=True), lambda e: -e.decision_function(FLAT)),
        (make_pipeline(StandardScaler(), OneClassSVM()), lambda e: -e.decision_function(FLAT)),
        (make_pipeline(StandardScaler(), KernelDensity()), lambda e: -e.score_samples(FLAT)),
        (Mean(), lambda e: ((FLAT - e.mean) ** 2).sum(1)),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_scores_are_those_of_the_library(estimator, score):
    found = fitted(estimator, seed=3)
    np.testing.assert_allclose(found.anomaly_score(X), score(found.estimator_), rtol=1e-6)
    assert np.isfinite(found.threshold_)
    assert not found.explains
    with pytest.raises(InputError, match="is not explained: there is no explanation of"):
        found.explain(X[:2])
    again = fitted(estimator, seed=3)
    np.testing.assert_array_equal(again.anomaly_score(X), found.anomaly_score(X))


def test_pyod():
    ecod = pytest.importorskip("pyod.models.ecod").ECOD
    found = fitted(ecod())
    np.testing.assert_allclose(found.anomaly_score(X), found.estimator_.decision_function(FLAT), rtol=1e-6)
    own = ecod().fit(FLAT)
    assert wrap(own).threshold_ == own.threshold_


@pytest.mark.parametrize("features", [None, GaussianBlur(3, 1.0)])
@pytest.mark.parametrize("basis", [Pixels(), DCTBands(count=4)])
@pytest.mark.parametrize(
    "estimator", [Autoencoder(), Exported(), KernelDensity(bandwidth=2.0)], ids=lambda e: type(e).__name__
)
def test_explanations_sum_to_the_score(estimator, basis, features):
    found = fitted(estimator, features=features)
    assert found.explains, found.why_not
    r = found.explain(X[:5], basis)
    torch.testing.assert_close(r.score.float(), found.anomaly_score(X[:5]).float())
    torch.testing.assert_close((r.sum() + r.bias).float(), r.score.float())


def test_a_reconstruction_is_explained_by_its_error():
    model = Autoencoder()
    found = fitted(model)
    with torch.no_grad():
        error = (X - model(X)).square()
    torch.testing.assert_close(found.anomaly_score(X), error.flatten(1).sum(1))
    torch.testing.assert_close(found.explain(X, Pixels()).values, error.sum(1))
    r = found.explain(X, DCTBands(count=4))
    torch.testing.assert_close(r.values.sum(1), error.flatten(1).sum(1))


def test_an_exported_module_of_anomalib_gives_its_score():
    model = Exported().eval()
    with torch.no_grad():
        torch.testing.assert_close(fitted(model).anomaly_score(X), model(X).pred_score[:, 0])


def test_a_module_that_nothing_explains_is_used_all_the_same():
    class Sorted(nn.Module):
        def forward(self, x):
            return torch.from_numpy(np.sort(x.detach().numpy().reshape(len(x), -1))[:, -1].copy())

    found = fitted(Sorted())
    torch.testing.assert_close(found.anomaly_score(X), X.flatten(1).amax(1))
    assert not found.explains
    assert found.why_not


def test_a_module_with_fit_is_trained():
    class Trained(Autoencoder):
        def fit(self, images):
            self.seen = len(images)

    assert fitted(Trained()).estimator_.seen == 32
    with pytest.raises(InputError, match="has no method fit"):
        check_scoring(object())


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (LocalOutlierFactor(), "no score for new samples(.|\n)*novelty=True"),
        (StandardScaler(), "no score for new samples"),
        (SVC(), "no score for new samples"),
    ],
)
def test_what_has_no_score_is_refused_before_it_is_fitted(estimator, message):
    with pytest.raises(InputError, match=message):
        check_scoring(estimator)


def test_scores_of_another_shape_are_named():
    class Odd(Mean):
        def score(self, X):
            return X[:, :2]

    with pytest.raises(InputError, match=r"Odd.score gave float32 of shape \(8, 2\) for 8 samples"):
        fitted(Odd())

    class Raises(Mean):
        def fit(self, X):
            raise KeyError("column")

    with pytest.raises(InputError, match=r"Raises.fit raised KeyError: 'column'"):
        fitted(Raises())


def test_bags_of_anything():
    bag = Bag([OwnDetector(IsolationForest(n_estimators=5)), OwnDetector(Autoencoder(), device="cpu")]).fit(X)
    assert bag.anomaly_score(X).shape == (40,)
    assert not bag.explains


def test_wrapped_fitted_ones_are_not_fitted_again():
    forest = IsolationForest(n_estimators=10, random_state=0).fit(FLAT)
    np.testing.assert_allclose(wrap(forest).anomaly_score(FLAT), -forest.decision_function(FLAT))
    assert wrap(forest).threshold_ == 0
    with pytest.raises(InputError, match="not fitted"):
        wrap(IsolationForest())
    model = Autoencoder()
    torch.testing.assert_close(wrap(model).explain(X).values, (X - model(X)).square().sum(1).detach())


FILE = """
from sklearn.ensemble import IsolationForest
from pfungst.anomaly import KDE

def forest(trees: int = 10): return IsolationForest(n_estimators=trees)
def ours(): return KDE()
def raises(): raise ValueError("no weights")
def needs(path): return IsolationForest()
def cuda():
    raise RuntimeError("Found no NVIDIA driver on your system")
thing = IsolationForest(n_estimators=7)
nothing = 5
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_function_in_a_file_names_a_detector(file):
    assert detector_from_spec(f"{file}:forest", seed=2).fit(X).estimator_.random_state == 2
    assert detector_from_spec(f"{file}:forest:trees=3").estimator.n_estimators == 3
    assert detector_from_spec(f"{file}:thing").estimator.n_estimators == 7
    assert type(detector_from_spec(f"{file}:ours", device="cpu")).__name__ == "KDE"
    assert isinstance(detector_from_spec("sklearn.ensemble:IsolationForest").estimator, IsolationForest)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised ValueError: no weights"),
        ("needs", r"cannot be called: missing a required argument: 'path'\n.*needs:name=value"),
        ("cuda", r"raised RuntimeError: Found no NVIDIA driver(.|\n)*--device moves it"),
        ("forrest", r"there is no 'forrest' in .*\n.*forest"),
        ("forest:leaves=3", "unknown parameter 'leaves'"),
        ("nothing", "has no method fit"),
    ],
)
def test_functions_that_break_are_named(file, name, message):
    with pytest.raises((ConfigError, InputError), match=message):
        detector_from_spec(f"{file}:{name}")


def test_a_file_that_cannot_be_run_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_like_that\n")
    with pytest.raises(ConfigError, match=r"broken\.py cannot be run: ModuleNotFoundError"):
        detector_from_spec(f"{tmp_path / 'broken.py'}:x")
    with pytest.raises(ConfigError, match="no module"):
        detector_from_spec("no.such:thing")
