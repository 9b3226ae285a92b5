"""The official metrics in numpy. Fractions here, 0 to 1 or −1 to 1; percent in ``Result``.

Sources: Wang et al., GLUE, arXiv 1804.07461 (accuracy, F1, Matthews, Pearson, Spearman); the script conlleval of
Tjong Kim Sang and De Meulder, CoNLL-2003 (entities); the scripts evaluate-v1.1.py and evaluate-v2.0.py of Rajpurkar
et al., SQuAD, arXiv 1606.05250 and 1806.03822.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from distilfast.errors import InputError

Values = Sequence[Any] | np.ndarray
Entity = tuple[str, int, int]
"""Type, first word, and the word after the last."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(predictions: Values, labels: Values) -> float:
    """The share of [N] predictions that are the label."""
    got, wanted = _same_length(predictions, labels)
    return float((got == wanted).mean())


def f1(predictions: Values, labels: Values, positive: Any = 1) -> float:
    """Harmonic mean of precision and recall of the class ``positive``; 0 where nothing of it was found."""
    got, wanted = (values == positive for values in _same_length(predictions, labels))
    return _f1(int((got & wanted).sum()), int(got.sum()), int(wanted.sum()))


def matthews(predictions: Values, labels: Values) -> float:
    """Matthews' correlation coefficient of two classes, 1 and any other; 0 where either is constant."""
    got, wanted = (values == 1 for values in _same_length(predictions, labels))
    return pearson(got.astype(np.float64), wanted.astype(np.float64))  # which it is, of two indicators


def pearson(predictions: Values, labels: Values) -> float:
    """Pearson's correlation; 0 where either is constant, which leaves it undefined."""
    got, wanted = (values.astype(np.float64) for values in _same_length(predictions, labels))
    if np.ptp(got) == 0 or np.ptp(wanted) == 0:
        return 0.0
    got, wanted = got - got.mean(), wanted - wanted.mean()
    return float((got / np.linalg.norm(got)) @ (wanted / np.linalg.norm(wanted)))


def spearman(predictions: Values, labels: Values) -> float:
    """Pearson's correlation of the ranks, equal values sharing their mean rank."""
    got, wanted = _same_length(predictions, labels)
    return pearson(_ranks(got), _ranks(wanted))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; [N]."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence's tags: "O", "B-type", "I-type".

    As conlleval reads IOB1 and IOB2 alike, and seqeval in its default mode: an entity begins at B, and at an I that
    follows O or another type, and ends before the next O, beginning or other type.
    """
    found: list[Entity] = []
    first, kind = 0, ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, here = tag.partition("-")
        here = "" if mark == "O" else here or "_"  # "_": the type of a bare B or I
        if kind and (here != kind or mark == "B"):
            found.append((kind, first, i))
            kind = ""
        if here and not kind:
            first, kind = i, here
    return found


def entity_scores(predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """``precision``, ``recall`` and ``f1`` of whole entities, over all types and sentences together.

    One sequence of tags for each sentence; an entity counts where its type, its beginning and its end are right.
    Raises InputError where they differ in length.
    """
    right = guessed = there = 0
    for i, (got, wanted) in enumerate(zip(*_paired(predictions, labels), strict=True)):
        if len(got) != len(wanted):
            raise InputError(f"Sentence {i} has {len(got)} predictions and {len(wanted)} labels.")
        mine, truth = set(entities(got)), set(entities(wanted))
        right, guessed, there = right + len(mine & truth), guessed + len(mine), there + len(truth)
    return {
        "precision": right / guessed if guessed else 0.0,
        "recall": right / there if there else 0.0,
        "f1": _f1(right, guessed, there),
    }


def squad_normalized(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def squad_exact(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers, both normalised."""
    return float(max(squad_normalized(prediction) == squad_normalized(answer) for answer in answers))


def squad_f1(prediction: str, answers: Sequence[str]) -> float:
    """The F1 of the words in common with the best of the answers.

    Where either has no word left, 1 if both have none: the rule of version 2; version 1.1 does not need it.
    """
    return max(_word_f1(squad_normalized(prediction).split(), squad_normalized(a).split()) for a in answers)


def _word_f1(got: list[str], wanted: list[str]) -> float:
    if not got or not wanted:
        return float(got == wanted)
    return _f1(sum((Counter(got) & Counter(wanted)).values()), len(got), len(wanted))


def _f1(right: int, guessed: int, there: int) -> float:
    """2 p r / (p + r) with p = right / guessed and r = right / there; 0 where nothing is right."""
    return 2 * right / (guessed + there) if right else 0.0


def _same_length(predictions: Values, labels: Values) -> tuple[np.ndarray, np.ndarray]:
    got, wanted = _paired(predictions, labels)
    return np.asarray(got), np.asarray(wanted)


def _paired(predictions: Any, labels: Any) -> tuple[Any, Any]:
    if len(predictions) != len(labels) or len(labels) == 0:
        raise InputError(f"There are {len(predictions)} predictions and {len(labels)} labels; as many are needed.")
    return predictions, labels


def percent(metrics: dict[str, float]) -> dict[str, float]:
    """Fractions as percent; raises InputError for one that is no number."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(f"The metric {name} is {value}; the model's answers are not all finite numbers.")
    return {name: 100.0 * value for name, value in metrics.items()}
