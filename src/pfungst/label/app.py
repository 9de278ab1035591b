"""The web app: every page is made on the server, htmx swaps the part that changes."""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Request
from fastapi import Path as UrlPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from pfungst.errors import DataError, PfungstError
from pfungst.label.export import EXPORTS, names
from pfungst.label.security import INNER, Guard, Keys, same
from pfungst.label.store import NotStored
from pfungst.label.study import ADJUDICATOR, OutOfDate, Study
from pfungst.label.task import MEDIA_TYPES, locate

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


def create_app(study: Study, hosts: Collection[str]) -> ASGIApp:
    """The labelling app of one study.

    Args:
        study: the task, its labellers and their answers.
        hosts: the values of Host (with port) under which browsers may reach it.

    Returns:
        An ASGI app with all its guards.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    keys = Keys(study.store.secret)
    people = {keys.slug(name): name for name in [*study.labellers, ADJUDICATOR]}
    by_token = {keys.token(name): name for name in people.values()}
    files = {item.id: list(dict.fromkeys(item.files())) for item in study.task.items}
    pages = Jinja2Templates(directory=HERE / "templates")
    pages.env.trim_blocks = pages.env.lstrip_blocks = True
    pages.env.globals.update(task=study.task, choices=CHOICES[study.task.kind], two=len(study.labellers) > 1)
    pages.env.filters["share"] = lambda x: "–" if math.isnan(x) else f"{100 * x:.0f} %"
    pages.env.filters["number"] = lambda x: "–" if math.isnan(x) else f"{x:.2f}"
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")

    def visitor(slug: Annotated[str, UrlPath(max_length=64)], request: Request) -> Visitor:
        name = people.get(slug)
        if name is None or not same(request.cookies.get(COOKIE), keys.token(name)):
            raise HTTPException(401, "Open the link that you were given; this address needs its token.")
        return Visitor(name, slug, keys.csrf(name), name == ADJUDICATOR)

    def reviewer(who: Annotated[Visitor, Depends(visitor)]) -> Visitor:
        if not (who.coordinator or len(study.labellers) == 1):
            raise HTTPException(
                403, "Results are on the coordinator's page, so that labellers stay independent."
            )
        return who

    def coordinator(who: Annotated[Visitor, Depends(visitor)]) -> Visitor:
        if not who.coordinator:
            raise HTTPException(403, "Only the coordinator settles disagreements.")
        return who

    Who = Annotated[Visitor, Depends(visitor)]

    def image(who: Visitor, item: str, file: str) -> str:
        return f"/w/{who.slug}/image/{study.index[item]}/{files[item].index(file)}"

    def screen(request: Request, who: Visitor, notice: str = "", said: str = "") -> Response:
        """The item to judge now, as a whole page or as the part that htmx swaps in."""
        upcoming = study.upcoming(who.name)
        progress = study.progress(who.name)
        item = upcoming[0] if upcoming else None
        labels = {choice.value: choice.label for choice in CHOICES[study.task.kind]}
        last = progress.last()
        answers = study.answers()
        context: dict[str, Any] = {
            "who": who,
            "item": item,
            "number": study.index[item.id] if item else -1,
            "sequence": progress.sequence(item.id) if item else 0,
            "undo": last,
            "undo_number": study.index[last.item] if last else -1,
            "undo_sequence": progress.sequence(last.item) if last else 0,
            "undo_label": labels.get(last.answer or "", "Skipped") if last else "",
            "total": len(study.disagreements()) if who.coordinator else len(study.items),
            "notice": notice,
            "image": lambda file: image(who, item.id, file) if item else "",
            "prefetch": [image(who, i.id, f) for i in upcoming[1:] for f in files[i.id]],
            "others": {n: labels[a[item.id]] for n, a in answers.items() if item and item.id in a}
            if who.coordinator
            else {},
            "waiting": {
                n: len(study.items) - len(a) for n, a in answers.items() if len(a) < len(study.items)
            },
            "again": progress.skipped.get(item.id) is not None if item else False,
        }
        disputed = study.disagreements() if who.coordinator else study.items
        context["done"] = sum(i in disputed for i in progress.answers)
        context["skipped"] = sum(i in disputed for i in progress.skipped)
        about = (
            f"Now class {item.class_name}, component {item.component}" if item else "Nothing is left to judge"
        )
        context["say"] = f"{said}{context['done']} of {context['total']} done. {about}."
        name = "screen.html" if "hx-request" in request.headers else "label.html"
        return pages.TemplateResponse(request, name, context)

    @app.get("/")
    def front(request: Request) -> Response:
        raise HTTPException(401, "Open the link that you were given; this address alone shows nothing.")

    @app.get("/enter/{token}")
    def enter(token: Annotated[str, UrlPath(max_length=64)], request: Request) -> Response:
        name = next((n for t, n in by_token.items() if same(token, t)), None)
        if name is None:
            raise HTTPException(401, "This link is not valid. Ask the coordinator for yours.")
        path = f"/w/{keys.slug(name)}/"
        response = RedirectResponse(path, 303)
        response.set_cookie(
            COOKIE, keys.token(name), path=path, httponly=True, samesite="lax", max_age=180 * 86400
        )
        return response

    @app.get("/w/{slug}/")
    def home(request: Request, who: Who) -> Response:
        return results(request, who) if who.coordinator else screen(request, who)

    @app.get("/w/{slug}/adjudicate")
    def adjudicate(request: Request, who: Annotated[Visitor, Depends(coordinator)]) -> Response:
        return screen(request, who)

    @app.post("/w/{slug}/do")
    def do(
        request: Request,
        who: Who,
        csrf: Annotated[str, Form(max_length=64)],
        do: Annotated[str, Form(max_length=16)],
        item: Annotated[int, Form(ge=-1, lt=2**31)] = -1,
        sequence: Annotated[int, Form(ge=0, lt=2**31)] = 0,
        undo_item: Annotated[int, Form(ge=-1, lt=2**31)] = -1,
        undo_sequence: Annotated[int, Form(ge=0, lt=2**31)] = 0,
    ) -> Response:
        if not same(csrf, who.csrf):
            raise HTTPException(403, "This form is not from this app. Reload the page; nothing was stored.")
        number, step = (undo_item, undo_sequence) if do == "undo" else (item, sequence)
        if not 0 <= number < len(study.task.items):
            raise HTTPException(422, "There is no such item. Reload the page; nothing was stored.")
        name = study.task.items[number].id
        action, answer = (do, None) if do in ("undo", "skip") else ("answer", do)
        notice = ""
        try:
            added = study.act(who.name, name, step, action, answer)
            if not added and action == "answer" and study.progress(who.name).answers.get(name) != answer:
                notice = "That item was already handled in another tab; what you gave first was kept. Undo changes it."
        except OutOfDate as error:
            notice = error.message[:1].upper() + error.message[1:] + "; this is the current state."
        if "hx-request" not in request.headers and not notice:
            return RedirectResponse(f"/w/{who.slug}/{'adjudicate' if who.coordinator else ''}", 303)
        labels = {"undo": "Undone. ", "skip": "Skipped. "}
        return screen(request, who, notice, labels.get(do, f"Stored: {do}. "))

    @app.get("/w/{slug}/results")
    def results(request: Request, who: Annotated[Visitor, Depends(reviewer)]) -> Response:
        study.refresh()
        verdicts = list(study.verdicts().values())
        finals = [v.final for v in verdicts]
        context = {
            "who": who,
            "people": [
                (n, len(study.progress(n).answers), len(study.progress(n).skipped), len(study.items))
                for n in study.labellers
            ],
            "agreement": study.agreement(),
            "finals": [(c.label, finals.count(c.value)) for c in CHOICES[study.task.kind]],
            "unsettled": sum(v.decided_by == "disagreement" for v in verdicts),
            "settled": sum(v.decided_by == "adjudication" for v in verdicts),
            "open": sum(v.decided_by == "open" for v in verdicts),
            "total": len(verdicts),
            "exports": names(study),
        }
        name = "live.html" if "hx-request" in request.headers else "results.html"
        return pages.TemplateResponse(request, name, context)

    @app.get("/w/{slug}/export/{name}")
    def export(name: str, who: Annotated[Visitor, Depends(reviewer)]) -> Response:
        if name not in names(study):
            raise HTTPException(404, "There is no such export.")
        study.refresh()
        media_type, make = EXPORTS[name]
        return Response(
            make(study), 200, {"Content-Disposition": f'attachment; filename="{name}"'}, media_type
        )

    @app.get("/w/{slug}/image/{item}/{number}")
    def show(item: int, number: int, who: Who) -> Response:
        if not (0 <= item < len(study.task.items)) or not (
            0 <= number < len(files[study.task.items[item].id])
        ):
            raise HTTPException(404, "There is no such image.")
        try:
            path = locate(study.folder, files[study.task.items[item].id][number])
        except DataError:
            raise HTTPException(404, "The image is no longer there.") from None
        headers = {"Cache-Control": "private, max-age=3600"}
        return FileResponse(path, 200, headers, MEDIA_TYPES[path.suffix.lower()])

    def trouble(request: Request, status: int, text: str) -> Response:
        if "hx-request" in request.headers:
            return HTMLResponse(pages.get_template("alert.html").render(text=text), status)
        return pages.TemplateResponse(request, "error.html", {"text": text}, status)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        unknown = error.detail in ("Not Found", "Method Not Allowed")
        return trouble(request, error.status_code, "There is no such page." if unknown else str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return trouble(request, 422, "The request is not complete or not well formed; nothing was stored.")

    @app.exception_handler(PfungstError)
    async def failed(request: Request, error: PfungstError) -> Response:
        log.error("%s", error)
        stored = isinstance(error, NotStored)
        text = f"{error.message[:1].upper()}{error.message[1:]}."
        if stored and request.method == "POST":
            text += " Your answer was NOT stored. Tell the coordinator, then answer again."
        return trouble(request, 503 if stored else 422, text)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return trouble(request, 500, INNER)  # the guard logs the error

    return Guard(app, hosts)
