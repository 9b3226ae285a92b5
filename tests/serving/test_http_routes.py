"""Each route over HTTP: its answers are those of the pipelines."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import QUICK, Client, serving
from starlette.requests import Request

from distilfast.errors import ClosedError, OverloadError
from distilfast.pipelines.base import Pipeline
from distilfast.serving.batcher import Batcher
from distilfast.serving.http.app import create_app
from distilfast.serving.http.board import Board
from distilfast.serving.http.middleware import Overdue
from distilfast.serving.http.prometheus import Metrics
from distilfast.serving.http.service import Limits, Service
from distilfast.serving.http.settings import ServedModel, Settings

Pipes = dict[str, Pipeline]
TEXTS = ["a b c", "d", "e f g h"]


def answered(client: Client, path: str, body: dict[str, Any], **headers: str) -> Any:
    status, answer = client.post(path, body, **headers)
    assert status == 200, answer
    return answer


def test_embed(client: Client, pipelines: Pipes) -> None:
    want = pipelines["embedder"].embed(TEXTS)  # type: ignore[attr-defined]
    found = answered(client, "/embed", {"inputs": TEXTS})
    assert np.array(found, np.float32).tobytes() == want.tobytes()
    assert answered(client, "/embed", {"inputs": TEXTS[0]}) == found[:1]
    raw = answered(client, "/embed", {"inputs": TEXTS, "normalize": False})
    assert np.array(raw, np.float32).tobytes() == pipelines["embedder"].embed(TEXTS, normalize=False).tobytes()  # type: ignore[attr-defined]


def test_embed_with_fewer_dimensions(client: Client, pipelines: Pipes) -> None:
    want = pipelines["embedder"].embed(TEXTS)[:, :8].astype(np.float64)  # type: ignore[attr-defined]
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert answered(client, "/embed", {"inputs": TEXTS, "dimensions": 8}) == pytest.approx(want, abs=1e-6)
    status, answer = client.post("/embed", {"inputs": TEXTS, "dimensions": 33})
    assert (status, answer["error"]) == (422, "dimensions is 33; the vectors have 32.")


def test_embed_all(client: Client, pipelines: Pipes) -> None:
    assert answered(client, "/embed_all", {"inputs": TEXTS}) == [each[0] for each in pipelines["embedder"](TEXTS)]


def test_predict(client: Client, pipelines: Pipes) -> None:
    pipe = pipelines["intent"]
    body = {"model": "intent"}
    assert answered(client, "/predict", body | {"inputs": "a b"}) == pipe("a b", top_k=None)
    pair = {"text": "a", "text_pair": "b"}
    assert answered(client, "/predict", body | {"inputs": ["a", "b"]}) == pipe(pair, top_k=None)
    assert answered(client, "/predict", body | {"inputs": [["a b"], ["a", "b"]]}) == pipe(["a b", pair], top_k=None)
    raw = answered(client, "/predict", body | {"inputs": "a b", "raw_scores": True})
    assert raw == pipe("a b", top_k=None, function_to_apply="none")
    best = answered(client, "/predict", body | {"inputs": "a b", "parameters": {"top_k": 2}})
    assert best == pipe("a b", top_k=2)


def test_rerank(client: Client, pipelines: Pipes) -> None:
    texts = ["a", "b c", "d e f", "g"]
    pairs = [{"text": "a b", "text_pair": text} for text in texts]
    scores = [labels[0]["score"] for labels in pipelines["reranker"](pairs, top_k=None, function_to_apply="sigmoid")]
    order = sorted(range(4), key=lambda i: -scores[i])
    body = {"model": "reranker", "query": "a b", "texts": texts, "return_text": True}
    want = [{"index": i, "score": scores[i], "text": texts[i]} for i in order]
    assert answered(client, "/rerank", body) == want
    status, answer = client.post("/rerank", body | {"model": "intent"})
    assert (status, answer["error"]) == (422, "Model 'intent' has 5 labels; a reranker has one.")


def test_similarity(client: Client, pipelines: Pipes) -> None:
    found = answered(client, "/similarity", {"inputs": {"source_sentence": "a b", "sentences": ["a b", "c d"]}})
    vectors = pipelines["embedder"].embed(["a b", "c d"]).astype(np.float64)  # type: ignore[attr-defined]
    assert found == pytest.approx([1.0, vectors[0] @ vectors[1]])


def test_tokenize_and_decode(client: Client, pipelines: Pipes) -> None:
    (tokens,) = answered(client, "/tokenize", {"inputs": "a b"})
    ids = pipelines["embedder"].tokenizer.encode("a b").ids
    assert [each["id"] for each in tokens] == ids
    assert tokens[0] == {"id": ids[0], "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert tokens[2] == {"id": ids[2], "text": "b", "special": False, "start": 2, "stop": 3}
    assert answered(client, "/tokenize", {"inputs": ["a"], "add_special_tokens": False}) == [[tokens[1]]]
    assert answered(client, "/decode", {"ids": ids}) == answered(client, "/decode", {"ids": [ids]}) == ["a b"]


@pytest.mark.parametrize(
    ("path", "name", "given", "options"),
    [
        ("/fill-mask", "masks", "a [MASK] b", {"top_k": 3}),
        ("/ner", "entities", "a b c", {"aggregation_strategy": "simple"}),
        ("/question-answering", "answers", {"question": "a?", "context": "a b c d"}, {"top_k": 2}),
    ],
)
def test_tasks(client: Client, pipelines: Pipes, path: str, name: str, given: Any, options: dict[str, Any]) -> None:
    body = {"inputs": given, "parameters": options}
    assert answered(client, path, body) == pipelines[name](given, **options)
    several = [pipelines[name](each, **options) for each in (given, given)]
    assert answered(client, path, body | {"inputs": [given, given]}) == several


def test_zero_shot(client: Client, pipelines: Pipes) -> None:
    options = {"candidate_labels": ["c", "d e"]}
    want = pipelines["labels"]("a b", **options)
    found = answered(client, "/zero-shot", {"inputs": "a b", "parameters": options})
    assert [each["label"] for each in found] == want["labels"]
    assert [each["score"] for each in found] == want["scores"]
    assert answered(client, "/zero-shot", {"inputs": ["a b"], "parameters": options}) == [found]


def test_long_texts_are_read_in_windows(client: Client, pipelines: Pipes) -> None:
    text = "a b c d " * 50
    body = {"inputs": text, "parameters": {"stride": 4, "aggregation_strategy": "first"}}
    assert answered(client, "/ner", body) == pipelines["entities"](text, stride=4, aggregation_strategy="first")


@pytest.mark.parametrize("windows", [{"window": 20}, {"stride": 6}, {"window": 12, "stride": 4, "over_windows": "max"}])
def test_vectors_of_long_texts(client: Client, pipelines: Pipes, windows: dict[str, Any]) -> None:
    """More than 64 positions, of more and of fewer than 2,000 characters, beside a short one."""
    texts = ["a b c d e f g h " * 20, "h g f " * 500, "a"]
    want = pipelines["embedder"].embed(texts, **windows)  # type: ignore[attr-defined]
    found = answered(client, "/embed", {"inputs": texts} | windows)
    assert np.array(found, np.float32).tobytes() == want.tobytes()
    data = answered(client, "/v1/embeddings", {"input": texts, "model": "embedder"} | windows)["data"]
    assert [each["embedding"] for each in data] == found


def test_one_bad_text_of_several(client: Client, pipelines: Pipes) -> None:
    """With ``errors`` it has its error in its place; without, the request names it."""
    body = {"inputs": ["a", "b " * 200, "c"], "model": "embedder"}
    found = answered(client, "/embed", body | {"errors": "return"})
    assert found[0] == answered(client, "/embed", {"inputs": "a"})[0]
    assert found[1]["error"].startswith("Text 0 has 202 tokens")
    assert found[2] == answered(client, "/embed", {"inputs": "c"})[0]
    status, answer = client.post("/embed", body)
    assert status == 422
    assert answer["error"].startswith("Text 1 has 202 tokens and the model 64 positions")
    assert client.post("/embed", body | {"truncate": True})[0] == 200


def test_openai(client: Client, pipelines: Pipes) -> None:
    want = pipelines["embedder"].embed(TEXTS)  # type: ignore[attr-defined]
    body = {"model": "embedder", "input": TEXTS}
    answer = answered(client, "/v1/embeddings", body)
    vectors = np.array([each["embedding"] for each in answer["data"]], np.float32)
    assert vectors.tobytes() == want.tobytes()
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    tokens = sum(len(pipelines["embedder"].tokenizer.encode(text).ids) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    coded = answered(client, "/v1/embeddings", body | {"encoding_format": "base64"})["data"]
    assert b"".join(base64.b64decode(each["embedding"]) for each in coded) == want.tobytes()
    short = answered(client, "/v1/embeddings", body | {"dimensions": 4, "user": "someone"})["data"]
    assert {len(each["embedding"]) for each in short} == {4}
    names = [each["id"] for each in client.get("/v1/models")[1]["data"]]
    assert names == list(pipelines)
    assert client.get("/v1/models/intent")[1]["id"] == "intent"


def test_states(client: Client, pipelines: Pipes) -> None:
    assert client.get("/live") == (200, "alive")
    assert client.get("/health") == (200, "ready")
    info = client.get("/info")[1]
    assert [each["model_id"] for each in info["models"]] == list(pipelines)
    assert info["models"][1]["model_type"]["classifier"]["id2label"]["4"] == "LABEL_4"
    assert "reranker" in info["models"][2]["model_type"]


def test_metrics_count(client: Client) -> None:
    def value(name: str) -> float:
        lines = client.get("/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    requests = 'distilfast_request_seconds_count{route="/embed",status="200"}'
    before = value(requests), value("distilfast_inputs_answered_total")
    answered(client, "/embed", {"inputs": TEXTS})
    assert (value(requests), value("distilfast_inputs_answered_total")) == (before[0] + 1, before[1] + 3)


def test_metrics_of_stages_batches_and_memory(pipelines: Pipes) -> None:
    """Of three texts in a server of its own: each stage of each, every batch, and what the process has of memory."""
    settings = Settings(models=(ServedModel("embedder", "embedder"),))
    app = create_app(settings)
    app.state.service.batcher = Batcher(
        {"embedder": pipelines["embedder"]},
        curves={"embedder": QUICK},
        observe=app.state.metrics.answer,
        observe_forward=app.state.metrics.forward,
    )
    with serving(app, settings) as client:
        answered(client, "/embed", {"inputs": TEXTS})
        text = client.get("/metrics")[1]
    values = {name: float(value) for name, value in re.findall(r"^distilfast_(\S+) (\S+)$", text, re.MULTILINE)}
    for stage in ("tokenise", "queue", "forward", "post"):
        assert values[f'stage_seconds_count{{model="embedder",stage="{stage}"}}'] == 3
    tokens = sum(len(pipelines["embedder"].tokenizer.encode(each).ids) for each in TEXTS)
    assert values['input_tokens_sum{model="embedder"}'] == values['batch_tokens_sum{model="embedder"}'] == tokens
    assert values['batch_sequences_sum{model="embedder"}'] == 3
    assert values['forward_seconds_count{model="embedder"}'] == values["batches_total"]
    assert 1e6 < values["resident_bytes"] <= values["peak_resident_bytes"]
    assert values['weights_bytes{model="embedder"}'] == pipelines["embedder"].engine.info()["packed_bytes"]


def test_metrics_of_workers_are_merged(pipelines: Pipes) -> None:
    """Each sample once, with its worker's number; a worker that has shown nothing, or that was replaced, has none."""
    board = Board(3)
    first, second = Metrics(), Metrics()
    for number, metrics in enumerate((first, second)):
        metrics.share(board, number)
        for _ in range(number + 1):
            metrics.request("/embed", 200, 0.02)
    second.text(None)
    text = first.text(None).decode()
    for number in (0, 1):
        sample = f'distilfast_request_seconds_count{{route="/embed",status="200",worker="{number}"}} {number + 1}.0'
        assert text.splitlines().count(sample) == 1
    assert 'worker="2"' not in text
    assert text.count("# TYPE distilfast_request_seconds histogram") == 1
    assert 'distilfast_request_seconds_bucket{le="0.01",route="/embed",status="200",worker="1"} 0.0' in text


