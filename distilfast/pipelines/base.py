"""What the pipelines share: texts to packed batches, a few dozen at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.tokenizer import Encoding, Text
from distilfast.types import Task

GROUP = 64
"""Texts in one forward: enough to amortise a pass over the weights, few enough to bound the memory of the results."""


class Pipeline:
    """Texts in, dicts out, as ``transformers.pipeline`` answers. Subclasses name their ``task``."""

    task: ClassVar[Task]
    _answer: Callable[..., Any]  # (inputs, **options of this task)

    def __init__(self, engine: Engine, defaults: dict[str, Any] | None = None) -> None:
        """``defaults``: keyword arguments of every call, unless the call gives its own."""
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self._defaults = defaults or {}

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """One text or a list of them; see the class for ``options``."""
        return self._answer(inputs, **(self._defaults | options))

    def _encode(self, texts: Sequence[Text], truncation: bool, max_length: int | None = None) -> list[Encoding]:
        """Encode texts; raises InputError for an empty one, and for one too long for the model."""
        if not texts:
            raise InputError("The list of texts is empty; at least one text is needed.")
        for i, text in enumerate(texts):
            parts = text if isinstance(text, tuple) else (text,)
            if all(isinstance(part, str) for part in parts) and not any(part.strip() for part in parts):
                raise InputError(f"Text {i} is empty.")
        positions = self.engine.config.max_positions
        if truncation:
            max_length = min(max_length or self.tokenizer.max_length or positions, positions)
        encodings = self.tokenizer.encode_batch(texts, truncation=truncation, max_length=max_length)
        for i, encoding in enumerate(encodings):
            if len(encoding.ids) > positions:
                raise InputError(
                    f"Text {i} has {len(encoding.ids)} tokens and the model {positions} positions; "
                    "pass truncation=True to cut it."
                )
        return encodings

    def _batches(self, encodings: Sequence[Encoding]) -> Iterator[tuple[Sequence[Encoding], PackedBatch]]:
        """Groups of encodings with their packed batch, in order."""
        types = self.engine.config.token_types > 0
        for begin in range(0, len(encodings), GROUP):
            group = encodings[begin : begin + GROUP]
            yield group, PackedBatch.from_encodings(group, token_types=types)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64, so that float32 logits lose no precision."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def listed(inputs: Any) -> list[Any]:
    """One text or several, as a list; raises InputError for what is neither."""
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, (dict, bytes)) or not isinstance(inputs, Iterable):
        raise InputError(f"The input is of type {type(inputs).__name__}; a text or a list of texts is needed.")
    return list(inputs)


def check_top_k(top_k: Any) -> int:
    """``top_k`` if it is a positive integer; raises InputError."""
    if not isinstance(top_k, int) or top_k < 1:
        raise InputError(f"top_k is {top_k!r}; a positive integer is needed.")
    return top_k
