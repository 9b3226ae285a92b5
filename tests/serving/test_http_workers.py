"""Several processes at one socket: requests, deaths, reloads and the end, and what each shows of the others."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import COMMAND, Client, started

from distilfast import pipeline
from distilfast.serving.http import board as boards
from distilfast.serving.http import workers
from distilfast.serving.http.board import Board
from distilfast.serving.http.settings import ServedModel, Settings

TIMEOUT_S = 60
Make = Callable[..., Path]
PIDS = r"3 workers: (\d+), (\d+), (\d+)"


def ends(descriptor: int) -> bool:
    """Whether the process of this descriptor does, before long."""
    ended = bool(select.select([descriptor], [], [], TIMEOUT_S / 3)[0])
    os.close(descriptor)
    return ended


def answered_by(client: Client) -> dict[str, float]:
    """How many inputs each worker says it has answered; of the others as of a second ago."""
    text = client.get("/metrics")[1]
    return {i: float(n) for i, n in re.findall(r'inputs_answered_total\{worker="(\d)"\} (\S+)', text)}


def test_workers_serve_die_reload_and_end(tiny_checkpoint: Make) -> None:
    model = tiny_checkpoint("distilbert", "feature-extraction")
    body = {"inputs": "a b"}
    want = (200, pipeline("feature-extraction", model).embed("a b").tolist())
    arguments = (model, "--port", "0", "--workers", "3", "--deadline-ms", "0")
    with started(*arguments) as server, ThreadPoolExecutor(8) as callers:
        pids = [int(each) for each in server.line(f"Ready after .*{PIDS}").groups()]
        client = Client(int(server.line(r"at http://127\.0\.0\.1:(\d+)")[1]))
        assert len({*pids, server.running.pid}) == 4

        assert set(callers.map(lambda _: repr(client.post("/embed", body)), range(64))) == {repr(want)}
        while sum((counts := answered_by(client)).values()) < 64:  # a worker shows its own to the others every second
            pass
        assert sum(counts.values()) == 64
        assert list(counts) == ["0", "1", "2"]
        assert client.get("/health") == (200, "ready")
        assert client.get("/info")[1]["workers"] == 3

        os.kill(pids[1], signal.SIGKILL)
        server.line(rf"Worker 1 \(process {pids[1]}\) has ended by SIGKILL; another begins in 0\.1 s\.")
        again = int(server.line(r"Worker 1 is process (\d+)\.")[1])
        assert again not in pids
        assert client.post("/embed", body) == want

        old = [os.pidfd_open(each) for each in (pids[0], again, pids[2])]
        asked = [callers.submit(client.post, "/embed", body) for _ in range(100)]  # while others take over
        server.running.send_signal(signal.SIGHUP)
        new = [int(each) for each in server.line(f"The models have been loaded again, {PIDS}").groups()]
        assert {*new}.isdisjoint({*pids, again})
        asked += [callers.submit(client.post, "/embed", body) for _ in range(100)]
        assert {repr(each.result(TIMEOUT_S)) for each in asked} == {repr(want)}
        for each in old:
            assert ends(each), "an old worker goes on"

        server.running.send_signal(signal.SIGTERM)
        assert server.running.wait(TIMEOUT_S) == 0
        for pid in new:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        with pytest.raises(ConnectionRefusedError):
            client.get("/live")


def test_workers_end_with_their_parent(tiny_checkpoint: Make) -> None:
    """However it ends; nobody else would end them."""
    model = tiny_checkpoint("distilbert", "feature-extraction")
    with started(model, "--port", "0", "--workers", "3") as server:
        pids = [int(each) for each in server.line(PIDS).groups()]
        server.running.kill()
        server.running.wait(TIMEOUT_S)
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            assert ends(descriptor), "a worker goes on without its parent"


HELD_LOAD = """
import os, threading
from distilfast.serving.http import service
def load(*arguments):
    os.write(2, b"loading\\n")
    threading.Event().wait()
service.load = load
from distilfast.cli import main
main()
"""


@pytest.mark.parametrize(("workers", "number"), [("1", signal.SIGINT), ("2", signal.SIGTERM)])
def test_a_signal_ends_a_server_that_is_loading(tiny_checkpoint: Make, workers: str, number: int) -> None:
    model = tiny_checkpoint("distilbert", "feature-extraction")
    command = [COMMAND[0], "-c", HELD_LOAD, "serve"]
    with started(model, "--port", "0", "--workers", workers, command=command) as server:
        server.line("loading")
        server.running.send_signal(number)
        assert server.running.wait(TIMEOUT_S) == 0
        server.line("Ended")


def test_a_board_shows_what_was_written_last() -> None:
    board = Board(2)
    board.claim(0)
    assert board.read(0) == b""
    assert board.write(0, b"first")
    assert board.write(0, b"2nd")
    assert board.read(0) == b"2nd"
    assert board.read(1) == b""
    assert not board.write(1, b"claimed by nobody")
    assert not board.write(0, b"x" * boards.SLOT)
    assert board.read(0) == b"2nd"
    board._memory[boards._HEADER.size] ^= 1  # as where another process is writing
    assert board.read(0) == b""


def test_a_worker_that_keeps_dying_waits_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as long, at most ten seconds; after a life longer than that as at first."""
    now = 100.0
    monkeypatch.setattr(workers.time, "monotonic", lambda: now)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        some = workers.Workers(Settings(models=(ServedModel("m", "m"),), workers=2), listener)
    slot = some._slots[1]
    waited = []
    for _ in range(9):
        slot.since = now
        some._on_death(1, slot, 1, -signal.SIGKILL)
        waited.append(slot.due - now)
        now = slot.due
    assert waited == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])
    slot.since, now = now, now + 11
    some._on_death(1, slot, 1, 1)
    assert slot.due - now == pytest.approx(0.1)
    assert some._slots[0].due == 0  # the other one's delay is its own
