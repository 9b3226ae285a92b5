"""Which requests run next, and which are refused: a state machine that is told the time, with no clock or thread.

Requests wait in two lanes. In the short lane are those whose sequences fit in one quantum, the batch size from which a
token hardly gets cheaper; in the long lane are the others. Each lane runs a batch at a time. Beside a long sequence a
batch with a deadline is urgent: it has the whole processor, and the long one goes on when it has ended. So no request
with a deadline waits for a long one, and admission leaves the long lane a quarter of the processor.

A batch begins when its lane is free: nothing waits in the hope of company. The request with the least slack is first
(the earliest deadline of the highest priority), and others of its group join it while the batch stays within a quantum
and the first of their deadlines is met.

A request is refused when it arrives if by the cost model it would be late, or would make one late that was accepted.
Requests without a deadline come after those with one and are refused only when too much work waits. Where work waits,
a client's share of the queue is bounded by what is free of it (dynamic thresholds, Choudhury and Hahne, 1998), so one
client that sends without end leaves room for others.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distilfast.serving.cost import Cost

Lane = Literal["short", "long"]
LANES: tuple[Lane, ...] = ("short", "long")

GREED = 1.0
"""A client may have this many times as much work waiting as there is room left: one alone 1/2 of all, two 1/3 each."""

LONG_SHARE = 0.25
"""Of the processor, left to the long lane by what is admitted to the short one."""

MEMORY = 1.0
"""Seconds over which the load by urgent batches is averaged."""

AHEAD = 2.0
"""By how many quanta a model may run ahead of its share while another model's requests wait."""


@dataclass(eq=False)
class Request:
    """Sequences of one caller, all of which are needed for its answer.

    ``lengths``: tokens of each sequence. ``deadline``: when the answer is worthless, in seconds of the clock that the
    scheduler is told; infinity for never. ``priority``: a larger one goes first. ``group``: requests of one model with
    equal groups can share a forward. ``payload`` is the caller's own.
    """

    lengths: Sequence[int]
    deadline: float = math.inf
    priority: int = 0
    client: Hashable = None
    model: str = ""
    group: Hashable = None
    payload: Any = None
    arrival: float = 0.0
    number: int = -1  # in order of arrival
    lane: Lane = "short"
    work: float = 0.0  # seconds of the processor that the sequences take in batches of a quantum
    begun: int = 0  # sequences that are in a batch or have been
    done: int = 0
    cancelled: bool = False

    @property
    def rest(self) -> float:
        """Seconds of work of the sequences that are in no batch yet."""
        return self.work * (1 - self.begun / len(self.lengths))

    def __lt__(self, other: Request) -> bool:
        """Whether it goes before ``other``."""
        return (-self.priority, self.deadline, self.number) < (-other.priority, other.deadline, other.number)


@dataclass(frozen=True)
class Piece:
    """Sequences ``first`` to ``first + count`` of a request."""

    request: Request
    first: int
    count: int

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each of them."""
        return self.request.lengths[self.first : self.first + self.count]


@dataclass
class Batch:
    """Pieces of requests of one model and group, which run in one forward of ``lane``."""

    lane: Lane
    model: str
    pieces: list[Piece] = field(default_factory=list)
    tokens: int = 0
    work: float = 0.0  # seconds that the forward is expected to take by itself
    left: float = 0.0  # of these
    begin: float = 0.0
    urgent: bool = False
    alone: bool = True  # no other batch has run meanwhile

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, in order."""
        return [length for piece in self.pieces for length in piece.lengths]


def speeds(running: Collection[Batch]) -> Mapping[Lane, float]:
    """The part of the processor that each of the running batches has."""
    urgent = [batch for batch in running if batch.urgent]
    share = 1 / max(1, len(urgent) or len(running))
    return {batch.lane: share if batch.urgent or not urgent else 0.0 for batch in running}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not accepted, as a sentence, and in how many seconds it might be."""

    reason: str
    retry_after: float


@dataclass
class Model:
    """A model's cost, its share of the processor where several have work, and how much of it has been used."""

    cost: Cost
    weight: float = 1.0
    used: float = 0.0  # seconds over weight, the virtual time of fair queueing


