"""linear_add_layer_norm: LN(x Wᵀ + b + residual) in a cluster of blocks, against float64, at every tile's edges."""

from __future__ import annotations

import numpy as np
import pytest
from elements import PRECISIONS, from_raw, raw, rounded

from distilfast import reference
from tests.kernels import naive

EPS = 1e-12
ROWS = (1, 63, 64, 65, 300)
BUCKET_64X96, BUCKET_128X192 = 512, 65536  # buckets that use CTA tiles of 64 × 96, and of 128 × 192
ONE_BLOCK = 96  # columns: a row that one block holds, and so any device


class Case:
    """A linear and the LayerNorm after it, the weight rounded to the precision."""

    eps = EPS

    def __init__(self, extension, normal, width, depth, precision):
        self.precision = precision
        self.weight = rounded(normal(width, depth, scale=depth**-0.5), precision)
        self.bias, self.norm_weight, self.norm_bias = normal(width), normal(width), normal(width)
        self.linear = extension.Linear(self.weight, self.bias, precision=precision)

    def __call__(self, x, residual, **options):
        norm = residual, self.norm_weight, self.norm_bias
        return self.linear.add_layer_norm(raw(x, self.precision), *norm, eps=self.eps, **options)

    def check(self, got, low, x, residual):
        """The error of the whole against float64, and of the LayerNorm alone, applied to the product of ``linear``."""
        norm = self.norm_weight, self.norm_bias
        exact = [each.astype(np.float64) for each in (x, self.weight, self.bias, residual, *norm)]
        truth = reference.add_layer_norm(reference.linear(*exact[:3], "none"), *exact[3:], self.eps)
        plain = rounded(naive.linear(x, self.weight, self.bias), self.precision)
        assert naive.error(got, truth) <= naive.allowed(naive.layer_norm(plain + residual, *norm, self.eps), truth)
        sums = self.linear(raw(x, self.precision), bucket_rows=512)[0]  # whose tile has no split-K, as the fused kernel
        truth = reference.add_layer_norm(sums.astype(np.float64), *exact[3:], self.eps)
        assert naive.error(got, truth) <= naive.allowed(naive.layer_norm(sums + residual, *norm, self.eps), truth)
        assert np.array_equal(from_raw(low, self.precision), rounded(got, self.precision))


@pytest.fixture
def case(extension, normal):
    """``case(width, depth, precision)``."""

    def make(width, depth, precision="bf16"):
        if extension.architecture() < 90 and width > ONE_BLOCK:
            pytest.skip("the device has no clusters of blocks")
        return Case(extension, normal, width, depth, precision)

    return make


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", ROWS)
def test_rows(case, normal, precision, rows):
    made, x, residual = case(200, 72, precision), rounded(normal(rows, 72), precision), normal(rows, 200)
    made.check(*made(x, residual), x, residual)


# One block; several, whose last is full, nearly empty or has half a warp's columns; the widest.
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [8, 64, 96, 104, 384, 768])
def test_widths(case, normal, precision, width):
    made, x, residual = case(width, 64, precision), rounded(normal(65, 64), precision), normal(65, width)
    made.check(*made(x, residual, bucket_rows=BUCKET_64X96), x, residual)


@pytest.mark.parametrize(
    ("precision", "width"), [*(("bf16", width) for width in (64, 192, 200, 776, 1536)), ("fp16", 64), ("fp16", 200)]
)
def test_widths_of_the_128x192_tile(case, normal, precision, width):
    made, x, residual = case(width, 100, precision), rounded(normal(129, 100), precision), normal(129, width)
    got = made(x, residual, bucket_rows=BUCKET_128X192)
    made.check(*got, x, residual)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("depth", [1, 31, 257, 768])
def test_depths(case, normal, precision, depth):
    made, x, residual = case(192, depth, precision), rounded(normal(17, depth), precision), normal(17, 192)
    made.check(*made(x, residual), x, residual)


def test_the_size_of_distilbert(case, normal):
    made, x, residual = case(768, 3072), rounded(normal(65, 3072), "bf16"), normal(65, 768)
    made.check(*made(x, residual, bucket_rows=4096), x, residual)


@pytest.mark.parametrize("bucket_rows", [BUCKET_64X96, BUCKET_128X192])
def test_a_mean_far_above_the_deviation(case, normal, bucket_rows):
    made, x, residual = case(384, 64, "fp16"), rounded(normal(5, 64), "fp16"), normal(5, 384) + 1000
    made.check(*made(x, residual, bucket_rows=bucket_rows), x, residual)


def test_eps(case, normal):
    made, x, residual = case(96, 64), rounded(normal(5, 64), "bf16"), normal(5, 96)
    made.eps = 0.5
    made.check(*made(x, residual), x, residual)


@pytest.mark.parametrize("bucket_rows", [BUCKET_64X96, BUCKET_128X192])
def test_gathered_rows(case, normal, bucket_rows):
    made, x, residual = case(200, 50), rounded(normal(140, 50), "bf16"), normal(140, 200)
    index = np.array([0, 3, 64, 65, 139], np.int32)
    got = made(x, residual, gather=index, bucket_rows=bucket_rows)
    whole = made(x, residual, bucket_rows=bucket_rows)
    assert all(np.array_equal(a, b[index]) for a, b in zip(got, whole, strict=True))
    made.check(*got, x[index], residual[index])


@pytest.mark.parametrize("bucket_rows", [BUCKET_64X96, BUCKET_128X192])
def test_bits_are_reproducible_and_do_not_depend_on_other_rows(case, normal, bucket_rows):
    made, x, residual = case(384, 96), rounded(normal(130, 96), "bf16"), normal(130, 384)
    whole = made(x, residual, bucket_rows=bucket_rows)[0]
    assert np.array_equal(made(x, residual, bucket_rows=bucket_rows)[0], whole)
    for begin, end in ((0, 1), (60, 70), (127, 130)):
        assert np.array_equal(made(x[begin:end], residual[begin:end], bucket_rows=bucket_rows)[0], whole[begin:end])


@pytest.mark.parametrize("place", ["x", "residual"])
@pytest.mark.parametrize("bucket_rows", [BUCKET_64X96, BUCKET_128X192])
def test_a_nan_stays_in_its_row(case, normal, bucket_rows, place):
    made, x, residual = case(200, 64), rounded(normal(130, 64), "bf16"), normal(130, 200)
    (x if place == "x" else residual)[66, 7] = np.nan
    got = made(x, residual, bucket_rows=bucket_rows)[0]
    assert np.isnan(got[66]).all()
    assert np.isfinite(np.delete(got, 66, axis=0)).all()


@pytest.mark.parametrize(
    ("width", "precision", "sentence"),
    [
        (100, "bf16", "linear_add_layer_norm needs a width that is a multiple of 8."),
        (1544, "bf16", "A row does not fit a cluster of blocks."),
        (776, "fp32", "A row does not fit a cluster of blocks."),
        (96, "int8", "linear_add_layer_norm does not support int8."),
    ],
)
def test_an_unsupported_shape_is_an_error(case, normal, width, precision, sentence):
    made = case(width, 8, precision)
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        made(normal(3, 8), normal(3, width))
