"""What the measurements share: how long they take, and the processes and files of one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from benchmarks.worker import Worker


@dataclass(frozen=True)
class Plan:
    """How long it all takes. A full run of 17 contestants on 2 cores is meant to end within 40 minutes.

    A case is measured in ``rounds`` = (least, most) of ``sample`` seconds of each contestant, and has no further round
    once ``case`` seconds have passed. Each contestant has ``cap`` seconds for its cold starts, and again for the many
    shapes of the memory measurement. ``rates`` arrive for ``arrivals`` seconds each.
    """

    rounds: tuple[int, int]
    sample: float
    case: float
    starts: int
    cap: float
    rates: tuple[int, ...]
    arrivals: float


FULL = Plan((4, 20), sample=0.1, case=30.0, starts=7, cap=12.0, rates=(10, 25, 50, 100, 200), arrivals=4.0)
# Readings by events on a GPU are steady, and a millisecond or less each.
GPU = Plan((4, 6), sample=0.05, case=10.0, starts=2, cap=12.0, rates=(100, 400, 1600), arrivals=2.0)
QUICK = Plan((3, 5), sample=0.2, case=8.0, starts=1, cap=5.0, rates=(10, 40), arrivals=2.0)


@dataclass(frozen=True)
class Run:
    """The parameters and the contestants of one run."""

    directory: Path
    scratch: Path
    threads: int
    device: str
    quick: bool
    progress: Progress
    plan: Plan
    cases: frozenset[str] = frozenset()  # of the latency measurement; none: all
    workers: list[Worker] = field(default_factory=list)

    @contextmanager
    def another(self, worker: Worker, packed: Path | None = None) -> Iterator[Worker]:
        """A fresh process of the same contestant, loaded; raises Failure. ``packed``: see ``Worker``."""
        fresh = Worker(worker.contestant, self.directory, self.threads, self.scratch, packed)
        try:
            fresh.load()
            yield fresh
        finally:
            fresh.close()
