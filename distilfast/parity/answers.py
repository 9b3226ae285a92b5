"""How far the answers agree: whether the best one is the same, and how similarly the others are ranked.

There is no verdict here: the intermediates have budgets, and two answers with nearly equal scores change places in any
arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distilfast.backends.base import Trace
from distilfast.batch import PackedBatch
from distilfast.pipelines.sentence_modules import SentenceModules
from distilfast.types import Task

_COMPARED = {
    "feature-extraction": "the similarities of each text to all others",
    "fill-mask": "the vocabulary at each token",
    "text-classification": "the labels of each text",
    "token-classification": "the labels of each token",
    "question-answering": "the tokens where an answer starts, and where it ends",
    "multiple-choice": "the texts, as choices of one question",
}


@dataclass(frozen=True)
class Agreement:
    """Of ``questions`` with several candidates each: share with the same best one, rank correlation, largest |Δ|.

    ``compared`` says what the candidates are; ``correlation`` (Spearman's) is the lowest and ``mean_correlation`` the
    mean over all questions; ``max_difference`` is that of a logit, for feature-extraction of a cosine.
    """

    compared: str
    questions: int
    top1: float
    correlation: float
    mean_correlation: float
    max_difference: float


class Answers:
    """The engine's answers beside the true ones, batch by batch."""

    def __init__(self, task: Task, num_labels: int, source: str, modules: SentenceModules) -> None:
        """``source``: the intermediate that answers are read from; ``modules``: what makes vectors of its rows."""
        self._task, self._source, self._modules = task, source, modules
        self._across = task in ("feature-extraction", "multiple-choice") or (
            task == "text-classification" and num_labels == 1
        )
        self._collected: list[tuple[np.ndarray, np.ndarray]] = []
        self._same: list[bool] = []
        self._correlations: list[float] = []
        self._difference = 0.0

    def add(self, got: Trace, truth: Trace, batch: PackedBatch) -> None:
        """One batch."""
        if self._across:
            self._collected.append((self._one_each(got, batch), self._one_each(truth, batch)))
            return
        answers = (self._questions(trace[self._source], batch) for trace in (got, truth))
        for ours, right in zip(*answers, strict=True):
            self._compare(ours, right)

    def agreement(self) -> Agreement:
        """Over all batches."""
        if self._collected:
            ours, right = (np.concatenate(each) for each in zip(*self._collected, strict=True))
            for pair in zip(_candidates(ours), _candidates(right), strict=True):
                self._compare(*pair)
        known = [value for value in self._correlations if not np.isnan(value)] or [float("nan")]
        return Agreement(
            compared=_COMPARED[self._task],
            questions=len(self._same),
            top1=float(np.mean(self._same)) if self._same else float("nan"),
            correlation=min(known),
            mean_correlation=float(np.mean(known)),
            max_difference=self._difference,
        )

    def _compare(self, ours: np.ndarray, right: np.ndarray) -> None:
        self._same.append(bool(ours.argmax() == right.argmax()))
        self._correlations.append(rank_correlation(ours, right))
        self._difference = float(np.maximum(self._difference, np.abs(ours - right).max()))

    def _questions(self, logits: np.ndarray, batch: PackedBatch) -> Iterator[np.ndarray]:
        if self._task != "question-answering":
            yield from logits
            return
        for rows in np.split(logits, batch.cu_seqlens[1:-1]):
            yield from rows.T

    def _one_each(self, trace: Trace, batch: PackedBatch) -> np.ndarray:
        """A row for each text: its score, or its vector as the checkpoint's modules make it, of length 1."""
        values = trace[self._source]
        return self._modules.directions(values, batch) if self._task == "feature-extraction" else values


def _candidates(values: np.ndarray) -> Iterator[np.ndarray]:
    """The candidates of each question: all numbers of one column, or the similarities of each vector to the others."""
    if values.shape[1] == 1:
        yield values[:, 0]
        return
    similarities = values @ values.T
    for i in range(len(values)):
        if len(values) > 1:
            yield np.delete(similarities[i], i)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: the correlation of the ranks, ties sharing theirs; NaN where an argument is constant."""
    first, second = (_ranks(x) for x in (a, b))
    first, second = first - first.mean(), second - second.mean()
    norm = math.sqrt((first**2).sum() * (second**2).sum())
    return float(np.clip((first * second).sum() / norm, -1.0, 1.0)) if norm > 0 else float("nan")


def _ranks(x: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[place.ravel()]
