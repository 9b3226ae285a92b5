"""Every tolerance there is, and what it is derived from.

The yardstick of a precision is the *naive* implementation: the reference's own lines, one rounding after each operation
of that precision. An engine keeps its budget where its error is at most ``factor`` times the naive one, on the same
texts, at the same intermediate. Two measures are held against it:

* **end to end**, ‖out − truth‖ / ‖truth‖: what all operations so far have added up to;
* **the step alone**: the operation is computed in float64 from the inputs that *the engine itself* traced, so what came
  before cancels out, and the first wrong step is the culprit. It is measured over all columns and for each one (an
  output channel, or a head of the probabilities), because one wrong weight spoils one column and drowns in all of them.

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
"""The relative error of rounding an exact result to float32 once: less is asked of nobody."""

DEVIATIONS = 3.0
"""z of a single measurement; of the worst among m columns it is larger by √(2 ln m), what m draws may reach."""

QUALITY_POINTS = 0.5
"""How many points, of 100, a precision may cost in a task metric."""

COLUMN_FACTOR = 2.0
"""How much more a single column may be off by than all together: the order of a sum decides how early its largest terms
come, and two orders that are as good as each other over all columns are not in every one."""

Narrow = Callable[[np.ndarray], np.ndarray]


def _as_it_is(x: np.ndarray) -> np.ndarray:
    return x


@dataclass(frozen=True)
class Arithmetic:
    """How a naive forward rounds, float32 in and out: every tensor once, what is multiplied, every result.

    ``operand``: a linear's input; ``attention``: q, k and v. In a chain of naive steps both are rounded results
    already; a step alone may be given the finer ones that an engine has kept. ``linears_only``: the tensors of other
    operations stay float32.
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
    """Each row in 255 steps around zero, the largest of its numbers at the end of them."""
    step = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    return np.round(x / np.where(step > 0, step, 1)).astype(np.float32) * step


@dataclass(frozen=True)
class Budget:
    """What one precision may be off by.

    ``factor``: how often the naive error is allowed end to end; a step alone is allowed it NAIVE_FACTOR times in every
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
        """The largest relative error allowed where the naive one is ``naive``, resting on so many rows.

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

        A column with less than the usual error, say where GELU makes everything zero, is allowed the usual one.
        """
        usual = np.maximum(np.maximum(naive, np.median(naive)), HALF_ULP * truth)
        return COLUMN_FACTOR * NAIVE_FACTOR * sampling_slack(rows, len(naive)) * usual


def sampling_slack(rows: float | np.ndarray, among: int = 1) -> np.ndarray:
    """By what factor the ratio of two errors of the same size may differ from 1; see the head of this file."""
    deviations = DEVIATIONS + math.sqrt(2.0 * math.log(among))
    return np.exp(deviations / np.sqrt(np.maximum(rows, 1.0)))


def participation(total: np.ndarray | float, squares: np.ndarray | float) -> np.ndarray:
    """On how many rows an error rests: ``total`` Σr and ``squares`` Σr² of its squared errors r; at least 1."""
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
