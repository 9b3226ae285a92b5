"""attention with 12 heads of 64, in sequences of 16, 128 and 512 tokens."""

import numpy as np
import pytest
from conftest import THREADS

from distilfast import _cpu


@pytest.mark.parametrize("length", [16, 128, 512])
def test_attention(timed, isa, normal, length):
    sequences = 1024 // length
    qkv = normal(1024, 3 * 768)
    ends = np.arange(0, 1025, length, dtype=np.int32)
    timed(lambda: _cpu.attention(qkv, ends, 12, isa=isa, threads=THREADS), 4 * sequences * length**2 * 768)
