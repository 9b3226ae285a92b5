"""The elements of a precision in numpy: rounding, raw rows as the kernels read them, and the naive arithmetic.

A kernel keeps its budget if its error against float64 is at most twice that of the naive computation: the same rounded
operands, float32 arithmetic with one rounding per operation, the result rounded to the precision.
"""

from __future__ import annotations

import numpy as np

PRECISIONS = ("fp32", "fp16", "bf16")
LINEAR_PRECISIONS = (*PRECISIONS, "int8")
"""int8 is bf16 in all but a linear's weight."""
_STORED = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16, "int8": np.uint16}
_GROUP = 64


def stored(x: np.ndarray, precision: str) -> np.ndarray:
    """Rounded to the precision, to nearest and ties to even; bf16 as its bits."""
    x = np.ascontiguousarray(x, np.float32)
    if precision not in ("bf16", "int8"):
        return x.astype(_STORED[precision])
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def number(bits: np.ndarray, precision: str) -> np.ndarray:
    """What ``stored`` gave, as float32."""
    if precision not in ("bf16", "int8"):
        return bits.astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    """float32 that the precision can hold."""
    return number(stored(x, precision), precision)


def raw(x: np.ndarray, precision: str) -> np.ndarray:
    """[T, K] as the bytes of rows that begin every 16 bytes, NaN behind K: no kernel may take it for a number."""
    rows, columns = x.shape
    padded = np.full((rows, (columns + 7) // 8 * 8), np.nan, np.float32)
    padded[:, :columns] = x
    return np.ascontiguousarray(stored(padded, precision)).view(np.uint8)


def from_raw(rows: np.ndarray, precision: str) -> np.ndarray:
    """Bytes of rows without padding, as float32."""
    return number(rows.view(_STORED[precision]), precision)


def rounded_weight(weight: np.ndarray, precision: str) -> np.ndarray:
    """[N, K] as a linear holds it, float64; int8 in groups of 64 of K, with the float32 operations of the kernel."""
    if precision != "int8":
        return rounded(weight, precision).astype(np.float64)
    n, k = weight.shape
    groups = np.pad(weight, ((0, 0), (0, -k % _GROUP))).reshape(n, -1, _GROUP)
    most = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    exact = np.rint(groups * inverse).astype(np.float64) * (most / np.float32(127))
    return exact.reshape(n, -1)[:, :k]
