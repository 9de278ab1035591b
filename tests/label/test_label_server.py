"""The real server process: load, kill -9, files that cannot be written, addresses."""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from label_sample import SOURCE, Person, answer_under_load, component_task, image_task, local_server, server
from pfungst.errors import InputError
from pfungst.label import Study, serve


def events(folder):
    with sqlite3.connect(folder / "labels.sqlite") as db:
        return db.execute("SELECT person, item, sequence, action, answer FROM events ORDER BY id").fetchall()


def test_200_concurrent_answers_are_stored_once_each(tmp_path):
    task = image_task(tmp_path, 100)
    with server(tmp_path, "anna", "ben") as running:
        people = {name: Person(running.links[name]) for name in ("anna", "ben")}
        for person in people.values():
            person.page()

        def send(job):
            name, number = job
            # Every answer is sent twice at the same time, as from two tabs.
            return [people[name].post("out", item=number, sequence=0).status_code for _ in range(2)]

        jobs = [(name, number) for number in range(100) for name in people]
        with ThreadPoolExecutor(40) as pool:
            assert all(codes == [200, 200] for codes in pool.map(send, jobs))
    stored = events(tmp_path)
    assert len(stored) == 200
    assert set(stored) == {(name, item.id, 0, "answer", "out") for name in people for item in task.items}


def test_kill_9_under_load_loses_no_acknowledged_answer(tmp_path):
    image_task(tmp_path, 400)
    acknowledged: list[tuple[str, str, int]] = []
    names = ("anna", "ben")
    for round_ in range(3):
        with server(tmp_path, *names) as running:
            threads = answer_under_load(running, names, 25 + 10 * round_, acknowledged)
            running.process.kill()
            for thread in threads:
                thread.join()
        study = Study(tmp_path, names)
        stored = {(e.person, str(study.index[e.item]), e.sequence) for e in study.store.since(0)}
        assert stored >= set(acknowledged)
        # At most the one answer in flight per person was stored without its acknowledgement arriving.
        assert len(stored) - len(acknowledged) <= len(names) * (round_ + 1)
        assert len(stored) == len(study.store.since(0))
        assert study.store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        study.close()
    assert len(acknowledged) == len(set(acknowledged)) >= 90


def test_resume_keeps_links_and_place(tmp_path):
    component_task(tmp_path, 4)
    with server(tmp_path, "anna") as running:
        anna = Person(running.links["anna"])
        anna.page()
        anna.give("spurious")
        place, link = anna.fields["item"], running.links["anna"].split("/enter/")[1]
    with server(tmp_path, "anna") as running:
        assert running.links["anna"].endswith(link)
        assert "(1 answered)" in running.output
        anna = Person(running.links["anna"])
        anna.page()
        assert anna.fields["item"] == place


def test_a_locked_file_gives_a_message_and_nothing_is_lost(tmp_path):
    component_task(tmp_path, 3)
    with server(tmp_path, "anna") as running:
        anna = Person(running.links["anna"])
        anna.page()
        blocker = sqlite3.connect(tmp_path / "labels.sqlite")
        blocker.execute("BEGIN IMMEDIATE")
        answer = anna.post("not")
        assert answer.status_code == 503
        assert "locked by another program" in answer.text
        assert "NOT stored" in answer.text
        blocker.rollback()
        blocker.close()
        anna.give("not")
    assert len(events(tmp_path)) == 1


@pytest.fixture
def open_folder():
    """A folder that another user can enter (those of pytest are private)."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_file_is_refused_at_the_start(open_folder):
    component_task(open_folder, 1)
    Study(open_folder, ["anna"]).close()
    # Root may write anything: give up that right in the process that opens the file.
    drop = (
        ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    )
    if drop and shutil.which("setpriv") is None:
        pytest.skip("root can write read-only files, and setpriv is not here to give that up")
    os.chmod(open_folder / "labels.sqlite", 0o444)
    os.chmod(open_folder, 0o555)
    code = f"""
from pfungst.label import serve
from pfungst.errors import PfungstError
try:
    serve({str(open_folder)!r}, ["anna"], port=0)
except PfungstError as error:
    print(error)
