"""The page says what the result says, escapes what it must and is written whole or not at all."""

import re
from pathlib import Path

import numpy as np
import pytest

import report_factory
from page_text import Text
from pfungst.audit.anomaly.result import AnomalyResult, Faithfulness
from pfungst.audit.result import save
from pfungst.errors import DataError
from pfungst.report import build, write
from pfungst.report.page import WORDS
from pfungst.report.text import percent


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, AnomalyResult]:
    folder = tmp_path_factory.mktemp("small")
    return folder, report_factory.make(folder, categories=1, models=2, examples=2, size=64)


@pytest.fixture(scope="module")
def html(small) -> str:
    return write(small[0]).read_text(encoding="utf-8")


def test_page_shows_the_result(small, html):
    _, result = small
    text = Text(html).text
    assert result.verdict.headline.replace("\u202f", " ") in text.replace("\u202f", " ")
    for sentence in [*result.verdict.sentences, *result.notes, result.skipped[0].reason]:
        assert " ".join(sentence.split()) in text
    for entry in result.entries:
        for scores in entry.scores:
            assert f"{scores.f1.value:.2f}" in text
        for example in entry.examples:
            assert example.id in text
            assert example.why in text
    assert "2 cores, 8 GB, CPU" in text
    assert "model.perplexity" in text


@pytest.mark.parametrize(
    ("faithful", "told"),
    [
        (
            Faithfulness(value=0.23, low=0.18, high=0.27, images=16),
            "0.23 95 % interval 0.18–0.27 Beats a random order",
        ),
        (
            Faithfulness(value=0.02, low=-0.05, high=0.08, images=7),
            "0.02 95 % interval −0.05 to 0.08 Does not beat a random",
        ),
        (None, "– see the notes Not measured."),
    ],
)
def test_the_page_says_whether_the_explanation_beats_a_random_order(tmp_path, faithful, told):
    result = report_factory.make(tmp_path, categories=1, examples=1, size=32)
    result.entries[0].faithfulness = faithful
    save(result, tmp_path)
    text = Text(write(tmp_path).read_text(encoding="utf-8")).text.replace("\u202f", " ")
    found = text[text.index("Faithfulness of the explanation") :][:160]
    assert all(word in found for word in told.split()), found


def test_highest_clever_hans_scores_of_each_detector(tmp_path):
    result = report_factory.make(tmp_path, categories=4, models=2, examples=1, size=32)
    text = Text(write(tmp_path).read_text(encoding="utf-8")).text
    table = text[text.index("Category Clever Hans score AUROC") :]
    table = table[: table.index("The categories with the highest")]
    for model in {e.model for e in result.entries}:
        hans = {e.category: e.original.clever_hans.value for e in result.entries if e.model == model}
        first, second, third, *rest = sorted(hans, key=hans.get, reverse=True)
        part = table[table.index(model) :]
        assert part.index(first) < part.index(second) < part.index(third)
        assert f"{first} {hans[first]:.2f}" in part
        assert f"{third} {hans[third]:.2f}" in part
        nearest = part[: part.index(f"{third} {hans[third]:.2f}")]
        assert not any(f"{name} {hans[name]:.2f}" in nearest for name in rest)


def test_every_picture_is_described_and_inside(html):
    page = Text(html)
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) > 7 * 4
    assert all(a["alt"] and a["src"].startswith("data:image/") for a in pictures)
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "plot"]
    assert charts
    assert all(a["role"] == "img" and a["aria-label"] for a in charts)


def test_ids_are_unique_and_links_lead_somewhere(html):
    page = Text(html)
    # Identical charts drawn twice may share definitions; everything one can link to must not.
    ids = [a["id"] for tag, a in page.tags if "id" in a and tag not in ("path", "clippath")]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        if (target := attributes.get("href") or "").startswith("#"):
            assert any(a.get("id") == target[1:] for _, a in page.tags), target


def test_nothing_of_the_data_becomes_markup(tmp_path):
    report_factory.make(tmp_path, categories=1, models=1, examples=2, size=32, nasty=True)
    html = write(tmp_path).read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    text = Text(html).text
    assert "<script>alert('category')</script> $x_1$ & 零件" in text


def test_file_loads_nothing(html):
    policies = [a["content"] or "" for tag, a in Text(html).tags if "http-equiv" in a]
    assert policies
    assert policies[0].startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"""(src|href)=["'](?!data:|\#)""", html)
    assert not re.search(r"url\((?!#)|@import|@font-face", html)
    assert "font-family: &#x27;" not in html


