"""Arithmetic with the rounding that the PTX ISA prescribes; arrays are float32 unless they say otherwise.

numpy's own +, -, *, / and sqrt of float32 are those of IEEE 754: rounded once, with subnormals. The rest is here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def round_to_odd(exact: np.ndarray, error: np.ndarray) -> np.ndarray:
    """``exact + error`` rounded to odd, given the nearest number and its error: a later rounding is then correct."""
    bits = exact.view(np.uint64 if exact.dtype == np.float64 else np.uint32)
    inexact = np.isfinite(exact) & (error != 0) & ~np.isnan(error) & (bits & 1 == 0)
    toward = np.copysign(np.array(np.inf, exact.dtype), error.astype(exact.dtype))
    return np.where(inexact, np.nextafter(exact, toward), exact)


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c in float64, rounded to odd. The product of two float32 is exact there."""
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = np.atleast_1d(product + c)
    back = total - product
    error = (product - (total - back)) + (c - back)
    return round_to_odd(total, np.broadcast_to(error, total.shape))


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return _fused(a, b, c).astype(np.float32)


def fma_bf16(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Of bf16 bits, to bf16 bits."""
    wide = _fused(*(from_bf16(x) for x in (a, b, c)))
    narrow = wide.astype(np.float32)
    return to_bf16(round_to_odd(narrow, wide - narrow))


def to_bf16(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even; bits."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tf32_away(x: np.ndarray) -> np.ndarray:
    """To 10 mantissa bits, ties away from zero; as float32 bits."""
    bits = x.view(np.uint32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits)


def flushed(x: np.ndarray) -> np.ndarray:
    """Subnormal numbers to zeros of their sign."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def approximate(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """An instruction whose result the ISA only bounds: here the correctly rounded one."""
    return lambda x: function(x.astype(np.float64)).astype(np.float32)


def maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number if the other is NaN; +0 is above -0."""
    both = (a.view(np.uint32) & b.view(np.uint32)).view(np.float32)
    return np.where(a == b, both, np.fmax(a, b))


def minimum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    both = (a.view(np.uint32) | b.view(np.uint32)).view(np.float32)
    return np.where(a == b, both, np.fmin(a, b))
