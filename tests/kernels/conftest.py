"""Each kernel test runs on every ISA that this machine has, one at a time, and on simulated AMX."""

from __future__ import annotations

import numpy as np
import pytest

from distilfast.backends import cpu


@pytest.fixture(params=[*(name for name, there in cpu.isas().items() if there), "amx_simulated"])
def isa(request: pytest.FixtureRequest) -> str:
    """The name of an ISA."""
    if request.param == "amx_simulated":
        request.getfixturevalue("amx_simulated")
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded: a failure comes back."""
    return np.random.default_rng(2026)


@pytest.fixture
def normal(rng: np.random.Generator):
    """``normal(*shape)``: float32 from a normal distribution, at an address that no vector is aligned to."""

    def make(*shape: int, scale: float = 1.0) -> np.ndarray:
        size = int(np.prod(shape))
        values = np.empty(size + 1, np.float32)[1:]
        values[:] = rng.standard_normal(size) * scale
        return values.reshape(shape)

    return make
