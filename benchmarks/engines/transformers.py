"""The reference implementation, in inference mode, with each of its attentions: torch's fused one and the plain one."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import Contestant, Forward, Loaded, missing, no_gpu

ENTRIES = tuple(product(("sdpa", "eager"), ("fp32", "bf16", "fp16")))


def unavailable(contestant: Contestant) -> str | None:
    """Why it cannot run here, or None."""
    if contestant.precision == "fp16" and contestant.device == "cpu":
        return "fp16 needs a GPU: on a CPU torch has no fast arithmetic for it."
    return missing("torch", "transformers") or (no_gpu() if contestant.device == "cuda" else None)


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    model = load_model(contestant, directory, threads)
    return Loaded(forward_of(model), f"{contestant.variant}, {where(threads, contestant.device)}")


def load_model(contestant: Contestant, directory: Path, threads: int) -> Any:
    """The bare encoder as a torch module, in evaluation mode on its device."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[contestant.precision]
    attention = contestant.variant or "sdpa"
    model = AutoModel.from_pretrained(directory, attn_implementation=attention, dtype=dtype)
    return model.to(contestant.device).eval()


def forward_of(model: Any) -> Forward:
    """numpy in, numpy out on the CPU; on the GPU tensors, that stay there."""
    import torch

    def run(ids: Any, mask: Any) -> Any:
        with torch.inference_mode():
            return model(ids, mask).last_hidden_state

    def on_cpu(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        # Without padding a mask is only work: who serves transformers well leaves it out.
        return run(torch.from_numpy(ids), None if mask.all() else torch.from_numpy(mask)).float().numpy()

    return on_cpu if model.device.type == "cpu" else run


def where(threads: int, device: str) -> str:
    """For ``Loaded.detail``."""
    import torch

    return f"{threads} threads" if device == "cpu" else torch.cuda.get_device_name()
