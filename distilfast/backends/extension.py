"""A model as arguments of the two compiled extensions, ``distilfast._cpu`` and ``distilfast._cuda``."""

from __future__ import annotations

from typing import Any

from distilfast.heads import Head
from distilfast.weights import Weights


def encoder_arguments(weights: Weights, head: Head) -> dict[str, Any]:
    """The keyword arguments that the constructors of both ``Encoder`` classes have in common, but for the tensors."""
    config = weights.config
    return head_arguments(weights, head) | {
        "heads": config.num_heads,
        "layers": config.num_layers,
        "ffn": config.ffn_size,
        "activation": config.activation,
    }


def head_arguments(weights: Weights, head: Head) -> dict[str, Any]:
    """Those of them that say what a head is."""
    linears = zip(head_columns(weights, head), head.linears, strict=True)
    return {
        "width": weights.config.hidden_size,
        "eps": weights.config.layer_norm_eps,
        "head": [(columns, linear.activation, linear.norm) for columns, linear in linears],
    }


def head_columns(weights: Weights, head: Head) -> list[int]:
    """How many columns the output of each linear of the head has."""
    return [len(weights.tensors[f"head.{i}.bias"]) for i in range(len(head.linears))]
