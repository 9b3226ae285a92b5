"""``feature-extraction``: a vector for each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from distilfast.arguments import flag
from distilfast.batch import PackedBatch
from distilfast.errors import InputError
from distilfast.pipelines.base import Plan
from distilfast.pipelines.embedding import EmbeddingPipeline
from distilfast.pipelines.encoders import TextEncoder, checked_padding
from distilfast.tokenizer import Encoding


class FeatureExtractionPipeline(EmbeddingPipeline):
    """``pipe(texts, truncation=None, tokenize_kwargs=None, return_tensors=False, batch_size=64, errors="raise")``.

    A text gives its last hidden state [1, L, D] as nested lists, a list of texts a list of these;
    ``return_tensors`` gives numpy arrays instead. ``embed`` gives one vector for each text.

    ``tokenize_kwargs`` takes ``truncation``, ``max_length`` and ``add_special_tokens``, as text-classification does.
    See ``Pipeline`` for iterators, ``batch_size`` and ``errors``.
    """

    task: ClassVar[str] = "feature-extraction"
    _elsewhere = EmbeddingPipeline._elsewhere | {"max_length": "tokenize_kwargs takes it"}

    def _plan(
        self,
        *,
        truncation: bool | str | None = None,
        tokenize_kwargs: dict[str, Any] | None = None,
        return_tensors: bool = False,
    ) -> Plan:
        nested = self._nested_options("tokenize_kwargs", tokenize_kwargs)
        if truncation is not None and "truncation" in nested:
            raise InputError("truncation is given twice, by itself and in tokenize_kwargs.")
        as_arrays = return_tensors is not None and flag("return_tensors", return_tensors)

        def compute(_: Sequence[Encoding], batch: PackedBatch) -> Iterator[Any]:
            states = (rows[None] for rows in self._rows(batch))
            return states if as_arrays else (state.tolist() for state in states)

        if checked_padding(nested.get("padding", False)) == "max_length":
            raise InputError('padding="max_length" would give rows of padding, and feature-extraction has none.')
        options = self._encoding_options(**({"truncation": truncation} | nested))
        return Plan(TextEncoder(self.tokenizer, options), compute)
