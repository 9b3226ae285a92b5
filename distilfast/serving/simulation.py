"""A discrete-event simulation of a service: arrivals, the scheduler that serves them, and forwards of predicted cost.

The scheduler is the one that serves; only the clock and the forwards are simulated. Beside an urgent batch another one
stands still, and two that are not urgent share the processor equally.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from distilfast.serving.scheduler import Batch, Lane, Request, Scheduler, speeds


@dataclass(frozen=True)
class Arrival:
    """A request that arrives after ``at`` seconds; ``deadline`` is in seconds from then."""

    at: float
    lengths: Sequence[int]
    deadline: float = math.inf
    priority: int = 0
    client: str | None = None
    model: str = ""


@dataclass
class Result:
    """What became of an arrival: seconds to its answer, or None and why."""

    arrival: Arrival
    latency: float | None = None
    refused: str | None = None
    late: bool = False

    @property
    def good(self) -> bool:
        """Answered within its deadline."""
        return self.latency is not None and self.latency <= self.arrival.deadline


@dataclass
class Simulation:
    """One run. ``seconds`` says what a batch really takes by itself; ``overhead`` is added to each batch.

    ``overhead``: seconds between the end of a batch and the beginning of the next, in which answers are made.
    """

    scheduler: Scheduler
    seconds: Callable[[Batch], float]
    overhead: float = 0.0
    now: float = 0.0
    results: list[Result] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    _left: dict[Lane, float] = field(default_factory=dict)

    def run(self, arrivals: Iterable[Arrival]) -> list[Result]:
        """Serve every arrival to its end; results in their order."""
        queue = [(arrival.at, i, arrival) for i, arrival in enumerate(arrivals)]
        heapq.heapify(queue)
        while queue or self._left or len(self.scheduler):
            arrival = queue[0][0] if queue else math.inf
            end = self._next_end()
            if arrival <= end:
                self._advance(arrival)
                self._submit(heapq.heappop(queue)[2])
            else:
                self._advance(end)
                self._finish()
            self._start()
        return self.results

    def _next_end(self) -> float:
        moving = [(self._left[lane], speed) for lane, speed in speeds(self.scheduler.running).items() if speed > 0]
        return self.now + min((left / speed for left, speed in moving), default=math.inf)

    def _advance(self, to: float) -> None:
        """Let time pass: each batch gets its part of the processor."""
        for lane, speed in speeds(self.scheduler.running).items():
            self._left[lane] -= (to - self.now) * speed
        self.now = to

    def _submit(self, arrival: Arrival) -> None:
        result = Result(arrival)
        self.results.append(result)
        request = Request(
            arrival.lengths,
            self.now + arrival.deadline,
            arrival.priority,
            arrival.client,
            arrival.model,
            payload=result,
        )
        if refusal := self.scheduler.submit(request, self.now):
            result.refused = refusal.reason

    def _start(self) -> None:
        for lane in self.scheduler.lanes:
            if lane in self._left:
                continue
            batch, late = self.scheduler.take(lane, self.now)
            for request in late:
                request.payload.late = True
            if batch is not None:
                self._left[lane] = self.seconds(batch) + self.overhead
                self.batches.append(batch)

    def _finish(self) -> None:
        for lane in [lane for lane, left in self._left.items() if left <= 1e-12]:
            del self._left[lane]
            batch = next(each for each in self.scheduler.running if each.lane == lane)
            for request in self.scheduler.finish(batch, self.now):
                request.payload.latency = self.now - request.arrival
