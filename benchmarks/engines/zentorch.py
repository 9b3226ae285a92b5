"""AMD's backend of torch.compile, with its ZenDNN kernels; one compilation with dynamic shapes serves all lengths."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engines import Contestant, Loaded, missing, only_on_cpu
from benchmarks.engines.transformers import forward_of, load_model
from distilfast import machine

ENTRIES = (("", "fp32"), ("", "bf16"))


def unavailable(contestant: Contestant) -> str | None:
    """Why it cannot run here, or None."""
    if reason := only_on_cpu(contestant):
        return reason
    if "AMD" not in machine.info()["processor"]:
        return "zentorch is made for AMD's processors and is compared there."
    return missing("torch", "transformers", "zentorch")


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    import torch
    import zentorch

    model = torch.compile(load_model(contestant, directory, threads), backend="zentorch", dynamic=True)
    return Loaded(forward_of(model), f"zentorch {zentorch.__version__}, dynamic shapes, {threads} threads")
