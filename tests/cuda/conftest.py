"""The CUDA sources on the simulated device of tests/cuda_host, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from host_build import cuda_build, imported
from simulated import SimulatedDevice

from distilfast.backends import cuda


@pytest.fixture(scope="session")
def host_build() -> Path:
    """The folder of the modules that run on the simulated device, rebuilt where a source has changed."""
    return cuda_build()


@pytest.fixture(scope="session", params=["host", pytest.param("device", marks=pytest.mark.gpu)])
def extension(request: pytest.FixtureRequest) -> ModuleType:
    """``_cuda`` on the simulated device, and on a real one."""
    if request.param == "host":
        return imported("_cuda_host", request.getfixturevalue("host_build"))
    if reason := cuda.unavailable():
        pytest.skip(reason)
    return cuda.extension()


@pytest.fixture(scope="session")
def simulated(extension: ModuleType) -> Iterator[SimulatedDevice | None]:
    """The simulated device, None on a real one. No call whose status nobody reads may have failed."""
    if extension.__name__ != "_cuda_host":
        yield None
        return
    device = SimulatedDevice(extension)
    yield device
    assert device.complaints() == ""


@pytest.fixture(scope="session")
def faults(host_build: Path) -> ModuleType:
    """Kernels with planted bugs."""
    return imported("_cuda_faults", host_build)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded, so that a failure is reproducible."""
    return np.random.default_rng(2026)


@pytest.fixture
def normal(rng: np.random.Generator):
    """``normal(*shape)``: float32 from a normal distribution."""

    def make(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return make
