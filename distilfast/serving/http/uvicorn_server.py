"""uvicorn as it is used here: its configuration, its signals, and connections that are too slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from distilfast.serving.http.settings import Settings


def uvicorn_config(app: Any, settings: Settings) -> uvicorn.Config:
    """For ``app``, with the limits of the settings."""
    timeout = settings.header_timeout

    class Protocol(TimedProtocol):
        limit = timeout

    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        limit_concurrency=settings.most_connections,
        timeout_graceful_shutdown=int(settings.drain_timeout),
        ssl_certfile=settings.certificate or None,
        ssl_keyfile=settings.private_key or None,
        proxy_headers=False,  # the client's address is the connection's, whatever a header claims
    )


LINGER_S = 0.1
"""Seconds in which, at the end, the request of a connection that was just accepted is read."""


class Server(uvicorn.Server):
    """uvicorn, which a second signal of either kind ends at once, and which loses no request when it ends.

    By itself it closes a connection that it has accepted and not read from yet.
    """

    on_end: Callable[[], None] | None = None
    """Called where it begins to end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, and then end."""
        if self.on_end is not None:
            self.on_end()
        for server in self.servers:
            server.close()
        await asyncio.sleep(LINGER_S)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """As a signal handler."""
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection whose request is not there ``limit`` seconds after it began, body included.

    uvicorn itself waits for ever for the rest of a request, so a few hundred slow clients would hold every connection.
    """

    limit = 10.0
    _slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The first request is due."""
        super().connection_made(transport)
        self._await_request()

    def on_message_begin(self) -> None:
        """The first byte of a request is there."""
        self._await_request()
        super().on_message_begin()
        self.scope["state"]["arrival"] = time.monotonic()

    def on_message_complete(self) -> None:
        """All of it is."""
        self._stop()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._stop()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        self._stop()
        self._slow = self.loop.call_later(self.limit, self._too_slow)

    def _stop(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _too_slow(self) -> None:
        with contextlib.suppress(Exception):
            self.transport.abort()
