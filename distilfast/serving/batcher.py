"""A batcher in the process: requests from threads or coroutines, answered in batches, each before its deadline.

    batcher = Batcher(pipeline("text-classification", model, precision="int8"), deadline=0.025)
    answer = batcher.submit("What a film.").result()           # from threads
    answer = await batcher.answer("What a film.")              # from coroutines
    vector = await batcher.vector("What a film.")              # of a pipeline that embeds

The answers are those of the pipelines, bit for bit on the CPU, whatever they are batched with. A request that cannot be
answered in time is refused at once (OverloadError, with the time after which to try again). See ``scheduler`` for the
order, and ``cost`` for how it knows what a forward takes.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import numpy as np

from distilfast.arguments import count, integer
from distilfast.errors import ClosedError, DeadlineError, InputError, OverloadError
from distilfast.pipelines.base import Pipeline, Prepared
from distilfast.pipelines.embedding import EmbeddingPipeline
from distilfast.serving.cost import Cost, Curve
from distilfast.serving.curves import curve_of
from distilfast.serving.forwards import Forwards
from distilfast.serving.result_cache import ResultCache
from distilfast.serving.scheduler import Model, Request, Scheduler
from distilfast.serving.sharing import SharedAnswers, characters, copied, frozen
from distilfast.serving.work import Counts, Forward, Timing, Work

LONG_TEXT = 2000
"""Characters from which on a text is tokenised in a thread, so that an event loop is not held up."""


class Batcher:
    """Serves one pipeline, or several by name; safe to call from threads and coroutines.

    ``deadline``: seconds within which a request is to be answered, unless it says otherwise; None for no hurry.
    ``weights``: the models' shares of the processor while several have work. ``cache_bytes``: memory for answers that
    were given before. ``most_waiting``: seconds of work that may wait without a deadline; beyond it requests are
    refused. ``curves``: what was measured of a model's cost before (``batcher.curves``); others are those of the cache,
    or measured now and kept there, which takes some 20 forwards (``curve_origins`` says which). ``observe`` is called
    with the Timing of each answer, in the thread that made it and with the context variables of its request's caller,
    and ``observe_forward`` with each Forward.

    Threads begin with the first request, in a forked child with its first one; ``close`` ends them.
    """

    def __init__(
        self,
        models: Pipeline | Mapping[str, Pipeline],
        *,
        deadline: float | None = None,
        weights: Mapping[str, float] | None = None,
        cache_bytes: int = 0,
        most_waiting: float = 10.0,
        curves: Mapping[str, Curve] | None = None,
        observe: Callable[[Timing], None] | None = None,
        observe_forward: Callable[[Forward], None] | None = None,
    ) -> None:
        """Measures what forwards cost, where that is not known; raises InputError."""
        self.pipelines = {models.task: models} if isinstance(models, Pipeline) else dict(models)
        if not self.pipelines:
            raise InputError("There is no model; at least one is needed.")
        self.deadline = None if deadline is None else _positive("deadline", deadline)
        _positive("most_waiting", most_waiting)
        shares = {name: _positive(f"The weight of {name}", value) for name, value in (weights or {}).items()}
        for name in [*shares, *(curves or {})]:
            self._named(name)
        given = {name: (curve, "given") for name, curve in (curves or {}).items()}
        known = {name: given.get(name) or curve_of(pipe) for name, pipe in self.pipelines.items()}
        self.curves = {name: curve for name, (curve, _) in known.items()}
        self.curve_origins = {name: origin for name, (_, origin) in known.items()}
        self._costs = {name: Cost(curve) for name, curve in self.curves.items()}
        self._weights, self._most_waiting = shares, most_waiting
        self._observe, self._observe_forward = observe, observe_forward
        self._cache_bytes = count("cache_bytes", cache_bytes, least=0)
        # A backend on a GPU runs one batch at a time; two on the CPU share the cores.
        self._lanes = 2 if all(pipe.engine.info()["backend"] == "cpu" for pipe in self.pipelines.values()) else 1
        self._begin_anew()
        _batchers.add(self)

    def _begin_anew(self) -> None:
        """Nothing waits and no thread runs: at first, and in a forked child, which has none of its parent's."""
        models = {name: Model(self._costs[name], self._weights.get(name, 1.0)) for name in self.pipelines}
        self._scheduler = Scheduler(models, lanes=self._lanes, most_waiting=self._most_waiting)
        self.counts = Counts()
        self._shared = SharedAnswers(self._cache_bytes)
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._forwards = Forwards(
            self._scheduler,
            self.pipelines,
            self.counts,
            self._lock,
            settle=self._ended,
            late=self._give_up,
            observe=self._observe_forward,
        )
        self._accepts = True

    # -------------------------------------------------------------------------------------------------------- requests

    def submit(
        self,
        given: Any,
        *,
        model: str | None = None,
        deadline: float | None = None,
        priority: int = 0,
        client: Hashable = None,
        **options: Any,
    ) -> Future[Any]:
        """The future answer to one input of a pipeline, which ``options`` are the options of.

        ``deadline``: seconds from now. ``priority``: of two requests the higher goes first. ``client``: requests of one
        client share its part of the queue. ``model``: a name, where there are several. Cancelling the future takes the
        request back. Raises InputError for what cannot be answered, and OverloadError for what cannot be answered in
        time; the future raises DeadlineError where that turns out later.
        """
        name, pipe = self._named(model)
        key = name, "answer", frozen(options), frozen(given)
        return self._submitted(name, key, lambda: pipe.prepare(given, **options), deadline, priority, client)

    def submit_vector(
        self,
        text: str,
        *,
        model: str | None = None,
        deadline: float | None = None,
        priority: int = 0,
        client: Hashable = None,
        **options: Any,
    ) -> Future[np.ndarray]:
        """The future vector of a text, as ``embed`` of the pipeline makes it; the rest is as in ``submit``."""
        name, pipe = self._named(model)
        if not isinstance(pipe, EmbeddingPipeline):
            raise InputError(f"{name} is a pipeline for {pipe.task}; one for feature-extraction has vectors.")
        key = name, "vector", frozen(options), frozen(text)
        return self._submitted(name, key, lambda: pipe.prepare_vector(text, **options), deadline, priority, client)

    async def answer(self, given: Any, **options: Any) -> Any:
        """The answer, for a coroutine; arguments and errors are those of ``submit``."""
        return await self._awaited(self.submit, given, options)

    async def vector(self, text: str, **options: Any) -> np.ndarray:
        """The vector, for a coroutine; arguments and errors are those of ``submit_vector``."""
        vector: np.ndarray = await self._awaited(self.submit_vector, text, options)
        return vector

    async def _awaited(self, submit: Callable[..., Future[Any]], given: Any, options: dict[str, Any]) -> Any:
        if characters(given) < LONG_TEXT:
            future = submit(given, **options)
        else:
            future = await asyncio.to_thread(submit, given, **options)
        return await asyncio.wrap_future(future)

    def _named(self, model: str | None) -> tuple[str, Pipeline]:
        if model is None and len(self.pipelines) == 1:
            return next(iter(self.pipelines.items()))
        if model is None or model not in self.pipelines:
            what = "model is missing" if model is None else f"model {model!r} is not known"
            raise InputError(f"{what}; there are {', '.join(self.pipelines)}.")
        return model, self.pipelines[model]

    def _submitted(
        self,
        name: str,
        key: tuple[Hashable, ...],
        prepare: Callable[[], Prepared],
        deadline: float | None,
        priority: int,
        client: Hashable,
    ) -> Future[Any]:
        seconds = self.deadline if deadline is None else _positive("deadline", deadline)
        due = math.inf if seconds is None else time.monotonic() + seconds
        priority = integer("priority", priority)
        future: Future[Any] = Future()
        if self._cache_bytes and self._answered_before(key, future, due):
            return future
        begin = time.monotonic()
        prepared = prepare()
        lengths = [len(window.ids) for window in prepared.windows]
        work = Work(prepared, {future: due}, [None] * len(lengths), tokenise=time.monotonic() - begin)
        if self._observe is not None:
            work.context = copy_context()
        if self._cache_bytes:
            work.key, work.text_bytes = key, characters(key[-1])
        request = Request(lengths, due, priority, client, name, key[1:3], work)
        with self._lock:
            self._check_open()
            self.counts.submitted += 1
            self._enqueue(request)
        self._watch(future, request)
        return future

    def _enqueue(self, request: Request) -> None:
        """Into the queue; raises OverloadError."""
        refusal = self._scheduler.submit(request, time.monotonic())
        if refusal is not None:
            self.counts.refused += 1
            raise OverloadError(f"The request is refused. {refusal.reason}", refusal.retry_after)
        self._shared.begin(request)
        self._forwards.wake(request.lane)

    def _answered_before(self, key: Hashable, future: Future[Any], due: float) -> bool:
        """Whether ``future`` has the answer of an identical request, or will have it."""
        with self._lock:
            self._check_open()
            found, answer, request = self._shared.find(key)
            if not found and request is None:
                return False
            self.counts.submitted += 1
            if request is None:
                self.counts.answered += 1
            else:
                self.counts.shared += 1
                request.payload.futures[future] = due
        if request is not None:
            self._watch(future, request)
        else:
            future.set_result(answer)
        return True

    def _watch(self, future: Future[Any], request: Request) -> None:
        """Take the request back where all who wait for it cancel."""
        future.add_done_callback(lambda done: self._cancel(request) if done.cancelled() else None)

    def _cancel(self, request: Request) -> None:
        with self._lock:
            work: Work = request.payload
            self.counts.cancelled += 1
            if all(future.cancelled() for future in work.futures):
                self._shared.end(request)
                self._scheduler.cancel([request])
                self._idle.notify_all()

    # ---------------------------------------------------------------------------------------------------------- answers

    def _ended(self, request: Request, error: Exception | None) -> None:
        """All windows of a request are computed, or one of them has failed."""
        if error is not None:
            self._settle(request, error)
            return
        work: Work = request.payload
        try:
            answer = work.prepared.answer(work.results)
        except Exception as failure:
            self._settle(request, failure)
            return
        if self._observe is not None:
            assert work.context is not None
            work.context.run(self._observe, _timing(request, time.monotonic()))
        self._settle(request, None, answer)

    def _give_up(self, request: Request) -> None:
        """It is too late for ``request``, though not for all who joined it: these have a request of their own."""
        work: Work = request.payload
        with self._lock:
            self._shared.end(request)
            joined = {future: due for future, due in work.futures.items() if due > request.deadline}
            for future in joined:
                del work.futures[future]
        self._settle(request, DeadlineError("The deadline passed before the request could be answered."))
        if not joined:
            return
        rest = replace(work, futures=joined, results=[None] * len(request.lengths))
        again = Request(
            request.lengths,
            min(joined.values()),
            request.priority,
            request.client,
            request.model,
            request.group,
            rest,
        )
        try:
            with self._lock:
                self._enqueue(again)
        except OverloadError as error:
            self._settle(again, error)

    def _settle(self, request: Request, error: Exception | None, answer: Any = None) -> None:
        """Give everyone who waits for the request its answer or the error."""
        work: Work = request.payload
        with self._lock:
            self._shared.end(request)
            if error is None:
                self._shared.keep(work, answer)
            waiting = [future for future in work.futures if future.set_running_or_notify_cancel()]
            if error is None:
                self.counts.answered += len(waiting)
            elif isinstance(error, DeadlineError):
                self.counts.late += len(waiting)
            else:
                self.counts.failed += len(waiting)
            self._idle.notify_all()
        for i, future in enumerate(waiting):
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(answer if i == 0 else copied(answer))

    # ------------------------------------------------------------------------------------------------------------- end

    def close(self, timeout: float | None = None) -> bool:
        """Accept nothing more, answer what waits, and end the threads; whether all of it was answered.

        After ``timeout`` seconds, what still waits is given ClosedError.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._accepts = False
            drained = self._idle.wait_for(
                lambda: not len(self._scheduler) and not self._scheduler.running,
                None if end is None else max(0.0, end - time.monotonic()),
            )
            left = list(self._scheduler.requests())
            self._scheduler.cancel(left)
            self._forwards.end()
        for request in left:
            self._settle(request, ClosedError("The batcher is closed."))
        self._forwards.join(end)
        return drained

    def __enter__(self) -> Batcher:
        """Itself; ``close`` at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Answer what waits, and end."""
        self.close()

    def _check_open(self) -> None:
        if not self._accepts:
            raise ClosedError("The batcher is closed.")

    @property
    def cache(self) -> ResultCache:
        """The answers that were given before."""
        return self._shared.cache

    @property
    def accepts(self) -> bool:
        """Whether it is not closed."""
        return self._accepts

    @property
    def is_alive(self) -> bool:
        """Whether it is not closed, and none of its threads has died."""
        return self._accepts and self._forwards.is_alive

    def info(self) -> dict[str, Any]:
        """What waits and runs, what has become of requests, and what the cost model has learned."""
        with self._lock:
            return {
                "waiting": len(self._scheduler),
                "running": len(self._scheduler.running),
                **vars(self.counts),
                "cache": {
                    name: getattr(self.cache, name) for name in ("capacity", "bytes", "hits", "misses", "evictions")
                },
                "models": {
                    name: {"quantum": cost.quantum, "factor": cost.factor, "margin": cost.margin}
                    for name, cost in self._costs.items()
                },
            }


_batchers: weakref.WeakSet[Batcher] = weakref.WeakSet()


def _after_fork() -> None:
    for batcher in list(_batchers):
        batcher._begin_anew()


os.register_at_fork(after_in_child=_after_fork)


def _timing(request: Request, ready: float) -> Timing:
    work: Work = request.payload
    return Timing(
        request.model,
        sum(request.lengths),
        work.tokenise,
        work.begun - request.arrival,
        work.ended - work.begun,
        ready - work.ended,
    )


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"{name} is {value!r}; a positive number is needed.")
    return float(value)
