"""The web app: every page is made on the server, htmx swaps the part that changes."""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form, Request
from fastapi import Path as UrlPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from pfungst.errors import DataError, PfungstError
from pfungst.label.export import EXPORTS, names
from pfungst.label.security import INNER, Guard, Keys, same
from pfungst.label.store import NotStored
from pfungst.label.study import ADJUDICATOR, OutOfDate, Progress, Study
from pfungst.label.task import MEDIA_TYPES, Item, locate

log = logging.getLogger("pfungst.label")
COOKIE = "pfungst"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Choice:
    """An answer as its button shows it."""

    value: str
    key: str
    label: str
    hint: str


CHOICES = {
    "components": (
        Choice("spurious", "S", "Spurious", "it is not the class"),
        Choice("not", "N", "Not spurious", "it belongs to the class"),
        Choice("unsure", "U", "Unsure", "these images do not tell"),
    ),
    "clusters": (
        Choice("artefact", "A", "Artefact", "it is not the class"),
        Choice("object", "O", "The object", "it belongs to the class"),
        Choice("unsure", "U", "Unsure", "these images do not tell"),
    ),
    "images": (
        Choice("in", "I", "In", "the class is in the image"),
        Choice("out", "O", "Out", "only the spurious feature"),
        Choice("trash", "T", "Trash", "neither of the two"),
    ),
}


@dataclass(frozen=True)
class Visitor:
    """Who sends a request: a labeller, or the coordinator, who adjudicates."""

    name: str
    slug: str
    csrf: str
    coordinator: bool