def test_what_a_request_says_about_itself(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deadline in seconds, its priority, and whose it is: its address's, or OpenAI's user's."""
    told: list[tuple[Any, ...]] = []
    submit = Batcher.submit_vector

    def note(batcher: Batcher, text: str, **options: Any) -> Any:
        told.append(tuple(options[name] for name in ("deadline", "priority", "client")))
        return submit(batcher, text, **options)

    monkeypatch.setattr(Batcher, "submit_vector", note)
    answered(client, "/embed", {"inputs": "a"}, x_deadline_ms="30000.5", x_priority="-3")
    answered(client, "/embed", {"inputs": "a"})
    answered(client, "/v1/embeddings", {"input": "a", "model": "embedder", "user": "someone"})
    assert [rest for _, *rest in told] == [[-3, "127.0.0.1"], [0, "127.0.0.1"], [0, "/someone"]]
    # The second and third have the server's, 60 s; of each the time is gone that it took to come to it.
    assert all(limit - 1 < deadline < limit for (deadline, *_), limit in zip(told, (30.0005, 60, 60), strict=True))


def test_many_clients_at_once(client: Client, pipelines: Pipes) -> None:
    """Of different routes, each with its own answer."""
    texts = [" ".join("abcdefgh"[i % 8 : i % 8 + 1 + i % 5]) for i in range(120)]
    want = {text: pipelines["intent"](text, top_k=None) for text in texts}
    vectors = {text: pipelines["embedder"].embed(text)[0].tolist() for text in texts}  # type: ignore[attr-defined]

    def ask(i: int) -> bool:
        if i % 2:
            return bool(answered(client, "/embed", {"inputs": texts[i]}) == [vectors[texts[i]]])
        return bool(answered(client, "/predict", {"inputs": texts[i], "model": "intent"}) == want[texts[i]])

    with ThreadPoolExecutor(16) as callers:
        assert all(callers.map(ask, range(len(texts))))


def test_a_deadline_counts_from_the_first_byte() -> None:
    """Not from the moment at which the server comes to it."""
    arrival = time.monotonic() - 0.02
    scope = {"type": "http", "headers": [], "client": None, "state": {"arrival": arrival}}
    left = Limits.of(Request(scope), 0.05).deadline
    assert left is not None and left < 0.03
    with pytest.raises(OverloadError, match=r"^The request is refused\. It has waited for 2\d\.\d ms to be read\.$"):
        Limits.of(Request(scope), 0.019)
    assert Limits.of(Request(scope), None).deadline is None


@pytest.mark.parametrize(
    ("method", "named", "refused"), [("POST", None, True), ("POST", b"50", False), ("GET", None, False)]
)
def test_who_has_waited_too_long_is_refused_unread(method: str, named: bytes | None, refused: bool) -> None:
    """After half of its deadline, its own or the server's, before the application sees it."""
    sent: list[Any] = []
    seen: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["method"])

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if named is None else [(b"x-deadline-ms", named)]
    state = {"arrival": time.monotonic() - 0.02}
    scope = {"type": "http", "path": "/embed", "method": method, "headers": headers, "state": state}
    asyncio.run(Overdue(application, lambda: 0.025)(scope, None, send))  # type: ignore[arg-type]
    assert (seen == []) == refused
    if refused:
        assert sent[0]["status"] == 429 and (b"retry-after", b"1") in sent[0]["headers"]


