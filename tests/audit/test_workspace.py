import numpy as np
import pytest
from pydantic import BaseModel

from factories import mini_mvtec
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.anomaly.run import run
from pfungst.audit.result import Metric, load
from pfungst.audit.workspace import Workspace, data_state, slug
from pfungst.data import Item
from pfungst.data.tables import Cell
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


class Pictured(BaseModel):
    arrays: str
    images: list[str]


def test_a_part_whose_files_or_text_changed_is_computed_again(tmp_path):
    space = Workspace(AnomalyConfig.build(data="x", out=tmp_path, resume=True))
    (tmp_path / "images").mkdir()
    picture = tmp_path / "images" / "photo-1.png"
    picture.write_bytes(b"1")
    part = Pictured(arrays=space.save_arrays("a", {"a": np.arange(3)}), images=["images/photo-1.png"])
    space.save_part("a", part)
    assert space.load_part("a", Pictured) == part
    file = next(tmp_path.rglob("a.json"))
    text = file.read_text()
    file.write_text(text.replace("photo-1", "photo-2"))
    assert space.load_part("a", Pictured) is None
    file.write_text(text)
    assert space.load_part("a", Pictured) == part
    picture.write_bytes(b"2")
    assert space.load_part("a", Pictured) is None
    picture.unlink()
    assert space.load_part("a", Pictured) is None


def test_a_part_may_name_images_whose_identifiers_look_like_our_files(tmp_path):
    """Tables whose paths begin with images/, as those of the X-ray collection: the part was never saved."""
    space = Workspace(AnomalyConfig.build(data="x", out=tmp_path, resume=True))
    part = Pictured(arrays=space.save_arrays("a", {"a": np.arange(3)}), images=["images/patient-1.jpg"])
    space.save_part("a", part)
    assert space.load_part("a", Pictured) == part


def test_the_fingerprint_holds_options_version_data_and_the_files_that_options_name(tmp_path, monkeypatch):
    (tmp_path / "tag.png").write_text("1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "table.csv").write_text("path\n")

    def build(**more):
        deployed = f"logo:file={tmp_path / 'tag.png'}"
        return AnomalyConfig.build(
            data=tmp_path / "data", out=tmp_path / "o", **{"deployed": deployed} | more
        )

    known = {build().fingerprint()}
    assert build(resume=True, device="cpu").fingerprint() in known
    found = [build(size=64).fingerprint(), build().fingerprint("other data")]
    (tmp_path / "tag.png").write_text("22")
    found.append(build().fingerprint())
    (tmp_path / "data" / "table.csv").write_text("path,label\n")
    found.append(build().fingerprint())
    monkeypatch.setattr("pfungst.audit.config.__version__", "9")
    found.append(build().fingerprint())
    assert len(known | set(found)) == 6


def test_the_state_of_data_follows_their_files(tmp_path):
    for name in ("a.png", "b.parquet"):
        (tmp_path / name).write_text("1")
    items = [
        Item("a", tmp_path / "a.png", "good"),
        Item("b", Cell(None, tmp_path / "b.parquet", 0, 0, "image")),
        Item("c", b"1"),
        Item("d", lambda: b"made"),
    ]
    states = [data_state(items)]
    assert data_state(items) == states[0]
    for file in ("a.png", "b.parquet"):
        (tmp_path / file).write_text("22")
        states.append(data_state(items))
    states += [data_state([*items[:2], Item("c", b"2")]), data_state(items[:3]), data_state(items, tmp_path)]
    assert len(set(states)) == 6


def test_a_finished_result_is_resumed_for_free_and_never_replaced_unasked(tmp_path):
    data = mini_mvtec(tmp_path / "data", train=6, good=4, defective=2, size=32)
    options = {"data": data, "size": 16, "seeds": 3, "out": tmp_path / "o"}
    first = run(AnomalyConfig.build(**options))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "o").rglob("*")}
    assert run(AnomalyConfig.build(**options, resume=True)) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "o").rglob("*")} == before
    with pytest.raises(ConfigError, match="other options"):
        run(AnomalyConfig.build(**options | {"size": 24}, resume=True))
    image = next(data.rglob("*.png"))
    image.write_bytes(image.read_bytes())
    with pytest.raises(ConfigError, match="other data"):
        run(AnomalyConfig.build(**options, resume=True))
    assert load(tmp_path / "o") == first


def test_what_overwrites_a_result_takes_it_away_before_the_first_new_number(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "report.html").write_text("")
    Workspace(AnomalyConfig.build(data="x", out=tmp_path, overwrite=True))
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "report.html").exists()
