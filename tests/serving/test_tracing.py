"""Spans of requests and their inputs, with the SDK's exporter in memory."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import QUICK, served

from distilfast.pipelines.base import Pipeline
from distilfast.serving.batcher import Batcher
from distilfast.serving.http.service import Service
from distilfast.serving.http.settings import ServedModel, Settings
from distilfast.serving.http.tracing import trace_input

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, made = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(made))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return made


def test_a_request_and_its_inputs_are_spans(exporter: Any, pipelines: dict[str, Pipeline]) -> None:
    """In the trace of the client's ``traceparent``; an orchestrator's questions are none."""
    settings = Settings(models=(ServedModel("embedder", "embedder"),))
    pipe = pipelines["embedder"]
    service = Service(settings)
    service.batcher = Batcher({"embedder": pipe}, curves={"embedder": QUICK}, observe=trace_input)
    with served(settings, service) as client:
        for path in ("/health", "/live", "/metrics"):
            client.get(path)
        assert (
            client.post("/embed", {"inputs": ["a", "b c"]}, traceparent=f"00-{TRACE}-{PARENT}-01", x_request_id="mine")[
                0
            ]
            == 200
        )
        assert client.post("/embed", {"inputs": 3})[0] == 422
    *inputs, request, refused = exporter.get_finished_spans()
    assert {format(each.context.trace_id, "032x") for each in (*inputs, request)} == {TRACE}
    assert format(request.parent.span_id, "016x") == PARENT
    assert request.name == "POST /embed"
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["distilfast.request_id"] == "mine"
    assert request.start_time <= min(each.start_time for each in inputs)
    assert request.end_time >= max(each.end_time for each in inputs)
    assert [each.name for each in inputs] == ["input"] * 2
    tokens = [len(pipe.tokenizer.encode(text).ids) for text in ("a", "b c")]
    assert sorted(each.attributes["distilfast.tokens"] for each in inputs) == tokens
    for each in inputs:
        assert each.parent.span_id == request.context.span_id
        assert [event.name for event in each.events] == ["tokenise", "queue", "forward", "post"]
        times = [each.start_time, *(event.timestamp for event in each.events[1:]), each.end_time]
        assert times == sorted(times)
    assert refused.parent is None
    assert refused.attributes["http.response.status_code"] == 422
