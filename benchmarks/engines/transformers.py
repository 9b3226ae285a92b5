"""The reference implementation: transformers with torch's fused attention, in inference mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import Forward, missing

PRECISIONS = ("fp32", "bf16")


def unavailable(precision: str) -> str | None:
    """Why it cannot run here, or None."""
    return missing("torch", "transformers")


def load(directory: Path, precision: str, threads: int, scratch: Path) -> Forward:
    """See ``benchmarks.engines``."""
    return forward_of(load_model(directory, precision, threads))


def load_model(directory: Path, precision: str, threads: int) -> Any:
    """The bare encoder as a torch module."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return AutoModel.from_pretrained(directory, attn_implementation="sdpa", dtype=dtype).eval()


def forward_of(model: Any) -> Forward:
    """numpy in, numpy out."""
    import torch

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # Without padding a mask is only work: who serves transformers well leaves it out.
            given = None if mask.all() else torch.from_numpy(mask)
            return model(torch.from_numpy(ids), given).last_hidden_state.float().numpy()

    return run
