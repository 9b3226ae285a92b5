"""transformers through torch.compile with weights frozen into the code; it is compiled once per kind of shape."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engines import Forward, missing
from benchmarks.engines.transformers import forward_of, load_model

PRECISIONS = ("fp32", "bf16")


def unavailable(precision: str) -> str | None:
    """Why it cannot run here, or None."""
    return missing("torch", "transformers")


def load(directory: Path, precision: str, threads: int, scratch: Path) -> Forward:
    """See ``benchmarks.engines``."""
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True
    return forward_of(torch.compile(load_model(directory, precision, threads)))
