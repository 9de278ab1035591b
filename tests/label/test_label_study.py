import csv
import io
import json
import random
import sqlite3

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from label_sample import MODEL, component_task, image_task
from pfungst.errors import DataError, InputError
from pfungst.label import Study, export
from pfungst.label.export import to_components, to_csv, to_json, to_parquet
from pfungst.label.store import Event, NotStored, Store
from pfungst.label.study import ADJUDICATOR, OutOfDate, Progress


@pytest.fixture
def study(tmp_path):
    component_task(tmp_path, 6)
    study = Study(tmp_path, ["anna", "ben"], patience=0.2)
    yield study
    study.close()


def answer(study, person, item, value):
    assert study.act(person, item, study.progress(person).sequence(item), "answer", value)


def current(study, person):
    return study.upcoming(person, 1)[0].id


def undo(study, person):
    last = study.progress(person).last()
    assert study.act(person, last.item, study.progress(person).sequence(last.item), "undo")
    return last.item


def test_everybody_has_an_order_of_their_own_that_stays(tmp_path):
    component_task(tmp_path, 8)
    first = Study(tmp_path, ["anna", "ben"])
    anna, ben = first.progress("anna").order, first.progress("ben").order
    assert anna != ben
    assert sorted(anna) == sorted(ben) == sorted(first.items)
    first.close()
    component_task(tmp_path, 12)
    more = Study(tmp_path, ["anna"])
    assert [i for i in more.progress("anna").order if i in set(anna)] == anna
    more.close()


def test_skip_comes_again_at_the_end_and_undo_goes_back_as_far_as_wanted(study):
    first = current(study, "anna")
    assert study.act("anna", first, 0, "skip")
    done = []
    for _ in range(5):
        done.append(current(study, "anna"))
        answer(study, "anna", done[-1], "not")
    assert current(study, "anna") == first
    assert undo(study, "anna") == done[-1] == current(study, "anna")
    assert undo(study, "anna") == done[-2] == current(study, "anna")
    answer(study, "anna", done[-2], "spurious")
    answer(study, "anna", done[-1], "spurious")
    answer(study, "anna", first, "unsure")
    assert study.upcoming("anna") == []
    assert study.answers()["anna"][first] == "unsure"
    assert undo(study, "anna") == first
    assert first in study.progress("anna").skipped


def test_the_same_step_is_stored_once_and_a_stale_one_changes_nothing(study):
    item = current(study, "anna")
    assert study.act("anna", item, 0, "answer", "spurious")
    assert not study.act("anna", item, 0, "answer", "spurious")
    assert not study.act("anna", item, 0, "answer", "not")
    with pytest.raises(OutOfDate, match="has an answer"):
        study.act("anna", item, 1, "answer", "not")
    with pytest.raises(OutOfDate, match="out of date"):
        study.act("anna", item, 7, "answer", "not")
    with pytest.raises(OutOfDate, match="nothing to undo"):
        study.act("ben", item, 0, "undo")
    for wrong in (("answer", "out"), ("answer", None), ("skip", "not"), ("drop", None)):
        with pytest.raises(InputError):
            study.act("ben", item, 0, *wrong)
    assert study.answers() == {"anna": {item: "spurious"}, "ben": {}}
    assert len(study.store.since(0)) == 1


def test_a_second_process_on_the_same_file_is_seen(study, tmp_path):
    other = Study(tmp_path, ["anna", "ben"])
    item = current(study, "anna")
    assert other.act("anna", item, 0, "answer", "not")
    assert not study.act("anna", item, 0, "answer", "spurious")
    assert study.answers()["anna"] == {item: "not"}
    other.close()


STEP = st.tuples(st.sampled_from(["answer", "skip", "undo"]), st.integers(0, 3), st.sampled_from(["a", "b"]))


