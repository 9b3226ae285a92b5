"""``feature-extraction``: a vector for each token, or one for each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, listed
from distilfast.types import Task

_POOLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cls": lambda rows: rows[0],
    "mean": lambda rows: rows.mean(axis=0),
    "max": lambda rows: rows.max(axis=0),
}


class FeatureExtractionPipeline(Pipeline):
    """``pipe(texts, truncation=False, tokenize_kwargs=None, return_tensors=False)``.

    A text gives its last hidden state [1, L, D] as nested lists, a list of texts a list of these;
    ``return_tensors`` gives numpy arrays instead.
    """

    task: ClassVar[Task] = "feature-extraction"

    def _answer(
        self,
        inputs: str | Sequence[str],
        truncation: bool | None = None,
        tokenize_kwargs: dict[str, Any] | None = None,
        return_tensors: bool = False,
    ) -> Any:
        options = tokenize_kwargs or {}
        if truncation is not None and "truncation" in options:
            raise InputError("truncation is given twice, by itself and in tokenize_kwargs.")
        cut = options.get("truncation", False) if truncation is None else truncation
        texts = listed(inputs)
        states = [rows[None] for rows in self._hidden_states(texts, cut, options.get("max_length"))]
        answers = states if return_tensors else [state.tolist() for state in states]
        return answers[0] if isinstance(inputs, str) else answers

    def embed(
        self,
        texts: str | Sequence[str],
        pooling: str = "mean",
        normalize: bool = True,
        truncation: bool = True,
        max_length: int | None = None,
    ) -> np.ndarray:
        """One vector for each text, float32 [B, D]; longer texts are cut unless ``truncation`` is false.

        ``pooling``: the "cls" token's row, or the "mean" or "max" over all tokens of the text; ``normalize`` divides
        by the Euclidean length. Mean and normalised is what most sentence-transformers were trained for.
        """
        if pooling not in _POOLINGS:
            raise InputError(f"pooling {pooling!r} is not known; there are {', '.join(_POOLINGS)}.")
        pool = _POOLINGS[pooling]
        vectors = np.stack([pool(rows) for rows in self._hidden_states(listed(texts), truncation, max_length)])
        if normalize:
            # The floor is that of torch.nn.functional.normalize.
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def _hidden_states(self, texts: Sequence[str], truncation: bool, max_length: int | None) -> list[np.ndarray]:
        """[L, D] of each text."""
        states: list[np.ndarray] = []
        for _, batch in self._batches(self._encode(texts, truncation, max_length)):
            states += np.split(self.engine.encode(batch), batch.cu_seqlens[1:-1])
        return states
