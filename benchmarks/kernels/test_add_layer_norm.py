"""add_layer_norm and embed, 768 wide; some eight operations an element."""

import numpy as np
from conftest import THREADS

from distilfast import _cpu


def test_add_layer_norm(timed, isa, tokens, normal):
    x, residual, weight, bias = normal(tokens, 768), normal(tokens, 768), normal(768), normal(768)
    timed(lambda: _cpu.add_layer_norm(x, residual, weight, bias, eps=1e-12, isa=isa, threads=THREADS), 8 * tokens * 768)


def test_embed(timed, isa, tokens, normal):
    word, position, weight, bias = normal(28996, 768), normal(512, 768), normal(768), normal(768)
    ids = (np.arange(tokens, dtype=np.int32) * 7919) % 28996
    positions = np.arange(tokens, dtype=np.int32) % 512
    timed(
        lambda: _cpu.embed(
            ids, positions, None, word, position, None, weight, bias, eps=1e-12, isa=isa, threads=THREADS
        ),
        8 * tokens * 768,
    )
