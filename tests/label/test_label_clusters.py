"""Findings as a task: shown, named, exported, and read back by discovery."""

import json

import pytest

from label_sample import BASE, HTMX, Visit, picture
from pfungst.audit.findings.result import DiscoveryEntry, Proved
from pfungst.audit.findings.task import judged, read_answers, write_label_task
from pfungst.audit.result import Interval
from pfungst.errors import DataError, InputError
from pfungst.label import ClusterItem, ClusterTask, ShownImage, Study, export, read_task, write_task
from pfungst.label.app import create_app
from pfungst.label.server import links

MODEL = {"name": "net", "inputs": "00ff"}


def cluster_task(folder, count=3):
    items = [
        ClusterItem(
            id=f"0-{i}",
            class_index=0,
            class_name="tench",
            component=i,
            what="heatmaps: one place",
            share=0.25,
            n=10,
            outcomes=["Put into other classes it carries 40 % of the way to the class (30 to 50)"],
            images=[
                ShownImage(file=picture(folder / "images" / f"{i}-{j}.png", 9 * i + j), id=f"{i}-{j}")
                for j in range(2)
            ],
        )
        for i in range(count)
    ]
    task = ClusterTask(title="net on photographs", model=MODEL, items=items)
    write_task(folder, task)
    return task


def entry(count=3, standing="object"):
    i = Interval(value=0.5, low=0.4, high=0.6)
    f = {
        "view": "heatmaps",
        "kind": "place",
        "cluster": 0,
        "n_clusters": 2,
        "n": 10,
        "share": 0.2,
        "recognised": 1,
        "columns": [],
        "images": [],
        "map": [[0.0]],
        "changed": 10,
        "remove": i,
        "insert": i,
        "accuracy": (1, 0, 1),
        "flips": (1, 0),
        "retained": i,
        "p": 0.001,
    }
    findings = [Proved(number=n, standing=standing, reason="it decides", **f) for n in range(count)]
    return DiscoveryEntry(
        index=0, name="tench", n=50, accuracy=1, groupings=[], findings=findings, arrays="a.npz"
    )


def test_a_task_of_findings_comes_back_as_written(tmp_path):
    assert cluster_task(tmp_path) == read_task(tmp_path)


def test_two_people_judge_and_name_findings_and_discovery_reads_them(tmp_path):
    cluster_task(tmp_path)
    study = Study(tmp_path, ["anna", "ben"])
    app, found = create_app(study, {"127.0.0.1:8765"}), links(study, BASE)
    for person, answers in (("anna", "aao"), ("ben", "auo")):
        visit = Visit(app, found.labellers[person])
        page = visit.get().text
        for said in (
            "Does what these images share belong to",
            "heatmaps: one place",
            "25 %",
            "carries 40 %",
            'name="name"',
        ):
            assert said in page
        by_item = dict(zip(study.items, answers, strict=True))
        for _ in study.items:
            item = list(study.items)[int(visit.fields["item"])]
            word = {"a": "artefact", "o": "object", "u": "unsure"}[by_item[item]]
            assert visit.post(word, HTMX, name=" a  hand\n" if word == "artefact" else "").status_code == 200
    assert study.agreement()[0].agreement == pytest.approx(2 / 3)
    assert study.names() == {"0-0": {"anna": "a hand", "ben": "a hand"}, "0-1": {"anna": "a hand"}, "0-2": {}}
    study.close()
    written = {p.name: p for p in export(tmp_path, tmp_path / "out")}
    assert set(written) == {"labels.csv", "labels.json", "labels.parquet", "findings.json"}
    assert json.loads(written["labels.json"].read_text())["items"][0]["names"]["ben"] == "a hand"
    assert "a hand" in written["labels.csv"].read_text()
    answers = read_answers(written["findings.json"], "00ff")
    assert {key: (a.answer, a.names) for key, a in answers.items()} == {(0, 0): ("artefact", ["a hand"]), (0, 2): ("object", [])}  # fmt: skip
    (said,) = judged([entry()], answers)
    assert [f.standing for f in said.findings] == ["found", "object", "object"]
    assert said.findings[0].reason == "it decides; people call it an artefact (a hand)"
    with pytest.raises(InputError, match="another discovery: 00ff; this one is 1234"):
        read_answers(written["findings.json"], "1234")
    with pytest.raises(InputError, match="no finding 2 of topic 0"):
        judged([entry(2)], answers)


def test_of_a_detector_people_are_asked_whether_it_belongs_to_a_defect(tmp_path):
    normal = entry(1, "found").model_copy(update={"what": "normal", "name": "knn, normal images"})
    write_label_task(tmp_path, "knn on tiles", "knn", "00ff", [normal])
    (item,) = json.loads((tmp_path / "label-task.json").read_text())["items"]
    assert item["class_name"] == "a defect"
    assert item["what"] == "knn, normal images, changed: one place; images grouped by heatmaps"


def test_people_prove_nothing_that_interventions_did_not(tmp_path):
    from pfungst.audit.findings.result import Answered

    (said,) = judged([entry(1, "unproved")], {(0, 0): Answered(answer="artefact")})
    assert said.findings[0].standing == "unproved"
    (said,) = judged([entry(1, "moves")], {(0, 0): Answered(answer="artefact", names=["a hand"])})
    assert said.findings[0].standing == "found"  # interventions showed that it moves answers


def test_a_name_that_is_undone_is_gone_and_other_tasks_take_none(tmp_path):
    cluster_task(tmp_path, 1)
    study = Study(tmp_path, ["anna"])
    study.act("anna", "0-0", 0, "answer", "artefact", "a hand")
    study.act("anna", "0-0", 1, "undo")
    assert study.names() == {"0-0": {}}
    study.act("anna", "0-0", 2, "answer", "artefact", "a sleeve")
    assert study.names() == {"0-0": {"anna": "a sleeve"}}
    study.close()


def test_an_unknown_kind_is_refused(tmp_path):
    cluster_task(tmp_path, 1)
    path = tmp_path / "label-task.json"
    path.write_text(path.read_text().replace('"clusters"', '"words"'))
    with pytest.raises(DataError, match="kind is 'words'"):
        read_task(tmp_path)
