"""The threads that run the scheduler's batches, one for each lane."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

from distilfast.backends.cpu import urgent
from distilfast.batch import PackedBatch
from distilfast.pipelines.base import Pipeline
from distilfast.serving.scheduler import Batch, Lane, Piece, Request, Scheduler
from distilfast.serving.work import Counts, Forward, Work


class Forwards:
    """Takes batches and computes them until it is ended; threads begin with the first ``wake``.

    ``lock`` is the owner's, and protects the scheduler and the counts. It is not held while ``settle`` is called, with
    a request that is complete and None or the error of one that failed, and ``late``, with one that came too late.
    ``observe`` is told of each batch.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        pipelines: Mapping[str, Pipeline],
        counts: Counts,
        lock: threading.Lock,
        settle: Callable[[Request, Exception | None], None],
        late: Callable[[Request], None],
        observe: Callable[[Forward], None] | None = None,
    ) -> None:
        """No thread runs yet."""
        self._scheduler, self._pipelines, self._counts, self._lock = scheduler, pipelines, counts, lock
        self._settle, self._late, self._observe = settle, late, observe
        self._changed = {lane: threading.Condition(lock) for lane in scheduler.lanes}
        self._ends = False
        self.threads: list[threading.Thread] = []

    def wake(self, lane: Lane) -> None:
        """A request waits in ``lane``; called with the lock held."""
        if not self.threads:
            for each in self._scheduler.lanes:
                thread = threading.Thread(target=self._serve, args=(each,), name=f"distilfast-{each}", daemon=True)
                self.threads.append(thread)
                thread.start()
        self._changed[lane].notify()

    def end(self) -> None:
        """The threads end after what they run and what waits; called with the lock held."""
        self._ends = True
        for condition in self._changed.values():
            condition.notify_all()

    def join(self, end: float | None) -> None:
        """Wait for the threads, until ``end`` of the monotonic clock or, with None, as long as it takes."""
        for thread in self.threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))

    @property
    def is_alive(self) -> bool:
        """Whether none of the threads has died."""
        return all(thread.is_alive() for thread in list(self.threads))

    def _serve(self, lane: Lane) -> None:
        while True:
            with self._lock:
                batch, late = self._next(lane)
            for request in late:
                self._late(request)
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
        """Compute ``batch``, and settle the requests that are complete."""
        begin = time.monotonic()
        with urgent() if batch.urgent else nullcontext():
            errors = self._compute(batch.pieces)
        end = time.monotonic()
        for piece in batch.pieces:
            work: Work = piece.request.payload
            if piece.first == 0:
                work.begun = begin
            work.ended = end
        with self._lock:
            complete = self._scheduler.finish(batch, end)
            self._scheduler.cancel(errors)
            self._counts.batches += 1
            self._counts.sequences += len(batch.lengths)
            self._counts.tokens += batch.tokens
        if self._observe is not None:
            self._observe(Forward(batch.model, len(batch.lengths), batch.tokens, end - begin))
        for request, error in errors.items():
            self._settle(request, error)
        for request in complete:
            if request not in errors:
                self._settle(request, None)

    def _compute(self, pieces: Sequence[Piece]) -> dict[Request, Exception]:
        """The results of ``pieces`` into their works; the errors of those that cannot be computed."""
        windows = [
            window
            for piece in pieces
            for window in piece.request.payload.prepared.windows[piece.first : piece.first + piece.count]
        ]
        try:
            engine = self._pipelines[pieces[0].request.model].engine
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
            work: Work = piece.request.payload
            work.results[piece.first : piece.first + piece.count] = [next(results) for _ in range(piece.count)]
        return {}
