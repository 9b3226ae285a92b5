"""The values of each precision in numpy: rounding, rows in the bytes that kernels read, and the naive arithmetic.

A kernel keeps its budget if its error against float64 is at most twice that of the naive computation: the same rounded
operands, float32 arithmetic with one rounding per operation, the result rounded to the precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distilfast.arithmetic import LINEAR_BLOCK, matmul

PRECISIONS = ("fp32", "fp16", "bf16")
LINEAR_PRECISIONS = (*PRECISIONS, "int8")
"""Up to 64 rows int8 is W8A16: all but a linear's weight is bf16. More rows are W8A8: see ``Int8Linear``."""
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
    """The inverse of ``stored``: float32."""
    if precision not in ("bf16", "int8"):
        return bits.astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    """float32, rounded to the precision."""
    return number(stored(x, precision), precision)


def raw(x: np.ndarray, precision: str) -> np.ndarray:
    """[T, K] as bytes, its rows padded with NaN to a multiple of 8 values, which must not enter any result."""
    rows, columns = x.shape
    padded = np.full((rows, (columns + 7) // 8 * 8), np.nan, np.float32)
    padded[:, :columns] = x
    return np.ascontiguousarray(stored(padded, precision)).view(np.uint8)


def from_raw(rows: np.ndarray, precision: str) -> np.ndarray:
    """Bytes of rows without padding, as float32."""
    return number(rows.view(_STORED[precision]), precision)


def rounded_weight(weight: np.ndarray, precision: str) -> np.ndarray:
    """[N, K] as a linear stores it, float64; int8 in groups of 64 of K, by the float32 operations of the kernel."""
    if precision != "int8":
        return rounded(weight, precision).astype(np.float64)
    n, k = weight.shape
    groups = np.pad(weight, ((0, 0), (0, -k % _GROUP))).reshape(n, -1, _GROUP)
    most = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    exact = np.rint(groups * inverse).astype(np.float64) * (most / np.float32(127))
    return exact.reshape(n, -1)[:, :k]


_W8A8_GROUP, _OUTLIERS, _OUTLIER_DEPTH = 128, 128, 768
X_ROTATION, W_ROTATION = (1, 2, 4, 8, 16, 32, 64), (1, 2, 16, 32, 64, 4, 8)
"""Distances of the butterflies, in the kernels' order: in exact arithmetic it would not matter."""


def outlier_slots(k: int) -> int:
    """Slots for outlier channels, ahead of the groups of 128."""
    return _OUTLIERS * -(-k // _OUTLIER_DEPTH)


def outlier_channels(k: int) -> int:
    """How many channels are not quantised."""
    return min(k, outlier_slots(k))


def hadamard_rotated(groups: np.ndarray, distances: tuple[int, ...]) -> np.ndarray:
    """[..., 128] times the Hadamard matrix, in float32, one rounding per addition."""
    for distance in distances:
        pairs = groups.reshape(*groups.shape[:-1], -1, 2, distance)
        groups = np.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], axis=-2)
        groups = groups.reshape(*groups.shape[:-3], _W8A8_GROUP)
    return groups


def quantized_groups(numbers: np.ndarray, distances: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """[T, K] in Hadamard-rotated groups: int8 [T, groups, 128], and scales [T, groups] in bf16."""
    padded = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % _W8A8_GROUP)))
    groups = hadamard_rotated(padded.reshape(len(numbers), -1, _W8A8_GROUP), distances)
    scales = rounded(np.abs(groups).max(axis=-1) / np.float32(127), "bf16")
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(groups * inverse[..., None]).astype(np.int8), scales


@dataclass(frozen=True)
class Int8Linear:
    """A W8A8 linear, as in csrc/cuda/linear/int8_groups.cuh; ``weight`` [N, K], ``channel_shift`` [K]."""

    weight: np.ndarray
    channel_shift: np.ndarray
    outlier_channels: np.ndarray

    def shifted_bias(self, bias: np.ndarray) -> np.ndarray:
        """What the kernel adds: the bias, and the channel shift's product with W."""
        return bias + matmul(self.channel_shift[None], self.weight, LINEAR_BLOCK)[0]

    def quantize_activations(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of bf16 numbers [T, K]: outlier channels [T, outlier_slots(K)], int8 [T, groups, 128], scales [T, groups]."""
        outliers = np.zeros((len(x), outlier_slots(x.shape[1])), np.float32)
        outliers[:, : len(self.outlier_channels)] = rounded((x - self.channel_shift)[:, self.outlier_channels], "bf16")
        return outliers, *quantized_groups(self._without_outliers(x - self.channel_shift), X_ROTATION)

    def product(self, x: np.ndarray, dtype: type) -> np.ndarray:
        """(x - channel_shift) Wᵀ of the rounded operands, in ``dtype``."""
        outliers, integers, scales = self.quantize_activations(x)
        w_integers, w_scales = quantized_groups(self._without_outliers(self.weight), W_ROTATION)
        w_outliers = rounded(self.weight[:, self.outlier_channels], "bf16")
        result = matmul(outliers[:, : len(self.outlier_channels)].astype(dtype), w_outliers.astype(dtype), LINEAR_BLOCK)
        for group in range(integers.shape[1]):  # a group's sums are integers, exact in float32
            sums = integers[:, group].astype(np.float32) @ w_integers[:, group].astype(np.float32).T
            scale = scales[:, group, None].astype(dtype) * (w_scales[:, group] / np.float32(_W8A8_GROUP)).astype(dtype)
            result += sums.astype(dtype) * scale
        return result

    def _without_outliers(self, numbers: np.ndarray) -> np.ndarray:
        rest = numbers.copy()
        rest[:, self.outlier_channels] = 0
        return rest
