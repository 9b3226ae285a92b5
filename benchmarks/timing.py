"""The clock, and what a list of its readings says."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def samples(call: Callable[[], object], seconds: float, least: int = 2) -> list[float]:
    """Seconds of single calls, one after the other, until ``seconds`` have passed and ``least`` calls were made."""
    readings: list[float] = []
    end = time.perf_counter() + seconds
    while len(readings) < least or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        readings.append(time.perf_counter() - begin)
    return readings


def percentiles(readings: list[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds."""
    return {f"p{q}_ms": float(np.percentile(readings, q) * 1e3) for q in (50, 90, 99)}


def ratio(theirs: list[list[float]], ours: list[list[float]], draws: int = 2000) -> tuple[float, float, float]:
    """Median of theirs over median of ours, with a 95 % interval: (ratio, low, high).

    Both are lists of rounds that were run in turn; the bootstrap draws whole rounds, since readings of one round share
    the machine's mood.
    """
    rng = np.random.default_rng(0)

    def drawn(rounds: list[list[float]], picks: np.ndarray) -> float:
        return float(np.median(np.concatenate([rounds[i] for i in picks])))

    everything = np.arange(len(ours))
    picks = rng.integers(0, len(ours), (draws, len(ours)))
    ratios = [drawn(theirs, pick) / drawn(ours, pick) for pick in picks]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return drawn(theirs, everything) / drawn(ours, everything), float(low), float(high)
