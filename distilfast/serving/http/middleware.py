"""What every request passes through: its id and log line, and its API key."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distilfast.serving.http.keys import Keys

LOG = logging.getLogger("distilfast.serve")
REQUEST_ID = "x-request-id"
OPEN = ("/health", "/live", "/")
"""Paths that need no key: what an orchestrator asks for, and the status page, which has no data of its own."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def header(scope: Scope, name: str) -> str | None:
    """The value of the first header that is called ``name``, which is in lower case; None where there is none."""
    wanted = name.encode("ascii")
    for each, value in scope["headers"]:
        if each == wanted:
            return str(value, "latin-1")
    return None


def error_body(path: str, error: str, kind: str) -> dict[str, Any]:
    """One sentence, in OpenAI's form under /v1 and else in that of text-embeddings-inference."""
    if not path.startswith("/v1/"):
        return {"error": error, "error_type": kind}
    invalid = "invalid_request_error"
    kinds = {"Validation": invalid, "Unauthorized": invalid, "Overloaded": "rate_limit_error"}
    return {"error": {"message": error, "type": kinds.get(kind, "server_error"), "param": None, "code": None}}


async def refuse(
    scope: Scope, send: Send, status: int, error: str, kind: str, headers: dict[str, str] | None = None
) -> None:
    """An answer with one sentence, see ``error_body``."""
    body = json.dumps(error_body(scope["path"], error, kind)).encode()
    pairs = {"content-type": "application/json", "content-length": str(len(body))} | (headers or {})
    raw = [(name.encode(), value.encode()) for name, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


DEADLINE = "x-deadline-ms"
"""Header of a request: within how many milliseconds it has to be answered."""

UNREAD_SHARE = 0.5
"""Of its deadline that a request may have waited before anybody looks at it."""


class Overdue:
    """Answers 429 to a request that has waited too long to be read, before its body costs anything.

    Where more arrive than HTTP alone can handle, they wait for the event loop, of which the scheduler knows nothing.
    Answering each of them would make all of them late.
    """

    def __init__(self, app: ASGIApp, deadline: Callable[[], float | None]) -> None:
        """``deadline``: the seconds of a request that names none."""
        self._app, self._deadline = app, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] == "http" and scope["method"] == "POST":
            waited = waited_unread(scope)
            deadline = _named_deadline(scope) or self._deadline()
            if deadline is not None and waited > UNREAD_SHARE * deadline:
                await refuse(scope, send, 429, unread_too_long(waited), "Overloaded", {"retry-after": "1"})
                return
        await self._app(scope, receive, send)


def waited_unread(scope: Scope) -> float:
    """Seconds since the first byte of a request arrived; 0 where the server does not say."""
    arrival = scope.get("state", {}).get("arrival")
    return 0.0 if arrival is None else max(0.0, time.monotonic() - arrival)


def unread_too_long(waited: float) -> str:
    """The sentence of a refusal after ``waited`` seconds."""
    return f"The request is refused. It has waited for {1e3 * waited:.1f} ms to be read."


def _named_deadline(scope: Scope) -> float | None:
    """Seconds; None where there is no header, or one that is no positive number, which is an error elsewhere."""
    try:
        named = float(header(scope, DEADLINE) or "nan") / 1e3
    except ValueError:
        return None
    return named if named > 0 else None


class RequestLog:
    """Gives each request an id, its client's own where that is plain, and logs a line of JSON without any body."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, int, float], None], name: Callable[[str], None]) -> None:
        """``observe`` is told the route, the status and the seconds of each request, and ``name`` its id."""
        self._app, self._observe, self._name = app, observe, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, REQUEST_ID)
        name = given if given and _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name
        self._name(name)
        begin, status = time.perf_counter(), 499  # as nginx logs a client that has gone

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (REQUEST_ID.encode(), name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", "unknown")
            self._observe(route, status, seconds)
            if LOG.isEnabledFor(logging.INFO):
                LOG.info(json.dumps(_line(scope, name, status, seconds)))


def _line(scope: Scope, name: str, status: int, seconds: float) -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": name,
        "client": (scope.get("client") or ("-",))[0],
        "key": scope["state"].get("key"),
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "ms": round(1e3 * seconds, 2),
    }


class KeyCheck:
    """Answers 401 to a request without one of the keys, in ``Authorization: Bearer`` or ``x-api-key``."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        """``keys`` are read again when their file changes."""
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        scheme, _, bearer = (header(scope, "authorization") or "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else header(scope, "x-api-key")
        owner = self._keys.owner(given) if given else None
        if owner is None:
            what = "The API key is not known." if given else "An API key is needed, as Authorization: Bearer KEY."
            await refuse(scope, send, 401, what, "Unauthorized", {"www-authenticate": "Bearer"})
            return
        scope["state"]["key"] = owner
        await self._app(scope, receive, send)


_DISCARDED = 16 << 20
"""Bytes of a body that is too large which are read all the same: who is still sending would not read the answer."""


async def _discard(receive: Receive, most: int) -> None:
    read = 0
    while read < most:
        message = await receive()
        read += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


class DeclaredLength:
    """Answers 413 to a request that declares more than ``most`` bytes; FastAPI counts those that declare none."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        """``most`` bytes."""
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        declared = header(scope, "content-length") if scope["type"] == "http" else None
        if declared is not None and declared.isdecimal() and int(declared) > self._most:
            await _discard(receive, _DISCARDED)
            await refuse(
                scope, send, 413, f"The body is larger than {self._most} bytes.", "Validation", {"connection": "close"}
            )
        else:
            await self._app(scope, receive, send)
