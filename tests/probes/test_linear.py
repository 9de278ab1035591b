import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression as Oracle
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from pfungst.errors import InputError, PfungstWarning
from pfungst.probes import LinearSVM, LogisticRegression

X, labels = load_digits(return_X_y=True)
X = (X[:600] / 16 - 0.3).astype(np.float32)
labels = labels[:600]


def expected_failures(estimator):
    # libsvm's weighted fit and a repeated fit agree only up to the solver's tolerance
    if isinstance(estimator, LinearSVM):
        return {"check_sample_weight_equivalence_on_dense_data": "solver tolerance"}
    # the check's second class cannot be told from the first without an offset
    return {"check_class_weight_classifiers": "the paper's regression has no offset"}


@parametrize_with_checks([LinearSVM(C=1.0), LogisticRegression()], expected_failed_checks=expected_failures)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_logistic_regression_is_the_papers():
    probe = LogisticRegression().fit(X, labels)
    oracle = Oracle(fit_intercept=False, class_weight="balanced", max_iter=1000).fit(X, labels)
    np.testing.assert_allclose(probe.predict_proba(X), oracle.predict_proba(X), atol=1e-6)
    assert (probe.predict(X) == oracle.predict(X)).all()
    assert not probe.intercept_.any()
    two = labels < 2
    np.testing.assert_allclose(
        LogisticRegression().fit(X[two], labels[two]).predict_proba(X[two]),
        Oracle(fit_intercept=False, class_weight="balanced", max_iter=1000)
        .fit(X[two], labels[two])
        .predict_proba(X[two]),
        atol=1e-6,
    )


def test_svm_is_the_papers():
    y = np.where(labels < 3, "covid", "other")
    probe = LinearSVM().fit(X, y)
    oracle = SVC(kernel="linear", C=0.01, class_weight="balanced").fit(X, y)
    np.testing.assert_allclose(probe.decision_function(X), oracle.decision_function(X), atol=1e-5)
    assert (probe.predict(X) == oracle.predict(X)).all()
    assert LinearSVM().fit(X, labels).coef_.shape == (10, 64)


@pytest.mark.parametrize("probe", [LinearSVM(), LogisticRegression()])
@pytest.mark.parametrize("classes", [2, 5])
def test_attached_to_an_encoder_it_gives_the_same_decisions(probe, classes):
    keep = labels < classes
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU()).eval()
    images = torch.as_tensor(X[keep]).reshape(-1, 1, 8, 8)
    with torch.no_grad():
        embeddings = encoder(images)
        fitted = clone(probe).fit(embeddings, labels[keep])
        model = fitted.attach(encoder)
        logits = model(images)
    assert logits.shape == (keep.sum(), classes)
    decision = fitted.decision_function(embeddings)
    np.testing.assert_allclose(logits.numpy()[:, 1] if classes == 2 else logits.numpy(), decision, atol=1e-4)
    assert (np.array(model.classes)[logits.argmax(1).numpy()] == fitted.predict(embeddings)).all()
    assert model.index(1) == model.index("1") == 1
    with pytest.raises(InputError, match="no class 77"):
        model.index(77)


def test_nan_representations_are_named():
    bad = X.copy()
    bad[[3, 5], 0] = np.nan
    with pytest.raises(InputError, match=r"2 of 600 .* \[3, 5\]"):
        LinearSVM().fit(bad, labels)
    with pytest.raises(InputError, match="NaN"):
        LogisticRegression().fit(X, labels).predict(torch.as_tensor(bad))


def test_one_class_and_single_images():
    with pytest.raises(InputError, match="all 600 training images have one class"):
        LogisticRegression().fit(X, np.zeros(600))
    y = labels.astype(str).copy()
    y[y == "9"] = "8"
    y[0] = "lonely"
    with pytest.warns(PfungstWarning, match="one training image .lonely"):
        LogisticRegression().fit(X, y)


def test_unconverged_regression_says_so():
    with pytest.warns(PfungstWarning, match="2 iterations"):
        LogisticRegression(max_iter=2).fit(X, labels)
