"""Which GPU backend is faster where: what was measured, by architecture, precision and token bucket.

The table is measured.json beside this file. ``python -m benchmarks.backends`` makes it from the rows of
benchmarks/results; it is not written by hand. Where it has no rows, `auto` does not choose a GPU.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("measured.json")
BACKENDS = ("cuda", "triton")


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a forward in one bucket on one GPU, and where they come from.

    ``architecture``: as "sm_90"; ``tokens``: the bucket, a power of two; the milliseconds are None for a backend that
    does not have the precision; ``commit``, ``command`` and ``when`` are those of the newest row.
    """

    architecture: str
    gpu: str
    precision: str
    tokens: int
    cuda_ms: float | None
    triton_ms: float | None
    commit: str
    command: str
    when: str

    @property
    def faster(self) -> str:
        """The backend that took less time."""
        times = {"cuda": self.cuda_ms, "triton": self.triton_ms}
        return min((time, name) for name, time in times.items() if time is not None)[1]


def read(path: Path = TABLE) -> list[Measured]:
    """Every row of the table."""
    return [Measured(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def winners(table: list[Measured], architecture: str, precision: str) -> dict[int, str]:
    """The faster backend of each measured bucket; empty where nothing was measured."""
    rows = [row for row in table if (row.architecture, row.precision) == (architecture, precision)]
    return {row.tokens: row.faster for row in sorted(rows, key=lambda row: row.tokens)}


def architecture() -> str | None:
    """Of this machine's GPU, as "sm_90"; None where there is none that a GPU backend can use.

    torch is imported, which takes seconds, only where distilfast._cuda is missing and there is a driver.
    """
    from distilfast.backends import cuda, triton

    if cuda.unavailable() is None:
        return f"sm_{cuda.extension().architecture()}"
    if not has_driver() or triton.unavailable() is not None or triton.is_interpreted():
        return None
    import torch

    major, minor = torch.cuda.get_device_capability()
    return None if torch.version.hip else f"sm_{major}{minor}"


def has_driver() -> bool:
    """Whether NVIDIA's driver can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
