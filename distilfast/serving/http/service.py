"""What the routes share: the models by name, the batcher in front of them, and how a request is answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from distilfast.backends import cpu
from distilfast.config import environment_threads
from distilfast.engine import Engine
from distilfast.errors import ClosedError, ConfigError, DistilfastError, InputError, OverloadError
from distilfast.pipelines import pipeline, pipeline_class
from distilfast.pipelines.base import Pipeline
from distilfast.serving.batcher import LONG_TEXT, Batcher
from distilfast.serving.http.memory import check_memory
from distilfast.serving.http.middleware import DEADLINE, unread_too_long, waited_unread
from distilfast.serving.http.settings import ServedModel, Settings
from distilfast.serving.sharing import characters
from distilfast.serving.work import Forward, Timing

LOG = logging.getLogger("distilfast.serve")
PRIORITY = "x-priority"
"""Header of a request: an integer, higher first."""


class UnknownModelError(InputError):
    """A request names a model that is not served."""


@dataclass(frozen=True)
class Limits:
    """What a request says about itself."""

    deadline: float | None
    priority: int
    client: str

    @classmethod
    def of(cls, request: Request, default: float | None) -> Limits:
        """From its headers; raises InputError, and OverloadError where its deadline has passed already.

        ``default``: seconds of a request that names no deadline. It counts from the request's first byte.
        """
        milliseconds = _number(request, DEADLINE, float)
        if milliseconds is not None and not 0 < milliseconds < 1e9:
            raise InputError(f"{DEADLINE} is {milliseconds}; a positive number of milliseconds is needed.")
        host = request.client.host if request.client else "-"
        deadline = default if milliseconds is None else milliseconds / 1e3
        if deadline is not None:
            waited = waited_unread(request.scope)
            if waited >= deadline:
                raise OverloadError(unread_too_long(waited), waited)
            deadline -= waited
        return cls(
            deadline,
            int(_number(request, PRIORITY, int) or 0),
            getattr(request.state, "key", None) or host,
        )


def _number(request: Request, header: str, kind: Callable[[str], float]) -> float | None:
    text = request.headers.get(header)
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{header} is {text[:40]!r}; a number is needed.") from None


def load(model: ServedModel, settings: Settings) -> Pipeline:
    """The pipeline of a served model, for its own task where none is named."""
    task = None if model.task is None else pipeline_class(model.task)
    options: dict[str, Any] = {
        "task": None if task is None else task.engine_task,
        "precision": model.precision,
        "backend": model.backend,
        "threads": model.threads or environment_threads() or _threads_of_a_worker(settings.workers),
        "revision": model.revision,
        "allow_pickle": settings.allow_pickle,
    }
    engine = Engine.from_pretrained(model.path, **options)
    return pipeline(engine.task if task is None else task.task, engine)


def _threads_of_a_worker(workers: int) -> int | None:
    """The cores are shared out among the workers; None, for all of them, where there is one."""
    if workers == 1 or cpu.unavailable():
        return None
    return max(1, cpu.available_cores() // workers)


def _check_forks(pipelines: Mapping[str, Pipeline]) -> None:
    """Raises ConfigError for a model that forked processes cannot share."""
    for name, pipe in pipelines.items():
        backend = pipe.engine.info()["backend"]
        if backend in ("cuda", "triton"):
            raise ConfigError(f"{name} runs on {backend}, which one process can use; set workers to 1.")


class Service:
    """The models that are served. ``load_models`` blocks; until it has ended, no request is answered."""

    def __init__(
        self,
        settings: Settings,
        observe: Callable[[Timing], None] | None = None,
        observe_forward: Callable[[Forward], None] | None = None,
    ) -> None:
        """Nothing is loaded yet; see ``Batcher`` for the observers."""
        self.settings = settings
        self.batcher: Batcher | None = None
        self.began = time.time()
        self._observe, self._observe_forward = observe, observe_forward
        self._reported: set[str] = set()

    def load_or_say_why(self) -> DistilfastError | None:
        """``load_models``; what has kept it from loading is returned, and logged where it is no error of ours."""
        try:
            self.load_models()
        except DistilfastError as error:
            return error
        except Exception as error:
            LOG.error("The models cannot be loaded.", exc_info=error)
            return DistilfastError(f"The models cannot be loaded: {type(error).__name__}.")
        return None

    def load_models(self) -> None:
        """Load every model and measure its cost; a second call replaces them without losing a request."""
        settings = self.settings
        check_memory(settings)
        pipelines = {model.name: load(model, settings) for model in settings.models}
        if settings.workers > 1:
            _check_forks(pipelines)
        batcher = Batcher(
            pipelines,
            deadline=settings.deadline_ms / 1e3 or None,
            weights={model.name: model.weight for model in settings.models},
            cache_bytes=settings.cache_bytes,
            most_waiting=settings.most_waiting,
            observe=self._observe,
            observe_forward=self._observe_forward,
        )
        self._report(batcher)
        old, self.batcher = self.batcher, batcher
        if old is not None:
            old.close(settings.drain_timeout)

    def _report(self, batcher: Batcher) -> None:
        """Log, once, what a full or read-only disk costs: the server starts without it, only later."""
        for name, pipe in batcher.pipelines.items():
            for what, origin in (
                ("weights are", str(pipe.engine.info().get("packed_weights", ""))),
                ("cost curve is", batcher.curve_origins[name]),
            ):
                sentence = f"The {what} not kept for the next start of {name}: {origin}."
                if ("not writable" in origin or "no cache" in origin) and sentence not in self._reported:
                    self._reported.add(sentence)
                    LOG.warning(sentence)

    def close(self) -> None:
        """Answer what waits, and end."""
        if self.batcher is not None:
            self.batcher.close(self.settings.drain_timeout)

    @property
    def ready(self) -> Batcher:
        """The batcher; raises ClosedError while there is none."""
        if self.batcher is None:
            raise ClosedError("The models are being loaded.", 1.0)
        return self.batcher

    def model(self, name: str | None, tasks: Sequence[str]) -> tuple[str, Pipeline]:
        """The served model of that name, or without one the first that has one of ``tasks``; raises InputError."""
        pipelines = self.ready.pipelines
        if name is not None and name not in pipelines:
            raise UnknownModelError(f"model {name[:80]!r} is not served; there are {', '.join(pipelines)}.")
        for each, pipe in pipelines.items():
            if name in (None, each) and pipe.task in tasks:
                return each, pipe
        served = f"Model {name!r} is for {pipelines[name].task}; this route needs" if name else "No model is served for"
        raise InputError(f"{served} {' or '.join(tasks)}.")

    async def answers(
        self,
        request: Request,
        submit: Callable[[Any, dict[str, Any]], Future[Any]],
        inputs: Sequence[Any],
        *,
        return_errors: bool = False,
    ) -> list[Any]:
        """The answer to each input, in order; with ``return_errors`` a DistilfastError in the place of one.

        Otherwise the first error ends the request. What is not needed any more is taken back, also where the client
        goes away.
        """
        most = self.settings.most_texts
        if not 0 < len(inputs) <= most:
            raise InputError(f"The request has {len(inputs)} inputs; 1 to {most} are allowed.")
        limits = Limits.of(request, self.ready.deadline)
        options = {"deadline": limits.deadline, "priority": limits.priority, "client": limits.client}
        futures: list[Future[Any] | DistilfastError] = []
        try:
            for i, given in enumerate(inputs):
                try:
                    if characters(given) < LONG_TEXT:
                        futures.append(self._submitted(submit, given, options))
                    else:  # so that others are served while it is tokenised
                        futures.append(await asyncio.to_thread(self._submitted, submit, given, options))
                except DistilfastError as error:
                    if not return_errors:
                        raise _numbered(error, i, len(inputs)) from None
                    futures.append(error)
                if i % 16 == 15:
                    await asyncio.sleep(0)  # others are served while many texts are tokenised
            return await _unless_gone(request, _gathered(futures, return_errors))
        finally:
            for future in futures:
                if isinstance(future, Future):
                    future.cancel()

    def _submitted(
        self, submit: Callable[[Any, dict[str, Any]], Future[Any]], given: Any, options: dict[str, Any]
    ) -> Future[Any]:
        """As ``submit``; again where a reload has replaced the batcher while the text was tokenised for the old one."""
        while True:
            batcher = self.ready
            try:
                return submit(given, options)
            except ClosedError:
                if self.batcher is batcher:
                    raise


def _numbered(error: DistilfastError, i: int, count: int) -> DistilfastError:
    """The pipelines call the only input that they see input 0."""
    if count > 1 and isinstance(error, InputError):
        for word in ("Input", "Text"):
            if str(error).startswith(f"{word} 0 "):
                return InputError(f"{word} {i} {str(error)[len(word) + 3 :]}")
    return error


async def _gathered(futures: Sequence[Future[Any] | DistilfastError], return_errors: bool) -> list[Any]:
    found = []
    for future in futures:
        if isinstance(future, DistilfastError):
            found.append(future)
            continue
        try:
            found.append(await asyncio.wrap_future(future))
        except DistilfastError as error:
            if not return_errors:
                raise
            found.append(error)
    return found


async def _unless_gone(request: Request, answer: Awaitable[list[Any]]) -> list[Any]:
    """``answer``, or ClientGone as soon as the client has closed its connection."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
                with suppress(asyncio.CancelledError):
                    await each


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class ClientGone(Exception):
    """The client has closed its connection, and nobody reads the answer."""
