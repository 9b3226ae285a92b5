"""The process that serves: uvicorn, its signals, and connections that are too slow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from distilfast.errors import ConfigError, DistilfastError
from distilfast.serving.http.app import create_app, log_to_stderr
from distilfast.serving.http.service import Service
from distilfast.serving.http.settings import Settings

LOG = logging.getLogger("distilfast.serve")


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT: then accept nothing more, answer what waits, and end; a second one ends at once.

    SIGHUP loads the models again and replaces them without losing a request. Raises ConfigError where the address
    cannot be had.
    """
    log_to_stderr(settings.log_level)
    app = create_app(settings)
    server = Server(_config(app, settings))
    listener = _listener(settings)
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.certificate else "http"
    LOG.info(f"Serving {', '.join(each.name for each in settings.models)} at {scheme}://{host}:{port}")
    loading = _Loading(app.state.service, server)
    loading.start()
    for each in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises what it was sent again, at the end
        signal.signal(each, lambda *_: None)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=_reload, args=(app.state.service,)).start())
    server.run(sockets=[listener])
    if loading.error is not None:
        raise loading.error
    if not server.started:
        raise ConfigError("The server has not started; its log says why.")


class _Loading(threading.Thread):
    """Loads the models while the server answers that it is alive and not ready; where it cannot, the server ends."""

    def __init__(self, service: Service, server: Server) -> None:
        super().__init__(daemon=True)
        self._service, self._server = service, server
        self.error: DistilfastError | None = None

    def run(self) -> None:
        begin = time.monotonic()
        try:
            self._service.load_models()
        except DistilfastError as error:
            self.error = error
            self._server.should_exit = True
        else:
            LOG.info(f"Ready after {time.monotonic() - begin:.1f} s")


def _config(app: Any, settings: Settings) -> uvicorn.Config:
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


def _listener(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{settings.host}:{settings.port} cannot be listened at: {reason}.") from None
    listener.listen(2048)
    listener.set_inheritable(True)
    return listener


def _reload(service: Service) -> None:
    try:
        service.load_models()
        LOG.info("The models have been loaded again.")
    except DistilfastError as error:
        LOG.error(f"The models stay as they are: {error}")


class Server(uvicorn.Server):
    """uvicorn, which a second signal of either kind ends at once."""

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
