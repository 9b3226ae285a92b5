"""Each operation computed naively: the reference's float32 arithmetic, rounded to the precision of the operands.

A kernel keeps its budget if its error against float64 is at most twice the error of these. ``narrow`` rounds to the
precision of the operands, and is applied to every result; sums are float32, as in matrix instructions. The orders of
summation are those of ``distilfast.arithmetic``, the same on every machine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from distilfast import reference
from distilfast.arithmetic import CONTEXT_BLOCK, SCORES_BLOCK, exp, matmul, total

FACTOR = 2.0
HALF_ULP = 2.0**-24
"""The relative error of rounding an exact result once: no fp32 kernel can be required to have less."""

CACHED_RESULTS = 100
"""Enough for the sizes of one test in three precisions, so that the next kernel finds all of them."""

Narrow = Callable[[np.ndarray], np.ndarray]


def memoized(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with an LRU cache, keyed by the bytes of its arrays: every kernel needs the same results."""
    results: OrderedDict[Any, Any] = OrderedDict()

    def call(*arguments: Any, **options: Any) -> Any:
        given = (*arguments, *options.items())
        key = tuple((a.shape, a.dtype.str, a.tobytes()) if isinstance(a, np.ndarray) else a for a in given)
        if key not in results:
            results[key] = function(*arguments, **options)
            if len(results) > CACHED_RESULTS:
                results.popitem(last=False)
        results.move_to_end(key)
        return results[key]

    return call


def to_fp32(x: np.ndarray) -> np.ndarray:
    """No rounding."""
    return x.astype(np.float32)


def error(got: np.ndarray, truth: np.ndarray) -> float:
    """‖got − truth‖ / ‖truth‖."""
    norm = np.linalg.norm(truth)
    return float(np.linalg.norm(got.astype(np.float64) - truth) / (norm if norm else 1.0))


def allowed(naive: np.ndarray, truth: np.ndarray) -> float:
    """The largest error that a kernel may have."""
    return FACTOR * max(error(naive, truth), HALF_ULP)


@memoized
def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, activation: str = "none", narrow: Narrow = to_fp32
) -> np.ndarray:
    """The product is rounded before the activation, like the result of an operation of its own."""
    return narrow(reference.ACTIVATIONS[activation](narrow(reference.linear(x, weight, bias))))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """In float32."""
    return reference.layer_norm(to_fp32(x), weight, bias, np.float32(eps))


@memoized
def attention(
    qkv: np.ndarray,
    cu_seqlens: np.ndarray,
    num_heads: int,
    narrow: Narrow = to_fp32,
    narrow_weights: Narrow | None = None,
) -> np.ndarray:
    """Scores, probabilities and context, each of them rounded, the probabilities by ``narrow_weights`` if given."""
    context = []
    for start, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        q, k, v = qkv[start:end].reshape(end - start, 3, num_heads, -1).transpose(1, 2, 0, 3)
        scores = narrow(matmul(q, k, SCORES_BLOCK) / np.float32(np.sqrt(q.shape[-1])))
        weights = exp(scores - scores.max(axis=-1, keepdims=True))
        weights = (narrow_weights or narrow)(weights / total(weights))
        heads = matmul(weights, v.transpose(0, 2, 1), CONTEXT_BLOCK)
        context.append(heads.transpose(1, 0, 2).reshape(end - start, -1))
    return narrow(np.concatenate(context))
