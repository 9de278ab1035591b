"""How a verdict is shown: at most four sentences, the rest folded; and what to do next, as commands."""

import shlex

import pytest
from rich.console import Console

import report_factory
from pfungst.audit.anomaly.config import AnomalyConfig
from pfungst.audit.findings.result import Discovered, DiscoveryEntry
from pfungst.audit.result import SHOWN, Result, Skipped, Verdict
from pfungst.audit.similarity.config import SimilarityConfig
from pfungst.audit.summary import print_summary
from pfungst.audit.whatnext import again, commands
from pfungst.report.write import write


def a_result(kind="similarity", level="sound", config=None, **fields):
    verdict = Verdict(level=level, headline="h", sentences=[f"Sentence {i}." for i in range(7)])
    known = {"title": "t", "version": "0", "created": "2026-11-26T00:00:00Z", "seconds": 1.0, "machine": "m"}
    return Result(kind=kind, config=config or {}, verdict=verdict, **known, **fields)


def said(result):
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(result, console)
    return console.export_text()


@pytest.mark.parametrize(("count", "words"), [(1, "1 image was skipped."), (2, "2 images were skipped.")])
def test_one_image_was_skipped(count, words):
    """Regression: "1 images were skipped"."""
    skipped = [Skipped(id=str(i), reason="broken") for i in range(count)]
    assert words in said(a_result(skipped=skipped))


def test_the_terminal_shows_four_sentences_and_what_next():
    """Regression: the demo's similarity verdict had 21 bullets."""
    text = said(a_result())
    assert f"Sentence {SHOWN - 1}." in text
    assert f"Sentence {SHOWN}." not in text
    assert "3 more in the report" in text
    assert "What next:\n  pfungst " in text


def test_the_page_folds_the_rest(tmp_path):
    result = report_factory.make(tmp_path, categories=1, examples=1, size=32, level="fragile")
    result.verdict.sentences = [f"Sentence {i}." for i in range(7)]
    html = write(tmp_path, result).read_text(encoding="utf-8")
    head = html[html.index('<header class="head"') : html.index("</header>")]
    assert head.index("Sentence 3.") < head.index("<details") < head.index("Sentence 4.")
    assert "3 more" in head
    assert "What next" in head


@pytest.mark.parametrize("level", ["too-few", "unfit", "provenance", "clever-hans", "fragile", "sound"])
@pytest.mark.parametrize("kind", ["anomaly", "similarity", "classifier", "discovery", "comparison", "watch"])
def test_every_verdict_has_one_to_three_commands(kind, level):
    found = commands(a_result(kind, level, {"out": "a folder"}))
    assert 1 <= len(found) <= 3
    assert all(shlex.split(c, comments=True)[0] == "pfungst" for c in found)


def test_an_audit_is_repeated_as_it_was():
    config = AnomalyConfig(data="parts", model=["kde", "bag:kde+patchcore:coreset=0.1"], seeds=3, out="o")
    words = shlex.split(again(a_result("anomaly", config=config.model_dump(mode="json")), mitigate="lowpass"))
    assert words[:4] == ["pfungst", "audit", "anomaly", "parts"]
    given = dict(zip(words[4::2], words[5::2], strict=True))
    back = AnomalyConfig.build(data=words[3], **{k[2:].replace("-", "_"): v for k, v in given.items()})
    assert back.model_dump(exclude={"out", "mitigate"}) == config.model_dump(exclude={"out", "mitigate"})
    assert (back.mitigate, back.out.name) == ("lowpass", "o-again")


def test_options_that_are_flags_or_hold_commas_survive():
    config = SimilarityConfig(images="x", encoder="e", condition=["logo:tag.png,width=0.4"], skip_bad=True)
    words = shlex.split(again(a_result(config=config.model_dump(mode="json"))))
    assert "--skip-bad" in words
    assert "logo:tag.png,width=0.4" in words[words.index("--condition") + 1]
    back = SimilarityConfig.build(images="x", encoder="e", condition=words[words.index("--condition") + 1])
    assert back.condition == config.condition


@pytest.mark.parametrize(("n", "more"), [(30, False), (50, True)])
def test_more_images_are_asked_for_only_where_there_may_be_some(n, more):
    """Regression: 427 and 128 X-rays were all explained, and the page said to discover again with 1,000 a class."""
    entry = DiscoveryEntry(index=0, name="c", n=n, accuracy=1, groupings=[], findings=[], told=[], arrays="a")
    found = Discovered(headline="h", sentences=[], tried=1, entries=[entry])
    config = {"model": "m.py:net", "images": "i", "per_class": 50}
    result = a_result("discovery", config=config).model_copy(update={"discovered": found})
    assert any("--per-class 100" in command for command in commands(result)) == more


@pytest.mark.parametrize("kind", ["anomaly", "similarity", "classifier", "discovery"])
def test_every_kind_of_audit_can_be_proposed_again(kind):
    """The configuration of a discovery moved away from its result, and its report could not be written."""
    command = again(a_result(kind, config={"seed": 7, "out": "o"}))
    assert command.startswith("pfungst discover " if kind == "discovery" else f"pfungst audit {kind} ")
    assert "--seed 7" in command
    assert command.endswith("--out o-again")
