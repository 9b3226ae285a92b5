"""torch's own dynamic int8 (quantize_dynamic) of every linear, a scale for each output channel, run as it is."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from benchmarks.engines import Contestant, Loaded, missing, only_on_cpu
from benchmarks.engines.transformers import forward_of, load_model

ENTRIES = (("", "int8"),)


def unavailable(contestant: Contestant) -> str | None:
    """Why it cannot run here, or None."""
    return only_on_cpu(contestant) or missing("torch", "transformers")


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    import torch

    model = load_model(replace(contestant, precision="fp32"), directory, threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantised = torch.ao.quantization.quantize_dynamic(
            model, {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}, dtype=torch.qint8
        )
    engine = torch.backends.quantized.engine
    return Loaded(forward_of(quantised), f"quantize_dynamic, {engine}, {threads} threads")
