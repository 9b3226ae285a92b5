"""The batcher with real pipelines: the bits of an answer, and that each request gets an answer or an error."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CURVE, QUICK

from distilfast import Engine, pipeline
from distilfast.errors import DeadlineError, InputError, OverloadError
from distilfast.pipelines.base import Pipeline, Prepared
from distilfast.serving import batcher as requests
from distilfast.serving import forwards
from distilfast.serving.batcher import Batcher
from distilfast.serving.cost import Curve
from distilfast.serving.work import STAGES, Forward, Timing

TIMEOUT_S = 60  # after which something hangs; each wait takes milliseconds
Make = Callable[..., Path]
Serve = Callable[..., Batcher]


@pytest.fixture
def pipe(tiny_checkpoint: Make) -> Pipeline:
    return pipeline("text-classification", tiny_checkpoint("distilbert", "text-classification", num_labels=5))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(pipeline or several, **options of Batcher)``, closed at the end."""
    made: list[Batcher] = []

    def make(models: Pipeline | dict[str, Pipeline], curve: Curve = QUICK, **options: Any) -> Batcher:
        names = [models.task] if isinstance(models, Pipeline) else list(models)
        made.append(Batcher(models, curves=dict.fromkeys(names, curve), **options))
        return made[-1]

    yield make
    for each in made:
        each.close(timeout=TIMEOUT_S)


class Held:
    """Forwards of an engine that begin, and then wait until they are let go."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        self.batches: list[int] = []


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    state = Held()
    logits = Engine.logits

    def wait(engine: Engine, batch: Any, **options: Any) -> np.ndarray:
        state.batches.append(batch.num_sequences)
        state.began.set()
        assert state.go_on.wait(TIMEOUT_S)
        return logits(engine, batch, **options)

    monkeypatch.setattr(Engine, "logits", wait)
    yield state
    state.go_on.set()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the batcher reads the time from."""
    made = Clock()
    monkeypatch.setattr(requests, "time", made)
    monkeypatch.setattr(forwards, "time", made)
    return made


def result(future: Future[Any]) -> Any:
    return future.result(TIMEOUT_S)


def words(count: int, length: int = 6) -> list[str]:
    rng = np.random.default_rng(count)
    return [" ".join(rng.choice(list("abcdefgh"), rng.integers(1, length + 1))) for _ in range(count)]


def test_many_threads_get_the_answers_of_the_pipeline(pipe: Pipeline, serve: Serve) -> None:
    """With several options at once, and texts from one token to several windows."""
    batcher = serve(pipe, deadline=TIMEOUT_S)
    texts = [*words(40), *(" ".join(words(30)) for _ in range(4))]
    options: list[dict[str, Any]] = [{}, {"top_k": 3}, {"function_to_apply": "none"}, {"return_truncation": True}]
    asked = [(text, each | {"stride": 2}) for text in texts for each in options]
    want = [pipe(text, **each) for text, each in asked]
    with ThreadPoolExecutor(8) as callers:
        futures = list(callers.map(lambda each: batcher.submit(each[0], **each[1]), asked))
    assert [result(future) for future in futures] == want
    assert batcher.counts.answered == batcher.counts.submitted == len(asked)


@pytest.mark.parametrize(
    ("task", "given", "options"),
    [
        ("token-classification", "a b c d", {"aggregation_strategy": "simple"}),
        ("question-answering", {"question": "a b?", "context": "a b c d e f"}, {"top_k": 2}),
        ("fill-mask", "a [MASK] c", {"top_k": 2}),
        ("feature-extraction", "a b c", {"return_tensors": True}),
        ("zero-shot-classification", "a b", {"candidate_labels": ["c", "d"]}),
        ("sentence-similarity", {"source_sentence": "a", "sentences": ["b", "c d"]}, {}),
        ("multiple-choice", {"prompt": "a", "choices": ["b", "c d"]}, {}),
        ("text-classification", {"text": "a", "text_pair": "b c"}, {}),
    ],
)
def test_every_task_is_answered(
    tiny_checkpoint: Make, serve: Serve, task: str, given: Any, options: dict[str, Any]
) -> None:
    heads = {"zero-shot-classification": "text-classification", "sentence-similarity": "feature-extraction"}
    pipe = pipeline(task, tiny_checkpoint("distilbert", heads.get(task, task)))
    want, answer = pipe(given, **options), result(serve(pipe).submit(given, **options))
    assert np.array_equal(answer, want) if isinstance(want, np.ndarray) else answer == want


