"""The capacity plan: its curve is that of the rows, its load that of the textbook, its sums add up."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import capacity
from benchmarks.capacity import Instance, curve_of, in_time, largest_rate, planned
from distilfast.serving.cost import Curve

RESULTS = Path(capacity.__file__).parent / "results"
TRUTH = Curve((8, 16, 32, 64, 128, 256), (2e-3, 3e-3, 5e-3, 9e-3, 18e-3, 36e-3), 4e-8)
CASES = ((1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (1, 256), (8, 32))
FLAT = Curve((16, 32), (2e-3, 1.0), 0.0)
"""Requests of 16 tokens that never share a batch: M/D/1."""


def test_the_curve_is_that_of_the_rows() -> None:
    rows = [{"case": f"{b}x{n}", "p50_ms": 1e3 * TRUTH([n] * b)} for b, n in CASES]
    found = curve_of(rows)
    assert found.attention == pytest.approx(TRUTH.attention)
    assert found.tokens == TRUTH.tokens
    assert found.seconds == pytest.approx(TRUTH.seconds)
    assert found([40, 200]) == pytest.approx(TRUTH([40, 200]))
    with pytest.raises(SystemExit, match="These rows have no latency of 1x256"):
        curve_of([row for row in rows if row["case"] != "1x256"])


def test_few_requests_are_in_time_and_many_are_not() -> None:
    deadline = 0.02
    assert in_time(FLAT, [16], 5.0, deadline, 0.0, 60.0) > 0.999
    assert in_time(FLAT, [16], 1000.0, deadline, 0.0, 3.0) == pytest.approx(0.5, abs=0.03)  # 500 a second are served
    assert in_time(FLAT, [16], 5.0, 1e-3, 0.0, 60.0) == 0


def test_the_largest_rate_keeps_the_deadline_and_a_larger_one_does_not() -> None:
    lengths, deadline = capacity.LENGTHS, 0.025
    rate = largest_rate(TRUTH, lengths, deadline, seconds=3.0)
    full = 1 / (TRUTH.throughput * np.mean(lengths))
    assert 0.5 * full < rate < full
    assert (
        in_time(TRUTH, lengths, rate, deadline, 0.0, 3.0)
        >= 0.99
        > in_time(TRUTH, lengths, 1.1 * rate, deadline, 0.0, 3.0)
    )
    assert largest_rate(TRUTH, lengths, deadline, request=1e-3, seconds=2.0) < 0.8 * rate
    assert largest_rate(TRUTH, lengths, 1e-3, seconds=2.0) == 0


def test_the_sums_of_a_day() -> None:
    instance = Instance(cpus=10, dollars=2.0, idle_watts=1.0, busy_watts=3.0)
    day = np.array([36e6, 360e6])  # two halves of 12 hours: 833 and 8,333 requests a second
    plan = planned(day, 1000.0, instance, spare=1)
    assert plan.machines == 10
    assert plan.busiest == pytest.approx(360e6 / 43200)
    hours, dollars, kwh = plan.fixed
    assert (hours, dollars) == (240, 480)
    served = 396e6 / 3600 / 1000.0  # machine-hours at full load
    assert kwh == pytest.approx((240 * 10 * 1.0 + served * 10 * 2.0) * capacity.PUE / 1e3)
    hours, dollars, kwh = plan.scaled
    assert (hours, dollars) == (12 * (2 + 10), 24 * 12)
    assert kwh == pytest.approx((144 * 10 * 1.0 + served * 10 * 2.0) * capacity.PUE / 1e3)


def test_the_day_is_one() -> None:
    assert len(capacity.DAY) == 24
    assert max(capacity.DAY) / np.mean(capacity.DAY) == pytest.approx(1.5, abs=0.05)


def test_the_command_calls_everything_a_prediction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["capacity", str(RESULTS / "2026-11-22-ahead.jsonl"), "--seconds", "1"])
    capacity.main()
    rows, request, *lines, last = capsys.readouterr().out.splitlines()
    assert rows.startswith("rows: int8 on AMD EPYC, 2 threads a process")
    assert request.startswith("an input: 0 ms of a process")
    assert len(lines) == 5
    assert all("predicted" in line for line in lines)
    assert last.startswith("Prices, watts and the day are inputs")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--instance", "mine", "--cpus", "8"], "mine is not known; it needs --dollars --idle-watts --busy-watts."),
        (["--precision", "fp16"], "There is no latency of distilfast fp16 in these rows."),
        (["--day", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--deadline-ms", "0.5"], "No load is small enough"),
    ],
)
def test_what_it_cannot_plan(monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str) -> None:
    file = str(RESULTS / "2026-11-22-ahead.jsonl")
    monkeypatch.setattr(sys, "argv", ["capacity", file, "--seconds", "1", *words])
    with pytest.raises(SystemExit, match=sentence):
        capacity.main()
