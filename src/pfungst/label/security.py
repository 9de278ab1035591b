"""What stands between the browser and the app: links, CSRF tokens, and the checks on every request."""

from __future__ import annotations

import hashlib
import hmac
import logging
from base64 import urlsafe_b64encode
from collections.abc import Collection

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("pfungst.label")

MAX_BODY = 16 * 1024
MAX_URL = 2048
INNER = "Something went wrong on the server; its terminal shows what. Reload the page to see what is stored."
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Keys:
    """Everything secret, derived from the answers file's one secret: links stay valid after a restart.

    Args:
        secret: 32 random bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def slug(self, person: str) -> str:
        """The public part of a person's addresses."""
        return self._derive("slug", person)[:12]

    def token(self, person: str) -> str:
        """What a person's link carries and the cookie keeps."""
        return self._derive("token", person)

    def csrf(self, person: str) -> str:
        """What a person's forms carry."""
        return self._derive("csrf", person)

    def _derive(self, use: str, person: str) -> str:
        digest = hmac.digest(self._secret, f"{use}\0{person}".encode(), hashlib.sha256)
        return urlsafe_b64encode(digest).decode().rstrip("=")


def same(given: str | None, expected: str) -> bool:
    """Compare a secret in constant time."""
    return given is not None and hmac.compare_digest(given.encode(), expected.encode())


class Guard:
    """ASGI middleware: Host, Origin, sizes, security headers, and no stack trace to the browser.

    Args:
        app: what to protect.
        hosts: the values of Host that are ours, with port, lower case.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it before the app sees it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": _headers(message.get("headers", []))}
            await send(message)

        async def refuse(status: int, text: str) -> None:
            await PlainTextResponse(text, status, {"Connection": "close"})(scope, receive, guarded_send)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refuse(*refusal)
            return
        body = await _body(receive)
        if body is None:
            return
        if len(body) > MAX_BODY:
            await refuse(413, "The request is too large.")
            return
        given = False

        async def whole_body() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self.app(scope, whole_body, guarded_send)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"].split("/")[1:2])
            if not started:
                await PlainTextResponse(INNER, 500)(scope, receive, guarded_send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value)
        host = [h.decode("latin-1").lower() for h in headers.get(b"host", [])]
        if len(host) != 1 or host[0] not in self.hosts:
            return (
                421,
                "This server does not answer under that host name. Use the link that was printed at its "
                "start.",
            )
        origins = [o.decode("latin-1").lower() for o in headers.get(b"origin", [])]
        writes = scope["method"] not in ("GET", "HEAD")
        if len(origins) > 1 or (writes and not origins) or any(not self._ours(o) for o in origins):
            return 403, "The request came from another page than this app's."
        if writes and headers.get(b"sec-fetch-site", [b"same-origin"]) != [b"same-origin"]:
            return 403, "The request came from another page than this app's."
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"") > MAX_URL:
            return 414, "The address is too long."
        length = headers.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or int(length) > MAX_BODY:
            return 413, "The request is too large."
        return None

    def _ours(self, origin: str) -> bool:
        scheme, _, host = origin.partition("://")
        return scheme in ("http", "https") and host in self.hosts


def _headers(sent: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers of a response with those that every one has."""
    extra = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
    if b"cache-control" not in {name.lower() for name, _ in sent}:
        extra.append((b"cache-control", b"no-store"))
    return [*sent, *extra]


async def _body(receive: Receive) -> bytes | None:
    """The body of a request, up to what shows that it is too large; None where the browser has gone."""
    body, more = b"", True
    while more and len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
