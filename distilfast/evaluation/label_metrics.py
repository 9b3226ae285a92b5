"""One metric for each task, over labelled texts; none needs training.

| task | metric | labels of a text |
|---|---|---|
| text-classification | accuracy; rank correlation where the model has one output | a label's name or number; a number |
| feature-extraction | accuracy of the nearest other text (cosine of the vectors of `embed`) | one, any |
| token-classification | accuracy of the labels of its words, read at each word's first token | one for each word |
| fill-mask | accuracy of the likeliest token | one token for each mask |
| question-answering | F1 and exact match, as ``evaluation/squad.py`` | the answer to (question, context), or several |
| multiple-choice | accuracy of the best choice | 1 for the right pair (question, choice), 0 for the others |

Labels of words and masks have spaces between them. The pairs of one multiple-choice question follow each other and
have the same first text. An answer that is empty means that the context holds none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.evaluation import metrics, squad
from distilfast.evaluation.labels import Label
from distilfast.evaluation.sequences import Ids, longest
from distilfast.parity.answers import rank_correlation
from distilfast.pipelines.sentence_modules import SentenceModules, read_modules
from distilfast.tokenizer import Encoding, Text


class Metric:
    """Accuracy; ``gold`` [n] holds the right answer to each of n questions.

    ``sequences``: what is run, where it is not the texts as they are; ``exact_match``: whether the share of right
    answers is reported beside the points; ``reads_hidden``: whether it is computed from the last hidden
    state instead of the logits.
    """

    name = "accuracy"
    exact_match = False
    reads_hidden = False
    sequences: Sequence[Ids] | None = None

    def __init__(self, gold: Sequence[object]) -> None:
        """Subclasses read the answers of a batch."""
        self.gold = np.array(gold)

    def read(self, texts: range, batch: PackedBatch, values: np.ndarray) -> np.ndarray:
        """What a batch of ``texts`` gives: from the logits [R, N], or with ``reads_hidden`` the hidden state [T, D]."""
        raise NotImplementedError

    def finish(self, collected: np.ndarray) -> np.ndarray:
        """What was read of all texts → the answers [n]."""
        return collected

    def right(self, answers: np.ndarray) -> np.ndarray:
        """Bool [n]; empty where answers are not right or wrong."""
        return np.asarray(answers == self.gold)

    def points(self, answers: np.ndarray) -> float:
        """Of 100."""
        return 100.0 * float(self.right(answers).mean())


class BestLabel(Metric):
    """The best label of each text; gold: their numbers."""

    def read(self, texts: range, batch: PackedBatch, values: np.ndarray) -> np.ndarray:
        """[B], numbers of labels."""
        return values.argmax(axis=1)


class Order(Metric):
    """A number for each text, judged by the order of the texts."""

    name = "rank correlation"

    def read(self, texts: range, batch: PackedBatch, values: np.ndarray) -> np.ndarray:
        """[B]."""
        return values[:, 0].astype(np.float64)

    def right(self, answers: np.ndarray) -> np.ndarray:
        """Nothing is right or wrong here."""
        return np.zeros(0, bool)

    def points(self, answers: np.ndarray) -> float:
        """100 for the same order."""
        return 100.0 * rank_correlation(answers, self.gold)


class Nearest(Metric):
    """The label of the nearest other text; gold: the labels."""

    name = "nearest-neighbour accuracy"
    reads_hidden = True

    def __init__(self, gold: Sequence[object], modules: SentenceModules) -> None:
        """``modules``: what makes vectors of token rows."""
        super().__init__(gold)
        self._modules = modules

    def read(self, texts: range, batch: PackedBatch, values: np.ndarray) -> np.ndarray:
        """[B, D], the texts' vectors."""
        return self._modules.directions(values, batch)

    def finish(self, collected: np.ndarray) -> np.ndarray:
        """Labels."""
        similarities = collected @ collected.T
        np.fill_diagonal(similarities, -np.inf)
        return self.gold[similarities.argmax(axis=1)]


class AtTokens(Metric):
    """The best class at some tokens of each text; gold: its number, text after text."""

    def __init__(self, gold: Sequence[object], tokens: Sequence[np.ndarray]) -> None:
        """``tokens``: the tokens to read of each text."""
        super().__init__(gold)
        self._tokens = tokens

    def read(self, texts: range, batch: PackedBatch, values: np.ndarray) -> np.ndarray:
        """Numbers of classes."""
        starts = zip(texts, batch.cu_seqlens, strict=False)
        rows = np.concatenate([self._tokens[text] + start for text, start in starts])
        return values[rows].argmax(axis=1)


