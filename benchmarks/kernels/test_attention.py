"""attention with 12 heads of 64 and of 32, in sequences of 16, 64, 128 and 512 tokens."""

import numpy as np
import pytest
from conftest import THREADS

from distilfast import _cpu

HEADS = 12


@pytest.mark.parametrize("head_size", [64, 32])
@pytest.mark.parametrize("length", [16, 64, 128, 512])
def test_attention(timed, isa, precision, normal, length, head_size):
    sequences = 1024 // length
    qkv = normal(1024, 3 * HEADS * head_size)
    ends = np.arange(0, 1025, length, dtype=np.int32)
    timed(
        lambda: _cpu.attention(qkv, ends, HEADS, isa=isa, precision=precision, threads=THREADS, probabilities=False),
        4 * sequences * length**2 * HEADS * head_size,
        precision,
    )
