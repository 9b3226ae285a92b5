"""The arithmetic of the reference: accurate in float64, the truth; in naive float32 the same bits on every machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from distilfast import arithmetic, reference
from distilfast.backends import cpu

NAIVE_BITS = "1104c9f6440916ac"
"""Printed by ``naive_bits.py``; if it changes, so does every budget."""
INT8_CHANNELS = "4c9539dd5cc7950e"
"""Likewise, of the tensors' names too; other bits change packed int8 weights: raise ``quantize.VERSION``."""

CORES = {"Haswell": "avx2", "SkylakeX": "avx512", "Zen": "avx2", "Sandybridge": "avx2"}
"""OpenBLAS's kernels for a processor, and the ISA of ours that a processor needs to run them."""


def chain(terms: np.ndarray, block: int) -> np.ndarray:
    """The definition: [..., N] in blocks, each summed term by term, and then the block sums likewise."""
    blocks = []
    for begin in range(0, terms.shape[-1], block):
        total = terms[..., begin]
        for i in range(begin + 1, min(begin + block, terms.shape[-1])):
            total = total + terms[..., i]
        blocks.append(total)
    total = blocks[0]
    for each in blocks[1:]:
        total = total + each
    return total


@pytest.mark.parametrize("block", [1, 32, 256])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 31), (3, 64, 33), (5, 65, 256), (2, 130, 600)])
def test_naive_products_follow_their_definition(block: int, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    rng = np.random.default_rng(sum(shape) + block)
    a, b = (rng.standard_normal((rows, k)).astype(np.float32) for rows in (m, n))
    assert np.array_equal(arithmetic.matmul(a, b, block), chain(a[:, None] * b, block))


def test_naive_products_of_batches_and_views() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 40, 7)).astype(np.float32).transpose(0, 2, 1)
    b = rng.standard_normal((5, 3, 40)).astype(np.float32).transpose(1, 0, 2)
    assert np.array_equal(arithmetic.matmul(a, b, 32), chain(a[:, :, None] * b[:, None], 32))


@pytest.mark.parametrize("size", [1, 31, 32, 33, 768])
def test_naive_sums_follow_their_definition(size: int) -> None:
    x = np.random.default_rng(size).standard_normal((4, 3, size)).astype(np.float32)
    assert np.array_equal(arithmetic.total(x)[..., 0], chain(x, arithmetic.SUM_BLOCK))


@pytest.mark.parametrize("name", ["exp", "erf", "tanh"])
def test_transcendentals(name: str) -> None:
    """Against scipy's and numpy's, which are accurate to one or two ulp of float64."""
    x = np.concatenate([np.linspace(-7, 7, 40001), *(sign * np.geomspace(1e-300, 6, 2000) for sign in (1, -1)), [0.0]])
    if name == "exp":
        x = np.concatenate([x, np.linspace(-700, 700, 10001)])
    truth = {"exp": np.exp, "erf": special.erf, "tanh": np.tanh}[name](x)
    ours = getattr(arithmetic, name)
    assert (np.abs(ours(x) - truth) <= 8e-16 * np.abs(truth)).all()
    small = np.clip(x, -80, 80).astype(np.float32)
    assert ours(small).dtype == np.float32
    assert np.array_equal(ours(small), ours(small.astype(np.float64)).astype(np.float32))
    assert np.isnan(ours(np.array([1.0, np.nan]))).tolist() == [False, True]


def test_the_order_of_summation_hardly_changes_the_truth() -> None:
    """Another order of channels changes the float64 truth a million times less than the error of naive float32."""
    rng = np.random.default_rng(1)
    x, weight, bias = rng.standard_normal((33, 3072)), rng.standard_normal((70, 3072)), rng.standard_normal(70)
    order = rng.permutation(3072)
    truth, other = reference.linear(x, weight, bias), reference.linear(x[:, order], weight[:, order], bias)
    naive = reference.linear(*(each.astype(np.float32) for each in (x, weight, bias)))
    exact = reference.linear(*(each.astype(np.float32).astype(np.float64) for each in (x, weight, bias)))
    moved, error = np.linalg.norm(truth - other), np.linalg.norm(naive - exact)
    assert 0 < moved < 1e-6 * error


def settings() -> list[pytest.param]:
    disabled = " ".join(np._core._multiarray_umath.__cpu_dispatch__)
    return [
        pytest.param({}, id="none"),
        *(pytest.param({"OPENBLAS_CORETYPE": core}, id=core) for core in CORES),
        pytest.param({"NPY_DISABLE_CPU_FEATURES": disabled}, id="numpy without SIMD"),
        pytest.param({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, id="one thread"),
    ]


def measured(environment: dict[str, str]) -> dict[str, object]:
    """The output of ``naive_bits.py`` in a process with these environment variables."""
    script = Path(__file__).with_name("naive_bits.py")
    done = subprocess.run(
        [sys.executable, script], env=os.environ | environment, capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def unset() -> dict[str, object]:
    return measured({})


@pytest.mark.parametrize("environment", settings())
def test_bits_do_not_depend_on_the_libraries(unset: dict[str, object], environment: dict[str, str]) -> None:
    """The naive arithmetic and int8's channels: the same bits. Budgets, which depend on the float64 truth: to 1e-9."""
    needed = CORES.get(environment.get("OPENBLAS_CORETYPE", ""))
    if needed and not cpu.isas().get(needed):
        pytest.skip(f"this processor has no {needed}, which those kernels of OpenBLAS need")
    found = measured(environment)
    assert found["naive"] == NAIVE_BITS
    assert found["int8 channels"] == INT8_CHANNELS
    assert found["engine"] == unset["engine"]
    assert found["passed"] is True
    np.testing.assert_allclose(found["budgets"], unset["budgets"], rtol=1e-9)
    np.testing.assert_allclose(found["shares"], unset["shares"], rtol=1e-6)
