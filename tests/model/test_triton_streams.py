"""Streams and graph capture of backend triton, under a simulated torch.cuda: results are those of the interpreter."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_torch_cuda import Event, Graph, SimulatedCuda, simulated_cuda

from distilfast import Engine, PackedBatch
from distilfast.backends import triton as backend
from distilfast.errors import BackendError

if reason := backend.unavailable():
    pytest.skip(f"backend triton: {reason}", allow_module_level=True)
if not backend.is_interpreted():
    pytest.skip("torch.cuda is not simulated where there is a GPU", allow_module_level=True)

import torch

from distilfast.kernels import runner

__all__ = ["simulated_cuda"]


def batch_of(*lengths: int, seed: int = 0) -> PackedBatch:
    rng = np.random.default_rng(seed)
    return PackedBatch.from_sequences([rng.integers(0, 200, length).tolist() for length in lengths])


@pytest.fixture
def checkpoint(tiny_checkpoint) -> Path:
    return tiny_checkpoint("distilbert", "text-classification", config={"n_layers": 1})


@pytest.fixture
def engine(checkpoint: Path, simulated_cuda: SimulatedCuda) -> Engine:
    return on_a_stream(Engine.from_pretrained(checkpoint, backend="triton"))


def on_a_stream(made: Engine) -> Engine:
    """The engine as it is on a GPU: with a stream of its own."""
    backend_of(made)._stream = torch.cuda.Stream()
    return made


def backend_of(made: Engine) -> Any:
    return made._backend


def test_a_captured_graph_answers_as_the_kernels_do(checkpoint, simulated_cuda):
    """A graph for each of the two slots, which take turns."""
    batches = [batch_of(*lengths, seed=seed) for seed, lengths in enumerate([(5, 3), (2, 4, 1), (9,), (1, 1, 1, 2)])]
    plain = Engine.from_pretrained(checkpoint, backend="triton")
    wanted = [plain.logits(batch) for batch in batches]
    engine = on_a_stream(Engine.from_pretrained(checkpoint, backend="triton"))
    for batch, truth in zip(batches, wanted, strict=True):
        assert np.array_equal(engine.logits(batch), truth)
    assert (simulated_cuda.captures, simulated_cuda.replays) == (2, 3)


def test_a_forward_is_repeated(engine, simulated_cuda):
    """By its own graph, although another shape was captured since, on the stream that is current now."""
    batch = batch_of(5, 3)
    engine.forward_on_device(batch_of(30))
    _, output = engine.forward_on_device(batch)
    wanted = output.clone()
    output.zero_()
    with torch.cuda.stream(simulated_cuda.new_stream()):
        backend_of(engine).repeat()
    assert torch.equal(output, wanted)
    assert simulated_cuda.ran_on[-2:] == ["default", "own 2"]


@pytest.mark.parametrize("handle", [0, 1])
def test_handle_0_and_1_are_the_default_stream(engine, simulated_cuda, monkeypatch, handle):
    """torch.cuda.ExternalStream(0) would be a new stream, which nobody waits for."""
    with torch.cuda.stream(simulated_cuda.new_stream()):
        for _ in range(2):  # launched, and replayed
            engine.forward_on_device(batch_of(4), stream=handle)
    assert simulated_cuda.ran_on == ["default"] * 2


def test_another_handle_is_that_stream(engine, simulated_cuda):
    for _ in range(2):
        engine.forward_on_device(batch_of(4), stream=64)
    assert simulated_cuda.ran_on == ["handle 64"] * 2


def test_without_a_handle_it_is_the_current_stream(engine, simulated_cuda):
    caller = simulated_cuda.new_stream()
    with torch.cuda.stream(caller):
        engine.forward_on_device(batch_of(4))
        engine.logits(batch_of(4))
    assert simulated_cuda.ran_on == [caller.name] * 2


def test_a_stream_waits_for_the_last_forward_on_another(engine, simulated_cuda):
    """Both use the same buffers."""
    one, other = simulated_cuda.new_stream(), simulated_cuda.new_stream()
    for caller, lengths in [(one, (4,)), (other, (4,)), (other, (30, 30)), (one, (4,))]:
        with torch.cuda.stream(caller):
            engine.forward_on_device(batch_of(*lengths))
    assert (one.waited_for, other.waited_for) == ([other.name], [one.name])


def test_a_batch_is_not_overwritten_before_it_has_been_read(engine, simulated_cuda, monkeypatch):
    """The third forward takes the slot of the first, and waits for it; dropping a runner waits for both."""
    waited: list[Event] = []
    monkeypatch.setattr(Event, "synchronize", lambda event: waited.append(event))
    for _ in range(3):
        engine.forward_on_device(batch_of(4))
    first, second, third = waited
    assert third is first
    assert second is not first
    waited.clear()
    monkeypatch.setattr(backend, "MOST_GRAPHS", 1)
    engine.forward_on_device(batch_of(1, 1))  # of a shape that needs no new memory
    assert set(waited[:2]) == {first, second}


def test_the_default_stream_of_a_thread_is_refused(engine):
    with pytest.raises(BackendError, match=r"^Stream 2 is the default stream of whichever thread uses it; "):
        engine.forward_on_device(batch_of(4), stream=2)


def test_scratch_memory_belongs_to_the_engines_stream(engine, simulated_cuda):
    """Of the caller's stream, the allocator could give it away before the engine's stream has read it."""
    caller = simulated_cuda.new_stream()
    with torch.cuda.stream(caller):
        engine.forward_on_device(batch_of(4), stream=64)
        engine.logits(batch_of(30, 30))
    assert set(simulated_cuda.allocated_on) == {backend_of(engine)._stream.name}


class WatchedLock:
    """Knows when a second thread has come to it."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), threading.Semaphore(1)
        self.second_came = threading.Event()

    def __enter__(self) -> None:
        if not self._count.acquire(blocking=False):
            self.second_came.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_one_capture_at_a_time(checkpoint, simulated_cuda, monkeypatch):
    """Two engines meet the first batch of a shape in two threads; the kernels themselves are left out."""
    outputs = torch.zeros(64, 32), torch.zeros(64, 2)
    monkeypatch.setattr(runner.Encoder, "run", lambda *_: outputs)
    monkeypatch.setattr(runner, "_CAPTURE", lock := WatchedLock())
    engines = [on_a_stream(Engine.from_pretrained(checkpoint, backend="triton")) for _ in range(2)]
    begin = Graph.capture_begin

    def begins_while_the_other_waits(self: Graph, **options: Any) -> None:
        begin(self, **options)
        assert lock.second_came.wait(timeout=10)

    monkeypatch.setattr(Graph, "capture_begin", begins_while_the_other_waits)
    errors: list[BaseException] = []

    def first_batch(made: Engine) -> None:
        backend_of(made)._lock = threading.RLock()  # the interpreter's is one for the whole process
        try:
            made.forward_on_device(batch_of(4), stream=64)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=first_batch, args=(made,)) for made in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert simulated_cuda.captures == 4


def test_a_capture_that_fails_is_ended(engine, simulated_cuda, monkeypatch):
    run = runner.Encoder.run
    calls = 0

    def fails_in_the_capture(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("a kernel that cannot be launched")
        return run(*arguments, **options)

    monkeypatch.setattr(runner.Encoder, "run", fails_in_the_capture)
    with pytest.raises(RuntimeError, match="cannot be launched"):
        engine.logits(batch_of(4))
    assert simulated_cuda.capturing is None
    assert np.isfinite(engine.logits(batch_of(4))).all()
