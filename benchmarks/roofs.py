"""The machine's own limits: of the processor by roofs.cpp, of a GPU through torch."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import timing
from benchmarks.engines import no_gpu

READINGS = 20


State = dict[str, Any]
"""``ping_ns`` between two cores, ``giga_operations`` a second by unit, ``read_gb_by_mib``: GB/s by MiB read."""

AGREE, TRIES = 0.05, 6
"""Two readings of a state agree where no peak differs by more; after so many the best of all is taken."""


class Program:
    """roofs.cpp, compiled for this machine in a folder of its own. ``close`` removes it."""

    def __init__(self, threads: int) -> None:
        """Raises OSError or subprocess.CalledProcessError where it cannot be compiled."""
        self._threads = threads
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "roofs"
        source = Path(__file__).with_name("roofs.cpp")
        compiler = [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-march=native", "-pthread"]
        compiler += ["-I", str(source.parents[1] / "csrc")]
        subprocess.run([*compiler, str(source), "-o", str(self._path)], check=True, capture_output=True, text=True)

    def close(self) -> None:
        self._folder.cleanup()

    def run(self, *words: str) -> State:
        command = [str(self._path), str(self._threads), *words]
        found: State = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return found

    def state(self) -> State:
        """The same in less than a second, repeated until two readings agree: a peak was seen at half for a moment."""
        return settled(lambda: self.run("state"))


def settled(read: Callable[[], State]) -> State:
    """The better of the first two states that agree in every peak and in the speed of reading."""
    readings = [read()]
    while len(readings) < TRIES:
        readings.append(read())
        if agreeing := [each for each in readings[:-1] if _agree(each, readings[-1])]:
            return _best([agreeing[0], readings[-1]])
    return _best(readings)


def _agree(one: State, other: State) -> bool:
    return all(
        abs(other[kind][name] / value - 1) <= AGREE
        for kind in ("giga_operations", "read_gb_by_mib")
        for name, value in one[kind].items()
    )


def _best(readings: list[State]) -> State:
    def most(kind: str) -> dict[str, float]:
        return {name: max(each[kind][name] for each in readings) for name in readings[0][kind]}

    ping = median(each["ping_ns"] for each in readings)
    return readings[0] | {"ping_ns": ping} | {kind: most(kind) for kind in ("giga_operations", "read_gb_by_mib")}


def program(threads: int) -> Program | str:
    """The program that measures, or why there is none."""
    try:
        return Program(threads)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"The program that measures them could not be compiled: {error}."


def measure(threads: int) -> dict[str, Any]:
    """A ``State`` with every size that is read, measured for some seconds; or ``reason``."""
    made = program(threads)
    if isinstance(made, str):
        return {"threads": threads, "reason": made}
    try:
        return made.run()
    except (OSError, subprocess.CalledProcessError) as error:
        return {"threads": threads, "reason": f"The program that measures them could not be run: {error}."}
    finally:
        made.close()


def measure_gpu(size: int = 8192, copied: int = 1 << 30) -> dict[str, Any]:
    """``giga_operations`` a second of a square bf16 product, and ``copy_gb``: gigabytes a second, read and written.

    The product is [size, size]², the copy of ``copied`` bytes, far beyond the L2; ``reason`` where there is no GPU.
    """
    if reason := no_gpu():
        return {"reason": reason}
    import torch

    clock = timing.CudaClock(torch, cold=False)
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    source = torch.zeros(copied, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    multiply, copy = (_median_seconds(clock, call) for call in (lambda: a @ b, lambda: target.copy_(source)))
    return {
        "giga_operations": {"bf16_matmul": 2.0 * size**3 / multiply * 1e-9},
        "copy_gb": 2.0 * copied / copy * 1e-9,
    }


def _median_seconds(clock: timing.Clock, call: timing.Call) -> float:
    """The first few calls choose an algorithm and wake the clocks."""
    return median([clock(call) for _ in range(READINGS + 5)][5:])
