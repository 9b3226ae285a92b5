"""Each operation the naive way in float32: one rounding per operation, sums one term after the other.

A kernel keeps its budget if its error against float64 is at most twice the error of these.
"""

from __future__ import annotations

import numpy as np

from distilfast import reference

FACTOR = 2.0
HALF_ULP = 2.0**-24
"""The relative error of rounding an exact result once: no fp32 kernel can be asked for less."""


def error(got: np.ndarray, truth: np.ndarray) -> float:
    """‖got − truth‖ / ‖truth‖."""
    norm = np.linalg.norm(truth)
    return float(np.linalg.norm(got.astype(np.float64) - truth) / (norm if norm else 1.0))


def allowed(naive: np.ndarray, truth: np.ndarray) -> float:
    """What a kernel's error may be."""
    return FACTOR * max(error(naive, truth), HALF_ULP)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, activation: str = "none") -> np.ndarray:
    """One chain of multiply and add for each element."""
    y = np.zeros((len(x), len(weight)), np.float32)
    for k in range(x.shape[1]):
        y += x[:, k : k + 1] * weight[:, k]
    return reference.ACTIVATIONS[activation](y + bias).astype(np.float32)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Mean and variance by chains of additions (cumsum adds one term after the other)."""
    width = np.float32(x.shape[1])
    mean = np.cumsum(x, axis=1, dtype=np.float32)[:, -1:] / width
    centred = x - mean
    variance = np.cumsum(centred * centred, axis=1, dtype=np.float32)[:, -1:] / width
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


def attention(qkv: np.ndarray, cu_seqlens: np.ndarray, num_heads: int) -> np.ndarray:
    """The reference's own steps on float32."""
    return reference.attention(qkv, cu_seqlens, num_heads)[0]
