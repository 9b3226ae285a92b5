"""Each operation alone, on each ISA of this machine: `python -m pytest benchmarks/kernels`."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import roofs
from distilfast import machine
from distilfast.backends import cpu

THREADS = machine.info()["threads"]
_SHARES: list[tuple[str, float, float, float]] = []


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


@pytest.fixture(params=cpu.PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    """Each type of operand."""
    return request.param


@pytest.fixture(scope="session")
def peaks() -> dict[str, float]:
    """GFLOP/s of the machine's fastest unit for a precision, all threads."""
    units = roofs.measure(THREADS).get("giga_operations", {})
    return {
        name: max((speed for unit, speed in units.items() if unit.startswith(name)), default=float("nan"))
        for name in cpu.PRECISIONS
    }


@pytest.fixture
def timed(benchmark, peaks):
    """``timed(call, operations)``: runs the benchmark and notes GFLOP/s and their share of the peak beside it."""

    def run(call, operations: float, precision: str = "fp32") -> None:
        benchmark(call)
        speed = operations / benchmark.stats["median"] * 1e-9
        share = speed / peaks[precision]
        benchmark.extra_info |= {"gflops": speed, "share_of_peak": share}
        _SHARES.append((benchmark.name, benchmark.stats["median"] * 1e3, speed, share))

    return run


def pytest_terminal_summary(terminalreporter) -> None:
    """What each operation reaches of the machine's peak."""
    for name, milliseconds, speed, share in _SHARES:
        terminalreporter.write_line(f"{name:55} {milliseconds:9.3f} ms {speed:7.1f} GFLOP/s {share:6.1%} of the peak")
