"""The limits are tight: a kernel 2.5 times less exact than ours breaks them, in every operation of every vector ISA."""

from __future__ import annotations

import naive
import numpy as np
import pytest

from distilfast import _cpu, reference
from distilfast.backends import cpu

LESS_EXACT = 2.5


VECTOR_ISAS = [name for name, there in cpu.isas().items() if there and name in ("avx512", "avx2")]
"""Those that sum in chains of fp32, as the naive computation does: ref adds in double, AMX splits fp32 into bf16."""


@pytest.fixture(params=VECTOR_ISAS)
def vector_isa(request):
    """The name of an ISA."""
    return request.param


def assert_tight(got, plain, truth):
    allowed = naive.allowed(plain, truth)
    assert naive.error(got, truth) <= allowed
    assert naive.error(truth + LESS_EXACT * (got - truth), truth) > allowed


def exact(*arrays):
    return [array.astype(np.float64) for array in arrays]


@pytest.mark.parametrize(("n", "k"), [(100, 256), (100, 768), (768, 3072)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_linear(vector_isa, normal, n, k, activation):
    x, weight, bias = normal(33, k), normal(n, k, scale=0.05), normal(n)
    got = _cpu.Linear(weight, bias, isa=vector_isa)(x, activation)
    assert_tight(got, naive.linear(x, weight, bias, activation), reference.linear(*exact(x, weight, bias), activation))


@pytest.mark.parametrize("lengths", [(31, 33) * 8, (127, 128), (512, 3)])
@pytest.mark.parametrize("head_size", [32, 64])
def test_attention(vector_isa, normal, lengths, head_size):
    qkv = normal(sum(lengths), 3 * 2 * head_size)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    got, probabilities = _cpu.attention(qkv, cu_seqlens, 2, isa=vector_isa)
    truth, weights = reference.attention(qkv.astype(np.float64), cu_seqlens, 2)
    plain, plain_weights = reference.attention(qkv, cu_seqlens, 2)
    assert_tight(got, plain, truth)
    assert_tight(probabilities, plain_weights, weights)


@pytest.mark.parametrize("width", [384, 768])
def test_add_layer_norm(vector_isa, normal, width):
    x, residual, weight, bias = normal(65, width), normal(65, width), normal(width), normal(width)
    got = _cpu.add_layer_norm(x, residual, weight, bias, eps=1e-12, isa=vector_isa)
    truth = reference.add_layer_norm(*exact(x, residual, weight, bias), 1e-12)
    assert_tight(got, naive.layer_norm(x + residual, weight, bias, 1e-12), truth)
