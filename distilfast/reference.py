"""The model in plain numpy: four operations, one loop. In float64 the truth every backend is measured against.

It computes in the dtype of its tensors. In float32 that is the naive arithmetic whose own error the budgets are
derived from, the same to the bit on every machine: see ``distilfast.arithmetic``.

It is itself checked against transformers in float64 (tests/model/test_reference.py). Sources: Devlin et al., BERT,
arXiv 1810.04805; Sanh et al., DistilBERT, arXiv 1910.01108; Ba et al., Layer Normalization, arXiv 1607.06450;
Hendrycks and Gimpel, GELU, arXiv 1606.08415.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from distilfast import arithmetic
from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig
from distilfast.heads import Head

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


def encoder(batch: PackedBatch, tensors: Tensors, config: ModelConfig, trace: Tensors) -> np.ndarray:
    """All layers, every intermediate into ``trace``; returns the last hidden state [T, D]."""
    eps = config.layer_norm_eps
    x = trace["embed"] = embed(batch, tensors, eps)
    for i in range(config.num_layers):
        x = layer(x, batch.cu_seqlens, tensors, f"layer.{i}.", config, trace)
    return x


def layer(
    x: np.ndarray, cu_seqlens: np.ndarray, tensors: Tensors, at: str, config: ModelConfig, trace: Tensors
) -> np.ndarray:
    """One post-LayerNorm transformer layer: [T, D] → [T, D]; ``at`` is its prefix in ``tensors`` and ``trace``."""

    def dense(name: str, x: np.ndarray, activation: str = "none") -> np.ndarray:
        trace[at + name] = linear(x, tensors[at + name + ".weight"], tensors[at + name + ".bias"], activation)
        return trace[at + name]

    def norm(name: str, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        weight, bias = tensors[at + name + ".weight"], tensors[at + name + ".bias"]
        return add_layer_norm(x, residual, weight, bias, config.layer_norm_eps)

    qkv = dense("qkv", x)
    context, probabilities = attention(qkv, cu_seqlens, config.num_heads)
    trace[at + "probabilities"], trace[at + "context"] = probabilities, context
    x = trace[at + "attention_norm"] = norm("attention_norm", dense("attention_out", context), x)
    y = dense("ffn_out", dense("ffn_in", x, config.activation))
    trace[at + "output"] = norm("output_norm", y, x)
    return trace[at + "output"]


def run_head(x: np.ndarray, head: Head, tensors: Tensors, eps: float, trace: Tensors) -> np.ndarray:
    """The head's linears on the rows it reads: [R, D] → [R, N]."""
    for i, step in enumerate(head.linears):
        at = f"head.{i}"
        x = linear(x, tensors[at + ".weight"], tensors[at + ".bias"], step.activation)
        if step.norm:
            x = layer_norm(x, tensors[at + ".norm.weight"], tensors[at + ".norm.bias"], eps)
        trace[at] = x
    return x
