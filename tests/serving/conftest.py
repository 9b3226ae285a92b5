"""A cost curve of a made-up machine, and schedulers on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distilfast.serving.cost import Cost, Curve
from distilfast.serving.scheduler import Model, Scheduler

CURVE = Curve((8, 16, 32, 64, 128, 256, 512), (2e-3, 3e-3, 5e-3, 9e-3, 18e-3, 36e-3, 72e-3), 1e-8)
"""About what int8 takes on two cores; a quantum is 64 tokens."""


@pytest.fixture
def scheduler() -> Callable[..., Scheduler]:
    """``scheduler(weights={"": 1.0}, **options of Scheduler)``."""

    def make(weights: dict[str, float] | None = None, **options: object) -> Scheduler:
        models = {name: Model(Cost(CURVE), weight) for name, weight in (weights or {"": 1.0}).items()}
        return Scheduler(models, **options)  # type: ignore[arg-type]

    return make
