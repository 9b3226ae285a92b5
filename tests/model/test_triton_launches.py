"""The launches that benchmarks/gpu_launches.py counts are those that backend triton captures into a graph."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_torch_cuda import simulated_cuda

from benchmarks import gpu_launches
from distilfast import Engine, PackedBatch
from distilfast.backends import triton as backend

if reason := backend.unavailable():
    pytest.skip(f"backend triton: {reason}", allow_module_level=True)
if not backend.is_interpreted():
    pytest.skip("torch.cuda is not simulated where there is a GPU", allow_module_level=True)

import torch

__all__ = ["simulated_cuda"]


def name_of(launch) -> str:
    return launch.kernel.__name__.removesuffix("_kernel")


@pytest.mark.parametrize("lengths", [(16,), (5, 30)], ids=str)
def test_the_graph_is_counted_as_it_is_captured(tiny_checkpoint, simulated_cuda, lengths):
    """In fp16, whose tiles are those of bf16: the interpreter's bf16 is wrong."""
    checkpoint = tiny_checkpoint("distilbert", gpu_launches.TASK, config={"n_layers": 1})
    engine = Engine.from_pretrained(checkpoint, backend="triton", precision="fp16")
    engine._backend._stream = torch.cuda.Stream()
    rng = np.random.default_rng(0)
    engine.encode_with_logits(PackedBatch.from_sequences([rng.integers(0, 200, n).tolist() for n in lengths]))
    [runner] = engine._backend._runners.values()
    work = [runner._slots[0].graph.work, runner._slots[1].graph.work]
    made = [(name_of(each), each.grid) for each in work[0]]
    assert [(name_of(each), each.grid) for each in work[1]] == made
    counted = [each for each in gpu_launches.triton_graph(engine.config, lengths) if each.kernel != "copy"]
    assert [name for name, _ in made] == [each.kernel for each in counted]
    assert all(grid in (each.grid, None) for (_, grid), each in zip(made, counted, strict=True))
