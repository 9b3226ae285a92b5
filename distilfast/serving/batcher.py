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
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from distilfast.arguments import count, integer
from distilfast.backends.cpu import urgent
from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import ClosedError, DeadlineError, InputError, OverloadError
from distilfast.pipelines.base import Pipeline, Prepared
from distilfast.pipelines.embedding import EmbeddingPipeline
from distilfast.serving.cost import Cost, Curve, measure
from distilfast.serving.result_cache import ResultCache
from distilfast.serving.scheduler import Batch, Lane, Model, Piece, Request, Scheduler

LONG_TEXT = 2000
"""Characters from which on a text is tokenised in a thread, so that an event loop is not held up."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a request's stages: waiting for its first forward, in forwards, and from there to its answer."""

    model: str
    tokens: int
    queue: float
    forward: float
    post: float


@dataclass
class Counts:
    """What has become of the requests, and how many batches, sequences and tokens have been run."""

    submitted: int = 0
    answered: int = 0
    refused: int = 0
    late: int = 0
    cancelled: int = 0
    failed: int = 0
    shared: int = 0  # answered by an identical request in flight
    batches: int = 0
    sequences: int = 0
    tokens: int = 0


@dataclass(eq=False)
class _Work:
    """What a request of the scheduler is for: its windows, and who waits for the answer until when."""

    prepared: Prepared
    futures: dict[Future[Any], float]
    key: Hashable = None
    text_bytes: int = 0
    results: list[Any] = field(default_factory=list)
    begun: float = 0.0
    ended: float = 0.0


