"""Embedders for Haystack 2: of a query's text, and of documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from haystack import Document, component

from distilfast.engine import Engine
from distilfast.pipelines import pipeline


class _Embedder:
    def __init__(self, model: str | Path | Engine, *, encode: dict[str, Any] | None = None, **options: Any) -> None:
        """``options``: of ``pipeline`` (``precision``, ``threads``, …); ``encode``: of every ``encode``."""
        self._encode = dict(encode or {})
        self._pipe = pipeline("feature-extraction", model, **options)

    def _vectors(self, texts: Any) -> Any:
        return self._pipe.encode(texts, **self._encode).tolist()


@component
class DistilfastTextEmbedder(_Embedder):
    """``run(text)`` gives ``{"embedding": [D floats]}``."""

    @component.output_types(embedding=list[float])  # type: ignore[untyped-decorator]
    def run(self, text: str) -> dict[str, Any]:
        """Raises InputError for what is not a string."""
        return {"embedding": self._vectors(text)}


@component
class DistilfastDocumentEmbedder(_Embedder):
    """``run(documents)`` gives ``{"documents": …}``, copies with their ``embedding``."""

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """The embedding is that of a document's ``content``, an empty text where it has none."""
        vectors = self._vectors([document.content or "" for document in documents])
        pairs = zip(documents, vectors, strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}
