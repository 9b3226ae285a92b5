"""The simulated matrix instruction against its description in tests/cuda_host/tensor_core.h, in rational numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from elements import number, stored

KEPT_BITS = 25
LEAST_EXPONENT = {"fp16": -14, "bf16": -126, "tf32": -126}


def parts(x: float, least: int) -> tuple[Fraction, int]:
    """Significand and exponent; a number below 2**least is subnormal."""
    exponent = max(math.frexp(x)[1] - 1, least) if x else -126
    return Fraction(x) / Fraction(2) ** exponent, exponent


def cut(x: Fraction, bits: int) -> Fraction:
    """Toward zero, to so many bits after the point."""
    return math.trunc(x * Fraction(2) ** bits) / Fraction(2) ** bits


def sum_of_products(a: np.ndarray, b: np.ndarray, c: float, least: int) -> float:
    addends = [parts(c, -126)]
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        (s, e), (t, f) = parts(x, least), parts(y, least)
        addends.append((s * t, e + f))
    largest = max(exponent for _, exponent in addends)
    kept = [cut(s, KEPT_BITS + e - largest) * Fraction(2) ** (e - largest) for s, e in addends]
    total = sum(kept) * Fraction(2) ** largest
    if total == 0:
        return 0.0
    exponent = max(math.frexp(float(total))[1] - 1, -126)
    return float(cut(total, 23 - exponent))


def rounded_to(x: np.ndarray, precision: str) -> np.ndarray:
    if precision != "tf32":
        return number(stored(x, precision), precision)
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def raw(x: np.ndarray, precision: str) -> bytes:
    return (x if precision == "tf32" else stored(x, precision)).tobytes()


def product(faults, precision, a, b, c):
    got = faults.product_of_floats(precision, raw(a, precision), raw(b, precision), c.ravel().tolist())
    return np.reshape(np.array(got, np.float32), (16, 8))


@pytest.mark.parametrize("precision", LEAST_EXPONENT)
@pytest.mark.parametrize("spread", [0, 4, 12])
def test_sums_are_aligned_and_truncated(faults, rng, precision, spread):
    k = 8 if precision == "tf32" else 16

    def numbers(*shape):
        return (rng.standard_normal(shape) * np.exp2(rng.integers(-spread, spread + 1, shape))).astype(np.float32)

    a, b, c = rounded_to(numbers(16, k), precision), rounded_to(numbers(8, k), precision), numbers(16, 8)
    a[:3, :3], c[0] = 0, 0
    a[4] = rounded_to(a[4] * np.float32(2.0**-18), precision)  # subnormal in fp16
    wanted = [
        [sum_of_products(a[i], b[j], float(c[i, j]), LEAST_EXPONENT[precision]) for j in range(8)] for i in range(16)
    ]
    got = product(faults, precision, a, b, c)
    assert np.array_equal(got, np.array(wanted, np.float32))
    assert not np.array_equal(got, (c + a.astype(np.float64) @ b.T).astype(np.float32))  # the rounded sum


def test_what_is_far_below_the_largest_addend_is_lost(faults):
    """2**-24 is the last bit that is kept below 2, whichever order the addends come in."""
    a, b, c = np.zeros((16, 16), np.float32), np.ones((8, 16), np.float32), np.zeros((16, 8), np.float32)
    c[0], a[0] = 1.0, 2.0**-24
    c[1], a[1] = 2.0, 2.0**-24
    c[2], a[2] = 4.0, 2.0**-24
    c[3], a[3] = -1.0, 2.0**-24
    got = product(faults, "bf16", a, b, c)[:4, 0]
    assert got.tolist() == [1 + 2.0**-20, 2 + 2.0**-20, 4.0, -1 + 2.0**-20]


def test_infinities_and_nan(faults):
    a, b, c = np.zeros((16, 16), np.float32), np.ones((8, 16), np.float32), np.ones((16, 8), np.float32)
    a[0, 3], a[1, 2], a[1, 5], a[2, 7], c[3, 4:6] = np.inf, np.inf, -np.inf, np.nan, -np.inf
    a[4] = 3e38
    got = product(faults, "bf16", a, b, c)
    assert np.isposinf(got[[0, 4]]).all()
    assert np.isnan(got[1:3]).all()
    assert np.isneginf(got[3, 4:6]).all()
    assert (got[3, [0, 1, 2, 3, 6, 7]] == 1).all()
    assert (got[5:] == 1).all()
