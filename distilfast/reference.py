"""The model in plain numpy: the four operations of ``distilfast.operations`` in one loop over the layers.

In float64 it is the truth that every backend is measured against. It is itself checked against transformers in float64
(tests/model/test_reference.py). Sources: Devlin et al., BERT, arXiv 1810.04805; Sanh et al., DistilBERT,
arXiv 1910.01108.
"""

from __future__ import annotations

import numpy as np

from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig
from distilfast.heads import Head
from distilfast.operations import (
    ACTIVATIONS,
    Tensors,
    add_layer_norm,
    attention,
    embed,
    layer_norm,
    linear,
)

__all__ = [
    "ACTIVATIONS",
    "add_layer_norm",
    "attention",
    "embed",
    "encoder",
    "layer",
    "layer_norm",
    "linear",
    "run_head",
]


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
