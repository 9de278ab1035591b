import numpy as np
import pytest

from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.result import Metric
from pfungst.audit.workspace import Workspace, slug
from pfungst.errors import ConfigError, DataError

PART = Metric(value=0.5, where="ring", meaning="m")


def test_parts_survive_until_the_end_and_belong_to_one_configuration(tmp_path):
    config = AnomalyConfig.build(data="x", out=tmp_path / "o")
    Workspace(config).save_part("ring d2", PART)
    again = Workspace(AnomalyConfig.build(data="x", out=tmp_path / "o", resume=True))
    assert again.load_part("ring d2", Metric) == PART
    assert again.resumed == 1
    other = Workspace(AnomalyConfig.build(data="x", size=64, out=tmp_path / "o", resume=True))
    assert other.load_part("ring d2", Metric) is None
    again.finish(set())
    assert not list((tmp_path / "o").rglob("*.json"))


def test_without_resume_old_parts_are_not_used(tmp_path):
    config = AnomalyConfig.build(data="x", out=tmp_path / "o")
    Workspace(config).save_part("ring", PART)
    assert Workspace(config).load_part("ring", Metric) is None


def test_a_damaged_part_is_computed_again(tmp_path):
    config = AnomalyConfig.build(data="x", out=tmp_path / "o", resume=True)
    space = Workspace(config)
    space.save_part("ring", PART)
    next((tmp_path / "o").rglob("ring.json")).write_text("{")
    assert space.load_part("ring", Metric) is None


def test_a_result_is_not_replaced_unasked(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a result"):
        Workspace(AnomalyConfig.build(data="x", out=tmp_path))
    Workspace(AnomalyConfig.build(data="x", out=tmp_path, overwrite=True))


def test_an_unwritable_output_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        Workspace(AnomalyConfig.build(data="x", out=tmp_path / "file" / "o"))


def test_arrays_come_back_and_old_ones_go(tmp_path):
    space = Workspace(AnomalyConfig.build(data="x", out=tmp_path))
    old = space.save_arrays("old", {"a": np.zeros(2)})
    name = space.save_arrays("ring d2/neighbors:p=1", {"a": np.arange(3)})
    np.testing.assert_array_equal(np.load(tmp_path / name)["a"], np.arange(3))
    space.finish({name})
    assert not (tmp_path / old).exists()


def test_slugs_keep_different_names_apart():
    assert slug("ring") == "ring"
    names = ["a/b", "a:b", "../a", "", "<script>", "ä"]
    assert len({slug(n) for n in names}) == len(names)
    assert all("/" not in slug(n) and not slug(n).startswith(".") for n in names)
