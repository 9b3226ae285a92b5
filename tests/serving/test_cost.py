"""What a forward is predicted to take: from measured batches, and as the machine changes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from conftest import CURVE

from distilfast.errors import InputError
from distilfast.serving.cost import LONG, SHORT, TOKENS, Cost, Curve, measure


def true_seconds(lengths: Sequence[int]) -> float:
    """A machine that reads weights for 2 ms, or multiplies for 0.1 ms a token, with attention of 100 ns a pair."""
    return max(2e-3, 1e-4 * sum(lengths)) + 1e-7 * sum(n * max(0, n - SHORT) for n in lengths)


def test_a_measured_curve_predicts_other_batches() -> None:
    time = itertools.count()
    now = [0.0]

    def forward(lengths: Sequence[int]) -> None:
        noise = 3.0 if next(time) % 7 == 3 else 1.0  # some forwards are interrupted
        now[0] += noise * true_seconds(lengths)

    curve = measure(forward, clock=lambda: now[0])
    for lengths in ([1], [5], [40], [512], [500, 12], [30] * 9, [16] * 40):
        assert curve(lengths) == pytest.approx(true_seconds(lengths), rel=0.1), lengths


def test_a_short_model_is_measured_within_its_positions() -> None:
    longest = []

    def forward(lengths: Sequence[int]) -> None:
        longest.append(max(lengths))

    clock = itertools.count()
    measure(forward, longest=64, clock=lambda: float(next(clock)))
    assert max(longest) == 64


def test_more_tokens_never_cost_less() -> None:
    seconds = dict(zip(TOKENS, (3.0, 2.0, 4.0, 3.5, 8.0), strict=True)) | {LONG: 16.0}
    now = [0.0]

    def forward(lengths: Sequence[int]) -> None:
        now[0] += seconds[sum(lengths)]

    assert measure(forward, clock=lambda: now[0]).seconds == (3.0, 3.0, 4.0, 4.0, 8.0)


def test_a_quantum_is_where_a_token_hardly_gets_cheaper() -> None:
    each = [seconds / tokens for tokens, seconds in zip(CURVE.tokens, CURVE.seconds, strict=True)]
    assert CURVE.quantum() == 64
    assert each[CURVE.tokens.index(64)] <= 1.1 * min(each) < each[CURVE.tokens.index(32)]
    assert CURVE.quantum(waste=0.12) == 32


def test_between_and_beyond_the_points_it_is_linear() -> None:
    assert CURVE([16, 8]) == pytest.approx(4e-3)
    assert CURVE([16] * 64) == pytest.approx(144e-3)
    assert CURVE([1]) == CURVE([8]) == 2e-3


@pytest.mark.parametrize(
    ("tokens", "seconds"), [((8,), (1.0,)), ((8, 8), (1.0, 2.0)), ((8, 16), (1.0,)), ((8, 16), (0.0, 1.0))]
)
def test_points_that_make_no_curve_are_an_error(tokens: tuple[int, ...], seconds: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"^[A-Z].*\.$"):
        Curve(tokens, seconds)


def test_the_factor_follows_a_slower_machine() -> None:
    cost = Cost(CURVE)
    before = cost([16])
    for _ in range(200):
        cost.learn([16, 16], 2 * CURVE([16, 16]))
    assert cost([16]) == pytest.approx(2 * before, rel=1e-3)


def test_one_batch_in_twenty_exceeds_the_margin() -> None:
    """Of ratios spread like those of a noisy machine, whatever the margin began with."""
    rng = np.random.default_rng(0)
    for start in (1.0, 2.0):
        cost = Cost(CURVE)
        cost.margin = start
        above = []
        for ratio in np.exp(rng.normal(0, 0.2, 6000)):
            above.append(ratio > cost.factor * cost.margin)
            cost.learn([16], ratio * CURVE([16]))
        assert np.mean(above[2000:]) == pytest.approx(0.05, abs=0.02)


def test_an_interrupted_batch_changes_little() -> None:
    cost = Cost(CURVE)
    cost.learn([16], 1000 * CURVE([16]))
    assert cost.factor < 1.5
    assert cost.margin < 1.2
