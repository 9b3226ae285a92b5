"""Errors of one intermediate, summed over batches: norms, cosines, columns, units in the last place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distilfast.batch import PackedBatch
from distilfast.config import ModelConfig
from distilfast.parity.budgets import Budget, participation

ULP_BUCKETS = 33
"""0, 1, 2 to 3, 4 to 7, … units in the last place; the last bucket also holds NaN."""


@dataclass(frozen=True)
class Row:
    """What was measured at one intermediate, and whether it is within its budget.

    End to end: ``max_abs`` largest |Δ|, ``relative`` ‖Δ‖ / ‖truth‖, its ``budget`` and the same of the ``naive``
    forward, ``cosine`` the lowest of a token, ``ulps`` how many numbers are so far off (see ``ULP_BUCKETS``), ``torch``
    the relative error of transformers in the same precision where that was run: shown, without a budget.
    The step alone, from the engine's own inputs: ``step`` ‖Δ‖ / ‖truth‖, and ``share``, its error as a fraction of the
    budget, or that of its worst column if larger; ``where``: the place of that column's largest error.
    """

    name: str
    max_abs: float
    relative: float
    naive: float
    torch: float | None
    budget: float
    cosine: float
    least_cosine: float | None
    step: float
    share: float
    where: str
    ulps: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Whether it is within every budget; a NaN is not."""
        far = self.least_cosine is not None and not self.cosine >= self.least_cosine
        return self.relative <= self.budget and self.share <= 1.0 and not far

    @property
    def complaint(self) -> str:
        """What is wrong, as a clause; "" where nothing is."""
        if self.passed:
            return ""
        if not self.share <= 1.0:
            return f"this step alone is off by {self.share:.3g} times its budget at {self.where}"
        if not self.relative <= self.budget:
            return f"it is off by {self.relative:.1e}, budget {self.budget:.1e}"
        return f"a token's cosine is {self.cosine:.6f}, at least {self.least_cosine} is needed"

    def to_dict(self) -> dict[str, Any]:
        """Its fields and what follows from them."""
        return asdict(self) | {"ulp99": self.ulp_quantile(0.99), "passed": self.passed, "complaint": self.complaint}

    def ulp_quantile(self, share: float) -> int:
        """The end of the first bucket within which ``share`` of the numbers are."""
        reached = int(np.searchsorted(np.cumsum(self.ulps), share * sum(self.ulps)))
        return 2**reached - 1


class Tally:
    """The sums of one intermediate over batches; arrays are [T, C], or [T, C, L] with C heads (see ``shaped``)."""

    def __init__(self, name: str, config: ModelConfig) -> None:
        """For an intermediate of a model with this ``config``."""
        self.name = name
        self._config = config
        self._error = self._naive = self._truth = self._rows = 0.0  # sums of squares; _rows: of the rows' sums
        self._torch: float | None = None
        self._max_abs, self._cosine = 0.0, 1.0
        self._ulps = np.zeros(ULP_BUCKETS, np.int64)
        self._columns: Columns | None = None

    def add(self, got: np.ndarray, truth: np.ndarray, naive: np.ndarray) -> None:
        """End to end."""
        error, rows = squares(got - truth), row_sums(squares(naive - truth))
        self._error += float(error.sum())
        self._naive += float(rows.sum())
        self._rows += float((rows**2).sum())
        self._truth += float(squares(truth).sum())
        self._max_abs = float(np.maximum(self._max_abs, np.sqrt(error.max())))  # both keep a NaN
        self._cosine = float(np.minimum(self._cosine, lowest_cosine(got, truth)))
        self._ulps += ulp_histogram(got, truth)

    def add_torch(self, torch: np.ndarray, truth: np.ndarray) -> None:
        """End to end, of transformers' own forward."""
        self._torch = (self._torch or 0.0) + float(squares(torch - truth).sum())

    def add_step(
        self, got: np.ndarray, truth: np.ndarray, naive: np.ndarray, places: Sequence[tuple[int, int]]
    ) -> None:
        """The step alone; ``places``: of each row, which text and which token of it."""
        if self._columns is None:
            self._columns = Columns(got.shape[1])
        self._columns.add(got, truth, naive, places)

    def row(self, budget: Budget, *, hidden: bool = False, last: bool = False) -> Row:
        """The verdict; ``hidden`` says that this is a hidden state, ``last`` that it is the last."""
        assert self._columns is not None
        naive = _relative(self._naive, self._truth)
        worst, share = self._columns.worst(budget)
        return Row(
            name=self.name,
            max_abs=self._max_abs,
            relative=_relative(self._error, self._truth),
            naive=naive,
            torch=None if self._torch is None else _relative(self._torch, self._truth),
            budget=budget.end_to_end(naive, float(participation(self._naive, self._rows)), last=last),
            cosine=self._cosine,
            least_cosine=budget.cosine if hidden else None,
            step=self._columns.relative(),
            share=share,
            where=self._columns.describe(worst, self.name, self._config),
            ulps=tuple(int(count) for count in self._ulps),
        )


