"""add_layer_norm: LN(x + residual), with x as the partial sums of a split-K linear, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from elements import PRECISIONS, from_raw, rounded

from distilfast import reference
from tests.kernels import naive

EPS = 1e-12


def run(extension, parts, x_bias, residual, weight, bias, precision="fp32", gather=None):
    return extension.add_layer_norm(parts, x_bias, residual, gather, weight, bias, eps=EPS, precision=precision)


def check(got, x, residual, weight, bias):
    truth = reference.add_layer_norm(*(a.astype(np.float64) for a in (x, residual, weight, bias)), EPS)
    plain = naive.layer_norm(x + residual, weight, bias, EPS)
    assert naive.error(got, truth) <= naive.allowed(plain, truth)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [1, 7, 32, 127, 129, 768, 1024, 1025])
def test_widths(extension, normal, precision, width):
    x, residual, weight, bias = normal(17, width), normal(17, width), normal(width), normal(width)
    got, low = run(extension, x[None], None, residual, weight, bias, precision)
    check(got, x, residual, weight, bias)
    assert np.array_equal(from_raw(low, precision), rounded(got, precision))


def test_a_mean_far_above_the_deviation(extension, normal):
    x, residual, weight, bias = normal(5, 768) + 1000, normal(5, 768), normal(768), normal(768)
    check(run(extension, x[None], None, residual, weight, bias)[0], x, residual, weight, bias)


@pytest.mark.parametrize("width", [96, 1100])  # in registers, and in shared memory
def test_partial_sums_and_bias_are_added_in_their_order(extension, normal, width):
    parts, residual, x_bias = normal(3, 9, width), normal(9, width), normal(width)
    weight, bias = normal(width), normal(width)
    x = ((parts[0] + parts[1]) + parts[2]) + x_bias
    got = run(extension, parts, x_bias, residual, weight, bias)[0]
    assert np.array_equal(got, run(extension, x[None], None, residual, weight, bias)[0])
    check(got, x, residual, weight, bias)


def test_gathered_residual(extension, normal):
    x, residual, weight, bias = normal(3, 64), normal(40, 64), normal(64), normal(64)
    index = np.array([0, 11, 39], np.int32)
    got = run(extension, x[None], None, residual, weight, bias, gather=index)[0]
    assert np.array_equal(got, run(extension, x[None], None, residual[index], weight, bias)[0])


def test_without_residual(extension, normal):
    x, weight, bias = normal(4, 50), normal(50), normal(50)
    check(run(extension, x[None], None, None, weight, bias)[0], x, np.zeros_like(x), weight, bias)
