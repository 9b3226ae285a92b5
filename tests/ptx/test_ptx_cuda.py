"""The CUDA kernels' own PTX, executed: the inline assembly and nvcc's code against float64."""

from __future__ import annotations

import numpy as np
import pytest

from distilfast import reference
from distilfast.batch import PackedBatch
from tests.cuda import compiled
from tests.cuda.elements import rounded
from tests.kernels import naive
from tests.ptx import nvcc


@pytest.fixture(scope="module")
def text() -> str:
    if compiled.nvcc() is None:
        pytest.skip(f"nvcc is not installed (pip install {compiled.NVCC_PACKAGES})")
    return nvcc.ptx()


@pytest.fixture
def normal():
    rng = np.random.default_rng(2026)

    def make(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return make


@pytest.mark.parametrize(("precision", "width"), [("fp32", 129), ("fp16", 7), ("bf16", 129), ("bf16", 1026)])
def test_add_layer_norm(text, normal, precision, width):
    """Two partial sums, a bias and a gathered residual; in registers and in shared memory."""
    parts, x_bias, residual = normal(2, 3, width), normal(width), normal(5, width)
    weight, bias, gather = normal(width), normal(width), np.array([4, 0, 2], np.int32)
    got, low = nvcc.add_layer_norm(text, parts, x_bias, residual, weight, bias, precision, gather)
    x = (parts[0] + parts[1]) + x_bias
    truth = reference.add_layer_norm(*(a.astype(np.float64) for a in (x, residual[gather], weight, bias)), nvcc.EPS)
    plain = naive.layer_norm(x + residual[gather], weight, bias, nvcc.EPS)
    assert naive.error(got, truth) <= naive.allowed(plain, truth)
    assert np.array_equal(low, rounded(got, precision))


@pytest.mark.parametrize(("precision", "width"), [("fp32", 50), ("fp16", 129), ("bf16", 1026)])
def test_embed(text, normal, precision, width):
    ids, positions, kinds = (np.array(each, np.int32) for each in ([6, 0, 3], [1, 3, 0], [0, 1, 1]))
    tensors = {
        "embed.word": normal(7, width),
        "embed.position": normal(4, width),
        "embed.token_type": normal(2, width),
        "embed.norm.weight": normal(width),
        "embed.norm.bias": normal(width),
    }
    got, low = nvcc.embed(text, ids, positions, kinds, *tensors.values(), precision)
    batch = PackedBatch(ids, positions, np.array([0, 3], np.int32), kinds)
    truth = reference.embed(batch, {name: each.astype(np.float64) for name, each in tensors.items()}, nvcc.EPS)
    assert naive.error(got, truth) <= naive.allowed(reference.embed(batch, tensors, nvcc.EPS), truth)
    assert np.array_equal(low, rounded(got, precision))


def test_a_negative_id_makes_a_row_of_nan(text, normal):
    ids, positions = np.array([-1, 2], np.int32), np.array([0, 1], np.int32)
    got, _ = nvcc.embed(text, ids, positions, None, normal(4, 50), normal(2, 50), None, normal(50), normal(50), "fp32")
    assert np.isnan(got[0]).all() and np.isfinite(got[1]).all()
