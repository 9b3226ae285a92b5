"""Each distinct kernel of this machine is tested once (identities.py), and those of simulated AMX."""

from __future__ import annotations

import numpy as np
import pytest

from distilfast.backends import cpu

ISAS = [name for name, there in cpu.isas().items() if there]
if "avx512_bf16" in ISAS:  # which shares each of its kernels with avx512_bf16 or avx512
    ISAS.remove("avx512_vnni")


@pytest.fixture(params=[*ISAS, "amx_simulated"])
def isa(request: pytest.FixtureRequest) -> str:
    """The name of an ISA."""
    if request.param == "amx_simulated":
        request.getfixturevalue("amx_simulated")
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded, so that a failure is reproducible."""
    return np.random.default_rng(2026)


@pytest.fixture
def normal(rng: np.random.Generator):
    """``normal(*shape)``: float32 from a normal distribution, at an address that is not aligned for vectors."""

    def make(*shape: int, scale: float = 1.0) -> np.ndarray:
        size = int(np.prod(shape))
        values = np.empty(size + 1, np.float32)[1:]
        values[:] = rng.standard_normal(size) * scale
        return values.reshape(shape)

    return make
