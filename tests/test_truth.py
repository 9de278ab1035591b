"""The benchmark of truth: artefacts are where they are said to be, lines count for what made them, tables count right."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

ROOT = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def truth():
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("truth")
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def planting(truth):
    return importlib.import_module("_planting")


def grey(n=3, side=32):
    return np.random.default_rng(0).integers(60, 200, (n, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "name", ["text_tag", "watermark", "border", "hue", "blur", "noise_band", "corner_mark", "background"]
)
def test_artefacts_grow_with_their_size_and_do_nothing_at_strength_0(planting, name):
    assert name in planting.ARTEFACTS
    x = grey()
    np.testing.assert_array_equal(planting.plant(x, name, 0.35, strength=0.0), x)
    changes = [np.abs(planting.plant(x, name, size).astype(int) - x).mean() for size in (0.1, 0.2, 0.35, 0.5)]
    assert changes == sorted(changes)
    assert changes[0] > 0
    again = planting.plant(x, name, 0.35, seed=4)
    np.testing.assert_array_equal(again, planting.plant(x, name, 0.35, seed=4))
    assert again.dtype == np.uint8
    assert again.shape == x.shape


@pytest.mark.parametrize(
    ("name", "region"),
    [
        ("text_tag", np.s_[24:31, 0:14]),
        ("watermark", np.s_[10:22, 10:22]),
        ("noise_band", np.s_[4:13, :]),
        ("corner_mark", np.s_[0:8, 24:32]),
    ],
)
def test_artefacts_stay_in_their_place(planting, name, region):
    x = grey(20)
    changed = (planting.plant(x, name, 0.35) != x).any(3)
    inside = np.zeros((32, 32), bool)
    inside[region] = True
    assert changed.any((1, 2)).all()
    assert not changed[:, ~inside].any()


def test_borders_and_backgrounds_leave_the_middle(planting):
    x = grey()
    for name in ("border", "background"):
        changed = (planting.plant(x, name, 0.35) != x).any((0, 3))
        assert not changed[11:21, 11:21].any()
        assert changed[0].all()
        assert changed[:, -1].all()


def test_halves_are_parities_and_a_line_counts_for_what_made_it(truth):
    runs = list(truth.runs())
    keys = {run.key("a") for run in runs}
    assert len(keys) == len(runs)
    assert not keys & {run.key("b") for run in runs}
    for half in ("dev", "report"):
        mine = [r for r in runs if r.half == half]
        assert len([r for r in mine if r.part == "clean"]) >= 60
        planted = {(r.artefact, r.model, r.seed) for r in mine if r.part == "planted"}
        assert len(planted) == 8 * 2 * 5
        assert {r.seed % 2 for r in mine} == {half == "report"}


def test_a_changed_threshold_makes_old_lines_stale(truth, monkeypatch):
    run = next(truth.runs())
    before = run.key("a")
    monkeypatch.setattr(truth.limits, "FALL", truth.limits.Limit(0.04, "2026-11-26", "test"))
    assert run.key("a") != before


def test_work_goes_on_where_it_was_cut_short(truth, tmp_path, monkeypatch):
    made = []

    def perform(run, data, code):
        made.append(run)
        if len(made) == 3:
            raise KeyboardInterrupt
        return {"key": run.key(code), "part": "clean", "kind": "", "on": "", "model": "", "seed": 0, "artefact": "",
                "level": "sound", "seconds": 0.0}  # fmt: skip

    monkeypatch.setattr(truth, "perform", perform)
    todo, file = list(truth.runs())[:5], tmp_path / "deep" / "lines.jsonl"
    with pytest.raises(KeyboardInterrupt):
        truth.work(todo, file, tmp_path, 1, 1.0)
    with file.open("a") as handle:
        handle.write('{"key": "cut sh')
    assert len(truth.read(file)) == 2
    known = {line["key"] for line in truth.read(file)}
    left = [run for run in todo if run.key(truth.source()) not in known]
    assert truth.work(left, file, tmp_path, 1, 1.0) == 3
    assert [line["key"] for line in truth.read(file)] == [run.key(truth.source()) for run in todo]
    assert truth.work(todo, file, tmp_path, 1, -1.0) == 0  # the time is up


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 64), (64, 64), (1, 1)])
def test_intervals_of_shares_are_scipys(truth, hits, n):
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert truth.wilson(hits, n) == pytest.approx((expected.low, expected.high))


def test_tables_count(truth):
    line = {"part": "planted", "kind": "classifier", "on": "cifar", "seed": 0, "artefact": "hue", "size": 0.35, "rate": 0.6,
            "seconds": 1.0, "date": "2026-11-26", "source": "a"}  # fmt: skip
    lines = [
        line | {"model": "mixer", "lift": 0.9, "rank": 1, "called": 1, "level": "fragile"},
        line | {"model": "residual", "lift": 0.5, "rank": 2, "called": None, "level": "sound"},
        line | {"model": "residual", "lift": 0.1, "rank": None, "called": None, "level": "sound"},
    ]
    row = next(r for r in truth.planted_table(lines).splitlines() if r.startswith("| hue"))
    cells = [c.strip() for c in row.split("|")[2:-1]]
    assert cells[:2] == ["2/3", "0.50"]
    assert [c.split(" =")[0] for c in cells[2:]] == ["1/2", "1/2", "2/2", "1/2"]
    finished = [
        line | {"size": size, "model": "mixer", "lift": 0.9, "rank": 1, "called": 1} for size in (0.1, 0.35)
    ]
    curve = truth.curve_table(
        [*finished, finished[0] | {"model": "residual"}], "size"
    )  # one size only: left out
    assert [row.split("|")[2].strip() for row in curve.splitlines()[2:]] == ["1/1", "1/1"]
    clean = [line | {"part": "clean", "level": word} for word in ("sound", "unfit", "fragile", "sound")]
    total = truth.clean_table(clean).splitlines()[-1]
    assert "| 4 | 2 | 0 | 0 | 0 | 1 | 1 | 0 | 1/4 = 25 %" in total
    assert "Clean models" in truth.tables(json.loads(json.dumps(clean + lines)), "dev")
