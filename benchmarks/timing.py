"""The clocks, and statistics of their readings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], object]
Clock = Callable[[Call], float]
"""Makes one call and gives its seconds."""


def wall(call: Call) -> float:
    """By the process's own clock, for a call that is done when it returns."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class CudaClock:
    """From an idle GPU to its last kernel, by events on the current stream: launches count, waiting for them does not.

    ``cold`` first writes zeros over a buffer several times as large as the L2 cache, so that the call finds nothing of
    its weights there; otherwise the L2 is as the call before left it. ``torch`` is the module.
    """

    def __init__(self, torch: Any, cold: bool) -> None:
        """Make the events once, and the buffer."""
        self._cuda = torch.cuda
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        l2_bytes = torch.cuda.get_device_properties().L2_cache_size
        self._buffer = torch.empty(4 * l2_bytes, dtype=torch.uint8, device="cuda") if cold else None

    def __call__(self, call: Call) -> float:
        """Seconds of one call."""
        if self._buffer is not None:
            self._buffer.zero_()
        self._cuda.synchronize()
        self._begin.record()
        call()
        self._end.record()
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3  # in milliseconds


def samples(call: Call, seconds: float, every: int = 1, clock: Clock = wall) -> list[float]:
    """Seconds of single calls, one after the other, until ``seconds`` have passed.

    Their number is a multiple of ``every``: where calls cycle through so many inputs, each is run equally often.
    """
    readings: list[float] = []
    end = time.perf_counter() + seconds
    while not readings or len(readings) % every or time.perf_counter() < end:
        readings.append(clock(call))
    return readings


def percentiles(readings: list[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds."""
    return {f"p{q}_ms": float(np.percentile(readings, q) * 1e3) for q in (50, 90, 99)}


def ratio(theirs: list[list[float]], ours: list[list[float]], draws: int = 2000) -> tuple[float, float, float]:
    """Median of theirs over median of ours, with a 95 % interval: (ratio, low, high).

    Both are lists of rounds that were run alternately; the bootstrap draws whole rounds, since the readings of a round
    share the state of the machine.
    """
    rng = np.random.default_rng(0)

    def drawn(rounds: list[list[float]], picks: np.ndarray) -> float:
        return float(np.median(np.concatenate([rounds[i] for i in picks])))

    everything = np.arange(len(ours))
    picks = rng.integers(0, len(ours), (draws, len(ours)))
    ratios = [drawn(theirs, pick) / drawn(ours, pick) for pick in picks]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return drawn(theirs, everything) / drawn(ours, everything), float(low), float(high)
