"""A shorter way to the routes that read JSON: FastAPI's own layers take a large part of what a short text costs.

FastAPI has the same routes. It describes them, and serves every request that is not plain: one that is traced, that
declares another type, whose body is not as its route wants it, and so on. What is wrong is said in one place only.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_type_hints

from fastapi.routing import APIRoute
from opentelemetry import trace
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distilfast.serving.http.middleware import header
from distilfast.serving.http.service import ClientGone

JSON = "application/json"


@dataclass(frozen=True)
class _Route:
    """A route of FastAPI, whose endpoint takes a body and, where it wants it, the request."""

    route: APIRoute
    body: TypeAdapter[Any]
    answer: TypeAdapter[Any]
    wants_request: bool

    @classmethod
    def of(cls, route: APIRoute) -> _Route:
        hints = get_type_hints(route.endpoint)
        parameters = [*inspect.signature(route.endpoint).parameters]
        assert parameters in (["body"], ["body", "request"]), parameters
        return cls(route, TypeAdapter(hints["body"]), TypeAdapter(hints["return"]), "request" in parameters)

    async def __call__(self, body: Any, request: Request) -> bytes:
        endpoint: Callable[..., Awaitable[Any]] = self.route.endpoint
        answer = await (endpoint(body, request) if self.wants_request else endpoint(body))
        return self.answer.dump_json(answer)


class PostRoutes:
    """Answers plain requests for some POST routes of FastAPI, and leaves all others to ``app``."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        """``routes``: those that POST reaches are answered here."""
        posts = [route for route in routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())]
        self._app, self._routes = app, {route.path: _Route.of(route) for route in posts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        route = self._routes.get(scope["path"]) if _is_plain(scope) else None
        if route is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            raw = await request.body()
        except ClientDisconnect:
            raise ClientGone from None
        try:
            body = route.body.validate_json(raw)
        except ValidationError:
            await self._app(scope, _again(raw, receive), send)
            return
        scope["route"] = route.route
        response = Response(await route(body, request), media_type=JSON)
        await response(scope, receive, send)


def _is_plain(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST" or trace.get_current_span().is_recording():
        return False
    return (header(scope, "content-type") or "").partition(";")[0] == JSON


def _again(raw: bytes, receive: Receive) -> Receive:
    """``receive``, from the body on that has been read already."""
    read = False

    async def receive_again() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": raw, "more_body": False}

    return receive_again
