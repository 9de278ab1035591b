"""The app without a browser: what each link may see, and what attackers get."""

import re

import pytest

from label_sample import BASE, HTMX, Visit, component_task, image_task, picture
from pfungst.label import Study, write_task
from pfungst.label.app import create_app
from pfungst.label.security import HEADERS, MAX_BODY
from pfungst.label.server import links


class World:
    def __init__(self, folder, make=component_task, labellers=("anna", "ben")):
        make(folder, 3)
        self.study = Study(folder, labellers, patience=0.2)
        self.app = create_app(self.study, {"127.0.0.1:8765", "localhost:8765"})
        self.links = links(self.study, BASE)

    def visit(self, name=None):
        if name is None:
            return Visit(self.app)
        return Visit(
            self.app, self.links.coordinator if name == "coordinator" else self.links.labellers[name]
        )

    def stored(self):
        return len(self.study.store.since(0))


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "task")
    yield world
    world.study.close()


def test_every_answer_carries_the_security_headers(world):
    anna = world.visit("anna")
    for answer in (
        anna.get(),
        anna.http.get("/"),
        anna.http.get("/static/app.js"),
        anna.http.get("/", headers={"Host": "x"}),
    ):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert anna.get().headers["cache-control"] == "no-store"
    assert not re.search(r"<script>|<style|style=|\son\w+=|hx-on|https?://", anna.get().text)


def test_no_interactive_docs(world):
    anna = world.visit("anna")
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert anna.http.get(path).status_code == 404


def test_nothing_without_the_token_of_the_link(world):
    anna, ben, stranger = world.visit("anna"), world.visit("ben"), world.visit()
    anna.get()
    for path in (
        anna.home,
        anna.home + "image/0/0",
        anna.home + "results",
        anna.home + "export/labels.csv",
        "/",
    ):
        for client in (stranger.http, ben.http):
            assert client.get(path).status_code == 401, path
    assert (
        stranger.http.post(anna.home + "do", data={**anna.fields, "do": "not"}, headers=HTMX).status_code
        == 401
    )
    for token in ("x", "x" * 43, "%00", "é"):
        assert stranger.http.get(f"/enter/{token}").status_code == 401
    assert world.stored() == 0


def test_the_cookie_is_bound_to_its_person_and_out_of_reach_of_scripts(world):
    answer = world.visit().http.get(world.links.labellers["anna"])
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert f"Path={answer.headers['location']}" in cookie


def test_labellers_see_neither_results_nor_each_other(world):
    anna, ben = world.visit("anna"), world.visit("ben")
    ben.get()
    for _ in range(3):
        assert ben.post("spurious").status_code == 200
    text = anna.get().text
    assert "ben" not in text
    assert "0</b> of 3" in text
    for path in ("results", "adjudicate", "export/labels.csv", "export/components.json"):
        assert anna.get(path).status_code == 403


