"""Spans for OpenTelemetry: FastAPI makes one for each request, and here is one in it for each input, with its stages.

They go where the operator's SDK sends them (``opentelemetry-instrument distilfast serve``, or
``FASTAPI_OTEL_AUTO_CONFIGURE=true``); without an SDK nothing is made.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

import distilfast
from distilfast.serving.http.middleware import OPEN
from distilfast.serving.work import STAGES, Timing

UNTRACED = (*OPEN, "/metrics")
"""Paths that are asked for again and again, by machines."""


def _is_untraced(scope: MutableMapping[str, Any]) -> bool:
    return scope.get("path") in UNTRACED


TELEMETRY: TelemetryConfig = {
    "logs": False,  # our own has what fails, with the request's id
    "operation_spans": False,
    "exclude": _is_untraced,
}
"""Of the application: spans and metrics of requests, no more."""


def note_request_id(request_id: str) -> None:
    """In the current request's span, if there is one."""
    trace.get_current_span().set_attribute("distilfast.request_id", request_id)


def trace_input(timing: Timing) -> None:
    """An input of the current request has been answered; its stages ended now."""
    if not trace.get_current_span().is_recording():
        return
    end = time.time_ns()
    lasted = [int(1e9 * getattr(timing, stage)) for stage in STAGES]
    at = end - sum(lasted)
    tracer = trace.get_tracer("distilfast", distilfast.__version__)
    attributes: dict[str, str | int] = {"distilfast.model": timing.model, "distilfast.tokens": timing.tokens}
    span = tracer.start_span("input", attributes=attributes, start_time=at)
    for stage, nanoseconds in zip(STAGES, lasted, strict=True):
        span.add_event(stage, {"ms": nanoseconds / 1e6}, timestamp=at)
        at += nanoseconds
    span.end(end)
