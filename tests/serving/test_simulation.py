"""What the policy does to a service as a whole, on recorded lengths: latency, goodput, fairness."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from conftest import CURVE

from distilfast.serving.scheduler import Batch, Scheduler
from distilfast.serving.simulation import Arrival, Result, Simulation

Make = Callable[..., Scheduler]
LENGTHS = (7, 8, 9, 10, 11, 11, 12, 13, 14, 16, 19)
"""As the texts of CLINC150 have tokens."""


def arrivals(count: int, load: float, deadline: float, long: float = 0.0) -> list[Arrival]:
    """Poisson arrivals of ``load`` times what full batches could serve; a share of ``long`` has 512 tokens."""
    rng = np.random.default_rng(1)
    lengths = np.where(rng.random(count) < long, 512, rng.choice(LENGTHS, count))
    work = np.mean([CURVE.throughput * n + CURVE.attention * n * max(0, n - 16) for n in lengths])
    times = np.cumsum(rng.exponential(work / load, count))
    return [Arrival(float(at), [int(n)], deadline if n < 512 else 2.0) for at, n in zip(times, lengths, strict=True)]


def served(scheduler: Scheduler, requests: Sequence[Arrival], noise: float = 0.05) -> list[Result]:
    rng = np.random.default_rng(2)

    def seconds(batch: Batch) -> float:
        return CURVE(batch.lengths) * float(np.exp(rng.normal(0, noise)))

    return Simulation(scheduler, seconds).run(requests)


def short_ones(results: Sequence[Result]) -> list[Result]:
    return [each for each in results if each.arrival.lengths[0] < 512]


def p99(results: Sequence[Result]) -> float:
    return float(np.percentile([each.latency for each in results if each.latency is not None], 99))


def test_one_server_is_the_queue_of_the_textbook(scheduler: Make) -> None:
    """Requests that never share a batch, in constant time, are M/D/1: the mean wait is rho / (2 (1 - rho)) services."""
    rng = np.random.default_rng(0)
    load, service = 0.7, CURVE([64])
    times = np.cumsum(rng.exponential(service / load, 10_000))
    results = Simulation(scheduler(), lambda batch: CURVE(batch.lengths)).run(
        [Arrival(float(at), [64]) for at in times]
    )
    waits = [each.latency - service for each in results if each.latency is not None]
    assert np.mean(waits) == pytest.approx(service * load / (2 * (1 - load)), rel=0.08)


def test_overload_costs_no_goodput(scheduler: Make) -> None:
    """At three times the capacity, what is accepted is in time and fills the processor; the rest is refused."""
    requests = arrivals(4000, load=3.0, deadline=0.025)
    results = served(scheduler(), requests)
    accepted = [each for each in results if each.refused is None]
    assert np.mean([each.good for each in accepted]) >= 0.99
    used = sum(CURVE.throughput * each.arrival.lengths[0] for each in results if each.good)
    assert used / requests[-1].at > 0.9


def test_without_admission_nearly_all_would_be_late(scheduler: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same overload where everything is accepted: what the refusals are for."""
    monkeypatch.setattr(Scheduler, "_late", lambda *_: None)
    results = served(scheduler(), arrivals(4000, load=3.0, deadline=0.025))
    accepted = [each for each in results if each.refused is None]
    assert np.mean([each.good for each in accepted]) < 0.6


def test_long_texts_hardly_delay_short_ones(scheduler: Make) -> None:
    """5 % of 512 tokens, which are two thirds of the work: p99 of the others is within twice what it is without them.

    With one lane it is not.
    """
    mixed = arrivals(6000, load=0.5, deadline=10.0, long=0.05)
    short = [each for each in mixed if each.lengths[0] < 512]
    without = p99(served(scheduler(), short))
    assert p99(short_ones(served(scheduler(), mixed))) < 2 * without
    assert p99(short_ones(served(scheduler(lanes=1), mixed))) > 4 * without


def test_a_client_that_floods_leaves_the_others_their_answers(scheduler: Make) -> None:
    rng = np.random.default_rng(3)
    flood = [Arrival(float(at), [12], 0.05, client="flood") for at in np.cumsum(rng.exponential(3e-4, 6000))]
    others = [
        Arrival(float(at), [12], 0.05, client=f"client {i % 5}")
        for i, at in enumerate(np.cumsum(rng.exponential(2e-2, 80)))
    ]
    results = served(scheduler(), [*flood, *others])
    good = [each.good for each in results if each.arrival.client != "flood"]
    assert np.mean(good) > 0.95
    assert np.mean([each.good for each in results if each.arrival.client == "flood"]) < 0.6


def test_a_machine_that_slows_down_is_followed(scheduler: Make) -> None:
    """Half as fast from the middle on: what is accepted is in time again after a while."""
    requests = arrivals(6000, load=0.9, deadline=0.03)
    half = requests[3000].at
    each = scheduler()
    simulation = Simulation(each, lambda batch: CURVE(batch.lengths) * (2 if simulation.now > half else 1))
    results = simulation.run(requests)
    accepted = [result for result in results[4000:] if result.refused is None]
    assert each.models[""].cost.factor == pytest.approx(2.0, rel=0.1)
    assert np.mean([result.good for result in accepted]) > 0.99