def test_the_only_labeller_sees_the_results(tmp_path):
    world = World(tmp_path, image_task, ["anna"])
    anna = world.visit("anna")
    assert "labels.csv" in anna.get("results").text
    assert anna.get("export/labels.csv").status_code == 200
    assert anna.get("export/components.json").status_code == 404
    assert anna.get("adjudicate").status_code == 403
    world.study.close()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8765.evil.example", ""]
)
def test_a_foreign_host_is_refused(world, host):
    assert world.visit("anna").get(headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    "origin",
    [None, "null", "http://evil.example", "http://127.0.0.1:9999", "http://127.0.0.1:8765.evil.example", "file://", "http://[",
     "ftp://127.0.0.1:8765", "http://x@127.0.0.1:8765"],
)  # fmt: skip
def test_a_foreign_origin_is_refused(world, origin):
    anna = world.visit("anna")
    anna.get()
    headers = {"HX-Request": "true"} | ({} if origin is None else {"Origin": origin})
    assert anna.post("not", headers).status_code == 403
    if origin is not None:
        assert anna.get(headers={"Origin": origin}).status_code == 403
    assert anna.post("not", {**HTMX, "Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert world.stored() == 0


def test_a_form_without_the_right_csrf_token_stores_nothing(world):
    anna, ben = world.visit("anna"), world.visit("ben")
    anna.get()
    ben.get()
    right = anna.fields["csrf"]
    for wrong in ("", "x", right[:-1], ben.fields["csrf"], "é" * 20):
        assert anna.post("not", csrf=wrong).status_code in (403, 422)
        anna.fields["csrf"] = right
    del anna.fields["csrf"]
    assert anna.post("not").status_code == 422
    assert world.stored() == 0


def test_large_bodies_and_addresses_are_refused(world):
    anna = world.visit("anna")
    anna.get()
    assert anna.post("not", filler="x" * MAX_BODY).status_code == 413

    def chunks():
        for _ in range(64):
            yield b"filler=" + b"x" * 1024 + b"&"

    headers = {**HTMX, "Content-Type": "application/x-www-form-urlencoded"}
    assert anna.http.post(anna.home + "do", content=chunks(), headers=headers).status_code == 413
    assert (
        anna.http.post(anna.home + "do", content=b"x", headers={**HTMX, "Content-Length": "-1"}).status_code
        == 413
    )
    assert anna.http.get("/" + "x" * 5000).status_code == 414
    many = {f"f{i}": "x" for i in range(2000)}
    code = anna.post("not", **many).status_code  # older versions of Starlette take many fields
    assert code in (200, 400, 413, 422)
    assert world.stored() == (code == 200)


@pytest.mark.parametrize(
    "change",
    [{"item": "x"}, {"item": "-1"}, {"item": "99"}, {"item": "9" * 40}, {"sequence": "-1"}, {"sequence": "9"}, {"do": "drop"},
     {"do": "out"}, {"do": ""}, {"do": "undo"}, {"do": "undo", "undo_item": "1", "undo_sequence": "1"}],
)  # fmt: skip
def test_a_forged_form_stores_nothing(world, change):
    anna = world.visit("anna")
    anna.get()
    change = dict(change)
    answer = anna.post(change.pop("do", "not"), **change)
    assert answer.status_code in (200, 422)
    assert (answer.status_code == 422) or "current state" in answer.text
    assert "Traceback" not in answer.text
    assert world.stored() == 0


@pytest.mark.parametrize(
    "path",
    ["image/../../../etc/passwd", "image/0/..%2f..%2fsecret.png", "image/0/%2e%2e/secret.png", "image/0/99", "image/99/0",
     "image/-1/0", "image/0/-1", "image/0/images/000-0.png", "image/0/0/../../../../secret.png", "image/0/0%00.png",
     "image/label-task.json/0", "..%2f..%2flabels.sqlite", "export/../labels.sqlite", "export/labels.sqlite"],
)  # fmt: skip
def test_no_path_reaches_the_file_system(world, path):
    picture(world.study.folder.parent / "secret.png", 1)
    answer = world.visit("anna").get(path)
    assert answer.status_code in (401, 403, 404, 422)
    assert answer.headers["content-type"].startswith("text/html")


def test_static_files_are_not_a_way_out(world):
    for path in (
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/",
        "/static//etc/passwd",
    ):
        assert world.visit().http.get(path).status_code == 404


def test_images_of_the_task_are_served_with_their_type(world):
    anna = world.visit("anna")
    item = world.study.task.items[0]
    files = list(item.files())
    answer = anna.get("image/0/2")
    assert answer.content == (world.study.folder / files[2]).read_bytes()
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    (world.study.folder / files[2]).unlink()
    (world.study.folder / files[2]).symlink_to(__file__)
    assert anna.get("image/0/2").status_code == 404


def test_script_in_names_is_text(tmp_path):
    evil = "<script>alert(1)</script>"
    folder = tmp_path / "task"
    quoted = "\"><img src=x onerror=alert(1)>'"
    component_task(folder, 3, name="<script>alert(2)<_script>{:03d}'\"", classes={5: quoted})
    study = Study(folder, [evil, quoted, "../../x"])
    app = create_app(study, {"127.0.0.1:8765"})
    shown = links(study, BASE)
    for name in study.labellers:
        visit = Visit(app, shown.labellers[name])
        text = visit.get().text
        assert "<script>a" not in text
        assert "<img src=x" not in text
        assert visit.post("spurious" if name == evil else "not").status_code == 200
        assert visit.http.get(visit.home + "image/0/0").status_code == 200
    coordinator = Visit(app, shown.coordinator)
    for path in ("", "adjudicate"):
        text = coordinator.get(path).text
        assert "<script>a" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert(1)" in text or path
    assert evil in coordinator.get("export/labels.json").text
    study.close()


def test_two_tabs_on_one_item_store_one_answer(world):
    first, second = world.visit("anna"), world.visit("anna")
    first.get()
    second.get()
    assert first.fields["item"] == second.fields["item"]
    assert first.post("spurious").status_code == 200
    answer = second.post("not")
    assert answer.status_code == 200
    assert "already handled in another tab" in answer.text
    assert list(world.study.answers()["anna"].values()) == ["spurious"]
    assert world.stored() == 1


def test_without_javascript_forms_work_too(world):
    anna = world.visit("anna")
    anna.get()
    answer = anna.post("not", {"Origin": BASE})
    assert (answer.status_code, answer.headers["location"]) == (303, anna.home)
    assert "1</b> of 3" in anna.get().text
    coordinator = world.visit("coordinator")
    ben = world.visit("ben")
    for _ in range(2):
        anna.get()
        anna.post("spurious")
    ben.get()
    for _ in range(3):
        ben.post("unsure")
    coordinator.get("adjudicate")
    assert coordinator.post("not", {"Origin": BASE}).headers["location"].endswith("/adjudicate")


def test_an_inner_error_shows_no_trace(world, monkeypatch):
    anna = world.visit("anna")
    anna.get()

    def broken(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(world.study, "act", broken)
    answer = anna.post("not")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "terminal" in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_answer_that_cannot_be_stored_is_said_so(world):
    anna = world.visit("anna")
    anna.get()
    world.study.store._db.execute("PRAGMA query_only = ON")
    answer = anna.post("not")
    assert answer.status_code == 503
    assert "read-only" in answer.text
    assert "NOT stored" in answer.text
    assert str(world.study.folder) not in answer.text
    world.study.store._db.execute("PRAGMA query_only = OFF")
    assert anna.post("not").status_code == 200
    assert world.stored() == 1


def test_methods_that_are_not_meant(world):
    anna = world.visit("anna")
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        assert anna.http.request(method, anna.home, headers={"Origin": BASE}).status_code == 405
    assert anna.http.get(anna.home + "do").status_code == 405


def test_an_answer_does_not_look_at_the_answers_of_all_labellers(world, monkeypatch):
    """It took 33 ms with 100 labellers of 2,000 items, now as long as with two of 100."""
    anna = world.visit("anna")
    anna.get()
    monkeypatch.setattr(type(world.study), "answers", lambda self: pytest.fail("all answers were collected"))
    assert anna.post("not").status_code == 200


def test_the_question_names_only_what_is_shown(tmp_path):
    """An audit with --steps 0 makes no feature visualisation."""
    task = component_task(tmp_path, 1)
    (item,) = task.items
    for npfv, regions in ((True, True), (False, True), (False, False)):
        images = [i if regions else i.model_copy(update={"gradcam": None}) for i in item.images]
        bare = item.model_copy(
            update={"images": images} | ({} if npfv else {"npfv": None, "npfv_gradcam": None})
        )
        write_task(tmp_path, task.model_copy(update={"items": [bare]}))
        world = World(tmp_path, lambda *a: None, ["anna"])
        text = world.visit("anna").get().text
        assert ("visualisation shows" in text) == npfv
        assert ("outlined regions" in text) == regions
        assert ("share something that is not the golden retriever" in text) != npfv
        world.study.close()
