"""Autoencoder, deep one-class, bag, tiles and specifications."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from torch import nn

from pfungst.anomaly import (
    KDE,
    Autoencoder,
    Bag,
    D2Neighbors,
    DeepOneClass,
    Detector,
    LettersCNN,
    PatchCore,
    Tiled,
    detector_from_spec,
    rendered_letters,
    train_letters,
)
from pfungst.anomaly.one_class import Whitening
from pfungst.errors import CheckpointError, ConfigError, InputError, PfungstWarning
from pfungst.mitigate import GaussianBlur
from pfungst.relevance import DCTBands, Patches, PixelBands, Pixels


def stripes(count, size=28, seed=0, channels=3):
    """Images of one random stripe, which an autoencoder learns quickly."""
    random = np.random.default_rng(seed)
    out = np.zeros((count, channels, size, size), dtype=np.float32)
    for image in out:
        at = int(random.integers(4, size - 8))
        image[:, :, at : at + 4] = random.uniform(0.5, 1)
    return torch.from_numpy(out)


def rough(count, size=28, seed=1):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def autoencoder():
    return Autoencoder(epochs=8, batch_size=16, device="cpu").fit(stripes(120))


class TestAutoencoder:
    def test_learns(self, autoencoder):
        history = autoencoder.history_
        assert min(history.validation) < 0.5 * history.validation[0]
        assert autoencoder.anomaly_score(rough(5)).min() > autoencoder.threshold_
        assert len(autoencoder.training_scores_) == 12
        assert autoencoder.training_scores_.mean() == pytest.approx(min(history.validation), rel=1e-3)

    @pytest.mark.parametrize("basis", [Pixels(), Patches(7), DCTBands(count=6), PixelBands(count=3)])
    def test_conserves_without_bias(self, autoencoder, basis):
        r = autoencoder.explain(rough(3), basis)
        torch.testing.assert_close(r.score, autoencoder.anomaly_score(rough(3)))
        assert r.conservation_error().max() < 1e-5
        assert r.bias_share < 1e-5

    def test_relevance_is_the_squared_residual(self, autoencoder):
        x = rough(2)
        want = (x - autoencoder.reconstruct(x)).square().sum(1)
        torch.testing.assert_close(autoencoder.explain(x).values, want)

    def test_the_gaussian_likelihood_weighs_every_value_by_its_variance(self, autoencoder, tmp_path):
        """By numpy, from the residuals of the training images; and against scipy's log-probabilities."""
        model = Autoencoder(epochs=8, batch_size=16, device="cpu", likelihood="gaussian").fit(stripes(120))
        held_out, x = len(model.training_scores_), rough(3)
        training, _ = model._split(120)
        assert len(training) == 120 - held_out
        before = stripes(120)[training]
        residual = (before - model.reconstruct(before)).double().numpy()
        variance = 0.9 * (residual**2).mean(0) + 0.1 * (residual**2).mean()
        found = (x - model.reconstruct(x)).double().numpy()
        scores = model.anomaly_score(x).numpy()
        np.testing.assert_allclose(scores, (found**2 / variance / 2).sum((1, 2, 3)), rtol=1e-4)
        log_p = norm(0, np.sqrt(variance)).logpdf(found).sum((1, 2, 3))
        np.testing.assert_allclose(np.diff(scores), -np.diff(log_p), rtol=1e-3, atol=1e-3)
        for basis in (Pixels(), DCTBands(count=6)):
            r = model.explain(x, basis)
            torch.testing.assert_close(r.values.flatten(1).sum(1), r.score, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(
            model.explain(x).values.numpy(), (found**2 / variance / 2).sum(1), rtol=1e-3
        )
        model.save(tmp_path / "m")
        assert torch.equal(Detector.load(tmp_path / "m").anomaly_score(x), model.anomaly_score(x))
        with pytest.raises(InputError, match="unknown likelihood 'poisson'"):
            Autoencoder(likelihood="poisson", device="cpu").fit(stripes(20))

    def test_saved_and_loaded(self, autoencoder, tmp_path):
        autoencoder.save(tmp_path / "m")
        again = Detector.load(tmp_path / "m")
        assert isinstance(again, Autoencoder)
        assert torch.equal(again.anomaly_score(rough(3)), autoencoder.anomaly_score(rough(3)))
        assert again.history_ == autoencoder.history_
        with pytest.raises(CheckpointError, match="not a KDE"):
            KDE.load(tmp_path / "m")

    def test_blocks_for_photographs_of_any_size(self):
        model = Autoencoder(epochs=1, code=8, device="cpu", features=GaussianBlur(5, 1.0)).fit(rough(6, 44))
        x = rough(2, 44, seed=3)
        assert model.reconstruct(x).shape == x.shape
        assert model.explain(x).conservation_error().max() < 1e-5

    def test_interrupted_training_resumes_to_the_same_result(self, tmp_path):
        options = {"batch_size": 16, "device": "cpu", "patience": 10}
        whole = Autoencoder(epochs=4, **options).fit(stripes(40))
        Autoencoder(epochs=2, checkpoint_dir=tmp_path, **options).fit(stripes(40))
        resumed = Autoencoder(epochs=4, checkpoint_dir=tmp_path, **options).fit(stripes(40))
        assert resumed.history_.validation == whole.history_.validation
        assert torch.equal(resumed.anomaly_score(rough(2)), whole.anomaly_score(rough(2)))
        with pytest.raises(InputError, match="another training"):
            Autoencoder(epochs=4, checkpoint_dir=tmp_path, learning_rate=0.1, **options).fit(stripes(40))

    def test_stops_early(self):
        model = Autoencoder(epochs=50, patience=2, learning_rate=1e-12, device="cpu").fit(rough(20))
        assert len(model.history_.validation) == 3
        assert "no improvement" in model.history_.stopped

    def test_divergence_stops_with_advice(self):
        with pytest.raises(InputError, match=r"diverged(.|\n)*lower learning_rate"):
            Autoencoder(epochs=30, learning_rate=1e4, batch_size=4, device="cpu").fit(stripes(30))

    def test_late_divergence_keeps_the_best_weights(self, monkeypatch):
        from pfungst.anomaly import training

        errors = iter([5.0, 1.0, float("nan")])
        monkeypatch.setattr(training, "_error", lambda *a: next(errors))
        with pytest.warns(PfungstWarning, match="epoch 1 are kept"):
            model = Autoencoder(epochs=9, device="cpu").fit(stripes(12))
        assert model.history_.best_epoch == 1

    @pytest.mark.parametrize(
        ("options", "x"),
        [
            ({"architecture": "transformer"}, stripes(4)),
            ({"validation": 0.0}, stripes(4)),
            ({"quantile": -1.0}, stripes(4)),
            ({}, torch.rand(5, 7)),
        ],
    )
    def test_bad_input(self, options, x):
        with pytest.raises(InputError):
            Autoencoder(epochs=1, device="cpu", **options).fit(x)


class Net(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, bias=bias), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, bias=bias), nn.ReLU(),
            nn.Flatten(), nn.Linear(8 * 36, 10, bias=bias),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