def test_vectors_are_those_of_embed(tiny_checkpoint: Make, serve: Serve) -> None:
    pipe = pipeline("feature-extraction", tiny_checkpoint("bert", "feature-extraction"))
    batcher = serve(pipe)
    texts = words(20)
    for options in ({}, {"pooling": "cls", "normalize": False}, {"stride": 1}):
        futures = [batcher.submit_vector(text, **options) for text in texts]
        assert np.stack([result(each) for each in futures]).tobytes() == pipe.embed(texts, **options).tobytes()


def test_coroutines_are_answered(pipe: Pipeline, serve: Serve) -> None:
    batcher = serve(pipe, deadline=TIMEOUT_S)
    texts = [*words(30), "a " * 1500]

    async def ask() -> list[Any]:
        return await asyncio.gather(*(batcher.answer(text, truncation=True) for text in texts))

    assert asyncio.run(ask()) == [pipe(text, truncation=True) for text in texts]


def test_models_by_name(tiny_checkpoint: Make, pipe: Pipeline, serve: Serve) -> None:
    other = pipeline("token-classification", tiny_checkpoint("bert", "token-classification"))
    batcher = serve({"intent": pipe, "entities": other}, weights={"intent": 3.0})
    assert result(batcher.submit("a b", model="entities")) == other("a b")
    assert result(batcher.submit("a b", model="intent")) == pipe("a b")
    for model, message in ((None, "model is missing"), ("x", "model 'x' is not known")):
        with pytest.raises(InputError, match=f"^{message}; there are intent, entities.$"):
            batcher.submit("a", model=model)
    with pytest.raises(InputError, match="feature-extraction has vectors"):
        batcher.submit_vector("a", model="intent")


def test_what_cannot_be_answered_is_an_error_at_once(pipe: Pipeline, serve: Serve) -> None:
    batcher = serve(pipe)
    for given, options in (
        (3, {}),
        ("a", {"unknown": 1}),
        ("a", {"errors": "return"}),
        ("a", {"batch_size": 2}),
        ("a " * 200, {}),
        ("a", {"deadline": 0}),
        ("a", {"deadline": float("nan")}),
        ("a", {"priority": "high"}),
    ):
        with pytest.raises(InputError, match=r"^[^\n]+\.$"):
            batcher.submit(given, **options)
    assert batcher.counts.submitted == 0


