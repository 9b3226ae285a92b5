"""attention: softmax(q kᵀ / √d) v inside each sequence, against float64, in every precision."""

from __future__ import annotations

import numpy as np
import pytest
from elements import PRECISIONS, from_raw, raw, rounded

from distilfast import reference
from tests.kernels import naive

RAGGED = ((1,), (2, 1, 15), (16, 17, 31), (33, 1, 1), (64, 65), (129,))


def ends(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def check(extension, qkv, lengths, heads, precision):
    cu_seqlens, head_size = ends(lengths), qkv.shape[1] // 3 // heads
    qkv = rounded(qkv, precision)
    got, probabilities = extension.attention(raw(qkv, precision), cu_seqlens, heads, head_size, precision=precision)
    truth, weights = reference.attention(qkv.astype(np.float64), cu_seqlens, heads)
    plain = naive.attention(qkv, cu_seqlens, heads, narrow_weights=lambda x: rounded(x, precision))
    assert naive.error(from_raw(got, precision), truth) <= naive.allowed(rounded(plain, precision), truth)
    naive_weights = reference.attention(qkv, cu_seqlens, heads)[1]
    assert naive.error(probabilities, weights) <= naive.allowed(rounded(naive_weights, precision), weights)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize("head_size", [8, 32, 64])
def test_ragged_batches(extension, normal, precision, lengths, head_size):
    check(extension, normal(sum(lengths), 3 * 2 * head_size), lengths, 2, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head_size", [24, 80, 128])
def test_other_head_sizes(extension, normal, precision, head_size):
    check(extension, normal(70, 3 * head_size), (66, 4), 1, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1e-3, 10.0, 100.0])
def test_extreme_scores(extension, normal, precision, scale):
    """Nearly uniform, and so peaked that a row attends to one key only; exp must not overflow."""
    qkv = normal(72, 3 * 64)
    qkv[:, :64] *= scale
    check(extension, qkv, (65, 7), 1, precision)


def test_more_sequences_than_a_warp_has_lanes(extension, normal):
    """A block searches for its tile's sequence among 32 at a time, one for each lane."""
    lengths = (1, 2, 3, 70) * 11
    check(extension, normal(sum(lengths), 3 * 32), lengths, 1, "bf16")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bits_do_not_depend_on_the_batch(extension, normal, precision):
    lengths = (5, 70, 1, 64)
    cu_seqlens, qkv = ends(lengths), normal(sum(lengths), 3 * 3 * 32)

    def run(rows, lengths):
        return extension.attention(raw(rows, precision), ends(lengths), 3, 32, precision=precision, bucket_rows=256)[0]

    whole = run(qkv, lengths)
    for begin, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        assert np.array_equal(run(qkv[begin:end], (end - begin,)), whole[begin:end])


@pytest.mark.parametrize("head_size", [17, 136])
def test_an_unsupported_head_size_is_an_error(extension, head_size):
    qkv = np.zeros((1, 4), np.uint8)
    with pytest.raises(ValueError, match="The head size is"):
        extension.attention(qkv, ends((1,)), 1, head_size, precision="fp32")
