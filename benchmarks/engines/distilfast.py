"""Ourselves, through the public engine: the CPU backend, and on a GPU the backends "triton" and "cuda" as variants.

On a GPU the engine is given the tensors on the device, as the others are; what it copies is part of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import distilfast
from benchmarks.engines import Contestant, Loaded, no_gpu
from distilfast import backends

GPU_BACKENDS = ("triton", "cuda")


def _backend(name: str) -> Any:
    """The backend's module, None where this version has none of that name."""
    return backends.module(name) if name in backends.names() else None


def _precisions(name: str) -> Sequence[str]:
    return getattr(_backend(name), "PRECISIONS", ("fp32",))


ENTRIES = (
    *(("", precision) for precision in _precisions("cpu")),
    *((name, precision) for name in GPU_BACKENDS for precision in _precisions(name)),
)


def unavailable(contestant: Contestant) -> str | None:
    """Why the backend cannot run here, or None."""
    name = contestant.variant or "cpu"
    if (name == "cpu") != (contestant.device == "cpu"):
        return f"The backend {name} is not for --device {contestant.device}."
    module = _backend(name)
    if module is None:
        return f"This version has no backend {name}."
    return module.unavailable() or (no_gpu() if name in GPU_BACKENDS else None)


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    engine = distilfast.Engine.from_pretrained(
        directory,
        task="feature-extraction",
        precision=contestant.precision,
        backend=contestant.variant or "cpu",
        threads=threads,
    )
    return Loaded(lambda ids, mask: engine(ids, mask).last_hidden_state, str(engine.info()["detail"]))
