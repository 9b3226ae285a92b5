"""``sentence-similarity``: how near the meaning of some sentences is to that of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from distilfast.errors import InputError
from distilfast.pipelines.base import Plan
from distilfast.pipelines.embedding import EmbeddingPipeline
from distilfast.pipelines.encoders import Encoder
from distilfast.tokenizer import Encoding, checked_text

_SHAPE = '{"source_sentence": …, "sentences": [...]}'


@dataclass(frozen=True)
class SentencesEncoder(Encoder):
    """The source sentence and those it is compared with, each a text of its own."""

    texts: Encoder

    def __call__(self, items: Sequence[list[str]]) -> list[list[Encoding]]:
        """As many windows as sentences."""
        encoded = iter(self.texts([text for texts in items for text in texts]))
        return [[next(encoded)[0] for _ in texts] for texts in items]

    def dropped(self, item: list[str], windows: Sequence[Encoding]) -> int:
        """Of all sentences together."""
        return sum(self.texts.dropped(text, [window]) for text, window in zip(item, windows, strict=True))


class SentenceSimilarityPipeline(EmbeddingPipeline):
    """``pipe({"source_sentence": …, "sentences": [...]})``: the cosine of the source's vector with each other's.

    An input gives a list of numbers from -1 to 1 in the order of ``sentences``, and a list of inputs a list of these.
    The vectors are those of ``embed``, by the checkpoint's own modules. ``max_length`` cuts sentences earlier than
    ``embed`` does. See ``Pipeline`` for iterators, ``batch_size``, ``errors`` and ``return_truncation``.
    """

    task: ClassVar[str] = "sentence-similarity"
    _how_to_read_all = ""

    def _plan(self, *, max_length: int | None = None) -> Plan:
        modules = self._modules
        options = self._encoding_options(truncation=True, max_length=max_length, own_limit=modules.max_length)
        vectors = self._vectors(modules, options, "mean")

        def combine(texts: list[str], windows: Sequence[Encoding], pooled: Sequence[np.ndarray]) -> list[float]:
            triples = zip(texts, windows, pooled, strict=True)
            found = np.stack([vectors.combine(text, [window], [vector]) for text, window, vector in triples])
            found = found.astype(np.float64)
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float64).tiny)
            similarities: list[float] = (found[1:] @ found[0]).tolist()
            return similarities

        return Plan(SentencesEncoder(vectors.encode), vectors.compute, combine)

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, dict)

    def _item(self, i: int, given: Any, plan: Plan) -> Any:
        if not isinstance(plan.encode, SentencesEncoder):  # the texts of `embed`
            return super()._item(i, given, plan)
        if not isinstance(given, dict) or set(given) != {"source_sentence", "sentences"}:
            raise InputError(f"Input {i} is not {_SHAPE}.")
        sentences = given["sentences"]
        if not isinstance(sentences, (list, tuple)):
            raise InputError(f"Input {i} has no list of sentences.")
        for text in (given["source_sentence"], *sentences):
            if not isinstance(text, str):
                raise InputError(f"Input {i} has a sentence of type {type(text).__name__}; strings are needed.")
            checked_text(i, text)
        return [given["source_sentence"], *sentences]
