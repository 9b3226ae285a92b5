"""Ctrl-C during a long forward, and an interpreter that exits while other threads are inside one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distilfast import Engine, PackedBatch

Make = Callable[..., Path]

CONFIG = {"dim": 96, "n_heads": 3, "hidden_dim": 200, "max_position_embeddings": 512}
CHUNKS = 60
TIMEOUT_S = 60  # after which a child counts as hung


@pytest.fixture
def engine(tiny_checkpoint: Make) -> Engine:
    """Its only workspace has been used and lies idle."""
    engine = Engine.from_pretrained(
        tiny_checkpoint("distilbert", "text-classification", config=CONFIG), backend="cpu", threads=1
    )
    engine.logits(PackedBatch.from_sequences([[1] * 512]))
    return engine


def is_inside(engine: Engine) -> bool:
    """Whether a forward has the only workspace."""
    return engine.info()["scratch_bytes"] == 0


@contextmanager
def signalled(engine: Engine, handler: Callable[..., Any]) -> Iterator[None]:
    """A SIGINT as soon as a forward has begun, handled by ``handler``."""

    def send() -> None:
        while not is_inside(engine):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, handler)
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def batch() -> PackedBatch:
    return PackedBatch.from_sequences([[1 + i % 200] * 512 for i in range(CHUNKS)])


def test_an_exception_of_a_handler_ends_the_forward(engine: Engine, batch: PackedBatch) -> None:
    """The handler runs during the forward; the workspace comes back, and the engine answers as before."""
    wanted, scratch = engine.logits(batch).tobytes(), engine.info()["scratch_bytes"]
    inside = []

    def handler(*_: Any) -> None:
        inside.append(is_inside(engine))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), signalled(engine, handler):
        engine.logits(batch)
    assert inside == [True]
    assert engine.info()["scratch_bytes"] == scratch
    assert engine.logits(batch).tobytes() == wanted


def test_a_trace_ends_too(engine: Engine, batch: PackedBatch) -> None:
    def handler(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), signalled(engine, handler):
        engine.trace(batch)


def test_a_handler_that_returns_changes_nothing(engine: Engine, batch: PackedBatch) -> None:
    wanted = engine.logits(batch).tobytes()
    inside = []
    with signalled(engine, lambda *_: inside.append(is_inside(engine))):
        assert engine.logits(batch).tobytes() == wanted
    assert inside == [True]


# Forks 20 children. Each exits as Python does at the end of a program, while four daemon threads call an engine: the
# main thread goes on when each has finished a forward and begun the next one, of several chunks.
EXITS = """
import os, sys, threading
from distilfast import Engine, PackedBatch

engine = Engine.from_pretrained(sys.argv[1], backend="cpu", threads=2)
batch = PackedBatch.from_sequences([[1] * 512] * 4)

def call():
    while True:
        engine.encode(batch)
        finished.release()

for _ in range(20):
    child = os.fork()
    if child == 0:
        finished = threading.Semaphore(0)
        for _ in range(4):
            threading.Thread(target=call, daemon=True).start()
        for _ in range(4):
            finished.acquire()
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_an_exit_while_threads_are_inside_a_forward(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("distilbert", "feature-extraction", config=CONFIG)
    command = [sys.executable, "-c", EXITS, str(directory)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    assert ran.stdout.split() == ["7"] * 20, ran.stderr