@pytest.mark.parametrize(
    "options",
    [{"deadline": -1}, {"cache_bytes": -1}, {"most_waiting": 0}, {"weights": {"x": 1.0}}, {"curves": {"x": QUICK}}],
)
def test_wrong_arguments_are_an_error(pipe: Pipeline, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+\.$"):
        Batcher(pipe, **{"curves": {pipe.task: QUICK}} | options)
    with pytest.raises(InputError, match="at least one is needed"):
        Batcher({})


def test_a_request_that_would_be_late_is_refused(pipe: Pipeline, serve: Serve) -> None:
    batcher = serve(pipe, CURVE)
    late = r"^The request is refused. (It would be answered in .* ms, .* ms too late|Its deadline has passed)\.$"
    with pytest.raises(OverloadError, match=late) as refused:
        batcher.submit("a b c", deadline=1e-3)
    assert 0 < refused.value.retry_after < 2e-3
    assert batcher.counts.refused == 1


def test_one_request_that_fails_spoils_no_other(
    pipe: Pipeline, serve: Serve, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch whose forward fails each request is computed by itself; those that fail again get the error."""
    logits = Engine.logits
    bad = pipe.tokenizer.encode("h").ids

    def fail(engine: Engine, batch: Any, **options: Any) -> np.ndarray:
        answer = logits(engine, batch, **options)
        if any(
            batch.input_ids[i:j].tolist() == bad for i, j in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)
        ):
            raise MemoryError("no memory for this one")
        return answer

    monkeypatch.setattr(Engine, "logits", fail)
    batcher = serve(pipe)
    first = batcher.submit("a")
    assert held.began.wait(TIMEOUT_S)
    futures = {text: batcher.submit(text) for text in ("a b", "h", "c")}
    held.go_on.set()
    with pytest.raises(MemoryError, match="no memory for this one"):
        result(futures.pop("h"))
    monkeypatch.undo()
    for text, future in futures.items():
        assert result(future) == pipe(text)
    assert result(first) == pipe("a")
    assert (batcher.counts.answered, batcher.counts.failed) == (3, 1)


def test_a_cancelled_request_is_not_computed(pipe: Pipeline, serve: Serve, held: Held) -> None:
    batcher = serve(pipe)
    first = batcher.submit("a")
    assert held.began.wait(TIMEOUT_S)
    gone, kept = batcher.submit("b"), batcher.submit("c")
    assert gone.cancel()
    held.go_on.set()
    result(kept)
    result(first)
    with pytest.raises(CancelledError):
        result(gone)
    assert held.batches == [1, 1]
    assert (batcher.counts.answered, batcher.counts.cancelled) == (2, 1)


def test_a_cancelled_coroutine_takes_its_request_back(pipe: Pipeline, serve: Serve, held: Held) -> None:
    batcher = serve(pipe)

    async def ask() -> None:
        first = asyncio.create_task(batcher.answer("a"))
        await asyncio.to_thread(held.began.wait, TIMEOUT_S)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.answer("b"), 1e-3)
        held.go_on.set()
        await first

    asyncio.run(ask())
    assert batcher.counts.cancelled == 1
    assert len(batcher._scheduler) == 0


def test_a_deadline_that_passes_is_an_error(pipe: Pipeline, serve: Serve, held: Held, clock: Clock) -> None:
    batcher = serve(pipe)
    first = batcher.submit("a")
    assert held.began.wait(TIMEOUT_S)
    late, kept = batcher.submit("b", deadline=1.0), batcher.submit("c", deadline=3.0)
    clock.now = 2.0
    held.go_on.set()
    result(first)
    with pytest.raises(DeadlineError):
        result(late)
    result(kept)
    assert (batcher.counts.answered, batcher.counts.late) == (2, 1)


def test_an_answer_is_computed_once(pipe: Pipeline, serve: Serve, held: Held) -> None:
    """Of identical requests at once, and of one that was answered before; other options are another request."""
    batcher = serve(pipe, cache_bytes=100_000)
    futures = [batcher.submit("a b") for _ in range(3)]
    assert held.began.wait(TIMEOUT_S)
    other = batcher.submit("a b", top_k=2)
    held.go_on.set()
    answers = [result(each) for each in futures]
    answers[0].clear()  # each has its own
    again = result(batcher.submit("a b"))
    assert [*answers[1:], again] == [pipe("a b")] * 3
    assert result(other) == pipe("a b", top_k=2)
    assert sum(held.batches[: batcher.counts.batches]) == 2
    assert (batcher.counts.shared, batcher.cache.hits, batcher.counts.answered) == (2, 1, 5)


def test_one_of_two_identical_requests_can_go(pipe: Pipeline, serve: Serve, held: Held) -> None:
    batcher = serve(pipe, cache_bytes=100_000)
    first = batcher.submit("a")
    assert held.began.wait(TIMEOUT_S)
    leader, follower = batcher.submit("b"), batcher.submit("b")
    assert leader.cancel()
    held.go_on.set()
    assert result(follower) == pipe("b")
    result(first)


def test_an_identical_request_with_more_time_is_not_late_with_the_first(
    pipe: Pipeline, serve: Serve, held: Held, clock: Clock
) -> None:
    batcher = serve(pipe, cache_bytes=100_000)
    first = batcher.submit("a")
    assert held.began.wait(TIMEOUT_S)
    hasty, patient = batcher.submit("b", deadline=1.0), batcher.submit("b", deadline=3.0)
    clock.now = 2.0
    held.go_on.set()
    with pytest.raises(DeadlineError):
        result(hasty)
    assert result(patient) == pipe("b")
    result(first)


def test_without_a_cache_nothing_is_kept(pipe: Pipeline, serve: Serve) -> None:
    batcher = serve(pipe)
    assert result(batcher.submit("a")) == result(batcher.submit("a"))
    assert len(batcher.cache) == 0
    assert batcher.counts.batches == 2


def test_a_batch_with_a_deadline_is_urgent(pipe: Pipeline, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[bool] = []
    state = threading.local()

    @contextmanager
    def urgent() -> Iterator[None]:
        state.urgent = True
        yield
        state.urgent = False

    logits = Engine.logits

    def note(engine: Engine, batch: Any, **options: Any) -> np.ndarray:
        inside.append(getattr(state, "urgent", False))
        return logits(engine, batch, **options)

    monkeypatch.setattr(forwards, "urgent", urgent)
    monkeypatch.setattr(Engine, "logits", note)
    batcher = serve(pipe)
    for deadline in (TIMEOUT_S, None):
        result(batcher.submit("a", deadline=deadline))
    assert inside == [True, False]


def test_closing_answers_what_waits(pipe: Pipeline, serve: Serve, held: Held) -> None:
    batcher = serve(pipe)
    futures = [batcher.submit(text) for text in words(10)]
    assert held.began.wait(TIMEOUT_S)
    closed: list[bool] = []
    assert batcher.is_alive
    closing = threading.Thread(target=lambda: closed.append(batcher.close()))
    closing.start()
    while batcher.accepts:
        pass
    assert not batcher.is_alive
    with pytest.raises(OverloadError, match="^The batcher is closed.$"):
        batcher.submit("a")
    held.go_on.set()
    closing.join(TIMEOUT_S)
    assert closed == [True]
    assert [result(each) for each in futures] == [pipe(text) for text in words(10)]
    assert not any(thread.is_alive() for thread in batcher._forwards.threads)
    assert batcher.close()  # twice is once


def test_closing_does_not_wait_for_ever(pipe: Pipeline, serve: Serve, held: Held) -> None:
    batcher = serve(pipe)
    first = batcher.submit("a")
    assert held.began.wait(TIMEOUT_S)
    waits = batcher.submit("b")
    assert not batcher.close(timeout=1e-3)
    with pytest.raises(OverloadError, match="closed"):
        result(waits)
    held.go_on.set()
    result(first)


def answer_in_child(batcher: Batcher, connection: Any) -> None:
    connection.send(batcher.submit("a b").result(TIMEOUT_S))
    batcher.close()


def test_a_forked_child_serves_too(pipe: Pipeline, serve: Serve) -> None:
    """Its parent's requests are not its own, and it starts threads of its own."""
    batcher = serve(pipe)
    want = result(batcher.submit("a b"))
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=answer_in_child, args=(batcher, send))
    child.start()
    assert receive.poll(TIMEOUT_S)
    assert receive.recv() == want
    child.join(TIMEOUT_S)
    assert child.exitcode == 0
    assert result(batcher.submit("a b")) == want


def test_the_stages_of_an_answer_are_observed(pipe: Pipeline, serve: Serve) -> None:
    seen: list[Timing] = []
    begin = time.monotonic()
    batcher = serve(pipe, observe=seen.append)
    result(batcher.submit("a b c"))
    spent = time.monotonic() - begin
    (timing,) = seen
    assert timing.model == "text-classification"
    assert timing.tokens == len(pipe.tokenizer.encode("a b c").ids)
    stages = [getattr(timing, stage) for stage in STAGES]
    assert min(stages) >= 0
    assert sum(stages) <= spent


def test_each_stage_has_its_own_time(
    pipe: Pipeline, serve: Serve, clock: Clock, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second for tokens, two in the queue, four in the forward and eight for the answer; the batch took four."""
    seen: list[Timing] = []
    batches: list[Forward] = []
    batcher = serve(pipe, observe=seen.append, observe_forward=batches.append)
    prepare = pipe.prepare

    def slowly(given: Any, **options: Any) -> Prepared:
        clock.now += 1
        prepared = prepare(given, **options)

        def answer(results: Any) -> Any:
            clock.now += 8
            return prepared.answer(results)

        return replace(prepared, answer=answer)

    first = batcher.submit("a b")
    assert held.began.wait(TIMEOUT_S)
    held.began.clear()
    monkeypatch.setattr(pipe, "prepare", slowly)
    second = batcher.submit("a b c")
    clock.now += 2
    logits = Engine.logits
    monkeypatch.setattr(Engine, "logits", lambda *given, **options: (later(clock, 4), logits(*given, **options))[1])
    held.go_on.set()
    result(first)
    result(second)
    assert seen[1] == Timing("text-classification", len(pipe.tokenizer.encode("a b c").ids), 1, 2, 4, 8)
    assert batches[1] == Forward("text-classification", 1, seen[1].tokens, 4)


def later(clock: Clock, seconds: float) -> None:
    clock.now += seconds


def test_an_observer_has_its_callers_context(pipe: Pipeline, serve: Serve) -> None:
    """As traces need it, which are found by a context variable."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[str] = []
    batcher = serve(pipe, observe=lambda _: seen.append(variable.get()))
    for value in ("first", "second"):
        variable.set(value)
        result(batcher.submit("a"))
    assert seen == ["first", "second"]
