"""Embeddings for LangChain: ``DistilfastEmbeddings(model)``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings

from distilfast.engine import Engine
from distilfast.pipelines import pipeline


class DistilfastEmbeddings(Embeddings):  # type: ignore[misc] # the library is not followed
    """The vectors of ``pipeline("feature-extraction", model).encode``, as lists of floats."""

    def __init__(
        self,
        model: str | Path | Engine,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        encode: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """``options`` are those of ``pipeline`` (``precision``, ``threads``, …), ``encode`` those of every ``encode``.

        ``query_prompt`` and ``document_prompt`` are put before queries and documents; None is the checkpoint's own.
        """
        self._encode = dict(encode or {})
        self._query_prompt, self._document_prompt = query_prompt, document_prompt
        self._pipe = pipeline("feature-extraction", model, **options)

    def embed_documents(self, texts: Iterable[str]) -> list[list[float]]:
        """A vector [D] for each text."""
        vectors: list[list[float]] = self._pipe.encode(list(texts), **self._options(self._document_prompt)).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector [D] of a query."""
        vector: list[float] = self._pipe.encode(text, **self._options(self._query_prompt)).tolist()
        return vector

    def _options(self, prompt: str | None) -> dict[str, Any]:
        return self._encode if prompt is None else self._encode | {"prompt": prompt}