@settings(max_examples=100, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_folding_events_equals_replaying_stacks(steps):
    items = ["w", "x", "y", "z"]
    progress, stacks, number = Progress(items), {i: [] for i in items}, 0
    for action, index, value in steps:
        item = items[index]
        stack = stacks[item]
        if action == "undo":
            if not stack:
                continue
            stack.pop()
        elif stack and stack[-1] != "skip":
            continue
        else:
            stack.append(value if action == "answer" else "skip")
        number += 1
        text = value if action == "answer" else None
        progress.apply(Event(number, "p", item, progress.sequence(item), action, text, ""))
    tops = {i: s[-1] for i, s in stacks.items() if s}
    assert progress.answers == {i: top for i, top in tops.items() if top != "skip"}
    assert set(progress.skipped) == {i for i, top in tops.items() if top == "skip"}
    queue = list(progress.queue())
    assert sorted(queue) == [i for i in items if i not in progress.answers]
    assert len(queue) == len(set(queue))


def judge_all(study):
    """Six components: 0 and 1 spurious for both, 2 not for both, 3 and 4 disputed, 5 unsure for both."""
    items = list(study.items)
    for person, answers in {
        "anna": ["spurious", "spurious", "not", "spurious", "not", "unsure"],
        "ben": ["spurious", "spurious", "not", "not", "unsure", "unsure"],
    }.items():
        for item, value in zip(items, answers, strict=True):
            answer(study, person, item, value)
    return items


def test_adjudication_sees_the_disagreements_only_and_decides(study):
    items = judge_all(study)
    assert study.disagreements() == {items[3], items[4]}
    assert {i.id for i in study.upcoming(ADJUDICATOR, 9)} == {items[3], items[4]}
    with pytest.raises(OutOfDate, match="no longer disagree"):
        study.act(ADJUDICATOR, items[0], 0, "answer", "not")
    answer(study, ADJUDICATOR, items[3], "spurious")
    verdicts = study.verdicts()
    assert [verdicts[i].final for i in items] == ["spurious", "spurious", "not", "spurious", None, "unsure"]
    assert verdicts[items[3]].decided_by == "adjudication"
    assert verdicts[items[4]].decided_by == "disagreement"
    assert json.loads(to_components(study)) == {
        "format": "pfungst.components/1",
        "model": MODEL,
        "components": {"99": [1], "207": [0, 3]},
    }
    # A labeller who comes round to the other's view needs no judge.
    undo_of = study.progress("ben").sequence(items[4])
    assert study.act("ben", items[4], undo_of, "undo")
    answer(study, "ben", items[4], "not")
    assert study.verdicts()[items[4]].decided_by == "agreement"


def test_exports_say_the_same(study, tmp_path):
    items = judge_all(study)
    answer(study, ADJUDICATOR, items[3], "not")
    table = pq.read_table(io.BytesIO(to_parquet(study))).to_pylist()
    assert len(table) == 13
    text = list(csv.DictReader(io.StringIO(to_csv(study).decode())))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in table] == text
    content = json.loads(to_json(study))
    assert content["items"][3]["answers"] == {"anna": "spurious", "ben": "not"}
    assert content["items"][3]["adjudicated"] == content["items"][3]["final"] == "not"
    assert len(content["events"]) == 13
    assert content["agreement"][0]["agreement"] == pytest.approx(4 / 6)
    for path in export(tmp_path, tmp_path / "out"):
        expected = {"labels.csv": to_csv, "labels.json": to_json, "labels.parquet": to_parquet}.get(
            path.name, to_components
        )
        assert path.read_bytes() == expected(study)


def test_a_formula_stays_text_in_csv(tmp_path):
    component_task(tmp_path, 1, classes={3: "=1+1"})
    study = Study(tmp_path, ["@anna"])
    assert b",'=1+1," in to_csv(study)
    assert b",'@anna," in to_csv(study)
    assert pq.read_table(io.BytesIO(to_parquet(study))).to_pylist()[0]["class_name"] == "=1+1"
    study.close()