class Batcher:
    """Serves one pipeline, or several by name; safe to call from threads and coroutines.

    ``deadline``: seconds within which a request is to be answered, unless it says otherwise; None for no hurry.
    ``weights``: the models' shares of the processor while several have work. ``cache_bytes``: memory for answers that
    were given before. ``most_waiting``: seconds of work that may wait without a deadline; beyond it requests are
    refused. ``curves``: what was measured of a model's cost before (``batcher.curves``); others are measured now, which
    takes some 20 forwards. ``observe`` is called with the Timing of each answer, in the thread that made it.

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
    ) -> None:
        """Measures what forwards cost; raises InputError."""
        self.pipelines = {models.task: models} if isinstance(models, Pipeline) else dict(models)
        if not self.pipelines:
            raise InputError("There is no model; at least one is needed.")
        self.deadline = None if deadline is None else _positive("deadline", deadline)
        _positive("most_waiting", most_waiting)
        shares = {name: _positive(f"The weight of {name}", value) for name, value in (weights or {}).items()}
        for name in [*shares, *(curves or {})]:
            self._named(name)
        self.curves = {name: (curves or {}).get(name) or measured_curve(pipe) for name, pipe in self.pipelines.items()}
        self._costs = {name: Cost(curve) for name, curve in self.curves.items()}
        self._weights, self._most_waiting = shares, most_waiting
        self._observe = observe
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
        self.cache = ResultCache(self._cache_bytes)
        self._in_flight: dict[Hashable, Request] = {}
        self._lock = threading.Lock()
        self._changed = {lane: threading.Condition(self._lock) for lane in self._scheduler.lanes}
        self._idle = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._accepts, self._ends = True, False

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
        key = name, "answer", _frozen(options), _frozen(given)
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
        key = name, "vector", _frozen(options), _frozen(text)
        return self._submitted(name, key, lambda: pipe.prepare_vector(text, **options), deadline, priority, client)

    async def answer(self, given: Any, **options: Any) -> Any:
        """The answer, for a coroutine; arguments and errors are those of ``submit``."""
        return await self._awaited(self.submit, given, options)

    async def vector(self, text: str, **options: Any) -> np.ndarray:
        """The vector, for a coroutine; arguments and errors are those of ``submit_vector``."""
        vector: np.ndarray = await self._awaited(self.submit_vector, text, options)
        return vector

    async def _awaited(self, submit: Callable[..., Future[Any]], given: Any, options: dict[str, Any]) -> Any:
        if _characters(given) < LONG_TEXT:
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
        prepared = prepare()
        lengths = [len(window.ids) for window in prepared.windows]
        work = _Work(prepared, {future: due}, results=[None] * len(lengths))
        if self._cache_bytes:
            work.key, work.text_bytes = key, _characters(key[-1])
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
        if request.payload.key is not None:
            self._in_flight[request.payload.key] = request
        self._start()
        self._changed[request.lane].notify()

    def _answered_before(self, key: Hashable, future: Future[Any], due: float) -> bool:
        """Whether ``future`` has the answer of an identical request, or will have it."""
        with self._lock:
            self._check_open()
            found, answer = self.cache.get(key)
            request = None if found else self._in_flight.get(key)
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
            work: _Work = request.payload
            self.counts.cancelled += 1
            if all(future.cancelled() for future in work.futures):
                self._no_longer_in_flight(request)
                self._scheduler.cancel([request])
                self._idle.notify_all()

    def _no_longer_in_flight(self, request: Request) -> None:
        key = request.payload.key
        if key is not None and self._in_flight.get(key) is request:
            del self._in_flight[key]

    # --------------------------------------------------------------------------------------------------------- forwards

    def _start(self) -> None:
        """A thread for each lane, once."""
        if self._threads:
            return
        for lane in self._scheduler.lanes:
            thread = threading.Thread(target=self._serve, args=(lane,), name=f"distilfast-{lane}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, lane: Lane) -> None:
        """Run batch after batch, until the batcher is closed."""
        while True:
            with self._lock:
                batch, late = self._next(lane)
            for request in late:
                self._give_up(request)
            if batch is not None:
                self._run(batch)
            elif not late:
                return

    def _next(self, lane: Lane) -> tuple[Batch | None, list[Request]]:
        """The next batch or requests that are too late, as soon as there are any; neither at the end."""
        while True:
            batch, late = self._scheduler.take(lane, time.monotonic())
            if batch is not None or late or self._ends:
                return batch, late
            self._changed[lane].wait()

    def _run(self, batch: Batch) -> None:
        """Compute ``batch``, and answer the requests that are complete."""
        begin = time.monotonic()
        with urgent() if batch.urgent else nullcontext():
            errors = self._compute(batch.pieces)
        end = time.monotonic()
        for piece in batch.pieces:
            work: _Work = piece.request.payload
            if piece.first == 0:
                work.begun = begin
            work.ended = end
        with self._lock:
            complete = self._scheduler.finish(batch, end)
            self._scheduler.cancel(errors)
            self.counts.batches += 1
            self.counts.sequences += len(batch.lengths)
            self.counts.tokens += batch.tokens
        for request, error in errors.items():
            self._settle(request, error)
        for request in complete:
            if request not in errors:
                self._answer(request)

    def _compute(self, pieces: Sequence[Piece]) -> dict[Request, Exception]:
        """The results of ``pieces`` into their works; the errors of those that cannot be computed."""
        windows = [
            window
            for piece in pieces
            for window in piece.request.payload.prepared.windows[piece.first : piece.first + piece.count]
        ]
        try:
            engine = self.pipelines[pieces[0].request.model].engine
            batch = PackedBatch.from_encodings(windows, token_types=engine.config.token_types > 0)
            results = iter(list(pieces[0].request.payload.prepared.compute(windows, batch)))
        except Exception as error:  # whatever it is, its requests are told and the others go on
            if len(pieces) == 1:
                return {pieces[0].request: error}
            found: dict[Request, Exception] = {}
            for piece in pieces:
                found |= self._compute([piece])
            return found
        for piece in pieces:
            work: _Work = piece.request.payload
            work.results[piece.first : piece.first + piece.count] = [next(results) for _ in range(piece.count)]
        return {}

    def _answer(self, request: Request) -> None:
        """Make the answer of a request whose windows are all computed."""
        work: _Work = request.payload
        try:
            answer = work.prepared.answer(work.results)
        except Exception as error:
            self._settle(request, error)
            return
        if self._observe is not None:
            ready = time.monotonic()
            waited = work.begun - request.arrival
            tokens = sum(request.lengths)
            self._observe(Timing(request.model, tokens, waited, work.ended - work.begun, ready - work.ended))
        self._settle(request, None, answer)

    def _give_up(self, request: Request) -> None:
        """It is too late for ``request``, though not for all who joined it: these have a request of their own."""
        work: _Work = request.payload
        with self._lock:
            self._no_longer_in_flight(request)
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
        work: _Work = request.payload
        with self._lock:
            self._no_longer_in_flight(request)
            if work.key is not None and error is None:
                self.cache.put(work.key, work.text_bytes, answer)
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
                future.set_result(answer if i == 0 else _copied(answer))

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
            self._ends = True
            for condition in self._changed.values():
                condition.notify_all()
        for request in left:
            self._settle(request, ClosedError("The batcher is closed."))
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
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
    def accepts(self) -> bool:
        """Whether it is not closed."""
        return self._accepts

    @property
    def is_alive(self) -> bool:
        """Whether it is not closed, and none of its threads has died."""
        return self._accepts and all(thread.is_alive() for thread in list(self._threads))

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


def measured_curve(pipe: Pipeline) -> Curve:
    """What forwards of ``pipe`` cost, from some 20 of them."""
    text = pipe.tokenizer.encode("a").ids
    token = text[len(text) // 2]
    return measure(
        lambda lengths: _forward(pipe.engine, lengths, token),
        longest=pipe.engine.config.max_positions,
    )


def one_token(engine: Engine) -> None:
    """The shortest forward, which shows that ``engine`` computes."""
    _forward(engine, [1], 0)


def _forward(engine: Engine, lengths: Sequence[int], token: int) -> None:
    batch = PackedBatch.from_sequences([[token] * length for length in lengths])
    if engine.head.linears:
        engine.logits(batch)
    else:
        engine.encode(batch)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"{name} is {value!r}; a positive number is needed.")
    return float(value)


def _frozen(value: Any) -> Hashable:
    """An equal key for equal options; for what cannot be compared, one that equals no other."""
    if isinstance(value, dict):
        return tuple(sorted((str(name), _frozen(each)) for name, each in value.items()))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, *map(_frozen, value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return type(value).__name__, value
    return object()


def _characters(given: Any) -> int:
    if isinstance(given, str):
        return len(given)
    if isinstance(given, dict):
        return sum(map(_characters, given.values()))
    return sum(map(_characters, given)) if isinstance(given, (list, tuple)) else 0


def _copied(answer: Any) -> Any:
    """A copy, for one of several who get the same answer and may change it."""
    if isinstance(answer, np.ndarray):
        return answer.copy()
    if isinstance(answer, dict):
        return {name: _copied(value) for name, value in answer.items()}
    return [_copied(value) for value in answer] if isinstance(answer, list) else answer