class Desk:
    """What the pages of one study are made from.

    Attributes:
        people: name by the public part of the address.
        files: of every item, in the order that addresses count.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.task = study, study.task
        self.keys = Keys(study.store.secret)
        self.choices = CHOICES[study.task.kind]
        self.people = {self.keys.slug(name): name for name in [*study.labellers, ADJUDICATOR]}
        self.files = {item.id: list(dict.fromkeys(item.files())) for item in study.task.items}
        self.pages = Jinja2Templates(directory=HERE / "templates")
        env = self.pages.env
        env.trim_blocks = env.lstrip_blocks = True
        env.globals.update(task=study.task, choices=self.choices, two=len(study.labellers) > 1)
        env.filters["share"] = lambda x: "–" if math.isnan(x) else f"{100 * x:.0f} %"
        env.filters["number"] = lambda x: "–" if math.isnan(x) else f"{x:.2f}"

    def image(self, who: Visitor, item: str, file: str) -> str:
        """The address of an image of an item."""
        return f"/w/{who.slug}/image/{self.study.index[item]}/{self.files[item].index(file)}"

    def screen(self, request: Request, who: Visitor, notice: str = "", said: str = "") -> Response:
        """The item to judge now, as a whole page or as the part that htmx swaps in."""
        study, progress = self.study, self.study.progress(who.name)
        upcoming = study.upcoming(who.name)
        item = upcoming[0] if upcoming else None
        disputed = study.disagreements() if who.coordinator else study.items
        done = len(progress.answers.keys() & disputed) if who.coordinator else len(progress.answers)
        skipped = len(progress.skipped.keys() & disputed) if who.coordinator else len(progress.skipped)
        about = "Nothing is left to judge"
        if item:
            word = "finding" if self.task.kind == "clusters" else "component"
            about = f"Now class {item.class_name}, {word} {item.component}"
        context = {
            "who": who,
            "total": len(disputed),
            "done": done,
            "skipped": skipped,
            "notice": notice,
            "say": f"{said}{done} of {len(disputed)} done. {about}.",
            "prefetch": [self.image(who, i.id, f) for i in upcoming[1:] for f in self.files[i.id]],
            "waiting": {n: left for n in study.labellers if (left := study.left(n))},
            **self._undo(progress),
            **self._now(who, item, progress),
        }
        return self._page(request, "screen.html", "label.html", context)

    def _undo(self, progress: Progress) -> dict[str, Any]:
        last = progress.last()
        labels = {choice.value: choice.label for choice in self.choices}
        return {
            "undo": last,
            "undo_number": self.study.index[last.item] if last else -1,
            "undo_sequence": progress.sequence(last.item) if last else 0,
            "undo_label": labels.get(last.answer or "", "Skipped") if last else "",
        }

    def _now(self, who: Visitor, item: Item | None, progress: Progress) -> dict[str, Any]:
        if item is None:
            return {
                "item": None,
                "number": -1,
                "sequence": 0,
                "image": lambda file: "",
                "others": {},
                "again": False,
            }
        labels = {choice.value: choice.label for choice in self.choices}
        people = self.study.labellers if who.coordinator else []
        answers = {name: self.study.progress(name).answers for name in people}
        return {
            "item": item,
            "number": self.study.index[item.id],
            "sequence": progress.sequence(item.id),
            "image": lambda file: self.image(who, item.id, file),
            "others": {n: labels[a[item.id]] for n, a in answers.items() if item.id in a},
            "again": progress.skipped.get(item.id) is not None,
        }

    def results(self, request: Request, who: Visitor) -> Response:
        """Agreement and what is decided, as a whole page or as the part that htmx swaps in."""
        study = self.study
        study.refresh()
        verdicts = list(study.verdicts().values())
        finals, decided = [v.final for v in verdicts], [v.decided_by for v in verdicts]
        progress = {name: study.progress(name) for name in study.labellers}
        context = {
            "who": who,
            "people": [(n, len(p.answers), len(p.skipped), len(study.items)) for n, p in progress.items()],
            "agreement": study.agreement(),
            "finals": [(c.label, finals.count(c.value)) for c in self.choices],
            "unsettled": decided.count("disagreement"),
            "settled": decided.count("adjudication"),
            "open": decided.count("open"),
            "total": len(verdicts),
            "exports": names(study),
        }
        return self._page(request, "live.html", "results.html", context)

    def trouble(self, request: Request, status: int, text: str) -> Response:
        """What is wrong, as a whole page or as the part that htmx swaps in."""
        return self._page(request, "alert.html", "error.html", {"text": text}, status)

    def _page(
        self, request: Request, part: str, whole: str, context: dict[str, Any], status: int = 200
    ) -> Response:
        name = part if "hx-request" in request.headers else whole
        return self.pages.TemplateResponse(request, name, context, status)


def _desk(request: Request) -> Desk:
    return request.app.state.desk


def _visitor(slug: Annotated[str, UrlPath(max_length=64)], request: Request) -> Visitor:
    desk = _desk(request)
    name = desk.people.get(slug)
    if name is None or not same(request.cookies.get(COOKIE), desk.keys.token(name)):
        raise HTTPException(401, "Open the link that you were given; this address needs its token.")
    return Visitor(name, slug, desk.keys.csrf(name), name == ADJUDICATOR)


At = Annotated[Desk, Depends(_desk)]
Who = Annotated[Visitor, Depends(_visitor)]


def _reviewer(who: Who, desk: At) -> Visitor:
    if not (who.coordinator or len(desk.study.labellers) == 1):
        raise HTTPException(403, "Results are on the coordinator's page, so that labellers stay independent.")
    return who


def _coordinator(who: Who) -> Visitor:
    if not who.coordinator:
        raise HTTPException(403, "Only the coordinator settles disagreements.")
    return who


Reviewer = Annotated[Visitor, Depends(_reviewer)]
router = APIRouter()


@router.get("/")
def front() -> Response:
    """Refuses: there is nothing without a link."""
    raise HTTPException(401, "Open the link that you were given; this address alone shows nothing.")


@router.get("/enter/{token}")
def enter(token: Annotated[str, UrlPath(max_length=64)], desk: At) -> Response:
    """A person's link: sets the cookie and goes to the person's page."""
    name = next((n for n in desk.people.values() if same(token, desk.keys.token(n))), None)
    if name is None:
        raise HTTPException(401, "This link is not valid. Ask the coordinator for yours.")
    path = f"/w/{desk.keys.slug(name)}/"
    response = RedirectResponse(path, 303)
    response.set_cookie(
        COOKIE, desk.keys.token(name), path=path, httponly=True, samesite="lax", max_age=180 * 86400
    )
    return response


@router.get("/w/{slug}/")
def home(request: Request, who: Who, desk: At) -> Response:
    """The item to judge; the coordinator's results."""
    return desk.results(request, who) if who.coordinator else desk.screen(request, who)


@router.get("/w/{slug}/adjudicate")
def adjudicate(request: Request, who: Annotated[Visitor, Depends(_coordinator)], desk: At) -> Response:
    """The next disagreement, for the coordinator."""
    return desk.screen(request, who)


