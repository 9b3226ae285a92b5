"""``distilfast serve``: where it listens, one process or several, and signals."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time

from distilfast.errors import ConfigError, DistilfastError
from distilfast.serving.http import systemd
from distilfast.serving.http.app import create_app, log_to_stderr
from distilfast.serving.http.service import Service
from distilfast.serving.http.settings import Settings
from distilfast.serving.http.uvicorn_server import Server, uvicorn_config
from distilfast.serving.http.workers import Workers

LOG = logging.getLogger("distilfast.serve")


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT: then accept nothing more, answer what waits, and end; a second one ends at once.

    SIGHUP loads the models again and replaces them without losing a request. Raises ConfigError where the address
    cannot be had, and what keeps the models from being loaded.
    """
    log_to_stderr(settings.log_level)
    listener = listening_socket(settings)
    scheme = "https" if settings.certificate else "http"
    models = ", ".join(each.name for each in settings.models)
    LOG.info(f"Loading {models}, to be served at {_address(listener, scheme)}")
    if settings.workers > 1:
        Workers(settings, listener).run()
    else:
        _serve_alone(settings, listener)
    LOG.info("Ended.")


def _serve_alone(settings: Settings, listener: socket.socket) -> None:
    app = create_app(settings)
    server = Server(uvicorn_config(app, settings))
    for each in (signal.SIGTERM, signal.SIGINT):  # until uvicorn has handlers, and for what it raises again at its end
        signal.signal(each, server.handle_exit)
    loading = _Loading(app.state.service, server)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=_reload, args=(app.state.service,)).start())
    loading.start()
    server.on_end = lambda: systemd.notify("STOPPING=1")
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
        self.error = self._service.load_or_say_why()
        if self.error is not None:
            self._server.should_exit = True
        else:
            LOG.info(f"Ready after {time.monotonic() - begin:.1f} s")
            systemd.notify("READY=1")


def _reload(service: Service) -> None:
    systemd.notify_reloading()
    error = service.load_or_say_why()
    if error is None:
        LOG.info("The models have been loaded again.")
    else:
        LOG.error(f"The models stay as they are: {error}")
    systemd.notify("READY=1")


def listening_socket(settings: Settings) -> socket.socket:
    """The one that the service manager has passed, else one at the settings' address; raises ConfigError."""
    passed = systemd.passed_socket()
    if passed is None:
        return _bound(settings)
    for name in ("host", "port"):
        if name in settings.origins:
            passed.close()
            raise ConfigError(f"{name} is set by {settings.origins[name]}, and a socket was passed; leave one out.")
    return passed


def _bound(settings: Settings) -> socket.socket:
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


def _address(listener: socket.socket, scheme: str) -> str:
    name = listener.getsockname()
    return f"{scheme}://{name[0]}:{name[1]}" if isinstance(name, tuple) else f"the socket {name}"
