"""The machine's own limits: of the processor by roofs.cpp, of a GPU through torch."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import timing
from benchmarks.engines import no_gpu

READINGS = 20


def measure(threads: int) -> dict[str, Any]:
    """``giga_operations`` a second by unit and ``read_gb_by_mib``: gigabytes a second by MiB read; or ``reason``."""
    source = Path(__file__).with_name("roofs.cpp")
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "roofs"
        compiler = [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-march=native", "-pthread"]
        compiler += ["-I", str(source.parents[1] / "csrc")]
        try:
            subprocess.run([*compiler, str(source), "-o", str(program)], check=True, capture_output=True, text=True)
            printed = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            return {"threads": threads, "reason": f"The program that measures them could not be run: {error}."}
    found: dict[str, Any] = json.loads(printed)
    return found


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
