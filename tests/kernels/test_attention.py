"""attention: softmax(q kᵀ / √d) v inside each sequence, against float64, in every precision."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from identities import each_isa, each_kernel

from distilfast import _cpu, reference
from distilfast.parity.budgets import to_bf16

RAGGED = ((1,), (2, 1, 15), (16, 17, 31), (33, 1, 1), (63, 65), (127, 128), (129,), (512, 3))
NARROW = {"fp32": naive.to_fp32, "bf16": to_bf16}
WITH_BF16_PRODUCTS = ("amx", "amx_simulated", "avx512_bf16", "ref")
"""The other ISAs multiply in fp32, which takes no longer there."""
COARSE_EXP = 6.5e-6
"""The relative error of 2^x where its result is rounded to bf16 anyway."""


reference_attention = naive.memoized(reference.attention)


def ends(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def attention(qkv, cu_seqlens, heads, isa, precision, **how):
    return _cpu.attention(qkv, cu_seqlens, heads, isa=isa, precision=precision, **how)


def check(qkv, cu_seqlens, heads, isa, precision):
    """q, k and v are rounded first: the remaining error is of rounding the probabilities, as in ``naive``.

    Scores and softmax are fp32 in every precision, but for a coarser exp in bf16.
    """
    qkv = NARROW[precision](qkv)
    got, probabilities = attention(qkv, cu_seqlens, heads, isa, precision)
    truth, weights = reference_attention(qkv.astype(np.float64), cu_seqlens, heads)
    assert naive.error(got, truth) <= naive.allowed(
        naive.attention(qkv, cu_seqlens, heads, narrow_weights=NARROW[precision]), truth
    )
    naive_weights = reference_attention(qkv, cu_seqlens, heads)[1]
    coarse = 0.0 if precision == "fp32" else COARSE_EXP
    assert naive.error(probabilities, weights) <= naive.allowed(naive_weights, weights) + coarse


@each_kernel("attention")
@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("head_size", [8, 17, 32, 33, 64, 80, 144])
def test_ragged_batches(isa, precision, normal, lengths, head_size):
    check(normal(sum(lengths), 3 * 2 * head_size), ends(lengths), 2, isa, precision)


@each_kernel("attention")
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 10.0, 100.0])
def test_extreme_scores(isa, precision, normal, scale):
    """Nearly uniform, and so peaked that a row attends to one key only; exp must not overflow."""
    qkv = normal(40, 3 * 64)
    qkv[:, :64] *= scale
    check(qkv, ends((33, 7)), 1, isa, precision)


@each_isa("attention")
def test_bf16_operands_are_rounded_to_the_nearest(isa, normal):
    """Rounding them beforehand changes no bit where they are rounded, and nothing is rounded elsewhere."""
    lengths = (33, 1, 64)
    qkv, cu_seqlens = normal(sum(lengths), 3 * 2 * 40), ends(lengths)
    results = [
        attention(values, cu_seqlens, 2, isa, precision)[0].tobytes()
        for precision in ("bf16", "fp32")
        for values in (qkv, to_bf16(qkv))
    ]
    if isa in WITH_BF16_PRODUCTS:
        assert results[0] == results[1]
        assert len(set(results)) == 3
    else:
        assert results[:2] == results[2:]


@each_kernel("attention")
def test_exp_everywhere(isa, precision):
    """Probabilities over the largest one are exp(score): with d = 1 and q = 1 the keys are the scores.

    In half ulps: rounding the argument costs |x|, the factor log2(e) as much, and polynomial and results less than
    six.
    """
    x = NARROW[precision](np.concatenate([[0.0], np.linspace(-87, 0, 4001), -np.geomspace(1e-8, 1, 500)]))
    qkv = np.zeros((len(x), 3), np.float32)
    qkv[:, 0], qkv[:, 1] = 1.0, x
    _, probabilities = attention(qkv, ends((len(x),)), 1, isa, precision)
    got = probabilities[: len(x)].astype(np.float64) / probabilities[0]
    normal_numbers = probabilities[: len(x)] > np.finfo(np.float32).tiny
    truth = np.exp(x.astype(np.float64))
    coarse = 0.0 if precision == "fp32" else COARSE_EXP
    bound = (2 * np.abs(x) + 6) * naive.HALF_ULP + 2 * coarse
    assert normal_numbers.sum() > 0.8 * len(x)
    assert (np.abs(got / truth - 1) <= bound)[normal_numbers].all()


@each_kernel("attention")
def test_equal_keys_give_the_mean(isa, precision, normal):
    qkv = NARROW[precision](normal(17, 3 * 32))
    qkv[:, 32:64] = qkv[0, 32:64]
    got, probabilities = attention(qkv, ends((17,)), 1, isa, precision)
    assert np.allclose(probabilities, 1 / 17, rtol=1e-6)
    assert np.allclose(got, qkv[:, 64:].mean(axis=0), atol=1e-6)


@each_kernel("attention")
@pytest.mark.parametrize("column", [0, 64, 128])
def test_a_nan_spreads_no_further_than_it_must(isa, precision, normal, column):
    """In q to its row, in k to its head of the sequence, in v to its column; never to the other sequence or head."""
    qkv = normal(40, 3 * 64)
    qkv[9, column + 5] = np.nan
    got, _ = attention(qkv, ends((23, 17)), 2, isa, precision)
    spoiled = {0: np.s_[9, :32], 64: np.s_[:23, :32], 128: np.s_[:23, 5]}[column]
    assert np.isnan(got[spoiled]).all()
    got[spoiled] = 0
    assert np.isfinite(got).all()


@each_kernel("attention")
def test_probabilities_are_optional(isa, precision, normal):
    """Asking for them changes no bit."""
    qkv, cu_seqlens = normal(70, 3 * 2 * 32), ends((33, 37))
    got, nothing = attention(qkv, cu_seqlens, 2, isa, precision, probabilities=False)
    assert nothing is None
    assert np.array_equal(got, attention(qkv, cu_seqlens, 2, isa, precision)[0])


@each_kernel("attention")
@pytest.mark.parametrize("head_size", [17, 32, 64])
def test_bits_do_not_depend_on_the_batch_or_threads(isa, precision, normal, head_size):
    """Threads split the longest sequence into pieces, none of which may depend on another."""
    lengths = (5, 300, 1, 64, 16, 129)
    cu_seqlens = ends(lengths)
    qkv = normal(sum(lengths), 3 * 3 * head_size)
    whole, weights = attention(qkv, cu_seqlens, 3, isa, precision)
    for threads in (2, 3, 7, 40):
        got, probabilities = attention(qkv, cu_seqlens, 3, isa, precision, threads=threads)
        assert np.array_equal(whole, got)
        assert np.array_equal(weights, probabilities)
    for begin, end in zip(cu_seqlens, cu_seqlens[1:], strict=False):
        alone, _ = attention(qkv[begin:end], ends((end - begin,)), 3, isa, precision)
        assert np.array_equal(whole[begin:end], alone)
