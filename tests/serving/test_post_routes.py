"""The shorter way to the routes gives the answers that FastAPI gives, byte for byte."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from conftest import Client
from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from distilfast.serving.http.post_routes import PostRoutes
from distilfast.serving.http.service import ClientGone

PLAIN = "application/json; charset=utf-8"
THROUGH_FASTAPI = "application/vnd.anything+json"
"""FastAPI takes it for JSON too."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": ["a b c", "d"]}),
        ("/embed", {"inputs": "é" * 3, "dimensions": 3}),
        ("/embed", {"inputs": ["a", "b " * 100], "errors": "return"}),
        ("/embed_all", {"inputs": "a b"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}}),
        ("/predict", {"inputs": [["a", "b"], ["c"]], "model": "intent"}),
        ("/predict", {"inputs": "a", "model": "intent", "parameters": {"top_k": 2}}),
        ("/predict", {"inputs": "a", "model": "absent"}),
        ("/predict", {"inputs": "a", "model": "intent", "parameters": {"top_k": float("nan")}}),
        ("/predict", {"inputs": 3}),
        ("/rerank", {"query": "a", "texts": ["b", "c"], "model": "reranker"}),
        ("/tokenize", {"inputs": "a b"}),
        ("/decode", {"ids": [5, 6]}),
        ("/fill-mask", {"inputs": "a [MASK]"}),
        ("/ner", {"inputs": ["a b"]}),
        ("/zero-shot", {"inputs": "a", "parameters": {"candidate_labels": ["b", "c"]}}),
        ("/question-answering", {"inputs": {"question": "a", "context": "b c"}}),
        ("/v1/embeddings", {"input": "a", "model": "embedder", "encoding_format": "base64"}),
        ("/v1/embeddings", {"input": [3], "model": "embedder"}),
    ],
)
def test_answers_are_those_of_fastapi(client: Client, path: str, body: dict[str, Any]) -> None:
    sent = json.dumps(body).encode()
    short, long = (client.raw("POST", path, sent, {"content-type": kind}) for kind in (PLAIN, THROUGH_FASTAPI))
    for _, headers, _ in (short, long):
        for its_own in ("x-request-id", "date"):
            del headers[its_own]
    assert short == long


async def _asked(routes: PostRoutes, received: list[Message], content_type: str = PLAIN) -> list[Message]:
    sent: list[Message] = []
    messages = iter(received)

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": "/double", "headers": []}
    scope["headers"] = [(b"content-type", content_type.encode())]
    await routes(scope, receive, send)
    return sent


def _doubling() -> tuple[PostRoutes, list[bytes]]:
    """A route that doubles a number, and the bodies that came to what is behind it."""
    app, behind = FastAPI(), list[bytes]()

    @app.post("/double")
    async def double(body: int) -> int:
        return 2 * body

    async def fallback(scope: Scope, receive: Receive, send: Send) -> None:
        behind.append(await Request(scope, receive).body())

    return PostRoutes(fallback, app.routes), behind


def test_only_what_is_not_plain_goes_on_to_fastapi() -> None:
    routes, behind = _doubling()
    parts: list[Message] = [
        {"type": "http.request", "body": b"2", "more_body": True},
        {"type": "http.request", "body": b"1"},
    ]
    start, body = asyncio.run(_asked(routes, parts))
    assert (start["status"], body["body"], behind) == (200, b"42", [])
    for wrong in (b'"a"', b"{", b"", b"\xff"):
        assert asyncio.run(_asked(routes, [{"type": "http.request", "body": wrong}])) == []
    assert behind == [b'"a"', b"{", b"", b"\xff"]
    assert asyncio.run(_asked(routes, parts, "text/plain")) == []
    assert behind[-1] == b"21"


def test_a_client_that_goes_while_it_sends() -> None:
    routes, _ = _doubling()
    with pytest.raises(ClientGone):
        asyncio.run(_asked(routes, [{"type": "http.disconnect"}]))
