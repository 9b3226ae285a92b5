"""Ourselves, through the public engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import distilfast

PRECISION = "fp32"


def unavailable() -> str | None:
    """None: the benchmark comes with the package."""
    return None


def load(directory: Path, threads: int, scratch: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """See ``benchmarks.engines``."""
    engine = distilfast.Engine.from_pretrained(
        directory, task="feature-extraction", precision=PRECISION, threads=threads
    )
    return lambda ids, mask: engine(ids, mask).last_hidden_state
