"""``multiple-choice``: which of several continuations or answers fits a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from distilfast.arguments import count
from distilfast.batch import PackedBatch
from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, Plan, softmax
from distilfast.pipelines.encoders import Encoder, TextEncoder
from distilfast.tokenizer import Encoding, checked_text
from distilfast.types import Task

_SHAPE = '{"prompt": …, "choices": [...]}'


@dataclass(frozen=True)
class ChoicesEncoder(Encoder):
    """Every choice as a pair with its prompt."""

    pairs: TextEncoder

    def __call__(self, items: Sequence[tuple[str, list[str]]]) -> list[list[Encoding]]:
        """As many windows as choices."""
        encoded = iter(self.pairs([(prompt, choice) for prompt, choices in items for choice in choices]))
        return [[next(encoded)[0] for _ in choices] for _, choices in items]

    def dropped(self, item: tuple[str, list[str]], windows: Sequence[Encoding]) -> int:
        """The most tokens that any of the pairs lost."""
        prompt, choices = item
        pairs = zip(choices, windows, strict=True)
        return max(self.pairs.dropped((prompt, choice), [window]) for choice, window in pairs)


class MultipleChoicePipeline(Pipeline):
    """``pipe({"prompt": …, "choices": [...]}, top_k=None, truncation=None, max_length=None)``.

    An input gives a list of ``{"choice": index, "text", "score"}``, best first, with ``top_k`` that many of them; the
    scores of all choices add up to 1. A list of inputs gives a list of these. Each choice is read as the second text of
    a pair with the prompt, as SWAG is. ``truncation``, ``max_length``: as for text-classification. See ``Pipeline`` for
    iterators, ``batch_size``, ``errors`` and ``return_truncation``.
    """

    task: ClassVar[str] = "multiple-choice"
    engine_task: ClassVar[Task] = "multiple-choice"
    _how_to_read_all = ""

    def _plan(
        self, *, top_k: int | None = None, truncation: bool | str | None = None, max_length: int | None = None
    ) -> Plan:
        most = None if top_k is None else count("top_k", top_k, least=0)
        options = self._encoding_options(truncation=truncation, max_length=max_length)

        def compute(_: Sequence[Encoding], batch: PackedBatch) -> Iterable[float]:
            return self.engine.logits(batch)[:, 0]

        def combine(item: tuple[str, list[str]], _: Sequence[Encoding], logits: Sequence[float]) -> list[Any]:
            scores = softmax(np.array(logits))
            order = np.argsort(-scores, kind="stable")[:most]
            return [{"choice": int(i), "text": item[1][int(i)], "score": float(scores[i])} for i in order]

        return Plan(ChoicesEncoder(TextEncoder(self.tokenizer, options)), compute, combine)

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, dict)

    def _item(self, i: int, given: Any, plan: Plan) -> tuple[str, list[str]]:
        if not isinstance(given, dict) or set(given) != {"prompt", "choices"}:
            raise InputError(f"Input {i} is not {_SHAPE}.")
        prompt, choices = given["prompt"], given["choices"]
        if not isinstance(choices, (list, tuple)) or not choices:
            raise InputError(f"Input {i} has no choices; a list of strings is needed.")
        return prompt, [checked_text(i, (prompt, choice))[1] for choice in choices]
