"""linear: act(x Wᵀ + b) against float64, in every precision, on sizes that straddle every tile and k-tile."""

from __future__ import annotations

import numpy as np
import pytest
from elements import LINEAR_PRECISIONS, from_raw, raw, rounded, rounded_weight

from distilfast import reference
from tests.kernels import naive

BUCKETS = (16, 64, 256, 512)  # each uses another CTA tile
# int8 of more rows is another linear: test_cuda_int8.py.
LINEARS = [
    (precision, bucket) for precision in LINEAR_PRECISIONS for bucket in BUCKETS if precision != "int8" or bucket <= 64
]
# Tiles have 16 to 128 rows: one row, full tiles, and one row less and more.
ROWS = {16: (1, 2, 15, 16), 64: (17, 31, 33), 256: (63, 65, 129), 512: (1, 127, 129)}
# (N, K): a tile has 16 to 128 columns, packed by 8; a k-tile is 64 bytes of K, a pipeline stage 128 or 256.
SIZES = ((1, 1), (2, 3), (8, 16), (15, 31), (17, 33), (33, 65), (130, 100), (129, 257))


def check(extension, x, weight, bias, activation, precision, counts=None, **options):
    """``counts``: the rows of each call, by default all in one call. The error is measured over all rows."""
    x, exact_weight = rounded(x, precision), rounded_weight(weight, precision)
    linear = extension.Linear(weight, bias, precision=precision)
    pieces = np.split(x, np.cumsum(counts)[:-1]) if counts else [x]
    results = [linear(raw(piece, precision), activation, **options) for piece in pieces]
    got, low = (np.concatenate([result[i] for result in results]) for i in (0, 1))
    truth = reference.linear(*(a.astype(np.float64) for a in (x, exact_weight, bias)), activation)
    plain = naive.linear(x, exact_weight.astype(np.float32), bias, activation)
    allowed = naive.allowed(rounded(plain, precision), truth)
    assert naive.error(from_raw(low, precision), truth) <= allowed
    assert naive.error(got, truth) <= allowed


@pytest.mark.parametrize(("precision", "bucket"), LINEARS)
def test_sizes(extension, normal, precision, bucket):
    for n, k in SIZES:
        weight, bias = normal(n, k), normal(n)
        counts = ROWS[bucket]
        check(extension, normal(sum(counts), k), weight, bias, "none", precision, counts, bucket_rows=bucket)


@pytest.mark.parametrize("precision", LINEAR_PRECISIONS)
@pytest.mark.parametrize("size", [(768, 768), (96, 3072)])
def test_the_depths_of_distilbert(extension, normal, precision, size):
    n, k = size
    check(extension, normal(5, k), normal(n, k, scale=0.04), normal(n), "none", precision)


@pytest.mark.parametrize("precision", LINEAR_PRECISIONS)
@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
def test_activations(extension, normal, precision, activation):
    check(extension, normal(33, 64, scale=0.5), normal(50, 64, scale=0.5), normal(50), activation, precision)


def test_gelu_everywhere(extension):
    """The erf form over the whole real line; K = 1 passes x through, to the 22 bits that its two tf32 terms hold."""
    x = np.concatenate([np.linspace(-14, 14, 2001), [-100.0, -1e30, 1e30, 0.0]]).astype(np.float32)
    one, zero = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    got = extension.Linear(one, zero, precision="fp32")(raw(x[:, None], "fp32"), "gelu")[0][:, 0]
    truth = reference.ACTIVATIONS["gelu"](x.astype(np.float64))
    assert (np.abs(got - truth) <= 2**-21 * np.abs(x)).all()


@pytest.mark.parametrize(("precision", "bucket"), LINEARS)
def test_split_k_partial_sums_add_up(extension, normal, precision, bucket):
    """Each split writes its partial sum of x Wᵀ, without bias; their sum is the product."""
    x, weight = rounded(normal(9, 1030), precision), normal(40, 1030)
    linear = extension.Linear(weight, normal(40), precision=precision)
    parts, low = linear(raw(x, precision), split_k=3, bucket_rows=bucket)
    exact_weight = rounded_weight(weight, precision)
    truth = x.astype(np.float64) @ exact_weight.T
    plain = naive.linear(x, exact_weight.astype(np.float32), np.zeros(40, np.float32))
    got = parts.reshape(3, 9, 40).astype(np.float64).sum(axis=0)
    assert low.size == 0
    assert naive.error(got, truth) <= naive.allowed(rounded(plain, precision), truth)


@pytest.mark.parametrize("precision", LINEAR_PRECISIONS)
def test_gathered_rows(extension, normal, precision):
    x, index = normal(40, 50), np.array([0, 3, 17, 39], np.int32)
    linear = extension.Linear(normal(24, 50), normal(24), precision=precision)
    whole = linear(raw(x, precision), bucket_rows=64)[0]
    assert np.array_equal(linear(raw(x, precision), gather=index, bucket_rows=64)[0], whole[index])


@pytest.mark.parametrize(("precision", "bucket"), [each for each in LINEARS if each[0] in ("bf16", "int8")])
def test_bits_do_not_depend_on_other_rows(extension, normal, bucket, precision):
    x = normal(min(bucket, 130), 200)
    linear = extension.Linear(normal(40, 200), normal(40), precision=precision)
    whole = linear(raw(x, precision), "gelu", bucket_rows=bucket)[0]
    for begin, end in ((0, 1), (1, 4), (len(x) - 7, len(x))):
        assert np.array_equal(linear(raw(x[begin:end], precision), "gelu", bucket_rows=bucket)[0], whole[begin:end])


def test_every_int8_weight_is_exact(extension):
    """Each of -127 to 127, beside its group's maximum, at each of the 64 positions: bf16 holds all of them."""
    weight = np.zeros((255 * 64, 64), np.float32)
    for i, (integer, place) in enumerate((integer, place) for integer in range(-127, 128) for place in range(64)):
        weight[i, place] = integer
        weight[i, place - 1] = 127
    x = np.eye(64, dtype=np.float32)
    got = extension.Linear(weight, np.zeros(len(weight), np.float32), precision="int8")(raw(x, "int8"))[0]
    assert np.array_equal(got, weight.T)


@pytest.mark.parametrize("precision", LINEAR_PRECISIONS)
def test_a_nan_stays_in_its_row(extension, normal, precision):
    x = normal(9, 64)
    x[4, 7] = np.nan
    for activation in ("gelu", "relu"):
        got = extension.Linear(normal(50, 64), normal(50), precision=precision)(raw(x, precision), activation)[0]
        assert np.isnan(got[4]).all()
        assert np.isfinite(np.delete(got, 4, axis=0)).all()
