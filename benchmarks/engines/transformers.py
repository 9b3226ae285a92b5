"""The reference implementation: transformers with torch's fused attention, in inference mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.engines import missing

PRECISION = "fp32"


def unavailable() -> str | None:
    """Why it cannot run here, or None."""
    return missing("torch", "transformers")


def load(directory: Path, threads: int, scratch: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """See ``benchmarks.engines``."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(directory, attn_implementation="sdpa").eval()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()

    return run
