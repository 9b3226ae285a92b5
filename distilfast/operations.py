"""The four operations in plain numpy: ``embed``, ``linear``, ``attention`` and ``add_layer_norm``.

They compute in the dtype of their tensors. float64 is for the reference. float32 is the naive arithmetic whose own
error the parity budgets are derived from, and in which int8 is calibrated; its bits are the same on every machine: see
``distilfast.arithmetic``.

Sources: Ba et al., Layer Normalization, arXiv 1607.06450; Hendrycks and Gimpel, GELU, arXiv 1606.08415; Vaswani et al.,
Attention Is All You Need, arXiv 1706.03762.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from distilfast import arithmetic
from distilfast.batch import PackedBatch

Tensors = dict[str, np.ndarray]

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "gelu": lambda x: 0.5 * x * (1.0 + arithmetic.erf(x / math.sqrt(2.0))),
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": arithmetic.tanh,
}


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """(x − mean) / √(variance + eps) · weight + bias along the last axis of [T, D]; the biased variance."""
    centred = x - arithmetic.total(x) / x.shape[-1]
    variance = arithmetic.total(centred * centred) / x.shape[-1]
    return centred / np.sqrt(variance + eps) * weight + bias


def embed(batch: PackedBatch, tensors: Tensors, eps: float) -> np.ndarray:
    """LN(word[id] + position[p] (+ token_type[t])): [T] → [T, D]."""
    x = tensors["embed.word"][batch.input_ids] + tensors["embed.position"][batch.positions]
    if "embed.token_type" in tensors:
        types = np.zeros_like(batch.input_ids) if batch.token_types is None else batch.token_types
        x = x + tensors["embed.token_type"][types]
    return layer_norm(x, tensors["embed.norm.weight"], tensors["embed.norm.bias"], eps)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, activation: str = "none") -> np.ndarray:
    """act(x Wᵀ + b): [T, K] · [N, K] → [T, N]."""
    return ACTIVATIONS[activation](arithmetic.matmul(x, weight, arithmetic.LINEAR_BLOCK) + bias)


def attention(qkv: np.ndarray, cu_seqlens: np.ndarray, num_heads: int) -> tuple[np.ndarray, np.ndarray]:
    """softmax(q kᵀ / √d) v inside each sequence: [T, 3D] → context [T, D] and the probabilities, flat."""
    tokens, width = qkv.shape
    head_size = width // (3 * num_heads)
    context = np.empty((tokens, num_heads, head_size), qkv.dtype)
    probabilities = []
    for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        q, k, v = qkv[start:end].reshape(end - start, 3, num_heads, head_size).transpose(1, 2, 0, 3)
        scores = arithmetic.matmul(q, k, arithmetic.SCORES_BLOCK) / math.sqrt(head_size)
        weights = arithmetic.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= arithmetic.total(weights)
        values = v.transpose(0, 2, 1)
        context[start:end] = arithmetic.matmul(weights, values, arithmetic.CONTEXT_BLOCK).transpose(1, 0, 2)
        probabilities.append(weights.ravel())
    return context.reshape(tokens, -1), np.concatenate(probabilities)


def add_layer_norm(x: np.ndarray, residual: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """LN(x + residual): [T, D] → [T, D]."""
    return layer_norm(x + residual, weight, bias, eps)