def test_a_reload_while_a_text_is_tokenised_loses_nothing(pipelines: Pipes) -> None:
    """The old batcher is closed between the moment at which it is taken and the one at which it is asked."""
    made = Service(Settings(models=(ServedModel("intent", "intent"),)))
    old, new = (Batcher(pipelines["intent"], curves={pipelines["intent"].task: QUICK}) for _ in range(2))
    made.batcher = old

    def submit(given: str, options: dict[str, Any]) -> Any:
        taken = made.ready
        if taken is old:
            made.batcher = new
            old.close()
        return taken.submit(given, **options)

    assert made._submitted(submit, "a", {}).result(60) == pipelines["intent"]("a")
    new.close()
    with pytest.raises(ClosedError):
        made._submitted(submit, "a", {})


def test_the_server_notes_when_a_request_arrives(client: Client) -> None:
    """A microsecond has passed before anybody can read it."""
    status, answer = client.post("/predict", {"inputs": "a"}, x_deadline_ms="0.001")
    assert status == 429
    assert answer["error"].endswith("ms to be read.")


def test_the_openapi_document_has_every_error_in_its_form(client: Client) -> None:
    _, document = client.get("/openapi.json")
    posts = {path: each["post"] for path, each in document["paths"].items() if "post" in each}
    assert len(posts) == 12
    for path, post in posts.items():
        form = "OpenAIError" if path.startswith("/v1/") else "Error"
        for status in ("400", "401", "404", "413", "422", "429", "503", "504"):
            content = post["responses"][status]["content"]["application/json"]
            assert content["schema"]["$ref"].rpartition("/")[2] == form, (path, status)
