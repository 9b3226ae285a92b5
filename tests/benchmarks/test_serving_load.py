"""The load that servers are offered, and what is said of their answers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.serving import arrivals, summary


@pytest.mark.parametrize("kind", ["poisson", "bursty"])
def test_the_rate_is_the_mean(kind: str) -> None:
    due, long = arrivals(400, 60, kind, long=0.05)
    assert len(due) == pytest.approx(400 * 60, rel=0.03)
    assert np.all(np.diff(due) >= 0)
    assert due[-1] < 60
    assert np.mean(long) == pytest.approx(0.05, abs=0.01)


def test_poisson_arrivals_are_independent() -> None:
    """The variance of a count is its mean."""
    due, _ = arrivals(400, 60, "poisson")
    counts = np.bincount((due * 20).astype(int))
    assert np.var(counts) / np.mean(counts) == pytest.approx(1.0, abs=0.15)


def test_bursts_come_twice_a_second() -> None:
    due, _ = arrivals(400, 60, "bursty")
    inside = np.mod(due, 0.5) < 0.1
    assert np.sum(inside) / 60 / 0.2 == pytest.approx(3 * 400, rel=0.05)
    assert np.sum(~inside) / 60 / 0.8 == pytest.approx(0.5 * 400, rel=0.05)


def test_goodput_is_what_is_answered_in_time() -> None:
    latencies = np.array([10.0, 20.0, 25.0, 30.0, 1.0, 2.0, 5.0])
    statuses = np.array([200, 200, 200, 200, 429, 429, 0])
    row = summary(latencies, statuses, seconds=2.0)
    assert (row["answered"], row["refused"], row["failed"], row["requests"]) == (4, 2, 1, 7)
    assert row["goodput"] == 1.5
    assert row["p50_ms"] == 22.5
    assert row["refused_p99_ms"] == pytest.approx(1.99)
    assert "p50_ms" not in summary(latencies, np.zeros(7), 1.0)