PLAIN = {"mean": 0.0, "std": 1.0, "device": "cpu"}


class TestDeepOneClass:
    @pytest.fixture(scope="class")
    def one_class(self):
        return DeepOneClass(Net(), **PLAIN).fit(rough(60, seed=0))

    def test_score_is_the_regularised_mahalanobis_distance(self, one_class):
        x = rough(4, seed=8)
        with torch.no_grad():
            phi = Net()(x).double()
        order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            train = Net()(rough(60, seed=0)[order[12:]]).double()
        covariance = torch.cov(train.T) + one_class.ridge_ * torch.eye(10)
        c = phi - train.mean(0)
        want = (c @ torch.linalg.inv(covariance) * c).sum(1)
        torch.testing.assert_close(one_class.anomaly_score(x).double(), want, rtol=1e-4, atol=1e-4)
        assert one_class.ridge_chosen_by_ == "likelihood"

    @pytest.mark.parametrize("basis", [Pixels(), DCTBands(count=4), PixelBands(count=3)])
    def test_conserves(self, one_class, basis):
        r = one_class.explain(rough(3, seed=5), basis)
        torch.testing.assert_close(r.score, one_class.anomaly_score(rough(3, seed=5)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(r.sum() + r.bias, r.score, rtol=1e-4, atol=1e-4)
        assert r.bias_share < 0.01  # no biases anywhere, no feature is off behind the last linear layer

    def test_low_rank_whitening_is_the_full_one(self):
        phi = torch.randn(8, 20, generator=torch.Generator().manual_seed(0)).double()
        white = Whitening.fit(phi).with_ridge(0.3)
        full = torch.cov(phi.T) + 0.3 * torch.eye(20)
        c = torch.randn(5, 20, generator=torch.Generator().manual_seed(1)).double()
        torch.testing.assert_close(white.precision(c), c @ torch.linalg.inv(full))
        torch.testing.assert_close(white.squared_norm(c), (white.precision(c) * c).sum(1))
        assert white.log_determinant() == pytest.approx(float(torch.logdet(full)))

    def test_a_few_outliers_choose_the_ridge_by_auroc(self):
        normal, outliers = rough(50, seed=0), stripes(6)
        y = np.r_[np.zeros(50), np.ones(6)]
        model = DeepOneClass(Net(), **PLAIN).fit(torch.cat([normal, outliers]), y)
        assert model.ridge_chosen_by_ == "auroc"
        test = torch.cat([rough(20, seed=4), stripes(20, seed=5)])
        assert roc_auc_score([0] * 20 + [1] * 20, model.anomaly_score(test)) > 0.9
        again = DeepOneClass(Net(), **PLAIN).fit(normal)
        torch.testing.assert_close(model.whitening_.mean, again.whitening_.mean)  # outliers train nothing

    def test_constant_features_in_whitening(self):
        class Constant(Net):
            def forward(self, x):
                out = super().forward(x).clone()
                out[:, 3:] = 2.0
                return out

        model = DeepOneClass(Constant(), **PLAIN).fit(rough(30))
        assert torch.isfinite(model.anomaly_score(rough(3, seed=2))).all()

        class Dead(nn.Module):
            def forward(self, x):
                return torch.ones(len(x), 5) * 1.7

        with pytest.raises(InputError, match="constant"):
            DeepOneClass(Dead(), **PLAIN).fit(rough(30))

    def test_saved_and_loaded(self, one_class, tmp_path):
        one_class.save(tmp_path / "m")
        again = DeepOneClass.load(tmp_path / "m", backbone=Net())
        assert torch.equal(again.anomaly_score(rough(3)), one_class.anomaly_score(rough(3)))

    @pytest.mark.parametrize(
        ("options", "x", "y", "message"),
        [
            ({"regularisation": "guess"}, rough(5), None, "guess"),
            ({"regularisation": -1.0}, rough(5), None, "not positive"),
            ({"validation": 1.5}, rough(5), None, "validation"),
            ({}, rough(2), None, "2 samples"),
            ({}, rough(5), [0, 1], "y of shape"),
            ({}, rough(3), [1, 1, 1], "all samples are outliers"),
            ({}, rough(3), [0, 2, 0], "y of shape"),
        ],
    )
    def test_bad_input(self, options, x, y, message):
        with pytest.raises(InputError, match=message):
            DeepOneClass(Net(), **(PLAIN | options)).fit(x, y)


def test_letters_recipe():
    images, labels = rendered_letters(260)
    assert images.shape == (260, 3, 28, 28)
    assert images.flatten(1).amax(1).min() > 0.2
    assert sorted(set(labels.tolist())) == list(range(26))
    network = train_letters(images, labels, epochs=1)
    assert isinstance(network, LettersCNN)
    with torch.no_grad():
        assert network(images[:2]).shape == (2, 640)
    model = DeepOneClass(network, **PLAIN).fit(stripes(40))
    r = model.explain(rough(2))
    torch.testing.assert_close(r.sum() + r.bias, r.score, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="28"):
        train_letters(images[..., :20], labels)


def test_images_too_small_for_the_backbone_are_named():
    with pytest.raises(InputError, match="28 × 28 pixels are too small"):
        DeepOneClass("alexnet").fit(torch.rand(4, 3, 28, 28))


@pytest.mark.slow
def test_letters_backbone_by_name(tmp_path):
    x = torch.rand(12, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    model = detector_from_spec("one-class:backbone=letters").fit(x)
    assert model.whitening_.mean.shape == (640,)
    model.save(tmp_path / "m")
    assert torch.equal(Detector.load(tmp_path / "m").anomaly_score(x), model.anomaly_score(x))
    grey = detector_from_spec("one-class:backbone=letters").fit(x[:, :1])  # one channel is enough
    assert torch.isfinite(grey.anomaly_score(x[:, :1])).all()


@pytest.mark.slow
def test_letters_are_learnt():
    images, labels = rendered_letters(2600)
    network = train_letters(images[:2080], labels[:2080], epochs=8)
    with torch.no_grad():
        features = network(images)
    means = torch.stack([features[:2080][labels[:2080] == k].mean(0) for k in range(26)])
    right = (torch.cdist(features[2080:], means).argmin(1) == labels[2080:]).float().mean()
    assert right > 0.4  # of 26 letters, unseen ones, by nearest class mean; 0.2 untrained


class TestBag:
    @pytest.fixture(scope="class")
    def bag(self):
        return Bag([("kde", KDE(device="cpu")), ("d2", D2Neighbors(device="cpu"))]).fit(rough(40, 12))

    def test_is_the_mean_of_standardised_scores(self, bag):
        x = rough(5, 12, seed=3)
        want = 0
        for name, member in bag.members_.items():
            want = want + (member.anomaly_score(x).double() - bag.means_[name]) / bag.stds_[name] / 2
        torch.testing.assert_close(bag.anomaly_score(x).double(), want, rtol=1e-5, atol=1e-6)
        assert bag.training_scores_.mean() == pytest.approx(0, abs=1e-6)

    def test_relevance_is_the_weighted_sum_of_its_members(self, bag):
        x = rough(3, 12, seed=4)
        r = bag.explain(x)
        want = sum(m.explain(x).values.double() / (2 * bag.stds_[n]) for n, m in bag.members_.items())
        torch.testing.assert_close(r.values, want)
        torch.testing.assert_close(r.sum() + r.bias, r.score, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(r.bias, torch.full_like(r.bias, bag.constant_), rtol=1e-4, atol=1e-4)

    def test_saved_and_loaded(self, bag, tmp_path):
        bag.save(tmp_path / "bag")
        bag.save(tmp_path / "bag")
        again = Detector.load(tmp_path / "bag")
        assert torch.equal(again.anomaly_score(rough(3, 12)), bag.anomaly_score(rough(3, 12)))
        assert again.threshold_ == bag.threshold_

    def test_members_of_one_class_keep_apart(self):
        bag = Bag([KDE(device="cpu"), KDE(kernel="student", device="cpu")]).fit(rough(12, 6))
        assert len(bag.members_) == 2
        assert len(clone(bag).detectors) == 2

    def test_bad_input(self):
        with pytest.raises(InputError, match="without detectors"):
            Bag([]).fit(rough(9, 6))
        with pytest.raises(InputError, match="no detector"):
            Bag([object()]).fit(rough(9, 6))
        with pytest.raises(InputError, match="too few"):
            Bag([KDE()]).fit(rough(3, 6))


class TestTiled:
    def test_corners_cover_the_image(self):
        for size in (5, 16, 17, 40, 41):
            covered = np.zeros((size, size), dtype=bool)
            for top, left in Tiled(tile=16, overlap=4).corners(size, size):
                assert 0 <= top <= max(0, size - 16)
                covered[top : top + 16, left : left + 16] = True
            assert covered.all()

    def test_small_defect_in_a_large_image(self):
        x = rough(6, 48) * 0.1
        model = Tiled(KDE(device="cpu"), tile=16, overlap=4, batch_size=4).fit(x)
        odd = x[:1].clone()
        odd[:, :, 34:40, 6:12] = 1
        assert model.anomaly_score(odd) > model.anomaly_score(x).max()
        best, (top, left) = model._best(odd[0])
        assert top <= 34 <= top + 16
        r = model.explain(odd)
        assert r.values.shape == (1, 48, 48)
        torch.testing.assert_close(r.sum() + r.bias, r.score, rtol=1e-4, atol=1e-5)
        outside = r.values.clone()
        outside[:, top : top + 16, left : left + 16] = 0
        assert not outside.any()
        assert model.anomaly_map(odd).shape == (1, 48, 48)
        assert model.tile_scores(odd).max() == pytest.approx(best)
        assert torch.equal(
            model.explain(odd, Patches(8)).values.sum(), model.explain(odd, Patches(8)).sum()[0]
        )

    def test_never_holds_more_than_a_batch_of_tiles(self):
        class Counting(KDE):
            largest = 0

            def anomaly_score(self, X):
                Counting.largest = max(Counting.largest, len(X))
                return super().anomaly_score(X)

        model = Tiled(Counting(device="cpu"), tile=8, overlap=0, batch_size=5).fit(rough(3, 64))
        model.anomaly_score(rough(1, 64, seed=4))
        assert Counting.largest == 5

    def test_with_patchcore(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        model = Tiled(PatchCore(net, ["1"], dim=4, layer_dim=4, device="cpu"), tile=16, overlap=4).fit(
            rough(3, 30)
        )
        maps = model.anomaly_map(rough(2, 30, seed=1))
        assert maps.shape == (2, 30, 30)
        assert torch.isfinite(maps).all()

    def test_bad_input(self):
        with pytest.raises(InputError, match="no detector"):
            Tiled().fit(rough(3))
        with pytest.raises(InputError, match="overlap"):
            Tiled(KDE(), tile=8, overlap=8).fit(rough(3))
        with pytest.raises(InputError, match="not defined for tiles"):
            Tiled(KDE(device="cpu"), tile=8, overlap=0).fit(rough(3, 16)).explain(
                rough(1, 16), DCTBands(count=3)
            )


class TestSpec:
    def test_parameters_reach_the_detector(self):
        model = detector_from_spec(
            "patchcore:backbone=resnet18,layers=layer2+layer3,coreset=0.2,dim=64,checkpoint=none", seed=4
        )
        assert (model.backbone, model.layers, model.coreset, model.dim) == (
            "resnet18",
            "layer2+layer3",
            0.2,
            64,
        )
        assert model.checkpoint is None
        assert model.seed == 4
        assert detector_from_spec("autoencoder:progress=true").progress is True
        assert detector_from_spec("kde:bandwidth=0.5", seed=1).bandwidth == 0.5
        assert detector_from_spec("one-class:regularisation=0.1").regularisation == 0.1

    def test_bag(self):
        blur = GaussianBlur()
        bag = detector_from_spec("bag:kde+d2neighbors", features=blur)
        assert [n for n, _ in bag.detectors] == ["kde", "d2neighbors"]
        assert bag.detectors[0][1].features is blur

    @pytest.mark.parametrize(
        "spec",
        [
            "nothing",
            "kde:colour=3",
            "kde:bandwidth",
            "bag:",
            "patchcore:dim=many",
            "autoencoder:progress=maybe",
        ],
    )
    def test_mistakes(self, spec):
        with pytest.raises(ConfigError):
            detector_from_spec(spec)


def test_every_detector_is_deterministic():
    x, y = rough(24, 12), rough(3, 12, seed=2)
    for make in (
        lambda: Autoencoder(epochs=2, device="cpu", seed=3),
        lambda: Bag([KDE(device="cpu"), D2Neighbors(device="cpu")], seed=3),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error", PfungstWarning)
            assert torch.equal(make().fit(x).anomaly_score(y), make().fit(x).anomaly_score(y))
