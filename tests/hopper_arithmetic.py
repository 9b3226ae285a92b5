"""Triton's interpreter with the arithmetic of a Hopper, where numpy's differs from what the kernels run on.

The interpreter multiplies exactly, divides and exponentiates correctly rounded, and takes the bits of bf16 operands for
integers. Under ``apply`` it errs as the device does, so that a budget kept here is one the device should keep:

* Matrix instructions sum 16 products of 16-bit operands, or 8 of TF32, and the accumulator at a time. Products are
  exact; all terms are aligned to the largest exponent with two bits below fp32's last and cut there, and so is the sum,
  to fp32, toward zero (Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ CS 7:e330; Khattak & Mikaitis,
  arXiv 2512.07004, for H100). The hardware aligns to the sum of the factors' exponents, which the product's may exceed
  by one: what is cut here is up to twice as coarse.
* An fp32 operand of a TF32 instruction loses its last 13 bits. Triton splits operands in two for ``tf32x3``, the first
  rounded to nearest (cvt.rna), and in three for ``bf16x6``, each rounded to nearest even; small products are summed
  first, without NaN, and the accumulator is added last (lib/Dialect/TritonGPU/Transforms/F32DotTC.cpp in Triton).
* ex2.approx.f32 is within a relative 2^-22.5, div.full.f32 within 2 ulp (PTX ISA). Which error an operand gets is
  unknown: one is drawn from its bits, uniformly within the bound, so that equal operands give equal results.
  exp(x) is ex2.approx(x log₂e), the product rounded to fp32 (lib/Conversion of Triton's NVIDIA backend).

Not modelled: subnormal numbers that are flushed to zero, erf's and sqrt.approx's errors (the kernels use sqrt.rn).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ALIGNMENT_BITS = 23 + 2
"""Below the leading bit of the largest term."""
LEAST_EXPONENT = -100
"""Terms are aligned as if one were as large as 2^LEAST_EXPONENT: their scale stays a finite fp32."""
EX2_ERROR = 2.0**-22.5
DIV_FULL_ULP = 2


def to_tf32(x: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties away from zero; infinities and NaN unchanged."""
    rounded = (x.view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def cut_to_tf32(x: np.ndarray) -> np.ndarray:
    """The 19 bits that an instruction reads."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The bits, uint16, of x rounded to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def mma(a: np.ndarray, b: np.ndarray, accumulator: np.ndarray, depth: int) -> np.ndarray:
    """accumulator + a b, ``depth`` products at a time. A row or column of zeros changes nothing and is left out."""
    rows, columns = np.arange(a.shape[0]), np.arange(b.shape[1])
    if np.isfinite(a).all() and np.isfinite(b).all():
        rows, columns = np.flatnonzero(a.any(axis=1)), np.flatnonzero(b.any(axis=0))
    part = accumulator[np.ix_(rows, columns)]
    for k in range(0, a.shape[1] if part.size else 0, depth):
        part = _step(a[rows, k : k + depth], b[k : k + depth, columns], part)
    result = accumulator.copy()
    result[np.ix_(rows, columns)] = part
    return result


def _step(a: np.ndarray, b: np.ndarray, accumulator: np.ndarray) -> np.ndarray:
    if not (a.any() and b.any()):
        return accumulator
    with np.errstate(invalid="ignore", over="ignore"):
        products = a.T[:, :, None] * b[:, None, :]  # exact: 2 · 11 bits of mantissa at most
        largest = np.maximum(np.abs(products).max(axis=0), np.abs(accumulator))
        exponent = np.maximum(np.frexp(largest)[1] - 1, LEAST_EXPONENT)
        scale = np.ldexp(np.float32(1), ALIGNMENT_BITS - exponent)
        finite = np.isfinite(largest)
        if not finite.all():  # there is nothing to align
            return np.where(
                finite, _step(*_finite(a, b), np.where(finite, accumulator, 0)), products.sum(0) + accumulator
            )
        products *= scale
        terms = products.astype(np.int32)  # toward zero; 17 of them stay below 2^31
        total = np.add.reduce(terms, axis=0, dtype=np.int32) + (accumulator * scale).astype(np.int32)
    return toward_zero(total / scale.astype(np.float64))


def _finite(*arrays: np.ndarray) -> list[np.ndarray]:
    return [np.where(np.isfinite(x), x, 0) for x in arrays]


def toward_zero(x: np.ndarray) -> np.ndarray:
    """float64 → float32."""
    return (x.view(np.uint64) & np.uint64(0xFFFFFFFFE0000000)).view(np.float64).astype(np.float32)


def tf32x3(a: np.ndarray, b: np.ndarray, accumulator: np.ndarray) -> np.ndarray:
    big_a, big_b = to_tf32(a), to_tf32(b)
    with np.errstate(invalid="ignore"):
        small_a, small_b = cut_to_tf32(a - big_a), cut_to_tf32(b - big_b)
    small = small_products([(small_a, big_b), (big_a, small_b)])
    return mma(big_a, big_b, small + accumulator, 8)


def bf16x6(a: np.ndarray, b: np.ndarray, accumulator: np.ndarray) -> np.ndarray:
    a_parts, b_parts = split(a), split(b)
    small = small_products([(a_parts[i], b_parts[j]) for i, j in ((1, 1), (2, 0), (0, 2), (1, 0), (0, 1))])
    return mma(a_parts[0], b_parts[0], small + accumulator, 16)


def small_products(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Their sum, 2^-8 or less of the large product: how its terms are cut is lost in that one's rounding."""
    with np.errstate(invalid="ignore"):
        total = sum(a.astype(np.float64) @ b.astype(np.float64) for a, b in pairs)
    return toward_zero(np.where(np.isnan(total), 0.0, total))


def split(x: np.ndarray) -> list[np.ndarray]:
    """Three bf16 numbers whose sum is x, or nearly where x is tiny."""
    parts = []
    with np.errstate(invalid="ignore"):
        for _ in range(3):
            parts.append(from_bf16(to_bf16(x)))
            x = x - parts[-1]
    return parts


def ieee(a: np.ndarray, b: np.ndarray, accumulator: np.ndarray) -> np.ndarray:
    """AMD's exact products: one chain of fused multiply-adds, nearly (float64 holds a product and rounds the sum)."""
    for k in range(a.shape[1]):
        product = a[:, k : k + 1].astype(np.float64) * b[k].astype(np.float64)
        accumulator = (product + accumulator).astype(np.float32)
    return accumulator


FP32_PRODUCTS = {"TF32x3": tf32x3, "BF16x6": bf16x6, "IEEE": ieee}


def drawn(x: np.ndarray, bound: float) -> np.ndarray:
    """An error within ``bound``, from the bits of ``x``."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    mixed = (bits * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)  # a multiplicative hash: its high bits
    return bound * (mixed.astype(np.float64) * 2.0**-23 - 1)


def ex2_approx(x: np.ndarray) -> np.ndarray:
    """2^±0 is 1, as the PTX ISA has it."""
    with np.errstate(over="ignore", under="ignore"):
        return (np.exp2(x.astype(np.float64)) * np.where(x == 0, 1, 1 + drawn(x, EX2_ERROR))).astype(np.float32)


def div_full(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        nearest = a / b
        return (nearest + np.spacing(nearest) * drawn(a + b, DIV_FULL_ULP)).astype(np.float32)


def apply(patch: pytest.MonkeyPatch) -> None:
    """Until ``patch`` is undone."""
    import triton.language as tl
    from triton.runtime import interpreter

    handle = interpreter.TensorHandle
    precisions = (*interpreter.InterpreterOptions().allowed_dot_input_precisions, "bf16x6")
    exact = {"cast": interpreter.InterpreterBuilder.cast_impl}

    def dot(self: Any, a: Any, b: Any, accumulator: Any, input_precision: Any, _: Any) -> Any:
        kind, c = a.dtype.scalar, accumulator.data
        if kind == tl.float32:
            product = FP32_PRODUCTS[str(input_precision).rpartition(".")[2]]
            return handle(product(*map(np.ascontiguousarray, (a.data, b.data, c))), tl.float32)
        widen = {tl.bfloat16: from_bf16, tl.float16: np.float32}[kind]
        return handle(mma(widen(a.data), widen(b.data), c, 16), tl.float32)

    def cast(self: Any, source: Any, kind: Any) -> Any:
        """The interpreter cuts an fp32 that becomes a bf16."""
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return handle(to_bf16(source.data), tl.bfloat16)
        return exact["cast"](self, source, kind)

    replacements = {
        "create_dot": dot,
        "create_fp_trunc": cast,
        "create_exp2": lambda self, x: handle(ex2_approx(x.data), tl.float32),
        "create_exp": lambda self, x: handle(ex2_approx(x.data * np.float32(np.log2(np.e))), tl.float32),
        "create_fdiv": lambda self, a, b: handle(div_full(a.data, b.data), tl.float32),
    }
    for name, replacement in replacements.items():
        patch.setattr(interpreter.InterpreterBuilder, name, replacement)
    options = interpreter.InterpreterOptions(allowed_dot_input_precisions=precisions)
    patch.setattr(interpreter.interpreter_builder, "options", options)
