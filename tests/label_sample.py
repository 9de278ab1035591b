"""Task folders made on the spot, and a server process, for the tests of the labelling app."""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from pfungst.label import ComponentItem, ComponentTask, ImageItem, ImageTask, ShownImage, Study, write_task
from pfungst.label.app import create_app
from pfungst.label.connection import Connection
from pfungst.label.server import links

SOURCE = Path(__file__).parents[1] / "src"
MODEL = {"architecture": "resnet18", "weights": "sha256:00ff", "features": 512}
CLASSES = {207: "golden retriever", 99: "goose", 391: "coho"}
BASE = "http://127.0.0.1:8765"
HTMX = {"Origin": BASE, "HX-Request": "true"}


class Visit:
    """One person's client of an app in this process."""

    def __init__(self, app, link=None):
        self.http = TestClient(app, base_url=BASE, follow_redirects=False, raise_server_exceptions=True)
        self.home = "/"
        if link is not None:
            answer = self.http.get(link)
            assert answer.status_code == 303
            self.home = answer.headers["location"]
        self.fields = {}

    def get(self, path="", **options):
        answer = self.http.get(self.home + path, **options)
        self.fields = (
            dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', answer.text)) or self.fields
        )
        return answer

    def post(self, do, headers=HTMX, **changes):
        answer = self.http.post(self.home + "do", data={**self.fields, "do": do, **changes}, headers=headers)
        found = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', answer.text))
        self.fields = found or self.fields
        return answer


def picture(path: Path, seed: int, size: int = 96) -> str:
    """A smooth random picture, different for every seed; returns its path relative to the task folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(seed, size, path.suffix))
    return f"{path.parent.name}/{path.name}"


@cache
def _encoded(seed: int, size: int, suffix: str) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    kind = Image.registered_extensions()[suffix]
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def component_task(
    folder: Path, count: int = 6, name: str = "{:03d}", classes: dict[int, str] = CLASSES
) -> ComponentTask:
    """A task of ``count`` components over the classes, with pictures in ``folder/images``."""
    items = []
    for i in range(count):
        k = list(classes)[i % len(classes)]
        stem = name.format(i)
        shots = [
            ShownImage(
                file=picture(folder / "images" / f"{stem}-{j}.png", 100 * i + j),
                id=f"train/{i}-{j}",
                gradcam=picture(folder / "images" / f"{stem}-{j}-cam.png", 100 * i + j + 50),
            )
            for j in range(5)
        ]
        items.append(
            ComponentItem(
                id=f"class-{k}-component-{i}",
                class_index=k,
                class_name=classes[k],
                component=i,
                alpha=[5.0 - j for j in range(5)],
                confidence=[0.99 - 0.01 * j for j in range(5)],
                images=shots,
                npfv=picture(folder / "images" / f"{stem}-npfv.png", 100 * i + 90),
                npfv_confidence=0.98,
                npfv_gradcam=picture(folder / "images" / f"{stem}-npfv-cam.png", 100 * i + 91),
            )
        )
    task = ComponentTask(title="Components of resnet18", model=MODEL, items=items)
    write_task(folder, task)
    return task


def image_task(folder: Path, count: int = 6) -> ImageTask:
    """A task of ``count`` pool images for one component."""
    reference = [picture(folder / "images" / f"reference-{j}.png", 9000 + j) for j in range(4)]
    items = [
        ImageItem(
            id=f"pool/{i:06d}",
            file=picture(folder / "images" / f"pool-{i}.jpg", 500 + i),
            class_index=207,
            class_name="golden retriever",
            component=3,
            alpha=4.0 - 0.1 * i,
            predictions={"resnet50": 207, "convnext": "tennis ball"},
            reference=reference,
        )
        for i in range(count)
    ]
    task = ImageTask(title="Pool images for golden retriever 3", model=MODEL, items=items)
    write_task(folder, task)
    return task


@dataclass
class Server:
    """A running server process.

    Args:
        base: scheme, host and port.
        links: address of every labeller and, with two or more, of the coordinator.
        output: everything printed at the start.
    """

    process: subprocess.Popen[str]
    base: str
    links: dict[str, str]
    output: str


@contextlib.contextmanager
def server(folder: Path, *labellers: str, port: int = 0, **options: Any) -> Iterator[Server]:
    """``pfungst.label.serve`` in a process of its own, on a free port, killed at the end."""
    code = f"from pfungst.label import serve; serve({str(folder)!r}, {list(labellers)!r}, port={port}, **{options!r})"
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    try:
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Every answer"):
                break
        output = "".join(lines)
        links = {m[1].strip(): m[2] for m in re.finditer(r"^  (.+?)  (http://\S+/enter/\S+)", output, re.M)}
        assert links, output
        base = next(iter(links.values())).split("/enter/")[0]
        yield Server(process, base, links, output)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


class Person:
    """A labeller or the coordinator without a browser."""

    def __init__(self, link: str) -> None:
        base = link.split("/enter/")[0]
        self.http = httpx.Client(base_url=base, headers={"Origin": base}, timeout=30)
        answer = self.http.get(link)
        assert answer.status_code == 303, answer.text
        self.home = answer.headers["location"]
        self.csrf = ""

    def page(self, path: str = "") -> str:
        """The current page, whose form is remembered."""
        answer = self.http.get(self.home + path)
        assert answer.status_code == 200, answer.text
        return self.remember(answer.text)

    def remember(self, text: str) -> str:
        self.fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', text))
        self.csrf = self.fields.get("csrf", self.csrf)
        return text

    def post(self, do: str, **changes: Any) -> httpx.Response:
        """Send the remembered form as htmx does."""
        data = {**self.fields, "do": do, **{k: str(v) for k, v in changes.items()}}
        return self.http.post(self.home + "do", data=data, headers={"HX-Request": "true"})

    def give(self, do: str) -> str:
        """Send the remembered form and remember the next one."""
        answer = self.post(do)
        assert answer.status_code == 200, answer.text
        return self.remember(answer.text)


@dataclass
class Local:
    """A server in a thread of this process: starts at once, cannot be killed."""

    base: str
    links: dict[str, str]
    study: Study


@contextlib.contextmanager
def local_server(folder: Path, *labellers: str) -> Iterator[Local]:
    """The app behind a real uvicorn on a free port of 127.0.0.1."""
    study = Study(folder, labellers)
    sock = socket.create_server(("127.0.0.1", 0), backlog=64)
    base = f"http://127.0.0.1:{sock.getsockname()[1]}"
    app = create_app(study, {base.removeprefix("http://")})
    running = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", http=Connection)
    )
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        shown = links(study, base)
        yield Local(base, {**shown.labellers, "coordinator": shown.coordinator}, study)
    finally:
        running.should_exit = running.force_exit = True
        thread.join()
        sock.close()
        study.close()


def answer_under_load(running, names, target, acknowledged) -> list[threading.Thread]:
    """Let people answer until the server ends or refuses; returns once one of them has `target` answers.

    Args:
        running: a server. acknowledged: gets (person, item, sequence) of each answer that was acknowledged.
    """
    enough = threading.Event()

    def work(name):
        person, done = Person(running.links[name]), 0
        person.page()
        while True:
            before = dict(person.fields)
            try:
                answer = person.post("in")
            except httpx.TransportError:
                return
            if answer.status_code != 200:
                return
            acknowledged.append((name, before["item"], int(before["sequence"])))
            person.remember(answer.text)
            done += 1
            if done == target:
                enough.set()

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    return threads
