"""add_layer_norm: LN(x + residual) against float64."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from identities import each_isa

from distilfast import _cpu, reference

WIDTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 384, 768, 1000)


def check(x, residual, weight, bias, eps, isa):
    got = _cpu.add_layer_norm(x, residual, weight, bias, eps=eps, isa=isa)
    truth = reference.add_layer_norm(*(a.astype(np.float64) for a in (x, residual, weight, bias)), eps)
    # The addition rounds once before the normalisation, in the naive computation too.
    assert naive.error(got, truth) <= naive.allowed(naive.layer_norm(x + residual, weight, bias, eps), truth)


@each_isa("add_layer_norm")
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(isa, normal, width):
    # With eps 1e-12 two channels would amplify the rounding of their own difference without bound.
    check(normal(9, width), normal(9, width), normal(width), normal(width), 1e-3 if width < 7 else 1e-12, isa)


@each_isa("add_layer_norm")
def test_mean_far_above_the_deviation(isa, normal):
    check(normal(5, 768) + 300, normal(5, 768) + 300, normal(768), normal(768), 1e-12, isa)


@each_isa("add_layer_norm")
def test_outlier_channels(isa, normal):
    """Two huge channels, as trained models have."""
    x = normal(17, 768)
    x[:, [308, 381]] *= 80
    check(x, normal(17, 768), normal(768), normal(768), 1e-12, isa)


@each_isa("add_layer_norm")
@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-5])
def test_eps_comes_from_the_caller(isa, normal, eps):
    """On rows whose variance is near eps, where a wrong eps would change the first digit."""
    check(normal(4, 768, scale=2e-3), np.zeros((4, 768), np.float32), normal(768), normal(768), eps, isa)


@each_isa("add_layer_norm")
def test_bits_do_not_depend_on_rows_or_threads(isa, normal):
    x, residual, weight, bias = normal(100, 769), normal(100, 769), normal(769), normal(769)
    whole = _cpu.add_layer_norm(x, residual, weight, bias, eps=1e-12, isa=isa)
    for threads in (2, 3, 7):
        again = _cpu.add_layer_norm(x, residual, weight, bias, eps=1e-12, isa=isa, threads=threads)
        assert np.array_equal(whole, again)
    alone = _cpu.add_layer_norm(x[41:42], residual[41:42], weight, bias, eps=1e-12, isa=isa)
    assert np.array_equal(whole[41:42], alone)