def test_images_have_no_components_file(tmp_path):
    image_task(tmp_path, 2)
    study = Study(tmp_path, ["anna"])
    for item in list(study.items):
        answer(study, "anna", item, "out")
    assert [v.final for v in study.verdicts().values()] == ["out", "out"]
    with pytest.raises(InputError, match="no components file"):
        to_components(study)
    study.close()
    assert [p.name for p in export(tmp_path, tmp_path / "out")] == [
        "labels.csv",
        "labels.json",
        "labels.parquet",
    ]


@pytest.mark.parametrize("names", [[], [""], ["  "], ["a" * 61], ["a\nb"], ["Adjudicator"], ["Ann", "ann "]])
def test_names_that_cannot_be_used(tmp_path, names):
    component_task(tmp_path, 1)
    with pytest.raises(InputError):
        Study(tmp_path, names)


def test_answers_of_someone_not_named_stay_but_do_not_count(study, tmp_path):
    judge_all(study)
    alone = Study(tmp_path, ["anna"])
    assert alone.left_out == ["ben"]
    assert alone.disagreements() == set()
    assert all(v.decided_by == "agreement" for v in alone.verdicts().values())
    assert Study(tmp_path).labellers == ["anna", "ben"]
    alone.close()


def test_events_can_be_neither_changed_nor_deleted(study):
    judge_all(study)
    with sqlite3.connect(study.store.path) as other:
        for command in ("UPDATE events SET answer = 'not'", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                other.execute(command)
    assert len(study.store.since(0)) == 12


def test_the_file_is_durable_and_private(study):
    db = study.store._db
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert study.store.path.stat().st_mode & 0o077 == 0


def test_answers_about_another_model_are_not_mixed_in(study, tmp_path):
    path = tmp_path / "label-task.json"
    content = json.loads(path.read_text())
    content["model"]["weights"] = "sha256:11"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="another model"):
        Study(tmp_path, ["anna"])


def test_a_locked_file_is_named(study):
    item = current(study, "anna")
    blocker = sqlite3.connect(study.store.path)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(NotStored, match="locked by another program"):
        study.act("anna", item, 0, "answer", "not")
    blocker.rollback()
    blocker.close()
    assert study.answers()["anna"] == {}
    assert study.act("anna", item, 0, "answer", "not")


def test_a_read_only_file_is_named(study):
    item = current(study, "anna")
    study.store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(NotStored, match="read-only"):
        study.act("anna", item, 0, "answer", "not")
    study.store._db.execute("PRAGMA query_only = OFF")
    assert study.act("anna", item, 0, "answer", "not")


def test_a_file_that_is_no_answers_file(tmp_path):
    (tmp_path / "labels.sqlite").write_bytes(b"This is no database. " * 100)
    with pytest.raises(DataError, match="not an answers file"):
        Store(tmp_path / "labels.sqlite", "x")


def test_disagreements_are_kept_as_answers_come_and_go(tmp_path):
    """Against the definition, after every event."""
    items = list(component_task(tmp_path, 6).items)
    names = ["anna", "ben", "cleo"]
    study, rng = Study(tmp_path, names), random.Random(1)
    for _ in range(150):
        name, item = rng.choice(names), rng.choice(items).id
        progress = study.progress(name)
        action = "undo" if item in progress.answers else rng.choice(["skip", "answer", "answer"])
        answer = rng.choice(["spurious", "not"]) if action == "answer" else None
        study.act(name, item, progress.sequence(item), action, answer)
        given = [[a.get(i.id) for a in study.answers().values()] for i in items]
        wanted = {i.id for i, g in zip(items, given, strict=True) if all(x for x in g) and len(set(g)) > 1}
        assert study.disagreements() == wanted
    assert Study(tmp_path, names).disagreements() == wanted
    assert not Study(tmp_path, ["anna"]).disagreements()