class BestSpan(Metric):
    """The best span of each question's windows."""

    name = "F1"
    exact_match = True

    def __init__(self, readings: Sequence[squad.Reading]) -> None:
        """Windows are run, since a context may be longer than the model."""
        super().__init__([each.question.text for each in readings])
        self._readings = readings
        self.sequences = [window.ids for each in readings for window in each.windows]
        self._lengths = [len(each.ids) for each in self.sequences]

    def read(self, texts: range, batch: PackedBatch, values: np.ndarray) -> np.ndarray:
        """[T, 2], the logits of start and end."""
        return values

    def finish(self, collected: np.ndarray) -> np.ndarray:
        """Texts."""
        logits = iter(np.split(collected, np.cumsum(self._lengths)[:-1]))
        may_be_none = any(not each.question.answerable for each in self._readings)
        found = [each.best_text([next(logits) for _ in each.windows], may_be_none) for each in self._readings]
        return np.array(found, dtype=object)

    def right(self, answers: np.ndarray) -> np.ndarray:
        """Exact matches, normalised as SQuAD does."""
        return np.array(self._scores(metrics.squad_exact, answers)) == 1.0

    def points(self, answers: np.ndarray) -> float:
        """The mean F1 of words."""
        return 100.0 * float(np.mean(self._scores(metrics.squad_f1, answers)))

    def _scores(self, score: Callable[[str, Sequence[str]], float], answers: np.ndarray) -> list[float]:
        pairs = zip(answers, self._readings, strict=True)
        return [score(answer, each.question.answers) for answer, each in pairs]


class BestChoice(Metric):
    """The choice with the highest score of each question; gold: the number of the right one."""

    def __init__(self, gold: Sequence[object], firsts: Sequence[int]) -> None:
        """``firsts``: of each question, which text is its first choice."""
        super().__init__(gold)
        self._firsts = firsts

    def read(self, texts: range, batch: PackedBatch, values: np.ndarray) -> np.ndarray:
        """[B], scores."""
        return values[:, 0]

    def finish(self, collected: np.ndarray) -> np.ndarray:
        """Numbers of choices."""
        return np.array([scores.argmax() for scores in np.split(collected, self._firsts[1:])])


def metric_for(engine: Engine, texts: Sequence[Text], encodings: Sequence[Encoding], labels: Sequence[Label]) -> Metric:
    """The metric of the engine's task; raises InputError for labels that do not fit."""
    if engine.task == "question-answering":
        return _best_span(engine, texts, labels)
    words = [label for label in labels if isinstance(label, str)]
    if len(words) != len(labels):
        raise InputError(f"The labels are answers to questions, and the task is {engine.task}.")
    return _metric_for_words(engine, texts, encodings, words)


def _metric_for_words(
    engine: Engine, texts: Sequence[Text], encodings: Sequence[Encoding], labels: Sequence[str]
) -> Metric:
    if engine.task == "feature-extraction":
        if len(labels) < 2:
            raise InputError("feature-extraction is judged by the nearest other text; at least two are needed.")
        return Nearest(labels, read_modules(engine.directory, engine.config.hidden_size))
    if engine.task == "text-classification":
        if engine.config.num_labels == 1:
            return Order([_number(i, label) for i, label in enumerate(labels)])
        return BestLabel([_label(engine, i, label) for i, label in enumerate(labels)])
    if engine.task == "token-classification":
        return _at_words(engine, texts, encodings, labels)
    if engine.task == "fill-mask":
        return _at_masks(engine, encodings, labels)
    return _best_choice(texts, labels)


def _best_span(engine: Engine, texts: Sequence[Text], labels: Sequence[Label]) -> BestSpan:
    questions = []
    for i, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(text, tuple):
            raise InputError(f"Text {i} is one text; question-answering needs a question and its context.")
        questions.append(squad.Question.of(*text, [label] if isinstance(label, str) else label))
    return BestSpan(squad.readings(engine.tokenizer, questions, min(squad.LENGTH, longest(engine))))


def _best_choice(texts: Sequence[Text], labels: Sequence[str]) -> BestChoice:
    questions: dict[int, list[str]] = {}  # the first choice's number -> the labels of its choices
    first = 0
    for i, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(text, tuple):
            raise InputError(f"Text {i} is one text; multiple-choice needs a question and a choice.")
        first = first if i and text[0] == texts[first][0] else i
        questions.setdefault(first, []).append(label)
    for first, marks in questions.items():
        if sorted(marks) != ["0"] * (len(marks) - 1) + ["1"]:
            raise InputError(f"The choices of text {first} are labelled {' '.join(marks)}; one 1 and else 0 is needed.")
    return BestChoice([marks.index("1") for marks in questions.values()], list(questions))


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
