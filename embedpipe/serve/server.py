"""uvicorn as it is run here: one process, nothing logged of requests, and connections that say nothing are closed."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from .job import MOST_CONNECTIONS

HEAD_SECONDS = 10.0  # for the head of a request to arrive on a new connection
_HEAD_BYTES = 64 << 10


class _ImpatientProtocol(H11Protocol):
    """Closes a connection at once where there are too many, and one that brings no request in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._start()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._start()
        super().data_received(data)
        if self._answering():
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._stop()
        super().connection_lost(exc)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._expire)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if not self._answering():
            self.transport.abort()


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self._ready()


def make_server(app: ASGIApp, ready: Callable[[], None]) -> uvicorn.Server:
    """A server for `app`; set its `should_exit` to end it."""
    config = uvicorn.Config(
        app,
        http=_ImpatientProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # addresses may hold the token
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        backlog=MOST_CONNECTIONS,
    )
    return _Server(config, ready)


def run(app: ASGIApp, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve on a listening socket until interrupted. Raises KeyboardInterrupt then."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what clients do wrong is no news here
    asyncio.run(make_server(app, ready).serve(sockets=[listener]))
