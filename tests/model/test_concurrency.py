"""One engine, many callers: several Python threads at once, several engines, and forked processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilfast import Engine, PackedBatch, pipeline
from distilfast.locks import ForkSafeLock
from distilfast.pipelines.base import Pipeline

Make = Callable[..., Path]
Load = Callable[..., Engine]

CONFIG = {"dim": 96, "n_heads": 3, "hidden_dim": 200, "max_position_embeddings": 512}
TIMEOUT_S = 60  # after which a child counts as hung; it needs milliseconds
TASKS = ("feature-extraction", "text-classification")


@pytest.fixture
def engine(tiny_checkpoint: Make, forced_engine: Load) -> Engine:
    return forced_engine(tiny_checkpoint("distilbert", "feature-extraction", config=CONFIG), threads=2)


@pytest.fixture
def batches() -> list[PackedBatch]:
    """From one token to more than one chunk of the encoder."""
    rng = np.random.default_rng(7)
    lengths = [rng.integers(1, 120, rng.integers(1, 6)) for _ in range(8)] + [np.array([1]), np.full(5, 250)]
    return [PackedBatch.from_sequences([rng.integers(0, 256, n).tolist() for n in row]) for row in lengths]


def bits(engine: Engine, batch: PackedBatch) -> bytes:
    answer = engine.logits(batch) if engine.head.linears else engine.encode(batch)
    return answer.tobytes()


def test_threads_share_one_engine(engine: Engine, batches: list[PackedBatch]) -> None:
    """Eight callers, each with all batches in its own order: each gets the bits that a single caller gets."""
    wanted = [bits(engine, batch) for batch in batches]
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(batches)) for _ in range(8)]
    begin = threading.Barrier(len(orders))

    def call(order: np.ndarray) -> bool:
        begin.wait()
        return all(bits(engine, batches[i]) == wanted[i] for i in order)

    with ThreadPoolExecutor(len(orders)) as callers:
        assert all(callers.map(call, orders))


def test_threads_share_several_engines(tiny_checkpoint: Make, forced_engine: Load, batches: list[PackedBatch]) -> None:
    """Two models, with one, two and three threads, called one after the other and concurrently."""
    engines = [
        forced_engine(tiny_checkpoint("distilbert", task, config=CONFIG), threads=threads)
        for task in TASKS
        for threads in (1, 2, 3)
    ]
    wanted = [[bits(engine, batch) for batch in batches] for engine in engines]
    for i, batch in enumerate(batches):
        assert [bits(engine, batch) for engine in engines] == [each[i] for each in wanted]
    with ThreadPoolExecutor(len(engines)) as callers:
        assert list(callers.map(lambda engine: [bits(engine, batch) for batch in batches], engines)) == wanted


def answer_in_child(engine: Engine, batches: list[PackedBatch], pipe: Connection) -> None:
    pipe.send_bytes(b"".join(bits(engine, batch) for batch in batches))
    pipe.send(len(os.listdir("/proc/self/task")))


def ask_child(engine: Engine, batches: list[PackedBatch]) -> bytes:
    """The answers of ``engine`` in a forked child, which must have started its own threads."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=answer_in_child, args=(engine, batches, sender))
    child.start()
    sender.close()
    try:
        assert receiver.poll(TIMEOUT_S), "the child hangs"
        answer = receiver.recv_bytes()
        assert receiver.recv() == engine.info()["threads"]
        child.join(TIMEOUT_S)
        assert child.exitcode == 0
        return answer
    finally:
        child.kill()
        child.join()
        receiver.close()


def forks(test: Any) -> Any:
    """Python 3.12 warns of a fork in a process with threads; these tests do just that."""
    test = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")(test)
    return pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and counts threads in /proc")(test)


@forks
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_child_has_threads_of_its_own(
    tiny_checkpoint: Make, forced_engine: Load, batches: list[PackedBatch], threads: int
) -> None:
    """Forked after the parent's threads have run, and before they ever did; the parent still works afterwards."""
    load = tiny_checkpoint("distilbert", "text-classification", config=CONFIG)
    engine, fresh = (forced_engine(load, threads=threads) for _ in range(2))
    wanted = b"".join(bits(engine, batch) for batch in batches)
    assert ask_child(engine, batches) == wanted
    assert ask_child(fresh, batches) == wanted
    assert b"".join(bits(engine, batch) for batch in batches) == wanted


@forks
def test_a_child_of_a_child(engine: Engine, batches: list[PackedBatch]) -> None:
    wanted = b"".join(bits(engine, batch) for batch in batches[:5])

    def ask_grandchild(pipe: Connection) -> None:
        bits(engine, batches[0])
        pipe.send_bytes(ask_child(engine, batches[:5]))

    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=ask_grandchild, args=(sender,))
    child.start()
    try:
        assert receiver.poll(2 * TIMEOUT_S), "the child hangs"
        assert receiver.recv_bytes() == wanted
        child.join(TIMEOUT_S)
        assert child.exitcode == 0
    finally:
        child.kill()
        child.join()


@contextmanager
def busy(engine: Engine, batch: PackedBatch) -> Iterator[None]:
    """Two threads call ``engine`` all the time."""
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            engine.encode(batch)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        stop.set()
        for caller in callers:
            caller.join()


@forks
def test_a_fork_during_the_forwards_of_other_threads(engine: Engine, batches: list[PackedBatch]) -> None:
    """The child inherits the pool and its locks in any state, without the threads that would release them."""
    wanted = b"".join(bits(engine, batch) for batch in batches[:5])
    with busy(engine, batches[-1]):
        for _ in range(8):
            assert ask_child(engine, batches[:5]) == wanted


def answers(pipe: Pipeline) -> list[Any]:
    return [pipe(text, truncation=True) for text in ("a film", "a book of many words")]


def answer_texts_in_child(pipe: Pipeline, sender: Connection) -> None:
    sender.send((answers(pipe), pipe.tokenizer.vocab == pipe.tokenizer._backend.get_vocab(True)))


@forks
def test_a_fork_while_other_threads_encode_texts(tiny_checkpoint: Make) -> None:
    """The tokenizer's lock and the state that it protects: no other thread is inside while the process forks."""
    pipe = pipeline("text-classification", tiny_checkpoint("distilbert", "text-classification", config=CONFIG))
    wanted, stop, context = answers(pipe), threading.Event(), multiprocessing.get_context("fork")

    def encode() -> None:
        while not stop.is_set():
            pipe.tokenizer.encode_batch(["some words of a longer text"] * 50, truncation=True, max_length=5)

    def answer() -> None:
        while not stop.is_set():
            answers(pipe)

    callers = [threading.Thread(target=target) for target in (encode, encode, answer)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(8):
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=answer_texts_in_child, args=(pipe, sender))
            child.start()
            try:
                assert receiver.poll(TIMEOUT_S), "the child hangs"
                assert receiver.recv() == (wanted, True)
            finally:
                child.kill()
                child.join()
    finally:
        stop.set()
        for caller in callers:
            caller.join()


@forks
def test_a_lock_is_free_after_a_fork() -> None:
    """In parent and child, also where the forking thread itself holds it."""
    lock = ForkSafeLock()
    with lock:
        child = os.fork()
    if child == 0:
        taken = threading.Thread(target=lock.__enter__)
        taken.start()
        taken.join()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with lock:
        pass
