"""The policies that are simulated beside the server's own: their queues by hand, and who wins when."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import policy
from distilfast.serving.cost import Curve

CURVE = Curve((8, 16, 512), (2e-3, 3e-3, 96e-3))


def test_padded_batches_by_hand() -> None:
    """The first runs alone; two wait for it, and cost twice the longer of them."""
    due = np.array([0.0, 0.001, 0.0015, 1.0])
    batch = CURVE([12, 12])
    found = policy.in_batches(CURVE, due, [8, 8, 12, 16])
    assert found == pytest.approx([2, 1e3 * (2e-3 + batch - 0.001), 1e3 * (2e-3 + batch - 0.0015), 3])


def test_one_at_a_time_by_hand() -> None:
    found = policy.one_at_a_time(CURVE, np.array([0.0, 0.001, 0.5]), [8, 8, 16])
    assert found == pytest.approx([2, 3, 3])


@pytest.mark.parametrize("kind", ["poisson", "bursty"])
def test_ours_keeps_its_goodput_where_the_others_lose_theirs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "LOADS", (0.25, 3.0))
    found = policy.goodput(CURVE, [8, 10, 12, 19], kind, seconds=2.0)
    ours, *others = found.values()
    assert ours[0] > 0.2
    assert ours[1] > 0.9
    assert all(each[1] < 0.2 for each in others)
    assert all(ours[i] <= 1.05 * policy._possible(load, kind) + 0.1 for i, load in enumerate(policy.LOADS))