@pytest.mark.parametrize(
    "level", ["too-few", "unfit", "provenance", "clever-hans", "fragile", "not-established", "sound"]
)
def test_level_is_said_in_words(tmp_path, level):
    report_factory.make(tmp_path, categories=1, examples=1, size=32, level=level)
    html = write(tmp_path).read_text(encoding="utf-8")
    head = Text(html[html.index('<header class="head"') : html.index("</header>")]).text
    assert WORDS[level] in head
    assert ("Clever Hans" in head) == (level == "clever-hans")
    if level in ("too-few", "unfit"):
        assert head.index("AUROC") < head.index("Defects missed")
    if level == "provenance":
        assert html.index('<section id="provenance"') < html.index('<section id="results"')


def test_scores_that_do_not_follow_a_group_are_folded_together(tmp_path):
    result = report_factory.make(tmp_path, categories=4, examples=1, size=32, level="provenance")
    for entry in result.entries[:3]:
        entry.provenance[0].follows = False
    html = write(tmp_path, result).read_text(encoding="utf-8")
    section = html[html.index('<section id="provenance"') : html.index('<section id="results"')]
    follows = section.index("score follows the group")
    assert section.count("score follows the group") == 1
    assert follows < section.index("3 others")
    assert section.count("score does not follow the group") == 4


def test_provenance_is_shown_by_group(tmp_path):
    result = report_factory.make(tmp_path, categories=1, examples=1, size=32, level="provenance")
    text = Text(write(tmp_path).read_text(encoding="utf-8")).text
    finding = result.entries[0].provenance[0]
    assert percent(finding.eta2_group).replace("\u202f", " ") in text
    assert f"{finding.auroc_within:.2f}" in text
    for group in finding.groups:
        assert group.name in text


def test_a_lean_result_has_a_page(tmp_path):
    result = report_factory.make(tmp_path, categories=1, examples=1, size=32)
    entry = result.entries[0]
    lean = [s.model_copy(update={"clever_hans": None}) for s in entry.scores if not s.variant.mitigated]
    changes = {
        "scores": lean,
        "spectrum": entry.spectrum.model_copy(update={"mitigated": None}),
        "exposure": entry.exposure.model_copy(update={"outside_mask": None}),
        "examples": [],
        "provenance": [],
    }
    entry = entry.model_copy(update=changes)
    with np.load(tmp_path / entry.arrays) as file:
        kept = {k: file[k] for k in file if "mended" not in k and k not in ("mask", "kinds", "ids")}
    np.savez(
        tmp_path / entry.arrays,
        **{k: v[:0] if k in ("image", "heat", "joint") else v for k, v in kept.items()},
    )
    mean = {entry.model: result.mean[entry.model].model_copy(update={"scores": lean})}
    changes = {
        "entries": [entry],
        "mean": mean,
        "mitigation": None,
        "skipped": [],
        "metrics": {},
        "config": {},
    }
    text = Text(write(tmp_path, result.model_copy(update=changes)).read_text(encoding="utf-8")).text
    assert "mended" not in text.casefold()
    assert "Images left out" not in text
    assert f"missed {round(entry.n_defect * entry.original.fnr.value)} of {entry.n_defect}" in text


def test_two_names_never_share_an_anchor(tmp_path):
    result = report_factory.make(tmp_path, categories=2, examples=1, size=32)
    first, second = result.entries
    entries = [first.model_copy(update={"category": "a b"}), second.model_copy(update={"category": "a-b"})]
    page = build(tmp_path, result.model_copy(update={"entries": entries}))
    section = next(s for s in page.sections if s.id == "categories")
    assert len({target for target, _ in section.links}) == 2


def test_missing_and_damaged_arrays_are_named(tmp_path):
    result = report_factory.make(tmp_path, categories=1, examples=1, size=32)
    file = tmp_path / result.entries[0].arrays
    write(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(DataError, match=file.name):
        write(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=file.name):
        write(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_folder_without_result_and_unknown_kind(tmp_path):
    with pytest.raises(DataError, match=r"result\.json"):
        write(tmp_path)
    result = report_factory.make(tmp_path, categories=1, examples=1, size=32)
    with pytest.raises(DataError, match="'other'"):
        write(tmp_path, result.model_copy(update={"kind": "other"}))


def test_unwritable_target_leaves_nothing(tmp_path):
    result = report_factory.make(tmp_path, categories=1, examples=1, size=32)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write(tmp_path, result)
    assert not list(tmp_path.glob("*.part"))


def test_same_result_same_page(small, html):
    folder, result = small
    assert write(folder, result).read_text(encoding="utf-8") == html
