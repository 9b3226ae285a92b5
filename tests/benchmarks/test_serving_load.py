"""The load that servers are offered, and what is said of their answers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from benchmarks import serving
from benchmarks.serving import arrivals, predicted, summary
from distilfast.serving.cost import Curve


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


def test_the_prediction_of_requests_that_never_meet() -> None:
    """Each takes its forward and what a request costs beside it; those too close together queue or are refused."""
    curve = Curve((8, 16, 32), (2e-3, 2.5e-3, 4e-3))
    capacity = 1 / (curve.throughput * 8 + 1e-3)  # so a request costs 1 ms beside its forward
    latencies, statuses = predicted(curve, [8] * 20, np.arange(20.0), capacity)
    assert (statuses == 200).all()
    assert np.abs(latencies - 3).max() < 1e-6
    latencies, statuses = predicted(curve, [8] * 500, np.linspace(0, 0.01, 500), capacity)
    assert {200, 429} <= set(statuses) <= {200, 429, 504}
    assert latencies[statuses == 200].max() > 10


def test_every_answer_of_a_closed_loop_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of callers that wait at the same time."""
    posted = 0

    async def post(self: object, body: bytes) -> int:
        nonlocal posted
        await asyncio.sleep(0)
        posted += 1
        return 200

    monkeypatch.setattr(serving.Connections, "post", post)
    assert asyncio.run(serving._closed_loop(0, [b""], 8, 0.05))[0] == posted > 8