"""
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    found = subprocess.run(
        [*drop, sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60
    )
    os.chmod(open_folder, 0o755)
    assert "labels.sqlite is read-only" in found.stdout, found
    assert "make" in found.stdout
    assert "Traceback" not in found.stderr


def test_on_another_address_the_host_name_must_be_ours(tmp_path):
    component_task(tmp_path, 1)
    with server(tmp_path, "anna", "ben", host="0.0.0.0", names=["labels.example"]) as running:
        assert running.links["anna"].startswith("http://labels.example:")
        assert "without encryption" in running.output
    with server(tmp_path, "anna", host="127.0.0.2") as running:
        assert httpx.get(running.base + "/").status_code == 401
        assert httpx.get(running.base + "/", headers={"Host": "evil.example"}).status_code == 421


def test_raw_requests_do_not_stop_the_server(tmp_path):
    component_task(tmp_path, 1)
    with server(tmp_path, "anna") as running:
        port = int(running.base.rsplit(":", 1)[1])
        home = f"127.0.0.1:{port}"
        for raw, status in {
            f"GET / HTTP/1.1\r\nHost: {home}\r\nHost: evil.example\r\n\r\n": ("400", "421"),
            "GET / HTTP/1.1\r\n\r\n": ("400", "421"),
            f"GET /static/../../../../etc/passwd HTTP/1.1\r\nHost: {home}\r\n\r\n": ("404",),
            f"POST / HTTP/1.1\r\nHost: {home}\r\nOrigin: http://{home}\r\nContent-Length: 99999999\r\n\r\n": (
                "413",
            ),
            "rubbish\r\n\r\n": ("400",),
        }.items():
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(raw.encode())
                assert sock.recv(4096).split()[1].decode() in status, raw
        assert Person(running.links["anna"]).page()


def test_a_port_in_use_is_said(tmp_path):
    component_task(tmp_path, 1)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot listen"):
        serve(tmp_path, ["anna"], port=taken.getsockname()[1])
    with pytest.raises(InputError, match="cannot listen"):
        serve(tmp_path, ["anna"], host="no.such.host.invalid")


@pytest.mark.parametrize("how", ["deleted", "replaced", "journal", "folder"])
def test_no_answer_is_acknowledged_once_the_file_is_not_that_at_its_path(tmp_path, how):
    folder = tmp_path / "task"
    component_task(folder, 4)
    file, kept = folder / "labels.sqlite", tmp_path / "kept"
    with server(folder, "anna") as running:
        anna = Person(running.links["anna"])
        anna.page()
        anna.give("not")
        if how == "folder":
            shutil.move(folder, kept)
            component_task(folder, 4)
        else:
            moved = file.with_name("labels.sqlite-wal") if how == "journal" else file
            shutil.move(moved, kept)
        if how == "replaced":
            shutil.copy(kept, file)
        for _ in range(2):
            answer = anna.post("spurious")
            assert answer.status_code == 503
            assert "deleted or replaced" in answer.text
            assert "NOT stored" in answer.text
        if how == "folder":
            shutil.rmtree(folder)
        shutil.move(kept, folder if how == "folder" else moved)
        anna.give("spurious")
        assert anna.post("unsure").status_code == 200
    assert [e[-1] for e in events(folder)] == ["not", "spurious", "unsure"]


def test_half_sent_requests_end_at_their_deadline_and_an_address_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("pfungst.label.connection.REQUEST", 0.5)
    monkeypatch.setattr("pfungst.label.connection.PER_ADDRESS", 8)
    component_task(tmp_path, 2)
    with local_server(tmp_path, "anna") as running:
        port = int(running.base.rsplit(":", 1)[1])
        head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: {running.base}\r\nContent-Length: 9\r\n\r\n"
        for sent in (b"", b"GET / HT", head.encode() + b"1"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(sent)
                begun = time.monotonic()
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(100) == b""
                assert 0.3 < time.monotonic() - begun < 5
        with contextlib.ExitStack() as held:
            idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(8)]
            for sock in idle:
                held.enter_context(sock)
            with pytest.raises(httpx.TransportError):
                httpx.get(running.base)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                assert Person(running.links["anna"]).page()
                break
            time.sleep(0.05)
        else:
            pytest.fail("the server is not reached any more")