class Columns:
    """Errors of a step alone, by column, and where each is largest."""

    def __init__(self, count: int) -> None:
        """``count``: C."""
        self._error, self._naive, self._naive2, self._truth = (np.zeros(count) for _ in range(4))
        self._rows = 0.0  # of the sums of the naive error's rows
        self._largest = np.full(count, -1.0)
        self._where: list[tuple[int, ...]] = [()] * count

    def add(self, got: np.ndarray, truth: np.ndarray, naive: np.ndarray, places: Sequence[tuple[int, int]]) -> None:
        """[T, C] or [T, C, L] each."""
        error, plain = squares(got - truth), squares(naive - truth)
        self._error += column_sums(error)
        self._naive += column_sums(plain)
        self._naive2 += column_sums(plain**2)
        self._rows += float((row_sums(plain) ** 2).sum())
        self._truth += column_sums(squares(truth))
        by_column = np.moveaxis(error, 1, 0)
        flat = np.nan_to_num(by_column.reshape(len(by_column), -1), nan=np.inf, posinf=np.inf)
        at = flat.argmax(axis=1)
        largest = flat[np.arange(len(flat)), at]
        for column in np.flatnonzero(largest > self._largest):
            token, *key = np.unravel_index(at[column], by_column.shape[1:])
            self._where[column] = (*places[int(token)], *(int(k) for k in key))
        self._largest = np.maximum(self._largest, largest)

    def worst(self, budget: Budget) -> tuple[int, float]:
        """The column with the largest share of its budget, and that share, or that of all columns if larger."""
        naive = float(self._naive.sum())
        rows = float(participation(naive, self._rows))
        together = budget.step(math.sqrt(naive), math.sqrt(self._truth.sum()), rows)
        each = budget.columns(np.sqrt(self._naive), np.sqrt(self._truth), participation(self._naive, self._naive2))
        shares = _share(np.sqrt(self._error), each)
        overall = _share(np.sqrt(self._error.sum(keepdims=True)), np.array([together]))
        return int(shares.argmax()), float(max(shares.max(), overall[0]))

    def relative(self) -> float:
        """‖Δ‖ / ‖truth‖ over all columns."""
        return _relative(float(self._error.sum()), float(self._truth.sum()))

    def describe(self, column: int, name: str, config: ModelConfig) -> str:
        """Where the largest error of a column is, in words."""
        text, token, *key = self._where[column]
        place = f"text {text}, token {token}"
        if key:
            return f"{place}, head {column}, key {key[0]}"
        if not name.endswith((".qkv", ".context")):
            return f"{place}, column {column}"
        part, inside = divmod(column, config.hidden_size)
        head, channel = divmod(inside, config.head_size)
        letter = f"{'qkv'[part]} of " if name.endswith(".qkv") else ""
        return f"{place}, {letter}head {head}, channel {channel}"


def _share(error: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """error / allowed; 0 for no error, and infinity for a NaN."""
    shares = np.divide(error, allowed, out=np.full_like(error, np.inf), where=allowed > 0)
    return np.where(np.isnan(error), np.inf, np.where(error == 0, 0.0, shares))


def shaped(name: str, array: np.ndarray, batch: PackedBatch, heads: int) -> np.ndarray:
    """[T, C] as it is; probabilities, flat in the trace, as [T, H, L]: query, head, key, zero-padded past each text."""
    if not name.endswith(".probabilities"):
        return array
    lengths = np.diff(batch.cu_seqlens)
    square = np.zeros((batch.num_tokens, heads, int(lengths.max())), array.dtype)
    begin = 0
    for start, length in zip(batch.cu_seqlens, lengths, strict=False):
        end = begin + heads * length * length
        square[start : start + length, :, :length] = array[begin:end].reshape(heads, length, length).swapaxes(0, 1)
        begin = end
    return square


def squares(x: np.ndarray) -> np.ndarray:
    """x², in float64."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.square(x, dtype=np.float64)


def row_sums(x: np.ndarray) -> np.ndarray:
    """[T, …] → [T]."""
    return x.reshape(len(x), -1).sum(axis=1)


def column_sums(x: np.ndarray) -> np.ndarray:
    """[T, C] or [T, C, L] → [C]."""
    return x.reshape(*x.shape[:2], -1).sum(axis=(0, 2))


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """‖got − wanted‖ / ‖wanted‖."""
    return _relative(float(squares(got - wanted).sum()), float(squares(wanted).sum()))


def _relative(error: float, truth: float) -> float:
    """√(error / truth) of two sums of squares; 0 where both are zero."""
    if truth > 0 or np.isnan(truth):
        return float(np.sqrt(error / truth))
    return 0.0 if error == 0 else float("inf")


def lowest_cosine(got: np.ndarray, wanted: np.ndarray) -> float:
    """The smallest cosine of the angle between two rows; 1 where a row is all zeros."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (got, wanted))
    dots, norms = (a * b).sum(axis=1), np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore"):
        return float(np.divide(dots, norms, out=np.ones_like(norms), where=norms != 0).min())


def ulp_histogram(got: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many float32 numbers of ``got`` lie 0, 1, 2–3, 4–7, … float32 numbers from the rounded truth; int64 [33]."""
    with np.errstate(over="ignore", invalid="ignore"):
        distance = np.abs(_ordered(got) - _ordered(truth))
    buckets = np.frexp(distance.astype(np.float64))[1]
    buckets[np.isnan(got) | np.isnan(truth)] = ULP_BUCKETS - 1
    return np.bincount(np.minimum(buckets.ravel(), ULP_BUCKETS - 1), minlength=ULP_BUCKETS)


def _ordered(x: np.ndarray) -> np.ndarray:
    """Integers in the order of the float32 numbers, one apart where these are neighbours; both zeros are 0."""
    bits = np.ascontiguousarray(x, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(2**31) - bits, bits)
