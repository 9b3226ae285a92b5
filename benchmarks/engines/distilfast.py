"""Ourselves, through the public engine."""

from __future__ import annotations

from pathlib import Path

import distilfast
from benchmarks.engines import Forward
from distilfast.backends import cpu

PRECISIONS = cpu.PRECISIONS


def unavailable(precision: str) -> str | None:
    """Why the extension cannot be imported, or None."""
    return cpu.unavailable()


def load(directory: Path, precision: str, threads: int, scratch: Path) -> Forward:
    """See ``benchmarks.engines``."""
    engine = distilfast.Engine.from_pretrained(
        directory, task="feature-extraction", precision=precision, backend="cpu", threads=threads
    )
    return lambda ids, mask: engine(ids, mask).last_hidden_state
