"""``feature-extraction``: a vector for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from distilfast.arguments import flag
from distilfast.batch import PackedBatch
from distilfast.errors import InputError
from distilfast.pipelines.base import Plan
from distilfast.pipelines.embedding import EmbeddingPipeline
from distilfast.pipelines.encoders import TextEncoder, checked_padding
from distilfast.pipelines.windows import most_context
from distilfast.tokenizer import Encoding


class FeatureExtractionPipeline(EmbeddingPipeline):
    """``pipe(texts, truncation=None, tokenize_kwargs=None, return_tensors=False, batch_size=64, errors="raise")``.

    A text gives its last hidden state [1, L, D] as nested lists, a list of texts a list of these;
    ``return_tensors`` gives numpy arrays instead. ``embed`` gives one vector for each text.

    ``tokenize_kwargs`` takes ``truncation``, ``max_length`` and ``add_special_tokens``, as text-classification does.
    ``window`` or ``stride`` read the whole of a long text instead, in windows of ``window`` tokens (by default what the
    model takes), two neighbours having ``stride`` tokens in common (0): still a row for each token of the text, from
    the window in which it has the most context, farthest from the nearer end; [CLS] of the first, [SEP] of the last.
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
        window: int | None = None,
        stride: int | None = None,
    ) -> Plan:
        nested = self._nested_options("tokenize_kwargs", tokenize_kwargs)
        if truncation is not None and "truncation" in nested:
            raise InputError("truncation is given twice, by itself and in tokenize_kwargs.")
        as_arrays = return_tensors is not None and flag("return_tensors", return_tensors)

        def compute(_: Sequence[Encoding], batch: PackedBatch) -> list[np.ndarray]:
            return self._rows(batch)

        def combine(_: str, windows: Sequence[Encoding], rows: Sequence[np.ndarray]) -> Any:
            state = rows[0] if len(windows) == 1 else _stitched(windows, rows, stride or 0)
            return state[None] if as_arrays else [state.tolist()]

        if checked_padding(nested.get("padding", False)) == "max_length":
            raise InputError('padding="max_length" would give rows of padding, and feature-extraction has none.')
        options = self._encoding_options(**({"truncation": truncation} | nested), window=window, stride=stride)
        return Plan(TextEncoder(self.tokenizer, options), compute, combine)


def _stitched(windows: Sequence[Encoding], rows: Sequence[np.ndarray], stride: int) -> np.ndarray:
    """The rows of a whole text [L, D] from those of its windows."""
    return np.stack([rows[place.window][place.token] for place in most_context(windows, stride)])
