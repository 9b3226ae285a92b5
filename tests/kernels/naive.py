"""Each operation the naive way: one rounding per operation, sums one term after the other.

A kernel keeps its budget if its error against float64 is at most twice the error of these. ``narrow`` rounds to the
precision of the operands: every result is, and sums are float32, as matrix instructions keep them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distilfast import reference

FACTOR = 2.0
HALF_ULP = 2.0**-24
"""The relative error of rounding an exact result once: no fp32 kernel can be asked for less."""


Narrow = Callable[[np.ndarray], np.ndarray]


def to_fp32(x: np.ndarray) -> np.ndarray:
    """As it is."""
    return x.astype(np.float32)


def error(got: np.ndarray, truth: np.ndarray) -> float:
    """‖got − truth‖ / ‖truth‖."""
    norm = np.linalg.norm(truth)
    return float(np.linalg.norm(got.astype(np.float64) - truth) / (norm if norm else 1.0))


def allowed(naive: np.ndarray, truth: np.ndarray) -> float:
    """What a kernel's error may be."""
    return FACTOR * max(error(naive, truth), HALF_ULP)


def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, activation: str = "none", narrow: Narrow = to_fp32
) -> np.ndarray:
    """One chain of multiply and add for each element."""
    y = np.zeros((len(x), len(weight)), np.float32)
    for k in range(x.shape[1]):
        y += x[:, k : k + 1] * weight[:, k]
    return narrow(reference.ACTIVATIONS[activation](narrow(y + bias)))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Mean and variance by chains of additions (cumsum adds one term after the other)."""
    width = np.float32(x.shape[1])
    mean = np.cumsum(x, axis=1, dtype=np.float32)[:, -1:] / width
    centred = x - mean
    variance = np.cumsum(centred * centred, axis=1, dtype=np.float32)[:, -1:] / width
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


def attention(
    qkv: np.ndarray,
    cu_seqlens: np.ndarray,
    num_heads: int,
    narrow: Narrow = to_fp32,
    narrow_weights: Narrow | None = None,
) -> np.ndarray:
    """Scores, probabilities and context, each of them rounded; ``narrow_weights``: the probabilities otherwise."""
    tokens, width = qkv.shape
    context = np.empty((tokens, num_heads, width // 3 // num_heads), np.float32)
    for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        q, k, v = qkv[start:end].reshape(end - start, 3, num_heads, -1).transpose(1, 2, 0, 3)
        scores = narrow(q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(q.shape[-1])))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = (narrow_weights or narrow)(weights / weights.sum(axis=-1, keepdims=True))
        context[start:end] = (weights @ v).transpose(1, 0, 2)
    return narrow(context.reshape(tokens, -1))
