"""``/v1/embeddings`` and ``/v1/models``, as OpenAI's clients use them."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import Future
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from distilfast.errors import InputError
from distilfast.serving.http.bodies import OpenAIEmbeddings, OpenAIError, errors
from distilfast.serving.http.service import Service
from distilfast.serving.http.tei import EMBEDDING, checked_dimensions, shortened


def routes(service: Service) -> APIRouter:
    """Both routes, on the models of ``service``."""
    router = APIRouter(prefix="/v1", responses=errors(OpenAIError))

    @router.post("/embeddings")
    async def embeddings(body: OpenAIEmbeddings, request: Request) -> dict[str, Any]:
        """A vector for each text or list of ids."""
        name, pipe = service.model(body.model, EMBEDDING)
        width = checked_dimensions(pipe, body.dimensions)
        if body.user is not None:
            request.state.key = f"{getattr(request.state, 'key', '')}/{body.user}"
        texts = _texts(body.input)
        windows = body.options()

        def submit(text: str, options: dict[str, Any]) -> Future[Any]:
            return service.ready.submit_vector(text, model=name, truncation=False, **(windows | options))

        found = await service.answers(request, submit, texts)
        vectors = [shortened(vector, width) for vector in found]
        tokens = await asyncio.to_thread(lambda: sum(len(pipe.tokenizer.encode(text).ids) for text in texts))
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": _encoded(vector, body.encoding_format)}
                for i, vector in enumerate(vectors)
            ],
            "model": name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The names of the models that are served."""
        names = service.ready.pipelines
        return {"object": "list", "data": [_model(name, service) for name in names]}

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        known, _ = service.model(name, tuple(pipe.task for pipe in service.ready.pipelines.values()))
        return _model(known, service)

    return router


def _model(name: str, service: Service) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(service.began), "owned_by": "distilfast"}


def _texts(given: Any) -> list[str]:
    """The texts; ids are those of OpenAI's own vocabulary, which these models do not have."""
    if isinstance(given, str):
        return [given]
    if given and not all(isinstance(each, str) for each in given):
        raise InputError("input has token ids; they are of another vocabulary, so pass texts.")
    return list(given)


def _encoded(vector: np.ndarray, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()
