"""One metric for each task, over labelled texts; none needs training.

| task | metric | labels of a text |
|---|---|---|
| text-classification | accuracy; rank correlation where the model has one output | a label's name or number; a number |
| feature-extraction | accuracy of the nearest other text (mean-pooled, cosine) | one, any |
| token-classification | accuracy of the labels of its words, read at each word's first token | one for each word |
| fill-mask | accuracy of the likeliest token | one token for each mask |

Labels of words and masks have spaces between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.parity.heads import pooled, rank_correlation
from distilfast.tokenizer import Encoding, Text


class Metric:
    """Accuracy; ``gold`` [n] holds the right answer to each of n questions."""

    name = "accuracy"

    def __init__(self, gold: Sequence[object]) -> None:
        """Subclasses read the answers of a batch."""
        self.gold = np.array(gold)

    def read(self, texts: range, batch: PackedBatch, hidden: np.ndarray, output: np.ndarray | None) -> np.ndarray:
        """What a batch of ``texts`` says, from the last hidden state [T, D] and the head's answer [R, N]."""
        raise NotImplementedError

    def finish(self, said: np.ndarray) -> np.ndarray:
        """What was said about all texts → the answers [n]."""
        return said

    def right(self, answers: np.ndarray) -> np.ndarray:
        """Bool [n]; empty where answers are not right or wrong."""
        return np.asarray(answers == self.gold)

    def points(self, answers: np.ndarray) -> float:
        """Of 100."""
        return 100.0 * float(self.right(answers).mean())


class BestLabel(Metric):
    """The best label of each text; gold: their numbers."""

    def read(self, texts: range, batch: PackedBatch, hidden: np.ndarray, output: np.ndarray | None) -> np.ndarray:
        """[B], numbers of labels."""
        assert output is not None
        return output.argmax(axis=1)


class Order(Metric):
    """A number for each text, judged by the order of the texts."""

    name = "rank correlation"

    def read(self, texts: range, batch: PackedBatch, hidden: np.ndarray, output: np.ndarray | None) -> np.ndarray:
        """[B]."""
        assert output is not None
        return output[:, 0].astype(np.float64)

    def right(self, answers: np.ndarray) -> np.ndarray:
        """Nothing is right or wrong here."""
        return np.zeros(0, bool)

    def points(self, answers: np.ndarray) -> float:
        """100 for the same order."""
        return 100.0 * rank_correlation(answers, self.gold)


class Nearest(Metric):
    """The label of the nearest other text; gold: the labels."""

    name = "nearest-neighbour accuracy"

    def read(self, texts: range, batch: PackedBatch, hidden: np.ndarray, output: np.ndarray | None) -> np.ndarray:
        """[B, D], the texts' vectors."""
        return pooled(hidden, batch)

    def finish(self, said: np.ndarray) -> np.ndarray:
        """Labels."""
        similarities = said @ said.T
        np.fill_diagonal(similarities, -np.inf)
        return self.gold[similarities.argmax(axis=1)]


class AtTokens(Metric):
    """The best class at some tokens of each text; gold: its number, text after text."""

    def __init__(self, gold: Sequence[object], tokens: Sequence[np.ndarray]) -> None:
        """``tokens``: of each text, which of its tokens are asked."""
        super().__init__(gold)
        self._tokens = tokens

    def read(self, texts: range, batch: PackedBatch, hidden: np.ndarray, output: np.ndarray | None) -> np.ndarray:
        """Numbers of classes."""
        assert output is not None
        starts = zip(texts, batch.cu_seqlens, strict=False)
        rows = np.concatenate([self._tokens[text] + start for text, start in starts])
        return output[rows].argmax(axis=1)


def metric_for(engine: Engine, texts: Sequence[Text], encodings: Sequence[Encoding], labels: Sequence[str]) -> Metric:
    """The metric of the engine's task; raises InputError for a task without one and for labels that do not fit."""
    if engine.task == "feature-extraction":
        if len(labels) < 2:
            raise InputError("feature-extraction is judged by the nearest other text; at least two are needed.")
        return Nearest(labels)
    if engine.task == "text-classification":
        if engine.config.num_labels == 1:
            return Order([_number(i, label) for i, label in enumerate(labels)])
        return BestLabel([_label(engine, i, label) for i, label in enumerate(labels)])
    if engine.task == "token-classification":
        return _at_words(engine, texts, encodings, labels)
    if engine.task == "fill-mask":
        return _at_masks(engine, encodings, labels)
    raise InputError(f"There is no metric for {engine.task}.")


def _at_words(engine: Engine, texts: Sequence[Text], encodings: Sequence[Encoding], labels: Sequence[str]) -> AtTokens:
    gold: list[int] = []
    tokens = []
    for i, (text, encoding, words) in enumerate(zip(texts, encodings, labels, strict=True)):
        if isinstance(text, tuple):
            raise InputError(f"Text {i} is a pair, whose words have no labels.")
        starts = _word_starts(text)
        if len(starts) != len(words.split()):
            raise InputError(f"Text {i} has {len(starts)} words and {len(words.split())} labels.")
        first = {start: place for place, (start, end) in reversed(list(enumerate(encoding.offsets))) if end > start}
        read = [(first[start], label) for start, label in zip(starts, words.split(), strict=True) if start in first]
        tokens.append(np.array([place for place, _ in read], np.intp))
        gold += [_label(engine, i, label) for _, label in read]
    return AtTokens(gold, tokens)


def _word_starts(text: str) -> list[int]:
    starts, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        starts.append(at)
        at += len(word)
    return starts


def _at_masks(engine: Engine, encodings: Sequence[Encoding], labels: Sequence[str]) -> AtTokens:
    gold: list[int] = []
    tokens = []
    for i, (encoding, words) in enumerate(zip(encodings, labels, strict=True)):
        masks = np.flatnonzero(np.array(encoding.ids) == engine.tokenizer.mask_id)
        if len(masks) != len(words.split()) or not len(masks):
            raise InputError(f"Text {i} has {len(masks)} masks and {len(words.split())} labels.")
        tokens.append(masks)
        for word in words.split():
            token = engine.tokenizer.token_to_id(word)
            if token is None:
                raise InputError(f"Label {word!r} of text {i} is not in the vocabulary.")
            gold.append(token)
    return AtTokens(gold, tokens)


def _label(engine: Engine, i: int, label: str) -> int:
    """A label's number, from its name or its number."""
    names = engine.config.id2label
    for number, name in names.items():
        if label == name:
            return number
    if label.isdigit() and int(label) in names:
        return int(label)
    raise InputError(f"Label {label!r} of text {i} is none of the model's {len(names)} labels.")


def _number(i: int, label: str) -> float:
    try:
        return float(label)
    except ValueError:
        raise InputError(f"Label {label!r} of text {i} is no number.") from None
