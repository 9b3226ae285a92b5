"""All tolerances, and what they are derived from.

The yardstick of a precision is the *naive* implementation: the reference's own code with one rounding to that precision
after each operation. An engine keeps its budget where its error is at most ``factor`` times the naive one, on the same
texts, at the same intermediate. Two measures are compared with it:

* **end to end**, ‖out − truth‖ / ‖truth‖: the error of all operations so far;
* **the step alone**: the operation is computed in float64 from the inputs that *the engine itself* traced, so earlier
  errors cancel, and the first step over its budget is the faulty one. It is measured over all columns together and for
  each column (an output channel, or a head of the probabilities), because one wrong weight affects a single column.

Rounding errors are random, and so is their ratio, the more so the fewer numbers it rests on: the logits of two labels,
or a few activations a hundred times larger than the rest. For two sums of n equal squares the logarithm of √ratio has a
standard deviation of 1/√n, so a budget is multiplied by ``sampling_slack``, exp(z / √n), which goes to 1 with more
text. n is the participation ratio (Σr)² / Σr² of the squared naive errors r of the rows: the number of rows where all
errors are equal, and 1 where a single row has all of the error. The last hidden state has many rows of similar error,
and gets no such slack: its budget is the one that the project states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from distilfast.errors import BackendError
from distilfast.types import Precision

NAIVE_FACTOR = 2.0
"""A precision keeps its budget if its error is at most this often that of a naive forward in the same precision."""

HALF_ULP = 2.0**-24
"""The relative error of rounding an exact result to float32 once: no budget is smaller."""

DEVIATIONS = 3.0
"""z of a single measurement; of the worst among m columns √(2 ln m) is added, the expected maximum of m draws."""

QUALITY_POINTS = 0.5
"""How many points, of 100, a precision is allowed to lose in a task metric."""

COLUMN_FACTOR = 2.0
"""The further factor allowed to a single column. The error of a sum depends on when its largest terms are added: two
orders of summation with the same error over all columns differ in single ones."""

Narrow = Callable[[np.ndarray], np.ndarray]


def _as_it_is(x: np.ndarray) -> np.ndarray:
    return x


@dataclass(frozen=True)
class Arithmetic:
    """How a naive forward rounds, float32 in and out: every tensor once, what is multiplied, every result.

    ``operand``: a linear's input; ``attention``: q, k and v. In a chain of naive steps both are rounded results
    already; a step alone is given those that the engine traced, which can be more precise. ``linears_only``: the
    tensors of other operations stay float32.
    """

    weight: Narrow = _as_it_is
    operand: Narrow = _as_it_is
    attention: Narrow = _as_it_is
    result: Narrow = _as_it_is
    linears_only: bool = False


def to_bf16(x: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, ties to even; finite values."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(np.float32)


def to_two_bf16(x: np.ndarray) -> np.ndarray:
    """The sum of two bfloat16, 16 bits of significand: the operands of three products."""
    high = to_bf16(x)
    return high + to_bf16(x - high)


def to_fp16(x: np.ndarray) -> np.ndarray:
    """To the nearest float16."""
    return x.astype(np.float16).astype(np.float32)


def to_int8(x: np.ndarray) -> np.ndarray:
    """Each row quantised symmetrically to [−127, 127], its largest magnitude at 127."""
    step = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    return np.round(x / np.where(step > 0, step, 1)).astype(np.float32) * step


@dataclass(frozen=True)
class Budget:
    """The allowed errors of one precision.

    ``factor``: the allowed multiple of the naive error end to end; for a step alone it is NAIVE_FACTOR in every
    precision. ``last_hidden``: the error that is allowed at the last hidden state, where a number is stated for it;
    ``cosine``: the least cosine of a token of a hidden state; ``torch``: the same type in torch.
    """

    derivation: str
    factor: float = NAIVE_FACTOR
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    last_hidden: float | None = None
    cosine: float | None = None
    torch: str | None = None

    def end_to_end(self, naive: float, rows: float, *, last: bool = False) -> float:
        """The largest relative error allowed where the naive one is ``naive``, over effectively ``rows`` rows.

        ``last``: at the last hidden state, whose budget the project states; it gets no sampling slack.
        """
        if last and self.last_hidden is not None:
            return self.last_hidden
        return self.factor * (1.0 if last else float(sampling_slack(rows))) * max(naive, HALF_ULP)

    def step(self, naive: float, truth: float, rows: float) -> float:
        """The largest error allowed for a step alone, as a norm like the naive error's and the right values'."""
        return NAIVE_FACTOR * float(sampling_slack(rows)) * max(naive, HALF_ULP * truth)

    def columns(self, naive: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The same for each of its C columns: [C] in, [C] out.

        A column whose naive error is below the median, say where GELU makes everything zero, is allowed the median.
        """
        usual = np.maximum(np.maximum(naive, np.median(naive)), HALF_ULP * truth)
        return COLUMN_FACTOR * NAIVE_FACTOR * sampling_slack(rows, len(naive)) * usual


def sampling_slack(rows: float | np.ndarray, among: int = 1) -> np.ndarray:
    """The factor by which the ratio of two equally good errors can exceed 1 by chance; see the head of this file."""
    deviations = DEVIATIONS + math.sqrt(2.0 * math.log(among))
    return np.exp(deviations / np.sqrt(np.maximum(rows, 1.0)))


def participation(total: np.ndarray | float, squares: np.ndarray | float) -> np.ndarray:
    """The effective number of rows, at least 1, from ``total`` Σr and ``squares`` Σr² of the rows' squared errors r."""
    total, squares = np.asarray(total, np.float64), np.asarray(squares, np.float64)
    return np.maximum(np.divide(total * total, squares, out=np.ones_like(total), where=squares > 0), 1.0)


BUDGETS: dict[Precision, Budget] = {
    "fp32": Budget("at most twice the error of a naive float32 forward", torch="float32"),
    "fp64": Budget("float64 against float64: 1e-10 at the last hidden state", last_hidden=1e-10),
    "bf16x3": Budget(
        "2e-5 at the last hidden state; elsewhere at most twice the error of operands of two bfloat16",
        arithmetic=Arithmetic(to_two_bf16, to_two_bf16, linears_only=True),
        last_hidden=2e-5,
    ),
    "bf16": Budget(
        "at most the error of a naive bfloat16 forward; a step alone at most twice",
        factor=1.0,
        arithmetic=Arithmetic(to_bf16, to_bf16, to_bf16, to_bf16),
        torch="bfloat16",
    ),
    "fp16": Budget(
        "at most the error of a naive float16 forward; a step alone at most twice",
        factor=1.0,
        arithmetic=Arithmetic(to_fp16, to_fp16, to_fp16, to_fp16),
        torch="float16",
    ),
    "int8": Budget(
        "each token's cosine at least 0.999 in every hidden state, and at most twice the error of naive int8 linears "
        "whose results, as those of all other operations, are bfloat16",
        arithmetic=Arithmetic(to_int8, to_int8, to_bf16, to_bf16, linears_only=True),
        cosine=0.999,
    ),
}


def budget_for(precision: Precision) -> Budget:
    """The budget of a precision; raises BackendError where there is none."""
    if precision not in BUDGETS:
        raise BackendError(f"precision {precision!r} has no budget; there are {', '.join(BUDGETS)}.")
    return BUDGETS[precision]
