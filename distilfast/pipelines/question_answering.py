"""``question-answering``: the span of a context that answers a question about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from distilfast.arguments import count, flag
from distilfast.batch import PackedBatch
from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, Plan, several
from distilfast.pipelines.encoders import Encoder
from distilfast.pipelines.spans import Spans, best_spans
from distilfast.tokenizer import Encoding, Tokenizer, checked_text
from distilfast.types import Task

_LENGTH, _OVERLAP = 384, 128
"""Tokens of a window, and in common with the next, at most and by default."""

_SHAPE = '{"question": …, "context": …}'


@dataclass(frozen=True)
class QuestionEncoder(Encoder):
    """Windows over each context, with its question before every one; ``stride`` None for the default."""

    tokenizer: Tokenizer
    max_length: int
    max_question: int
    stride: int | None

    def __call__(self, items: Sequence[tuple[str, str]]) -> list[list[Encoding]]:
        """As many windows as the context needs."""
        return self.tokenizer.encode_pair_windows(
            [question for question, _ in items],
            [context for _, context in items],
            max_length=self.max_length,
            max_first=self.max_question,
            stride=self.overlap,
        )

    def dropped(self, item: tuple[str, str], windows: Sequence[Encoding]) -> int:
        """Tokens of the question; no context is cut."""
        kept = len(windows[0].part(0))
        if kept < self.max_question:
            return 0
        return len(self.tokenizer.encode(item[0], add_special_tokens=False).ids) - kept

    def overlap(self, room: int) -> int:
        """What two neighbours have in common of a context of which a window holds ``room``; raises InputError."""
        if room < 1:
            raise InputError(
                f"max_seq_len is {self.max_length}, which leaves no room for the context; a lower max_question_len "
                "cuts the question."
            )
        if self.stride is None:
            return min(_OVERLAP, self.max_length // 2, room // 2)
        if self.stride >= room:
            raise InputError(
                f"doc_stride is {self.stride}; a window has room for {room} tokens of the context, which must be more."
            )
        return self.stride


@dataclass(frozen=True)
class _Answers:
    """How the spans of a context's windows become answers; the fields are the options of the pipeline."""

    top_k: int
    align_to_words: bool
    handle_impossible_answer: bool
    sum_scores: bool

    @property
    def spans(self) -> int:
        """How many of a window are considered: several may fall into the same words."""
        return 2 * self.top_k + 10 if self.align_to_words else self.top_k

    def __call__(self, item: tuple[str, str], windows: Sequence[Encoding], found: Sequence[Spans]) -> Any:
        """One answer, or a list of several."""
        answers = self._texts(item[1], windows, found)
        if self.handle_impossible_answer:
            answers.append(_answer(min(spans.null for spans in found), 0, 0, ""))
        elif any(spans.all_of_them for spans in found):
            answers.append(_answer(0.0, 0, 0, ""))
        best = sorted(answers, key=lambda answer: -answer["score"])[: self.top_k]
        return best[0] if len(best) == 1 else best

    def _texts(self, context: str, windows: Sequence[Encoding], found: Sequence[Spans]) -> list[dict[str, Any]]:
        """An answer for each text, capitals or not; the ``top_k`` best, or where scores are added up all."""
        answers: dict[str, dict[str, Any]] = {}
        for score, window, first, last in self._ordered(found):
            start, end = windows[window].characters(first, last, whole_words=self.align_to_words)
            answer = _answer(score, start, end, context[start:end])
            known = answers.setdefault(answer["answer"].lower(), answer)
            if self.sum_scores and known is not answer:
                known["score"] += score
            elif len(answers) == self.top_k and not self.sum_scores:
                break
        return list(answers.values())

    def _ordered(self, found: Sequence[Spans]) -> list[tuple[float, int, int, int]]:
        """Score, window, first and last token of every span: in order of windows, or best first.

        Best first, a text's first span is its best, and no more are read than are answered.
        """
        spans = [
            (score, window, first, last)
            for window, each in enumerate(found)
            for score, first, last in zip(each.scores.tolist(), each.firsts.tolist(), each.lasts.tolist(), strict=True)
        ]
        return spans if self.sum_scores else sorted(spans, key=lambda span: -span[0])