@dataclass(frozen=True)
class Sent:
    """The form of a screen: what to do, with the item shown and the one that undo would take back."""

    csrf: Annotated[str, Form(max_length=64)]
    do: Annotated[str, Form(max_length=16)]
    item: Annotated[int, Form(ge=-1, lt=2**31)] = -1
    sequence: Annotated[int, Form(ge=0, lt=2**31)] = 0
    name: Annotated[str, Form(max_length=100)] = ""
    undo_item: Annotated[int, Form(ge=-1, lt=2**31)] = -1
    undo_sequence: Annotated[int, Form(ge=0, lt=2**31)] = 0


@router.post("/w/{slug}/do")
def do(request: Request, who: Who, desk: At, form: Annotated[Sent, Depends()]) -> Response:
    """Store an answer, a skip or an undo, and show what is next."""
    if not same(form.csrf, who.csrf):
        raise HTTPException(403, "This form is not from this app. Reload the page; nothing was stored.")
    undo, study = form.do == "undo", desk.study
    number, step = (form.undo_item, form.undo_sequence) if undo else (form.item, form.sequence)
    if not 0 <= number < len(desk.task.items):
        raise HTTPException(422, "There is no such item. Reload the page; nothing was stored.")
    name = desk.task.items[number].id
    action, answer = (form.do, None) if form.do in ("undo", "skip") else ("answer", form.do)
    notice = ""
    try:
        added = study.act(who.name, name, step, action, answer, form.name)
        if not added and action == "answer" and study.progress(who.name).answers.get(name) != answer:
            notice = "That item was already handled in another tab; what you gave first was kept. "
            notice += "Undo changes it."
    except OutOfDate as error:
        notice = error.message[:1].upper() + error.message[1:] + "; this is the current state."
    if "hx-request" not in request.headers and not notice:
        return RedirectResponse(f"/w/{who.slug}/{'adjudicate' if who.coordinator else ''}", 303)
    labels = {"undo": "Undone. ", "skip": "Skipped. "}
    return desk.screen(request, who, notice, labels.get(form.do, f"Stored: {form.do}. "))


@router.get("/w/{slug}/results")
def results(request: Request, who: Reviewer, desk: At) -> Response:
    """Agreement and what is decided."""
    return desk.results(request, who)


@router.get("/w/{slug}/export/{name}")
def export(name: str, who: Reviewer, desk: At) -> Response:
    """The answers as a file."""
    if name not in names(desk.study):
        raise HTTPException(404, "There is no such export.")
    desk.study.refresh()
    media_type, make = EXPORTS[name]
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(make(desk.study), 200, headers, media_type)


@router.get("/w/{slug}/image/{item}/{number}")
def show(item: int, number: int, who: Who, desk: At) -> Response:
    """An image of an item."""
    files = desk.files[desk.task.items[item].id] if 0 <= item < len(desk.task.items) else []
    if not 0 <= number < len(files):
        raise HTTPException(404, "There is no such image.")
    try:
        path = locate(desk.study.folder, files[number])
    except DataError:
        raise HTTPException(404, "The image is no longer there.") from None
    headers = {"Cache-Control": "private, max-age=3600"}
    return FileResponse(path, 200, headers, MEDIA_TYPES[path.suffix.lower()])


async def _failed(request: Request, error: Exception) -> Response:
    """The page that says what went wrong, of any error."""
    status, text = 500, INNER  # the guard logs the error
    if isinstance(error, HTTPException):
        unknown = error.detail in ("Not Found", "Method Not Allowed")
        status, text = error.status_code, "There is no such page." if unknown else str(error.detail)
    elif isinstance(error, RequestValidationError):
        status, text = 422, "The request is not complete or not well formed; nothing was stored."
    elif isinstance(error, PfungstError):
        log.error("%s", error)
        status = 503 if isinstance(error, NotStored) else 422
        text = f"{error.message[:1].upper()}{error.message[1:]}."
        if status == 503 and request.method == "POST":
            text += " Your answer was NOT stored. Tell the coordinator, then answer again."
    return _desk(request).trouble(request, status, text)


def create_app(study: Study, hosts: Collection[str]) -> ASGIApp:
    """The labelling app of one study.

    Args:
        study: the task, its labellers and their answers.
        hosts: the values of Host (with port) under which browsers may reach it.

    Returns:
        An ASGI app with all its guards.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.desk = Desk(study)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.include_router(router)
    for kind in (HTTPException, RequestValidationError, PfungstError, Exception):
        app.add_exception_handler(kind, _failed)
    return Guard(app, hosts)
