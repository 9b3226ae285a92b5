"""transformers through torch.compile, as each device is served best.

On a CPU the weights are frozen into the code, and one compilation with dynamic shapes serves all lengths: one for each
shape takes half a minute each, and torch gives up after eight. (A batch of one and a mask are kinds of their own:
three compilations in all.) On a GPU "max-autotune" with CUDA graphs, which stand for one shape each.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks.engines import Contestant, Forward, Loaded, missing, no_gpu
from benchmarks.engines.transformers import forward_of, load_model, where

ENTRIES = (("", "fp32"), ("", "bf16"), ("", "fp16"))
SHAPES = 64
"""Compilations that torch may make of one model before it falls back to running it uncompiled."""


def unavailable(contestant: Contestant) -> str | None:
    """Why it cannot run here, or None."""
    if reason := missing("torch", "transformers"):
        return reason
    if contestant.device == "cuda":
        return no_gpu()
    if contestant.precision == "fp16":
        return "fp16 needs a GPU: on a CPU torch has no fast arithmetic for it."
    return None if shutil.which(os.environ.get("CXX", "g++")) else "torch.compile needs a C++ compiler."


def load(contestant: Contestant, directory: Path, threads: int, scratch: Path) -> Loaded:
    """See ``benchmarks.engines``."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "torch_compile")
    model = load_model(contestant, directory, threads)
    compile_for = _for_gpu if contestant.device == "cuda" else _for_cpu
    forward, how = compile_for(model)
    return Loaded(forward, f"{how}, {where(threads, contestant.device)}")


def _for_cpu(model: Any) -> tuple[Forward, str]:
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True  # only in effect without gradients, which ``forward_of`` sees to
    return forward_of(torch.compile(model, dynamic=True)), "frozen, dynamic shapes"


def _for_gpu(model: Any) -> tuple[Forward, str]:
    import torch
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = SHAPES
    forward = forward_of(torch.compile(model, dynamic=False, mode="max-autotune"))

    def run(ids: Any, mask: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # the answer before this one may be written over
        return forward(ids, mask)

    return run, "max-autotune, CUDA graphs"
