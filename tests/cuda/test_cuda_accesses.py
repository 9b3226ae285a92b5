"""What memory moves for each kernel: sectors of global memory, passes over the banks of shared memory.

Each kind of access has a budget, over the fewest that its bytes need; nothing here is a time.
"""

from __future__ import annotations

import numpy as np
import pytest
from simulated import Accesses, SimulatedDevice

from distilfast import Engine
from distilfast.backends import cuda
from distilfast.batch import PackedBatch

BUDGETS = {
    ("attention.cuh", "shared stores"): 1.25,  # of fp32 rows on their way to global memory
    ("epilogue.cuh", "global stores"): 2.1,
    ("epilogue.cuh", "shared loads"): 2.0,
    ("quantize_activations.cu", "global loads"): 6.0,  # channels out of order
}
"""Where it may be more than 1.05 times what is needed: upper bounds of what was counted when this test was made."""

WIDTH = {"dim": 128, "n_heads": 2, "hidden_dim": 256, "n_layers": 1}


def test_a_known_traffic(faults):
    """Of the kernel that faults.cpp calls ``traffic``, on 64 threads."""
    with SimulatedDevice(faults).counted_accesses() as counted:
        faults.run_traffic()
    assert counted.by_kernel() == {
        ("traffic", "global loads"): (4 + 2 + 8, 4 + 2 + 1),
        ("traffic", "global stores"): (8 + 4, 8 + 4),
        ("traffic", "shared loads"): (1 + 4, 1 + 4),
        ("traffic", "shared stores"): (1 + 4, 1 + 1),
    }


def ratios(counted: Accesses) -> dict[tuple[str, str], float]:
    """What is moved over what is needed, by the file and the kind of access."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for (_, kind, place), (moved, needed) in counted.by_place.items():
        key = place.partition(":")[0], kind
        before = sums.get(key, (0, 0))
        sums[key] = before[0] + moved, before[1] + needed
    return {key: moved / needed for key, (moved, needed) in sums.items()}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("lengths", [(40,), (60, 20)])  # W8A16 and W8A8 in int8
def test_kernels_keep_their_budgets(simulated, extension, monkeypatch, tiny_checkpoint, precision, lengths):
    if not simulated:
        pytest.skip("a real device does not count accesses")
    monkeypatch.setattr(cuda, "extension", lambda: extension)
    directory = tiny_checkpoint("distilbert", "token-classification", config=WIDTH)
    engine = Engine.from_pretrained(directory, backend="cuda", precision=precision)
    rng = np.random.default_rng(0)
    batch = PackedBatch.from_sequences([rng.integers(0, 256, length).tolist() for length in lengths])
    with simulated.counted_accesses() as counted:
        engine.encode(batch)
    found = ratios(counted)
    assert {place for place, _ in found} >= {"mainloop.cuh", "epilogue.cuh", "layer_norm.cuh", "attention.cuh"}
    assert {key: ratio for key, ratio in found.items() if ratio > BUDGETS.get(key, 1.05)} == {}
