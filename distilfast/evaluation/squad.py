"""Question answering on SQuAD's JSON, versions 1.1 and 2.0: sliding windows, the best span, exact match and F1.

The procedure is that of run_qa.py and utils_qa.py in transformers' examples: windows of 384 tokens that overlap by
128, the 20 best starts with the 20 best ends, spans of at most 30 tokens; the question is cut at 64 tokens, as in
run_squad.py of BERT. Where the data has unanswerable questions, no answer is given where the [CLS] token's score is
above the best span's. The question-answering pipeline has the same windows and another choice of spans: all starts with
all ends of the context, by the product of their probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.evaluation import metrics
from distilfast.evaluation.result import Scores
from distilfast.evaluation.sequences import Ids, Progress, head_outputs, longest, subset
from distilfast.tokenizer import Encoding, Tokenizer

LENGTH, OVERLAP, QUESTION, BEST, ANSWER = 384, 128, 64, 20, 30
"""Tokens of a window, in common with the next, of a question; starts and ends tried; tokens of an answer."""

TOGETHER = 64
"""Questions that are encoded together: those on one context, which is then tokenised once, are neighbours."""

Span = tuple[float, int, int]
"""Score, first and last token in the window."""


@dataclass(frozen=True)
class Question:
    """A question on a paragraph; ``answers``: what counts as right, ("",) where none is to be found in it."""

    text: str
    context: str
    answers: tuple[str, ...]
    answerable: bool

    @classmethod
    def of(cls, text: str, context: str, answers: Sequence[str]) -> Question:
        """Answers of which nothing is left when normalised do not count, as in the official script."""
        right = tuple(answer for answer in answers if metrics.squad_normalized(answer)) or ("",)
        return cls(text, context, right, answerable=any(answers))


@dataclass(frozen=True)
class Window:
    """``ids`` of [CLS] question [SEP] part of the context [SEP]; ``offsets``: the characters of each token of the part.

    ``begin``: the first of these tokens in the window.
    """

    ids: Ids
    begin: int
    offsets: np.ndarray

    @classmethod
    def of(cls, encoding: Encoding) -> Window:
        """Without what the tokeniser's own keeps beside that, some ten times as much."""
        part = encoding.part(1)
        offsets = np.array(encoding.offsets[part.start : part.stop], np.int32).reshape(-1, 2)
        return cls(Ids(encoding.ids, encoding.type_ids), part.start, offsets)


@dataclass(frozen=True)
class Reading:
    """A question and its windows."""

    question: Question
    windows: tuple[Window, ...]

    def best_text(self, logits: Sequence[np.ndarray], may_be_none: bool) -> str:
        """The text of the best span of all windows, whose logits are [L, 2] each; "" for no answer."""
        best, text = -np.inf, ""
        for window, rows in zip(self.windows, logits, strict=True):
            span = best_span(rows[:, 0], rows[:, 1], range(window.begin, window.begin + len(window.offsets)))
            if span is not None and span[0] > best:
                best = span[0]
                first, last = (place - window.begin for place in span[1:])
                text = self.question.context[window.offsets[first, 0] : window.offsets[last, 1]]
        if may_be_none and min(float(rows[0].sum()) for rows in logits) > best:
            return ""
        return text


def evaluate(engine: Engine, path: Path, limit: int | None, progress: Progress) -> Scores:
    """Exact match and F1 on a file in SQuAD's format. Raises InputError."""
    everything = read(path)
    may_be_none = any(not question.answerable for question in everything)
    questions = subset(everything, limit)
    predictions, windows = answer(engine, questions, progress, may_be_none=may_be_none)
    pairs = list(zip(predictions, (question.answers for question in questions), strict=True))
    scores = {
        "exact_match": float(np.mean([metrics.squad_exact(*pair) for pair in pairs])),
        "f1": float(np.mean([metrics.squad_f1(*pair) for pair in pairs])),
    }
    counts = {"questions": len(questions), "windows": windows}
    return Scores(metrics.percent(scores), counts, predictions=tuple(predictions))


def read(path: Path) -> list[Question]:
    """The questions of a file in SQuAD's format; raises InputError for any other file, and for one without any."""
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        questions = [
            Question.of(entry["question"], paragraph["context"], [str(answer["text"]) for answer in entry["answers"]])
            for paragraph in paragraphs
            for entry in paragraph["qas"]
        ]
    except OSError as error:
        raise InputError(f"{path} is not readable text: {error}.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not JSON in SQuAD's format.") from None
    if not questions:
        raise InputError(f"{path} holds no question.")
    return questions


def answer(
    engine: Engine, questions: Sequence[Question], progress: Progress, *, may_be_none: bool = False
) -> tuple[list[str], int]:
    """The answer to each question, "" for none, and how many windows it took."""
    cut = readings(engine.tokenizer, questions, min(LENGTH, longest(engine)))
    outputs = iter(head_outputs(engine, [window.ids for each in cut for window in each.windows], progress))
    answers = [each.best_text([next(outputs) for _ in each.windows], may_be_none) for each in cut]
    return answers, sum(len(each.windows) for each in cut)


def readings(tokenizer: Tokenizer, questions: Sequence[Question], length: int) -> list[Reading]:
    """The windows of each question, of at most ``length`` tokens.

    Two neighbours have ``OVERLAP`` tokens of the context in common, at most half of what a window holds; in a model of
    few positions the question is cut to a third of them. Raises InputError.
    """
    found = []
    for begin in range(0, len(questions), TOGETHER):
        some = questions[begin : begin + TOGETHER]
        encoded = tokenizer.encode_pair_windows(
            [question.text for question in some],
            [question.context for question in some],
            max_length=length,
            max_first=min(QUESTION, length // 3),
            stride=lambda room: min(OVERLAP, room // 2),
        )
        found += [Reading(each, tuple(map(Window.of, windows))) for each, windows in zip(some, encoded, strict=True)]
    return found


def best_span(
    starts: np.ndarray, ends: np.ndarray, inside: range, best: int = BEST, longest_answer: int = ANSWER
) -> Span | None:
    """The highest start + end logit ([L] each) of a span of tokens ``inside``, None where there is none.

    Only the ``best`` starts and ends of the window are tried, and spans of at most ``longest_answer`` tokens.
    """
    first, last = (_highest(logits, inside, best) for logits in (starts, ends))
    scores = starts[first][:, None] + ends[last][None, :]
    length = last[None, :] - first[:, None]
    scores = np.where((length >= 0) & (length < longest_answer), scores, -np.inf)
    if not scores.size or np.isneginf(scores.max()):
        return None
    i, j = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores[i, j]), int(first[i]), int(last[j])


def _highest(logits: np.ndarray, inside: range, best: int) -> np.ndarray:
    """The places of the ``best`` highest of all logits, highest first, that are inside."""
    places = np.argsort(logits)[::-1][:best]
    return places[(places >= inside.start) & (places < inside.stop)]
