"""Spans for OpenTelemetry: one for each request, and one in it for each input, with its stages as events.

The API is used where it is installed, and the operator's own SDK decides what becomes of the spans (as
``opentelemetry-instrument distilfast serve`` sets it up). Where it is not installed, nothing of it is imported.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

import distilfast
from distilfast.serving.http.middleware import OPEN
from distilfast.serving.work import STAGES, Timing

UNTRACED = (*OPEN, "/metrics")
"""Paths that are asked for again and again, by machines."""


def installed() -> bool:
    """Whether the API is."""
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.trace") is not None


class Tracing:
    """Makes the spans."""

    def __init__(self) -> None:
        """Imports the API."""
        from opentelemetry import propagate, trace

        self._trace, self._extract = trace, propagate.extract
        self._tracer: Any = trace.get_tracer("distilfast", distilfast.__version__)

    def around(self, app: ASGIApp) -> ASGIApp:
        """``app`` in a span for each request, whose parent is the one of the header ``traceparent``."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in UNTRACED:
                await app(scope, receive, send)
                return
            headers = {str(name, "latin-1"): str(value, "latin-1") for name, value in scope["headers"]}
            kind = self._trace.SpanKind.SERVER
            with self._tracer.start_as_current_span(scope["method"], self._extract(headers), kind) as span:

                async def send_and_note(message: Message) -> None:
                    if message["type"] == "http.response.start":
                        self._note(span, scope, message["status"])
                    await send(message)

                await app(scope, receive, send_and_note)

        return traced

    def _note(self, span: Any, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", None)
        span.set_attribute("http.request.method", scope["method"])
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("distilfast.request_id", scope.get("state", {}).get("request_id", "-"))
        if route is not None:
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        if status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)

    def answer(self, timing: Timing) -> None:
        """An input of the current request has been answered; its stages ended now."""
        if not self._trace.get_current_span().is_recording():
            return
        end = time.time_ns()
        lasted = [int(1e9 * getattr(timing, stage)) for stage in STAGES]
        at = end - sum(lasted)
        attributes = {"distilfast.model": timing.model, "distilfast.tokens": timing.tokens}
        span = self._tracer.start_span("input", attributes=attributes, start_time=at)
        for stage, nanoseconds in zip(STAGES, lasted, strict=True):
            span.add_event(stage, {"ms": nanoseconds / 1e6}, timestamp=at)
            at += nanoseconds
        span.end(end)
