"""The application: routes, errors and middleware around a Service."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import distilfast
from distilfast.errors import ClosedError, DeadlineError, DistilfastError, InputError, OverloadError
from distilfast.serving.http import openai, task_routes, tei
from distilfast.serving.http.keys import Keys
from distilfast.serving.http.middleware import LOG, DeclaredLength, KeyCheck, Overdue, RequestLog, error_body
from distilfast.serving.http.post_routes import PostRoutes
from distilfast.serving.http.prometheus import Metrics
from distilfast.serving.http.service import ClientGone, Service, UnknownModelError
from distilfast.serving.http.settings import Settings
from distilfast.serving.http.tracing import TELEMETRY, note_request_id, trace_input
from distilfast.serving.work import Timing

_STATUS_PAGE = Path(__file__).with_name("status.html")


class _Application(FastAPI):
    """FastAPI within the log, so that its own answers to errors have an id and a line too."""

    observe: Callable[[str, int, float], None]
    most_body_bytes: int
    deadline: Callable[[], float | None]

    def build_middleware_stack(self) -> ASGIApp:
        """As FastAPI calls it, once."""
        inner = DeclaredLength(super().build_middleware_stack(), self.most_body_bytes)
        return RequestLog(Overdue(inner, self.deadline), self.observe, note_request_id)


def _observe(metrics: Metrics, timing: Timing) -> None:
    metrics.answer(timing)
    trace_input(timing)


def create_app(settings: Settings, service: Service | None = None) -> FastAPI:
    """The server of ``settings``. It answers 503 until somebody has called ``load_models`` of its ``state.service``.

    ``service``: one that is made already.
    """
    metrics = Metrics()
    if service is None:
        service = Service(settings, lambda timing: _observe(metrics, timing), metrics.forward)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        publishing = asyncio.ensure_future(metrics.keep_publishing(lambda: service.batcher))
        yield
        publishing.cancel()
        await anyio.to_thread.run_sync(service.close)

    app = _Application(
        title="distilfast",
        version=distilfast.__version__,
        summary="DistilBERT and BERT encoders over HTTP, with the routes of text-embeddings-inference and OpenAI.",
        lifespan=lifespan,
        max_body_size=settings.most_body_bytes,
        telemetry=TELEMETRY,
    )
    app.state.service, app.state.metrics = service, metrics
    app.observe, app.most_body_bytes = metrics.request, settings.most_body_bytes
    app.deadline = lambda: service.batcher.deadline if service.batcher else None
    routers = [each.routes(service) for each in (tei, task_routes, openai)]
    for router in routers:
        app.include_router(router)
    posts = [route for router in routers for route in router.routes]
    app.router.middleware_stack = PostRoutes(app.router.middleware_stack, posts)
    _add_states(app, service, metrics)
    _add_errors(app)
    if settings.keys:
        app.add_middleware(KeyCheck, keys=Keys(Path(settings.keys)))
    return app


def _add_states(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/live", response_class=PlainTextResponse)
    async def live() -> str:
        """200 as long as the process answers."""
        return "alive"

    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> str:
        """200 when the models are loaded and requests are accepted; of several workers, by the one that was asked."""
        if not service.ready.accepts:
            raise ClosedError("The server is ending.", 1.0)
        return "ready"

    @app.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.text(service.batcher), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def status_page() -> str:
        return _STATUS_PAGE.read_text(encoding="utf-8")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(DistilfastError)
    async def on_error(request: Request, error: DistilfastError) -> JSONResponse:
        status, kind = _status(error)
        if status == 500:
            return _internal(request, error)
        headers = {}
        if isinstance(error, OverloadError):
            headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
        return _answer(request, status, str(error), kind, headers)

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"] if each != "body")
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        if first["type"] == "json_invalid":
            return _answer(request, 400, f"The body is not JSON: {first['ctx']['error']}.", "Validation")
        if not where and not _is_json(request):
            return _answer(request, 422, "The body needs the header content-type: application/json.", "Validation")
        return _answer(request, 422, f"{where or 'The body'}: {reason}.", "Validation")

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        words = {
            400: "The body cannot be read.",
            404: "There is no such route.",
            405: f"The route has another method: {(error.headers or {}).get('Allow')}.",
            413: f"The body is larger than {app.max_body_size} bytes.",
        }
        text = words.get(error.status_code, f"{error.detail}.")
        return _answer(request, error.status_code, text, "Validation", dict(error.headers or {}))

    @app.exception_handler(ClientGone)
    async def on_gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def on_any(request: Request, error: Exception) -> JSONResponse:
        return _internal(request, error)


def _is_json(request: Request) -> bool:
    """Whether FastAPI takes the body for JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _status(error: DistilfastError) -> tuple[int, str]:
    if isinstance(error, UnknownModelError):
        return 404, "Validation"
    if isinstance(error, InputError):
        return 422, "Validation"
    if isinstance(error, ClosedError):
        return 503, "Unhealthy"
    if isinstance(error, OverloadError):
        return 429, "Overloaded"
    if isinstance(error, DeadlineError):
        return 504, "Overloaded"
    return 500, "Backend"


def _internal(request: Request, error: Exception) -> JSONResponse:
    """The log has the details, and the client the id to find them by."""
    name = getattr(request.state, "request_id", "-")
    LOG.error("request %s failed", name, exc_info=error)
    return _answer(request, 500, f"The server has failed; its log has more under request {name}.", "Backend")


def _answer(
    request: Request, status: int, error: str, kind: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error with one sentence, see ``error_body``."""
    return JSONResponse(error_body(request.url.path, error, kind), status, headers)


def log_to_stderr(level: str) -> None:
    """One line of JSON for each request; errors with their traceback."""
    logging.basicConfig(level=level.upper(), format="%(message)s")
    for name in ("uvicorn.error", "asyncio"):  # what a server says of its own start and end, we say
        logging.getLogger(name).setLevel(logging.WARNING)
