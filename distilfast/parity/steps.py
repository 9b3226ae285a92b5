"""The reference, one step for each named intermediate, so that each can be computed alone from any inputs.

Chained, the steps are ``reference.encoder`` and ``reference.run_head``, to the bit (tests/parity).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distilfast import reference
from distilfast.backends.base import Trace
from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig
from distilfast.heads import Head, HeadLinear
from distilfast.parity.budgets import Arithmetic

Tensors = dict[str, np.ndarray]
Run = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Step:
    """``run(tensors, *inputs)`` gives the intermediate ``name`` from the intermediates ``inputs``."""

    name: str
    inputs: tuple[str, ...]
    run: Run
    linear: bool = False
    attention: bool = False


def steps(batch: PackedBatch, config: ModelConfig, head: Head) -> list[Step]:
    """All of them, in the order of computation."""
    eps = config.layer_norm_eps
    made = [Step("embed", (), lambda tensors: reference.embed(batch, tensors, eps))]
    for i in range(config.num_layers):
        made += _layer(f"layer.{i}.", made[-1].name, batch, config)
    rows = batch.first_rows if head.rows == "first" else np.arange(batch.num_tokens)
    for j, linear in enumerate(head.linears):
        run = _head(f"head.{j}", linear, None if j else rows, eps)
        made.append(Step(f"head.{j}", (made[-1].name,), run, linear=True))
    return made


def forward(made: Sequence[Step], tensors: Tensors, arithmetic: Arithmetic | None = None) -> Trace:
    """Every intermediate, each from the ones before; in the dtype of ``tensors``, rounded as ``arithmetic`` says."""
    trace: Trace = {}
    for step in made:
        trace[step.name] = apply(step, tensors, [trace[name] for name in step.inputs], arithmetic)
    return trace


def apply(
    step: Step, tensors: Tensors, inputs: Sequence[np.ndarray], arithmetic: Arithmetic | None = None
) -> np.ndarray:
    """One step; with an ``arithmetic``, ``tensors`` are those of ``narrowed``."""
    if arithmetic is None:
        return step.run(tensors, *inputs)
    if step.linear:
        inputs = [arithmetic.operand(x) for x in inputs]
    if step.attention:
        inputs = [arithmetic.attention(x) for x in inputs]
    return arithmetic.result(step.run(tensors, *inputs))


def narrowed(tensors: Tensors, arithmetic: Arithmetic) -> Tensors:
    """The tensors as a naive forward holds them."""

    def narrow(name: str, tensor: np.ndarray) -> np.ndarray:
        is_matrix = tensor.ndim == 2 and not name.startswith("embed.")
        return arithmetic.weight(tensor) if is_matrix or not arithmetic.linears_only else tensor

    return {name: narrow(name, tensor) for name, tensor in tensors.items()}


def _layer(at: str, x: str, batch: PackedBatch, config: ModelConfig) -> list[Step]:
    """One layer from the hidden state ``x``, as in ``reference.layer``."""

    def attention(which: int) -> Run:
        return lambda tensors, qkv: reference.attention(qkv, batch.cu_seqlens, config.num_heads)[which]

    def norm(name: str, made: str, x: str, residual: str) -> Step:
        return Step(at + made, (x, residual), _norm(at + name, config.layer_norm_eps))

    attended = at + "attention_norm"
    return [
        Step(at + "qkv", (x,), _dense(at + "qkv"), linear=True),
        Step(at + "probabilities", (at + "qkv",), attention(1), attention=True),
        Step(at + "context", (at + "qkv",), attention(0), attention=True),
        Step(at + "attention_out", (at + "context",), _dense(at + "attention_out"), linear=True),
        norm("attention_norm", "attention_norm", at + "attention_out", x),
        Step(at + "ffn_in", (attended,), _dense(at + "ffn_in", config.activation), linear=True),
        Step(at + "ffn_out", (at + "ffn_in",), _dense(at + "ffn_out"), linear=True),
        norm("output_norm", "output", at + "ffn_out", attended),
    ]


def _dense(name: str, activation: str = "none") -> Run:
    def run(tensors: Tensors, x: np.ndarray) -> np.ndarray:
        return reference.linear(x, tensors[name + ".weight"], tensors[name + ".bias"], activation)

    return run


def _norm(name: str, eps: float) -> Run:
    def run(tensors: Tensors, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return reference.add_layer_norm(x, residual, tensors[name + ".weight"], tensors[name + ".bias"], eps)

    return run


def _head(name: str, linear: HeadLinear, rows: np.ndarray | None, eps: float) -> Run:
    """One linear of the head, on ``rows`` of its input or on all of it."""

    def run(tensors: Tensors, x: np.ndarray) -> np.ndarray:
        y = _dense(name, linear.activation)(tensors, x if rows is None else x[rows])
        if not linear.norm:
            return y
        return reference.layer_norm(y, tensors[name + ".norm.weight"], tensors[name + ".norm.bias"], eps)

    return run
