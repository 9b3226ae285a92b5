"""Requests that cannot be answered: the right status and one sentence, and the server goes on."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
from conftest import Client

JSON = {"content-type": "application/json"}


def refused(client: Client, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
    status, given, answer = client.raw("POST", path, body, JSON if headers is None else headers)
    assert given["content-type"] == "application/json"
    assert given["x-request-id"]
    error = json.loads(answer)["error"]
    text = error["message"] if isinstance(error, dict) else error
    assert text.endswith(".")
    assert "\n" not in text
    assert "Traceback" not in text
    assert client.get("/health") == (200, "ready")
    return status, text


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 422, "The body: Field required."),
        (b"{", 400, "The body is not JSON: Expecting property name enclosed in double quotes."),
        (b"nonsense", 400, "The body is not JSON: Expecting value."),
        (b'{"inputs": "\xff"}', 400, "The body cannot be read."),
        (b'{"inputs": "\\ud800"}', 422, "Input 0 holds half of a surrogate pair"),
        (b'{"inputs": NaN}', 422, "inputs.str: Input should be a valid string."),
        (b"[]", 422, "The body: Input should be a valid dictionary"),
        (b"{}", 422, "inputs: Field required."),
        (b'{"inputs": null}', 422, "inputs.str: Input should be a valid string."),
        (b'{"inputs": 3}', 422, "inputs.str: Input should be a valid string."),
        (b'{"inputs": [3]}', 422, "inputs.str: Input should be a valid string."),
        (b'{"inputs": []}', 422, "The request has 0 inputs; 1 to 40 are allowed."),
        (b'{"inputs": ["a"], "truncated": true}', 422, "truncated: Extra inputs are not permitted."),
        (b'{"inputs": "a", "truncate": "yes"}', 422, "truncate: Input should be a valid boolean."),
        (b'{"inputs": "a", "dimensions": 0}', 422, "dimensions: Input should be greater than or equal to 1."),
        (b'{"inputs": "a", "truncation_direction": "Left"}', 422, "truncation_direction: Input should be"),
        (b'{"inputs": "a", "model": "/etc/passwd"}', 404, "model '/etc/passwd' is not served; there are embedder,"),
        (b'{"inputs": "a", "model": "intent"}', 422, "Model 'intent' is for text-classification; this route needs f"),
        (json.dumps({"inputs": ["a"] * 41}).encode(), 422, "The request has 41 inputs; 1 to 40 are allowed."),
        (json.dumps({"inputs": "a " * 100}).encode(), 422, "Text 0 has 102 tokens and the model 64 positions"),
        (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", 4, ""),
        (b'{"inputs": "' + b"a" * 1_100_000 + b'"}', 413, "The body is larger than 1048576 bytes."),
    ],
)
def test_embed(client: Client, body: bytes, status: int, sentence: str) -> None:
    found, text = refused(client, "/embed", body)
    if status == 4:  # either is right
        assert 400 <= found < 500
    else:
        assert (found, text[: len(sentence)]) == (status, sentence)


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/predict", {"inputs": [["a", "b", "c"]]}, "An input has 3 texts; one or a pair is needed."),
        ("/predict", {"inputs": [[]]}, "An input has 0 texts; one or a pair is needed."),
        ("/ner", {"inputs": "a", "parameters": {"x": 1}}, "x is not an option of token-classification"),
        ("/ner", {"inputs": "a", "parameters": {"errors": "return"}}, "errors is an option of calls"),
        ("/ner", {"inputs": "a", "parameters": {"deadline": 5}}, "deadline is not an option of token-classification"),
        ("/fill-mask", {"inputs": "no mask"}, "Text 0 has no [MASK] to fill."),
        ("/fill-mask", {"inputs": "a [MASK]", "parameters": {"top_k": -1}}, "top_k is -1"),
        ("/zero-shot", {"inputs": "a"}, "candidate_labels is missing"),
        ("/question-answering", {"inputs": {"question": "a"}}, "inputs.Question.context: Field required."),
        ("/decode", {"ids": [1_000_000]}, "List 0 has the id 1000000; the vocabulary has 0 to 255."),
        ("/decode", {"ids": [-1]}, "List 0 has the id -1; the vocabulary has 0 to 255."),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "There is no sentence"),
        ("/embed", {"inputs": "a", "window": 65}, "window is 65; the model has 64 positions."),
        ("/embed", {"inputs": "a", "stride": -1}, "stride is -1"),
        ("/embed", {"inputs": "a", "window": 9, "truncate": True}, "window and stride read the whole of a text"),
        ("/embed", {"inputs": "a", "over_windows": "max"}, "over_windows merges windows; give window or stride too."),
        ("/embed", {"inputs": "a", "stride": 0, "over_windows": "sum"}, "over_windows 'sum' is"),
        ("/embed_all", {"inputs": "a", "window": 9}, "window: Extra inputs are not permitted."),
        ("/v1/embeddings", {"input": "a"}, "model: Field required."),
        ("/v1/embeddings", {"input": "a", "model": "embedder", "window": "9"}, "window: Input should be a valid int"),
        ("/v1/embeddings", {"input": [1, 2], "model": "embedder"}, "input has token ids"),
        ("/v1/embeddings", {"input": [], "model": "embedder"}, "The request has 0 inputs"),
    ],
)
def test_other_routes(client: Client, path: str, body: dict[str, Any], sentence: str) -> None:
    status, text = refused(client, path, json.dumps(body).encode())
    assert (status, text[: len(sentence)]) == (422, sentence)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("x-deadline-ms", "soon", "x-deadline-ms is 'soon'; a number is needed."),
        ("x-deadline-ms", "-1", "x-deadline-ms is -1.0; a positive number of milliseconds is needed."),
        ("x-deadline-ms", "nan", "x-deadline-ms is nan; a positive number of milliseconds is needed."),
        ("x-priority", "high", "x-priority is 'high'; a number is needed."),
    ],
)
def test_headers(client: Client, name: str, value: str, sentence: str) -> None:
    assert refused(client, "/embed", b'{"inputs": "a"}', JSON | {name: value}) == (422, sentence)


def test_a_body_of_undeclared_length_is_bounded_too(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.request("POST", "/embed", iter([b'{"inputs": "'] + [b"a" * 65536] * 20), JSON, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"] == "The body is larger than 1048576 bytes."
    connection.close()


def test_other_content(client: Client) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {}):
        found = refused(client, "/embed", b'{"inputs": "a"}', headers)
        assert found == (422, "The body needs the header content-type: application/json.")


def test_routes_and_methods_that_are_not_there(client: Client) -> None:
    status, answer = client.get("/nowhere")
    assert (status, answer["error"]) == (404, "There is no such route.")
    status, answer = client.get("/embed")
    assert (status, answer["error"]) == (405, "The route has another method: POST.")
    status, answer = client.get("/v1/models/x")
    assert status == 404
    assert answer["error"]["message"].startswith("model 'x' is not served; there are embedder,")


def test_an_error_of_ours_leaks_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilfast import Engine

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a secret path /etc/passwd")

    monkeypatch.setattr(Engine, "encode", fail)
    status, given, body = client.raw("POST", "/embed", b'{"inputs": "a"}', JSON | {"x-request-id": "mine-1"})
    assert status == 500
    answer = json.loads(body)["error"]
    assert answer == "The server has failed; its log has more under request mine-1."
    assert given["x-request-id"] == "mine-1"
    monkeypatch.undo()
    assert client.post("/embed", {"inputs": "a"})[0] == 200


def test_a_request_id_that_could_forge_a_log_line_is_replaced(client: Client) -> None:
    _, given, _ = client.raw("GET", "/live", None, {"x-request-id": 'a"} {"b'})
    assert len(given["x-request-id"]) == 32
