"""attention: softmax(q kᵀ / √d) v inside each sequence, against float64."""

from __future__ import annotations

import naive
import numpy as np
import pytest

from distilfast import _cpu, reference

RAGGED = ((1,), (2, 1, 15), (16, 17, 31), (33, 1, 1), (127, 128), (129,), (512, 3))


def ends(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def check(qkv, cu_seqlens, heads, isa):
    got, probabilities = _cpu.attention(qkv, cu_seqlens, heads, isa=isa)
    truth, weights = reference.attention(qkv.astype(np.float64), cu_seqlens, heads)
    assert naive.error(got, truth) <= naive.allowed(naive.attention(qkv, cu_seqlens, heads), truth)
    naive_weights = reference.attention(qkv, cu_seqlens, heads)[1]
    assert naive.error(probabilities, weights) <= naive.allowed(naive_weights, weights)


@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("head_size", [8, 17, 32, 64, 80])
def test_ragged_batches(isa, normal, lengths, head_size):
    check(normal(sum(lengths), 3 * 2 * head_size), ends(lengths), 2, isa)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 10.0, 100.0])
def test_extreme_scores(isa, normal, scale):
    """Flat, and so steep that a row looks at one key alone: an exp that overflows would show."""
    qkv = normal(40, 3 * 64)
    qkv[:, :64] *= scale
    check(qkv, ends((33, 7)), 1, isa)


def test_equal_keys_give_the_mean(isa, normal):
    qkv = normal(17, 3 * 32)
    qkv[:, 32:64] = qkv[0, 32:64]
    got, probabilities = _cpu.attention(qkv, ends((17,)), 1, isa=isa)
    assert np.allclose(probabilities, 1 / 17, rtol=1e-6)
    assert np.allclose(got, qkv[:, 64:].mean(axis=0), atol=1e-6)


def test_bits_do_not_depend_on_the_batch_or_threads(isa, normal):
    lengths = (5, 129, 1, 64)
    cu_seqlens = ends(lengths)
    qkv = normal(sum(lengths), 3 * 3 * 64)
    whole, _ = _cpu.attention(qkv, cu_seqlens, 3, isa=isa)
    for threads in (2, 3, 7, 40):
        assert np.array_equal(whole, _cpu.attention(qkv, cu_seqlens, 3, isa=isa, threads=threads)[0])
    for begin, end in zip(cu_seqlens, cu_seqlens[1:], strict=False):
        alone, _ = _cpu.attention(qkv[begin:end], ends((end - begin,)), 3, isa=isa)
        assert np.array_equal(whole[begin:end], alone)
