"""The page of a similarity audit, and the picture of a pair."""

import base64
import json
import re
from html import unescape

import numpy as np
import pytest
import torch

from pair_factory import pair, standalone
from pfungst.audit.result import Interval
from pfungst.audit.similarity.result import Mitigation, Pair, Relation, SimilarityResult
from pfungst.audit.similarity.run import run
from pfungst.report import write
from pfungst.report.maps import panel
from pfungst.report.page import render
from pfungst.report.pairs import token_pair
from pfungst.report.similarity import _recovered, page
from pfungst.similarity import line_strength
from similarity_factory import config, logo, mini_images


def test_lines_are_those_of_the_papers_scaling():
    values, block = pair()
    strength = line_strength(torch.from_numpy(values)).numpy() ** 2
    drawn = sorted(float(o) for o in re.findall(r'opacity="([\d.]+)"', block.picture))
    expected = sorted(s for s in np.sort(strength.ravel())[::-1][:60] if s >= 0.003)
    np.testing.assert_allclose(drawn, expected, atol=6e-4)
    assert block.picture.count('class="supports"') == sum(values[strength >= np.float32(0.003)] > 0)


def test_the_numbers_behind_the_picture_survive_packing():
    values, block = pair()
    packed = np.frombuffer(base64.b64decode(block.values), np.int8).astype(float) / 127
    peak = np.abs(values).max()
    np.testing.assert_allclose(np.sign(packed) * packed**2 * peak, values.ravel(), atol=peak * 0.009)
    assert block.scale * peak == pytest.approx(np.mean(values.astype(float) ** 4) ** 0.25, rel=1e-5)
    assert block.unit * values.sum() == pytest.approx(peak, rel=1e-5)
    left, right = json.loads(block.points)
    assert len(left) == len(right) == 16
    assert left[0][:2] == [12.5, 12.5]
    assert right[5][:2] == [197.5, 37.5]


def test_tokens_that_are_markup_stay_text():
    values = np.ones((2, 3), np.float32)
    block = token_pair(values, (["<b>", "x"], ["a", "&", "b"]), 6.0, "t", ("s", "t"))
    assert "<b>" not in block.picture
    assert "&lt;b&gt;" in block.picture
    assert json.loads(block.names) == [["<b>", "x"], ["a", "&", "b"]]


def test_the_map_groups_what_is_rare():
    names = np.array([f"g{i % 14}" for i in range(140)])
    drawn = panel("group", np.random.default_rng(0).normal(size=(140, 2)), names)
    assert drawn.picture.count("<circle") == 140
    assert drawn.legend[-1][0] == "4 others"


def test_the_page_of_an_audit_says_what_the_result_says(tmp_path):
    data = mini_images(tmp_path / "data", per_class=6)
    stamp = f"logo:{logo(tmp_path / 'tag.png')},width=0.6,margin=1"
    options = {
        "condition": [stamp],
        "mitigate": "prune:stage1.relu1:1",
        "seeds": 1,
        "sweep": "1",
        "explain": 6,
    }
    result = run(config(data, tmp_path / "out", **options))
    html = write(tmp_path / "out", result).read_text()
    assert result.verdict.headline in html.replace("&#39;", "'").replace("&#34;", '"')
    found = page(result, tmp_path / "out")
    assert {s.id for s in found.sections} >= {
        "probe",
        "subgroups",
        "provenance",
        "pairs",
        "groups",
        "mitigation",
        "map",
        "errors",
        "method",
    }
    assert html.count('<figure class="pair"') == len(result.pairs)
    assert html.count("<script") == 1
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_the_page_of_sentences(tmp_path):
    from pfungst.audit.workspace import Workspace

    settings = config("x.csv", tmp_path)
    arrays = {
        "pair_0": np.eye(2, dtype=np.float32),
        "similarities": np.ones(3),
        "relations": np.array(["same"] * 3),
    }
    relation = Relation(
        name="same",
        n=3,
        similarity=Interval(value=0.9),
        shared_tokens=0.7,
        special_tokens=0.1,
        bias_share=0.0,
    )
    shown = Pair(array="pair_0", title="same", first="a b", second="a c", similarity=0.9, bias_share=0.0,
                 grids=([2], [2]), tokens=(["a", "b"], ["a", "c"]))  # fmt: skip
    result = SimilarityResult(
        title="t", version="0", created="2025-01-01", seconds=1, machine="m", config={},
        verdict={"level": "sound", "headline": "h"}, encoder="e", trained=True, width=2, modality="texts", n=3,
        classes=["same"], split="none", relations=[relation], pairs=[shown], basis="tokens", composite="transformer",
        conservation=0, arrays=Workspace(settings).save_arrays("similarity", arrays),
    )  # fmt: skip
    html = render(page(result, tmp_path))
    assert 'class="pair reads"' in html
    assert "70\u202f%" in html


def test_a_standalone_page_admits_its_own_script_only(tmp_path):
    html = standalone(tmp_path, pair()[1]).read_text()
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]+'", unescape(html))
    assert "default-src 'none'" in unescape(html)


def test_pruning_that_makes_a_fall_worse_is_said_in_words():
    mitigation = Mitigation(
        spec="prune:a:1",
        filters=[0],
        trials=[],
        chosen=0,
        images=9,
        recovered={"logo:tag": -0.77, "jpeg:30": 0.5, "blur": None},
    )
    told = _recovered(mitigation)
    assert told.replace("\u202f", " ") == (
        " and, on test images, brings back 50 % of the fall under jpeg:30 and makes it worse by 77 % of the "
        "fall under logo:tag"
    )
