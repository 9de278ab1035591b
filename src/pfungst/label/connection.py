"""Connections that cannot be held open: a deadline for a request and its response, a bound per address."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST = 20.0
"""Seconds from a connection, or the first byte of a further request, to the last byte of the request."""

RESPONSE = 120.0
"""Seconds that a response may take to be fetched."""

PER_ADDRESS = 256
"""Connections of one address at a time: a browser holds 6, and many people may share an address."""


class Connection(H11Protocol):
    """Uvicorn's connection, which waits for a whole request as long as it is not closed."""

    _held: ClassVar[Counter[str]] = Counter()
    _timer: asyncio.TimerHandle | None = None
    _address = ""

    def connection_made(self, transport: Any) -> None:
        """Count the connection, or close it at once where its address has too many."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._held[self._address] += 1
        if self._held[self._address] > PER_ADDRESS:
            transport.abort()
        else:
            self._within(REQUEST)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the connection from the count."""
        self._within(None)
        self._held[self._address] -= 1
        if not self._held[self._address]:
            del self._held[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Keep the deadline while parts of a request come, change it when the request is whole."""
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._within(RESPONSE)
        elif self._timer is None:
            self._within(REQUEST)

    def on_response_complete(self) -> None:
        """The deadline is kept; uvicorn has one of its own for idle connections."""
        self._within(None)
        super().on_response_complete()

    def _within(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
