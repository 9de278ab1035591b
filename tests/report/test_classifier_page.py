"""The classifier's page says what the result says and stays usable with many classes."""

import re

import pytest

from classifier_factory import SIZE, make, many
from page_text import Text
from pfungst.audit.classifier.config import ClassifierConfig
from pfungst.audit.classifier.run import run
from pfungst.audit.result import save
from pfungst.audit.summary import print_summary
from pfungst.errors import DataError
from pfungst.report import write


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    data = make(folder / "data")
    result = run(
        ClassifierConfig.build(
            model=f"{data}/toy.py:biased", train=data / "train", val=data / "val", spurious=data / "spurious",
            size=SIZE, steps=5, n_components=4, candidates=4, shown=3, out=folder / "out", device="cpu",
        )
    )  # fmt: skip
    return folder / "out", result


def test_page_shows_the_result(audited):
    folder, result = audited
    page = Text(write(folder, result).read_text(encoding="utf-8"))
    for said in [result.verdict.headline, *result.verdict.sentences, *result.notes]:
        assert " ".join(said.split()) in page.text
    for entry in result.entries:
        for component in entry.components:
            assert f"Component {component.component}" in page.text
            assert " ".join(component.tested.reason.split()) in page.text
    assert "adversarially robust" in page.text
    assert "published mAP" in page.text
    assert "SpuFix measured from the class's images without the feature" in page.text
    pictures = [a for tag, a in page.tags if tag == "img"]
    per_component = 1 + 1 + 5 + 5  # histogram, visualisation, images, with their regions
    assert len(pictures) == per_component * sum(len(e.components) for e in result.entries)
    assert all(a["alt"] and a["src"].startswith("data:image/") for a in pictures)


def test_ids_are_unique_and_links_lead_somewhere(audited):
    folder, result = audited
    page = Text(write(folder, result).read_text(encoding="utf-8"))
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for tag, a in page.tags if tag == "a" and str(a.get("href", "")).startswith("#")]
    assert set(links) <= set(ids)


def test_many_classes_are_held_back_and_small(audited):
    folder, result = audited
    big = many(result, folder.parent / "big", 300)
    html = write(folder.parent / "big", big).read_text(encoding="utf-8")
    assert html.count("<template data-lazy>") == 300
    assert len(re.findall(r'class="finder', html)) == 2
    assert "class &lt;299&gt; &amp; more" in html
    assert "class <299>" not in html
    assert len(html) / 300 < 60_000  # so that a thousand classes stay below 60 MB


def test_a_missing_picture_is_an_error(audited, tmp_path):
    _, result = audited
    save(result, tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        write(tmp_path)


def test_summary_names_verdict_and_classes(audited, capsys):
    print_summary(audited[1])
    said = capsys.readouterr().out
    assert audited[1].verdict.level in said
    assert "green" in said