class Scheduler:
    """The queue of a process. Not safe for several threads: its owner locks."""

    def __init__(self, models: dict[str, Model], *, lanes: int = 2, most_waiting: float = 10.0) -> None:
        """``lanes``: 1 where one forward runs at a time. ``most_waiting``: seconds of work without a deadline."""
        self.models = models
        self.lanes: tuple[Lane, ...] = LANES[:lanes]
        self.most_waiting = most_waiting
        self._waiting: dict[Lane, list[Request]] = {lane: [] for lane in self.lanes}
        self._running: dict[Lane, Batch] = {}
        self._clients: dict[Hashable, float] = {}
        self._count = 0
        self._now = -math.inf
        self._urgent_load = 0.0  # part of the time that urgent batches ran, of late

    # ------------------------------------------------------------------------------------------------------ what waits

    def __len__(self) -> int:
        """Requests of which a sequence is in no batch yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> list[Batch]:
        """The batches that have begun and not finished."""
        return list(self._running.values())

    def waiting(self, lane: Lane) -> float:
        """Seconds of work that is in no batch yet."""
        return sum(request.rest for request in self._waiting[lane])

    def requests(self) -> Iterator[Request]:
        """Those that wait."""
        for queue in self._waiting.values():
            yield from queue

    # ------------------------------------------------------------------------------------------------------- admission

    def submit(self, request: Request, now: float) -> Refusal | None:
        """Queue ``request``, or say why not."""
        self._advance(now)
        cost = self.models[request.model].cost
        long = len(self.lanes) > 1 and max(request.lengths) > cost.quantum
        request.lane = "long" if long else "short"
        request.arrival, request.work = now, cost.share(request.lengths)
        request.number = self._count
        if refusal := self._late(request, now):
            if not self._running and not len(self):
                cost.doubt()
            return refusal
        if refusal := self._crowded(request, now):
            return refusal
        self._count += 1
        if not self._has_work(request.model):
            self._catch_up(request.model)
        insort(self._waiting[request.lane], request)
        self._clients[request.client] = self._clients.get(request.client, 0.0) + request.work
        return None

    def _late(self, new: Request, now: float) -> Refusal | None:
        """A refusal where ``new`` would miss its deadline, or make another miss its own."""
        cost = self.models[new.model].cost
        ahead = self._running[new.lane].left if new.lane in self._running else 0.0
        before = True
        for request in self._waiting[new.lane]:
            if before and new < request:
                before = False
                if refusal := self._missed(new, now, ahead + _last(new, cost, ahead)):
                    return refusal
            ahead += request.rest * self.models[request.model].cost.margin
            if not before and request.deadline < math.inf:
                with_new = self._end(new.lane, now, ahead + new.work * cost.margin)
                if with_new > request.deadline >= self._end(new.lane, now, ahead):
                    return Refusal("It would make an accepted request late.", with_new - request.deadline)
        return self._missed(new, now, ahead + _last(new, cost, ahead)) if before else None

    def _missed(self, request: Request, now: float, work: float) -> Refusal | None:
        """A refusal where ``work`` of its lane ends after the request's deadline."""
        end = self._end(request.lane, now, work)
        if end <= request.deadline:
            return None
        late = end - request.deadline
        if request.deadline <= now:
            return Refusal("Its deadline has passed.", late)
        return Refusal(f"It would be answered in {1e3 * (end - now):.1f} ms, {1e3 * late:.1f} ms too late.", late)

    def _end(self, lane: Lane, now: float, work: float) -> float:
        """When ``work`` of a lane, from now on, will have been done, beside that of the other."""
        if len(self.lanes) == 1:
            return now + work
        if lane == "short":
            return now + work / (1 - LONG_SHARE if self._has_long() else 1)
        return now + (work + self._rest_of("short")) / max(LONG_SHARE, 1 - self._urgent_load)

    def _crowded(self, new: Request, now: float) -> Refusal | None:
        """A refusal where too much waits, or too much of this client."""
        room = self.most_waiting if new.deadline == math.inf else new.deadline - now
        waiting = sum(map(self.waiting, self.lanes))
        if new.deadline == math.inf and waiting + new.work > room and waiting > 0:
            return Refusal(f"{waiting:.1f} s of work wait.", waiting + new.work - room)
        own = self._clients.get(new.client, 0.0)
        if new.client is not None and own > 0 and own + new.work > GREED * max(0.0, room - waiting):
            return Refusal("Too many requests of this client wait.", own)
        return None

    def _has_long(self) -> bool:
        return "long" in self._running or bool(self._waiting["long"])

    def _rest_of(self, lane: Lane) -> float:
        """Seconds of work of ``lane``, begun or not."""
        return self.waiting(lane) + (self._running[lane].left if lane in self._running else 0.0)

    def _advance(self, now: float) -> None:
        """Time has passed."""
        passed = max(0.0, now - self._now) if self._now > -math.inf else 0.0
        for lane, speed in speeds(self._running.values()).items():
            batch = self._running[lane]
            batch.left = max(0.0, batch.left - speed * passed)
        urgent = any(batch.urgent for batch in self._running.values())
        self._urgent_load += (urgent - self._urgent_load) * -math.expm1(-passed / MEMORY)
        self._now = now

    # ----------------------------------------------------------------------------------------------------- what is next

    def take(self, lane: Lane, now: float) -> tuple[Batch | None, list[Request]]:
        """The batch that ``lane`` runs from now on, if there is one, and requests that are too late and have gone."""
        assert lane not in self._running
        self._advance(now)
        late: list[Request] = []
        first = self._first(lane, now, late)
        if first is None:
            return None, late
        batch = self._formed(lane, first, now, late)
        batch.begin, batch.left = now, batch.work
        batch.urgent = len(self.lanes) > 1 and lane == "short" and first.deadline < math.inf
        self._running[lane] = batch
        if len(self._running) > 1:
            for each in self._running.values():
                each.alone = False
        self.models[batch.model].used += batch.work / self.models[batch.model].weight
        return batch, late

    def _first(self, lane: Lane, now: float, late: list[Request]) -> Request | None:
        """The request that comes first among those of models that are not ahead of their share."""
        queue = self._waiting[lane]
        for request in [each for each in queue if each.deadline < math.inf]:
            if now + self._alone(request) > request.deadline:
                self._forget(request)
                late.append(request)
        behind = min((self.models[each.model].used for each in queue), default=0.0)
        for request in queue:
            model = self.models[request.model]
            quantum = model.cost.quantum * model.cost.curve.throughput
            if model.used - behind <= AHEAD * quantum / model.weight:
                return request
        return queue[0] if queue else None

    def _formed(self, lane: Lane, first: Request, now: float, late: list[Request]) -> Batch:
        """``first`` and those that fit beside it."""
        batch = Batch(lane, first.model)
        cost = self.models[first.model].cost
        lengths: list[int] = []
        due = math.inf
        for request in [first, *(each for each in self._waiting[lane] if each is not first)]:
            if (request.model, request.group) != (first.model, first.group):
                continue
            taken = 0
            for length in request.lengths[request.begun :]:
                if lengths and batch.tokens + length > cost.quantum:
                    break
                seconds = cost([*lengths, length])
                if lengths and now + seconds > min(due, request.deadline):
                    break
                lengths.append(length)
                batch.tokens += length
                batch.work = seconds
                taken += 1
            if taken:
                due = min(due, request.deadline)
                batch.pieces.append(Piece(request, request.begun, taken))
            if batch.tokens >= cost.quantum:
                break
        for piece in batch.pieces:
            self._begin(piece)
        return batch

    def _begin(self, piece: Piece) -> None:
        request = piece.request
        self._release(request, request.work * piece.count / len(request.lengths))
        request.begun += piece.count
        if request.begun == len(request.lengths):
            self._waiting[request.lane].remove(request)

    def _alone(self, request: Request) -> float:
        """Seconds that its next sequence takes by itself."""
        return self.models[request.model].cost(request.lengths[request.begun : request.begun + 1])

    # -------------------------------------------------------------------------------------------------- what has ended

    def finish(self, batch: Batch, now: float) -> list[Request]:
        """``batch`` has ended; those of its requests that are complete."""
        self._advance(now)
        del self._running[batch.lane]
        if batch.alone:
            self.models[batch.model].cost.learn(batch.lengths, now - batch.begin)
        complete = []
        for piece in batch.pieces:
            piece.request.done += piece.count
            if piece.request.done == len(piece.request.lengths) and not piece.request.cancelled:
                complete.append(piece.request)
        return complete

    def cancel(self, requests: Iterable[Request]) -> None:
        """Sequences of ``requests`` that are in no batch yet will be in none."""
        for request in requests:
            request.cancelled = True
            if request.begun < len(request.lengths) and request in self._waiting[request.lane]:
                self._forget(request)

    def _forget(self, request: Request) -> None:
        self._waiting[request.lane].remove(request)
        self._release(request, request.rest)

    def _release(self, request: Request, work: float) -> None:
        """``work`` of a client no longer waits."""
        left = self._clients[request.client] - work
        if left > 1e-9:
            self._clients[request.client] = left
        else:
            del self._clients[request.client]

    # ------------------------------------------------------------------------------------------------- shares of models

    def _has_work(self, model: str) -> bool:
        return any(each.model == model for each in self.requests()) or any(
            each.model == model for each in self._running.values()
        )

    def _catch_up(self, model: str) -> None:
        """A model that was idle has no claim on the time that has passed."""
        busy = [self.models[each].used for each in self.models if each != model and self._has_work(each)]
        if busy:
            self.models[model].used = max(self.models[model].used, min(busy))


def _last(request: Request, cost: Cost, ahead: float) -> float:
    """Seconds of the batches with its sequences: behind others it has company up to a quantum, which ends with it."""
    company = cost([cost.quantum]) if ahead > 0 else 0.0
    return cost.margin * max(request.work, cost(request.lengths), company)
