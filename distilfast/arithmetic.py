"""What ``operations.py`` computes with: matrix products, sums, exp, erf and tanh, in float64 and in naive float32.

In float64 they are the truth. Sums are numpy's, in an order that the BLAS library chooses: two orders differ by 1e-15,
where the errors that are measured against them are 1e-8 and more (tests/python/test_arithmetic.py).

In float32 they are naive, and their own error is the yardstick for a kernel's. That error depends on the order of
summation, so the order is fixed here and not left to a library: the terms of a block are added one after the other,
and so are the sums of the blocks, with one rounding for each operation. A transcendental is computed in float64 and
rounded once. Only the basic operations of IEEE 754 are used, so the bits are the same on every processor and with
every version of numpy and BLAS.

The blocks are as long as a careful kernel's: 256 terms of a linear, as BLAS libraries and csrc/cpu/linear block K; 32
and 64 terms of the short sums of attention and LayerNorm, as csrc/cpu/attention and vectors of 16 lanes have them.
Longer ones would allow a kernel a larger error.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

LINEAR_BLOCK = 256
SCORES_BLOCK = 32
CONTEXT_BLOCK = 64
SUM_BLOCK = 32


def matmul(a: np.ndarray, b: np.ndarray, block: int) -> np.ndarray:
    """A Bᵀ: [..., M, K] · [..., N, K] → [..., M, N]; ``block``: terms of a block in float32."""
    if not a.dtype == b.dtype == np.float32:
        product: np.ndarray = a @ b.swapaxes(-1, -2)
        return product
    from distilfast import _cpu

    if a.ndim == 2:
        return _cpu.naive_matmul(np.ascontiguousarray(a), np.ascontiguousarray(b), block)
    return np.stack([matmul(each, other, block) for each, other in zip(a, b, strict=True)])


def total(x: np.ndarray) -> np.ndarray:
    """Sums along the last axis: [..., N] → [..., 1]."""
    if x.dtype != np.float32:
        return x.sum(axis=-1, keepdims=True)
    blocks = -(-x.shape[-1] // SUM_BLOCK)
    padded = np.zeros((*x.shape[:-1], blocks * SUM_BLOCK), np.float32)
    padded[..., : x.shape[-1]] = x
    return _chain(_chain(padded.reshape(*x.shape[:-1], blocks, SUM_BLOCK))[..., 0])


def _chain(x: np.ndarray) -> np.ndarray:
    """[..., N] → [..., 1], one term after the other."""
    total = x[..., 0].copy()
    for i in range(1, x.shape[-1]):
        total += x[..., i]
    return total[..., None]


def exp(x: np.ndarray) -> np.ndarray:
    """e^x; x is clipped to [−708, 709]."""
    return _in_chunks(_exp, x)


def tanh(x: np.ndarray) -> np.ndarray:
    """tanh(x)."""
    return _in_chunks(_tanh, x)


def erf(x: np.ndarray) -> np.ndarray:
    """erf(x)."""
    return _in_chunks(_erf, x)


_CHUNK = 1 << 14
"""Numbers whose intermediates fit a core's L2."""


def _in_chunks(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """``function`` of float64, to 3e-16, rounded to the type of ``x``."""
    flat = np.ascontiguousarray(x).ravel()
    out = np.empty_like(flat)
    for begin in range(0, flat.size, _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        out[chunk] = function(flat[chunk].astype(np.float64))
    return out.reshape(x.shape)


_LOG2_HIGH, _LOG2_LOW = 0.6931471803691238, 1.9082149292705877e-10
"""log(2) in two parts; the first has few enough bits for n times it to be exact."""
_EXP_SERIES = [1.0 / math.factorial(n) for n in range(1, 15)]
_ERF_SERIES = [
    (-1.0) ** n * 1.1283791670955126 / (math.factorial(n) * (2 * n + 1))  # 2 / √π
    for n in range(18)
]
_ERFC_TAIL = [
    0.2079832913334296, 0.15436117429436919, 0.04969844540332147, 0.012713147695692019, 0.0024793146982473643,
    0.0003316029605777715, 1.9563576238573082e-05, -2.4255574763708175e-06, -5.541074433626894e-07,
    4.526707950217438e-09, 1.1310218672783174e-08, 2.6380950871008083e-10, -2.3584037253219613e-10,
    -6.045731534600506e-12,
]  # fmt: skip
"""erfc(z) exp(z²) on [1, 6] in t of [-1, 1], where 1 / (z + 3) = (t + 1) (1/4 − 1/9) / 2 + 1/9: interpolated at
Chebyshev nodes with mpmath; the largest error of erfc is 3e-17."""


def _polynomial(coefficients: list[float], x: np.ndarray) -> np.ndarray:
    """Horner's scheme, lowest power first."""
    y = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        y *= x
        y += coefficient
    return y


def _exp_parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2^n and e^r − 1, where x = n log(2) + r and r is at most log(2) / 2; float64, a NaN stays one."""
    x = np.clip(x, -708.0, 709.0)
    n = np.rint(x * 1.4426950408889634)
    r = (x - n * _LOG2_HIGH) - n * _LOG2_LOW
    power = (np.where(np.isnan(n), 0.0, n).astype(np.int64) + 1023 << 52).view(np.float64)
    return power, r * _polynomial(_EXP_SERIES, r)


def _exp(x: np.ndarray) -> np.ndarray:
    power, fraction = _exp_parts(x)
    return power + power * fraction


def _tanh(x: np.ndarray) -> np.ndarray:
    """By e^2|x| − 1, which does not cancel near zero."""
    power, fraction = _exp_parts(np.minimum(np.abs(x), 20.0) * 2.0)
    less_one = (power - 1.0) + power * fraction
    return np.copysign(less_one / (less_one + 2.0), x)


def _erf(x: np.ndarray) -> np.ndarray:
    """Near zero the Taylor series, further out 1 − erfc."""
    result = x * _polynomial(_ERF_SERIES, np.minimum(x * x, 1.0))
    far = np.flatnonzero(np.abs(x) > 1.0)
    z = np.minimum(np.abs(x[far]), 6.0)
    t = (2.0 / (z + 3.0) - 2.0 / 9.0) / (1.0 / 4.0 - 1.0 / 9.0) - 1.0
    result[far] = np.copysign(1.0 - _exp(-z * z) * _polynomial(_ERFC_TAIL, t), x[far])
    return result