class QuestionAnsweringPipeline(Pipeline):
    """``pipe(question=…, context=…)``, or ``pipe({"question": …, "context": …})``, a list or an iterator of these.

    An input gives ``{"score", "start", "end", "answer"}``, where ``answer`` is ``context[start:end]``, and where there
    are several answers a list of these, best first. A list of inputs, or of questions with one context or as many,
    gives a list; a list of one gives its answer alone, as the reference does. A context too long for the model is read
    in windows, each with the question before it. The score of a span is the probability of its start times that of its
    end, each a softmax over the window's part of the context and [CLS].

    * ``top_k`` (1): the most answers.
    * ``max_answer_len`` (15): the most tokens of an answer, before ``align_to_words`` (True) widens it to whole words.
    * ``max_seq_len``: tokens of a window, by default 384 or fewer where the tokeniser or the model takes fewer.
    * ``doc_stride``: tokens of the context that two neighbouring windows have in common; by default 128, at most half
      of ``max_seq_len`` and half of a window's room for the context.
    * ``max_question_len`` (64): a longer question is cut to so many tokens.
    * ``handle_impossible_answer`` (False): "" is an answer too; its score is that of [CLS], the lowest of all windows.
    * ``sum_scores`` (False): whether the scores of spans with the same text are added up; see below.

    Of each window the best 2 · ``top_k`` + 10 spans are considered, or ``top_k`` without ``align_to_words``; of equal
    ones the first. Where a window has fewer, and the answers are fewer than ``top_k``, they end with "" of score 0,
    unless "" is an answer already. So a context without a token has the answer "", and there is always one.

    transformers 4.57 answers the same but for this:

    * There ``max_question_len`` has no effect with a fast tokeniser, and a ``doc_stride`` without room is a crash.
    * Spans with the same text, capitals or not, are one answer. Here it has the score and the place of the best of
      them, so that no score is above 1; there, and here with ``sum_scores``, the sum of their scores and the place of
      the first. With ``sum_scores`` numpy chooses among equal spans as it does there, which depends on the processor.
    * There answers of score 0 may be longer than ``max_answer_len``.

    See ``Pipeline`` for ``batch_size``, ``errors`` and ``return_truncation``, which counts tokens of the question.
    """

    task: ClassVar[str] = "question-answering"
    engine_task: ClassVar[Task] = "question-answering"
    _elsewhere = Pipeline._elsewhere | {
        "topk": "top_k says how many answers are given",
        "padding": "nothing is padded",
    }
    _how_to_read_all = "a higher max_question_len keeps more of the question, and "

    def __call__(self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any) -> Any:
        """Dicts, or ``question`` and ``context``; see the class. Raises InputError."""
        if question is not None or context is not None:
            if inputs is not None:
                raise InputError(f"There are inputs beside question and context; pass these two, or {_SHAPE}.")
            inputs = _paired(question, context)
        answers = super().__call__(inputs, **options)
        return answers[0] if isinstance(inputs, (list, tuple)) and len(inputs) == 1 else answers

    def _plan(
        self,
        *,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        max_question_len: int = 64,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
        sum_scores: bool = False,
    ) -> Plan:
        answers = _Answers(
            count("top_k", top_k),
            flag("align_to_words", align_to_words),
            flag("handle_impossible_answer", handle_impossible_answer),
            flag("sum_scores", sum_scores),
        )
        longest = count("max_answer_len", max_answer_len)
        cls = self.tokenizer.cls_id

        def compute(windows: Sequence[Encoding], batch: PackedBatch) -> Iterable[Spans]:
            logits = np.split(self.engine.logits(batch), batch.cu_seqlens[1:-1])
            masks = np.split(batch.input_ids == cls, batch.cu_seqlens[1:-1])
            for window, rows, mask in zip(windows, logits, masks, strict=True):
                context = window.part(1)
                mask[context.start : context.stop] = True
                yield best_spans(rows, mask, context, answers.spans, longest, numpy_ties=answers.sum_scores)

        return Plan(self._encoder(max_seq_len, max_question_len, doc_stride), compute, answers)

    def _encoder(self, max_seq_len: Any, max_question_len: Any, doc_stride: Any) -> QuestionEncoder:
        positions = self.engine.config.max_positions
        length = min(self.tokenizer.max_length or _LENGTH, _LENGTH, positions)
        if max_seq_len is not None:
            length = count("max_seq_len", max_seq_len)
        if length > positions:
            raise InputError(f"max_seq_len is {length}; the model has {positions} positions.")
        added = self.tokenizer.num_special_tokens(pair=True)
        if length <= added:
            raise InputError(f"max_seq_len is {length}; the special tokens alone need {added}.")
        stride = None if doc_stride is None else count("doc_stride", doc_stride, least=0)
        encoder = QuestionEncoder(self.tokenizer, length, count("max_question_len", max_question_len), stride)
        encoder.overlap(length - added)  # the most room that there can be
        return encoder

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, dict)

    def _listed(self, inputs: Any) -> Iterable[Any]:
        found = None if isinstance(inputs, (str, bytes)) else several(inputs)
        if found is None:
            raise InputError(f"The input is of type {type(inputs).__name__}; {_SHAPE} or a list of these is needed.")
        return found

    def _item(self, i: int, given: Any, plan: Plan) -> tuple[str, str]:
        if not isinstance(given, dict) or set(given) != {"question", "context"}:
            raise InputError(f"Input {i} is not {_SHAPE}.")
        for name in ("question", "context"):
            if not isinstance(given[name], str):
                raise InputError(f"Input {i} has a {name} of type {type(given[name]).__name__}; a string is needed.")
            if not given[name]:
                raise InputError(f"Input {i} has an empty {name}.")
        checked_text(i, (given["question"], given["context"]))
        return given["question"], given["context"]


def _paired(question: Any, context: Any) -> dict[str, str] | list[dict[str, str]]:
    """``question`` and ``context``, or lists of them, as dicts."""
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    if not isinstance(question, (list, tuple)) or not isinstance(context, (str, list, tuple)):
        raise InputError(
            f"question is of type {type(question).__name__} and context of type {type(context).__name__}; two strings "
            "are needed, or a list of questions with one context or as many."
        )
    contexts = [context] * len(question) if isinstance(context, str) else context
    if len(contexts) != len(question):
        raise InputError(f"There are {len(question)} questions and {len(contexts)} contexts; as many are needed.")
    return [{"question": a, "context": b} for a, b in zip(question, contexts, strict=True)]


def _answer(score: float, start: int, end: int, text: str) -> dict[str, Any]:
    return {"score": score, "start": start, "end": end, "answer": text}
