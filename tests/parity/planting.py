"""Planted errors: a float32 backend with replaceable steps, and changed weights for a correct backend."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from distilfast.backends.base import Results, Trace, select_columns
from distilfast.batch import PackedBatch
from distilfast.heads import Head
from distilfast.parity.budgets import Arithmetic
from distilfast.parity.steps import Step, apply, narrowed, steps
from distilfast.weights import Weights


class Float32Backend:
    """The reference's steps in float32, with the errors that a subclass sets as class attributes.

    ``steps``: replacements for some steps; ``arithmetic``: how it rounds; ``patched``: a context in which it runs.
    """

    name = "planted"
    detail = "numpy, planted"
    steps: ClassVar[dict[str, Callable[..., np.ndarray]]] = {}
    arithmetic: ClassVar[Arithmetic | None] = None
    patched: ClassVar[Callable[[], AbstractContextManager[Any]]] = nullcontext

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def load(self, weights: Weights, head: Head, precision: str) -> None:
        self.weights, self.head = weights, head
        self.tensors = narrowed(weights.tensors, self.arithmetic) if self.arithmetic else weights.tensors

    def forward(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace | None = None,
        columns: np.ndarray | None = None,
        names: Collection[str] | None = None,
    ) -> Results:
        made: Trace = {}
        config = self.weights.config
        head = self.head if rows is not None else replace(self.head, linears=())
        with type(self).patched():
            for step in steps(batch, config, head):
                step = Step(step.name, step.inputs, self.steps.get(step.name, step.run), step.linear)
                made[step.name] = apply(step, self.tensors, [made[name] for name in step.inputs], self.arithmetic)
        if trace is not None:
            trace.update({name: made[name] for name in made if names is None or name in names})
        output = made.get(f"head.{len(head.linears) - 1}")
        last_hidden = made[f"layer.{config.num_layers - 1}.output"] if hidden else None
        return select_columns((last_hidden, output), columns)

    def info(self) -> dict[str, object]:
        return {}


def scaled(name: str, index: int, factor: float) -> Callable[[Weights], Weights]:
    """One element of a tensor times ``factor``."""

    def change(weights: Weights) -> Weights:
        tensor = weights.tensors[name].copy()
        tensor.flat[index] *= factor
        return Weights(weights.config, weights.tensors | {name: tensor})

    return change


def dropped(name: str) -> Callable[[Weights], Weights]:
    """The tensor replaced by zeros."""
    return lambda weights: Weights(weights.config, weights.tensors | {name: np.zeros_like(weights.tensors[name])})


def with_eps(eps: float) -> Callable[[Weights], Weights]:
    """Another eps in every LayerNorm."""
    return lambda weights: Weights(replace(weights.config, layer_norm_eps=eps), weights.tensors)
