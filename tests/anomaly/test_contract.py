"""The contract of detectors, on every one that is registered, and on one of a stranger."""

import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import pfungst.anomaly
import pfungst.cli.audit
from detector_contract import CHECKS, images, make, net
from pfungst import anomaly
from pfungst.anomaly import KDE, Bag, D2Neighbors, Detector, PatchCore, Tiled, detector_from_spec, register
from pfungst.anomaly.spec import detector_table
from pfungst.errors import CheckpointError, ConfigError, InputError
from pfungst.mitigate import GaussianBlur
from pfungst.registry import DETECTORS
from pfungst.relevance import DCTBands

MAHALANOBIS = Path(__file__).parent / "mahalanobis.py"
DOCS = Path(__file__).parents[2] / "docs" / "anomaly.md"


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", DETECTORS.names())
@pytest.mark.filterwarnings("ignore::pfungst.errors.PfungstWarning")
def test_contract(name, check, tmp_path):
    check(name, tmp_path)


def help_text() -> str:
    """The help of a command line that is started now."""
    modules = [sys.modules[f"pfungst.{name}"] for name in ("audit.anomaly.config", "cli.audit")]
    before = [dict(vars(module)) for module in modules]
    try:
        cli = [importlib.reload(module) for module in modules][-1]
        result = CliRunner().invoke(cli.audit, ["anomaly", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    finally:
        for module, kept in zip(modules, before, strict=True):
            vars(module).update(kept)
    assert result.exit_code == 0
    return result.output


class TestStranger:
    """One file of at most 80 lines, and nothing else, makes a detector of a stranger."""

    @pytest.fixture
    def dropped(self, tmp_path, monkeypatch):
        """The file, put beside those of the package."""
        shutil.copy(MAHALANOBIS, tmp_path / "mahalanobis.py")
        monkeypatch.setattr(
            pfungst.anomaly.__spec__, "submodule_search_locations", [*pfungst.anomaly.__path__, str(tmp_path)]
        )
        monkeypatch.setattr(pfungst.anomaly, "__path__", [*pfungst.anomaly.__path__, str(tmp_path)])
        yield
        DETECTORS.remove("mahalanobis")
        sys.modules.pop("pfungst.anomaly.mahalanobis", None)
        vars(pfungst.anomaly).pop("mahalanobis", None)

    def test_is_short(self):
        assert len(MAHALANOBIS.read_text().splitlines()) <= 80

    @pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
    @pytest.mark.filterwarnings("ignore::pfungst.errors.PfungstWarning")
    def test_contract(self, dropped, check, tmp_path):
        check("mahalanobis", tmp_path)

    def test_is_found_everywhere_and_gone_when_removed(self, dropped, tmp_path, monkeypatch):
        assert "mahalanobis" in help_text()
        assert "| `mahalanobis` | Squared distance to the mean" in detector_table()
        model = detector_from_spec("mahalanobis:ridge=0.01,quantile=0.9").fit(images(20))
        assert (model.ridge, model.quantile) == (0.01, 0.9)
        bag = detector_from_spec("bag:kde+mahalanobis:ridge=0.1").fit(images(20))
        bag.save(tmp_path / "bag")
        again = Detector.load(tmp_path / "bag")
        assert torch.equal(again.anomaly_score(images(3, 1)), bag.anomaly_score(images(3, 1)))
        with pytest.raises(ConfigError, match=r"'ridgge'[\s\S]*'ridge'"):
            detector_from_spec("mahalanobis:ridgge=1")
        monkeypatch.undo()
        DETECTORS.remove("mahalanobis")
        assert "mahalanobis" not in help_text()
        with pytest.raises(ConfigError, match="unknown detector 'mahalanobis'"):
            detector_from_spec("mahalanobis")
        with pytest.raises(CheckpointError, match=r"mahalanobis[\s\S]*registers it"):
            Detector.load(tmp_path / "bag")

    def test_is_the_formula(self, dropped):
        x, y = images(20).double(), images(4, 1).double()
        model = detector_from_spec("mahalanobis").fit(x)
        want = ((y - x.mean(0)).square() / x.var(0)).flatten(1).sum(1)
        torch.testing.assert_close(model.anomaly_score(y), want)
        rest = x[torch.arange(20) != 3]
        own = ((x[3] - rest.mean(0)).square() / rest.var(0)).sum()
        assert model.training_scores_[3] == pytest.approx(own.item())
        assert model.explain(y).bias.abs().max() < 1e-9 * want.max()

    def test_a_specification_can_name_the_file(self, tmp_path):
        file = shutil.copy(MAHALANOBIS, tmp_path / "mine.py")
        try:
            model = detector_from_spec(f"{file}:mahalanobis:ridge=0.5").fit(images(20))
            assert detector_from_spec(f"{file}:mahalanobis").ridge == 0.0
            model.save(tmp_path / "m")
            again = Detector.load(tmp_path / "m")
            assert torch.equal(again.anomaly_score(images(2, 1)), model.anomaly_score(images(2, 1)))
        finally:
            DETECTORS.remove("mahalanobis")
        with pytest.raises(ConfigError, match="there is no file"):
            detector_from_spec("nowhere.py:mahalanobis")


class TestRegister:
    def test_a_class_without_the_contract_is_refused(self):
        with pytest.raises(ConfigError, match="Half lacks _explain, _state, _restore"):

            @register("half")
            class Half(Detector):
                def _fit(self, x):
                    return x

                def _score(self, x):
                    return x

        assert "half" not in DETECTORS.names()

    @pytest.mark.parametrize("name", ["kde", "two words", "a:b"])
    def test_names_that_cannot_be_had(self, name):
        with pytest.raises(ConfigError, match="name"):
            register(name)(type("Other", (KDE,), {}))

    def test_a_subclass_is_not_saved_as_its_base(self, tmp_path):
        class Louder(KDE):
            def _score(self, x):
                return 2 * super()._score(x)

        with pytest.raises(InputError, match=r"Louder has no name[\s\S]*@register"):
            Louder().fit(images(5)).save(tmp_path / "m")
        assert not list(tmp_path.iterdir())

    def test_every_module_is_where_its_decorator_says(self):
        for name in DETECTORS.names():
            cls = DETECTORS.get(name)
            assert DETECTORS.name_of(cls) == name
            assert list(inspect.signature(cls).parameters)
            above = rf'@register\("{name}"\)\n(@dataclass.*\n)?class {cls.__name__}\b'
            assert re.search(above, Path(inspect.getfile(cls)).read_text())


def test_the_table_in_the_docs_is_the_registry():
    rows = set(re.findall(r"^\| `[\w-]+` \|.*\|$", DOCS.read_text(), re.MULTILINE))
    shipped = [n for n in DETECTORS.names() if DETECTORS.get(n).__name__ in anomaly.__all__]
    assert rows <= set(detector_table().splitlines()), f"write:\n{detector_table(shipped)}"
    assert rows >= set(detector_table(shipped).splitlines()[2:]), f"write:\n{detector_table(shipped)}"


def test_command_line_help_names_every_detector():
    text = help_text()
    assert [name for name in DETECTORS.names() if name not in text] == []


class TestNested:
    def test_tiled_is_saved_and_loaded(self, tmp_path):
        """`Tiled(...).save()` ended in AttributeError: 'Tiled' object has no attribute 'features'."""
        blur = GaussianBlur(3, 0.8)
        model = Tiled(KDE(features=blur, device="cpu"), tile=8, overlap=2).fit(images(6))
        model.save(tmp_path / "m")
        again = Tiled.load(tmp_path / "m")
        x = images(3, 1)
        assert torch.equal(again.anomaly_score(x), model.anomaly_score(x))
        assert torch.equal(again.explain(x).values, model.explain(x).values)
        assert torch.equal(again.anomaly_map(x), model.anomaly_map(x))
        assert again.detector.features.to_dict() == blur.to_dict()

    def test_detectors_of_detectors_keep_their_modules_apart(self, tmp_path):
        small = {"layers": "1+3", "dim": 12, "layer_dim": 8, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        torch.manual_seed(5)
        front = nn.Conv2d(3, 3, 1)
        inner = Tiled(PatchCore(net(), **small, device="cpu"), tile=8, overlap=2)
        bag = Bag([("a", KDE(features=front)), ("a/b", inner), KDE("student"), D2Neighbors(p=4)]).fit(
            images(12)
        )
        bag.save(tmp_path / "m")
        with pytest.raises(CheckpointError, match=r"Conv2d[\s\S]*load\(path, detectors__a__features="):
            Detector.load(tmp_path / "m")
        modules = {"detectors__a__features": nn.Conv2d(3, 3, 1), "detectors__a/b__detector__backbone": net()}
        again = Bag.load(tmp_path / "m", **modules)
        assert list(again.members_) == ["a", "a/b", "KDE", "D2Neighbors"]
        x = images(3, 1)
        assert torch.equal(again.anomaly_score(x), bag.anomaly_score(x))
        assert torch.equal(again.explain(x).values, bag.explain(x).values)
        with pytest.raises(CheckpointError, match="saved without features"):
            Bag.load(tmp_path / "m", features=net(), **modules)

    def test_specifications(self):
        tiled = detector_from_spec("tiled:tile=32,overlap=4:patchcore:coreset=0.2,dim=8", seed=3)
        assert (tiled.tile, tiled.overlap, tiled.seed) == (32, 4, 3)
        assert (tiled.detector.coreset, tiled.detector.dim, tiled.detector.seed) == (0.2, 8, 3)
        bag = detector_from_spec("bag:validation=0.5:one-class:backbone=letters+kde")
        assert bag.validation == 0.5
        assert [(n, type(d).__name__) for n, d in bag.detectors] == [
            ("one-class:backbone=letters", "DeepOneClass"), ("kde", "KDE")
        ]  # fmt: skip
        for wrong in ("tiled", "tiled:", "tiled:kde+kde", "tiled:size=3:kde", "bag:detectors=3:kde", "bag"):
            with pytest.raises(ConfigError):
                detector_from_spec(wrong)

    def test_bands_are_refused_before_anything_is_fitted(self):
        for spec in ("tiled:kde", "bag:kde+tiled:kde"):
            with pytest.raises(InputError, match="not defined for tiles"):
                detector_from_spec(spec).check_basis(DCTBands.paper())


class TestFiles:
    def test_an_older_format_says_what_to_do(self, tmp_path):
        KDE().fit(images(5)).save(tmp_path / "m")
        header = tmp_path / "m" / "detector.json"
        header.write_text(header.read_text().replace("pfungst.detector/2", "pfungst.detector/1"))
        with pytest.raises(CheckpointError, match=r"detector/1[\s\S]*fit the detector again"):
            KDE.load(tmp_path / "m")

    def test_paths_are_written_as_text_and_objects_refused_by_name(self, tmp_path):
        from pfungst.relevance import composite

        model = make("autoencoder", checkpoint_dir=tmp_path / "c").fit(images(12))
        model.save(tmp_path / "m")
        assert Detector.load(tmp_path / "m").checkpoint_dir == str(tmp_path / "c")
        odd = make("patchcore", composite=composite("epsilon_plus")).fit(images(4))
        with pytest.raises(InputError, match=r"composite = .*cannot be written[\s\S]*by name"):
            odd.save(tmp_path / "n")

    @pytest.mark.parametrize("name", ["patchcore", "one-class", "autoencoder"])
    def test_weights_of_features_of_ones_own_are_kept(self, name, tmp_path):
        """They were left out for detectors on networks: a fresh module in front gave other scores in silence."""
        torch.manual_seed(1)
        model = make(name, features=nn.Conv2d(3, 3, 1)).fit(images(12))
        model.save(tmp_path / "m")
        modules = {} if name == "autoencoder" else {"backbone": net()}
        again = Detector.load(tmp_path / "m", features=nn.Conv2d(3, 3, 1), **modules)
        assert torch.equal(again.anomaly_score(images(3, 1)), model.anomaly_score(images(3, 1)))

    def test_another_layer_of_ours_is_not_taken_for_the_saved_one(self, tmp_path):
        KDE(features=GaussianBlur(5, 1.0)).fit(images(5)).save(tmp_path / "m")
        with pytest.raises(CheckpointError, match="do not fit"):
            KDE.load(tmp_path / "m", features=GaussianBlur(9, 3.0))
