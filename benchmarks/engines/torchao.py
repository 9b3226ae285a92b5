"""torchao's dynamic int8, a scale for each token and each output channel, through torch.compile with frozen weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from benchmarks.engines import Contestant, Loaded, missing, only_on_cpu, torch_compile
from benchmarks.engines.transformers import forward_of, load_model

ENTRIES = (("", "int8"),)


def unavailable(contestant: Contestant) -> str | None:
    """Why it cannot run here, or None."""
    return (
        only_on_cpu(contestant)
        or missing("torch", "transformers", "torchao")
        or torch_compile.unavailable(replace(contestant, precision="fp32"))
    )


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "torchao")
    import torch
    import torch._inductor.config as inductor
    import torchao
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = load_model(replace(contestant, precision="fp32"), directory, threads)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    inductor.freezing = True
    compiled = torch.compile(model, dynamic=True)
    return Loaded(forward_of(compiled), f"torchao {torchao.__version__}, frozen, dynamic shapes, {threads} threads")
