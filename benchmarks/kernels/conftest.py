"""Each operation alone, on each ISA of this machine: `python -m pytest benchmarks/kernels`."""

from __future__ import annotations

import numpy as np
import pytest

from distilfast import machine
from distilfast.backends import cpu

THREADS = machine.info()["threads"]


@pytest.fixture(params=[name for name, there in cpu.isas().items() if there and name != "ref"])
def isa(request: pytest.FixtureRequest) -> str:
    """A fast ISA; `ref` is there to be right."""
    return request.param


@pytest.fixture(params=[16, 128, 1024])
def tokens(request: pytest.FixtureRequest) -> int:
    """T: few, one sequence, a batch."""
    return request.param


@pytest.fixture
def normal():
    """``normal(*shape)``: float32, seeded."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.standard_normal(shape, np.float32)


@pytest.fixture
def timed(benchmark):
    """``timed(call, operations)``: runs the benchmark and notes GFLOP/s beside it."""

    def run(call, operations: float) -> None:
        benchmark(call)
        benchmark.extra_info["gflops"] = operations / benchmark.stats["median"] * 1e-9

    return run
