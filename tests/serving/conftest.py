"""A cost curve of a made-up machine and schedulers on it, and a server of small models with a client."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from distilfast import pipeline
from distilfast.pipelines.base import Pipeline
from distilfast.serving.batcher import Batcher
from distilfast.serving.cost import Cost, Curve
from distilfast.serving.http.app import create_app
from distilfast.serving.http.server import listening_socket
from distilfast.serving.http.service import Service
from distilfast.serving.http.settings import ServedModel, Settings
from distilfast.serving.http.uvicorn_server import uvicorn_config
from distilfast.serving.scheduler import Model, Scheduler

QUICK = Curve((8, 16, 512), (1e-6, 2e-6, 64e-6))
"""Predicts that a forward takes no time."""

CURVE = Curve((8, 16, 32, 64, 128, 256, 512), (2e-3, 3e-3, 5e-3, 9e-3, 18e-3, 36e-3, 72e-3), 1e-8)
"""About what int8 takes on two cores; a quantum is 64 tokens."""


@pytest.fixture
def scheduler() -> Callable[..., Scheduler]:
    """``scheduler(weights={"": 1.0}, **options of Scheduler)``."""

    def make(weights: dict[str, float] | None = None, **options: object) -> Scheduler:
        models = {name: Model(Cost(CURVE), weight) for name, weight in (weights or {"": 1.0}).items()}
        return Scheduler(models, **options)  # type: ignore[arg-type]

    return make


class Client:
    """HTTP of the standard library to one server; each request has a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it is sent
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = json.dumps(body).encode()
        status, _, answer = self.raw("POST", path, sent, {"content-type": "application/json"} | named)
        return status, json.loads(answer)

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        status, given, answer = self.raw("GET", path, None, {k.replace("_", "-"): v for k, v in headers.items()})
        return status, json.loads(answer) if given["content-type"] == "application/json" else answer.decode()


COMMAND = [sys.executable, "-c", "from distilfast.cli import main; main()", "serve"]


class Process:
    """`distilfast serve` as a process, and the lines that it has logged."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        assert running.stderr is not None
        self.running, self.lines, self._came = running, list[str](), threading.Condition()
        threading.Thread(target=self._read, args=(running.stderr,), daemon=True).start()

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            with self._came:
                self.lines.append(line.rstrip())
                self._came.notify_all()

    def line(self, pattern: str, seconds: float = 60, after: int = 0) -> re.Match[str]:
        """The first line after ``after`` others that matches, as soon as it has come."""

        def found() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in self.lines[after:])), None)

        with self._came:
            assert self._came.wait_for(lambda: found() or self.running.poll() is not None, seconds), self.lines
            match = found()
        assert match is not None, self.lines
        return match


@contextmanager
def started(*arguments: str | Path, command: Sequence[str] = COMMAND, **options: Any) -> Iterator[Process]:
    """The server, from its start on; killed at the end, unless it has ended."""
    with subprocess.Popen([*command, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **options) as running:
        try:
            yield Process(running)
        finally:
            running.kill()


@contextmanager
def process(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """The server, ready, on a free port."""
    with started(*arguments, "--port", "0") as each:
        each.line("Ready")
        yield each.running, Client(int(each.line(r"at http://127\.0\.0\.1:(\d+)")[1]))


@contextmanager
def served(settings: Settings, service: Service | None = None) -> Iterator[Client]:
    """A server in a thread, on a free port, until the end."""
    with serving(create_app(settings, service), settings) as client:
        yield client


@contextmanager
def serving(app: Any, settings: Settings) -> Iterator[Client]:
    """The same for an application that is made already."""
    listener = listening_socket(replace(settings, port=0))
    running = uvicorn.Server(uvicorn_config(app, settings))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive(), "the server has not started"
            time.sleep(0.01)
        yield Client(listener.getsockname()[1])
    finally:
        running.should_exit = True
        thread.join(60)
        listener.close()


@pytest.fixture(scope="session")
def pipelines(tiny_checkpoint: Callable[..., Path]) -> dict[str, Pipeline]:
    """One for each task, small; the reranker has one label."""
    heads = {
        "embedder": ("bert", "feature-extraction", {}),
        "intent": ("distilbert", "text-classification", {"num_labels": 5}),
        "reranker": ("bert", "text-classification", {"num_labels": 1}),
        "entities": ("distilbert", "token-classification", {}),
        "masks": ("distilbert", "fill-mask", {}),
        "answers": ("distilbert", "question-answering", {}),
    }
    made = {name: pipeline(task, tiny_checkpoint(kind, task, **more)) for name, (kind, task, more) in heads.items()}
    labels = pipeline("zero-shot-classification", made["intent"].engine)
    return made | {"labels": labels}


@pytest.fixture(scope="session")
def service(pipelines: dict[str, Pipeline]) -> Service:
    """All of them, with predicted costs near nothing."""
    made = Service(Settings(models=tuple(ServedModel(name, name) for name in pipelines), most_texts=40))
    made.batcher = Batcher(pipelines, deadline=60, curves=dict.fromkeys(pipelines, QUICK))
    return made


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[Client]:
    """Of a server of all tasks."""
    with served(service.settings, service) as each:
        yield each
