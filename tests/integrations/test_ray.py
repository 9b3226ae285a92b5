"""Ray itself: Serve around a Batcher, a replica that is killed, and a job of Ray Data whose worker is killed.

Starting Ray takes longer than all that is asked of it, so there is one Ray for the module.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the server needs Python 3.11", allow_module_level=True)
ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'distilfast[ray]')")
pytest.importorskip("ray.serve", reason="ray is installed without Serve (pip install 'distilfast[ray]')")

from ray import serve  # noqa: E402

from distilfast import pipeline  # noqa: E402
from distilfast.errors import BackendError, ClosedError, ConfigError, DistilfastError, InputError  # noqa: E402
from distilfast.integrations import ray as ours  # noqa: E402
from distilfast.integrations.parquet_job import Work  # noqa: E402

Make = Callable[..., Path]
TIMEOUT_S = 60


# ----------------------------------------------------------------------------------------------- arguments, without Ray


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({}, r"args needs model or models, and one of them: as in model=PATH\."),
        ({"model": "a", "models": ["b"]}, r"args needs model or models, and one of them"),
        ({"model": "a", "port": "9"}, r"args has 'port'; there are model, models,"),
        ({"model": "a", "threads": "two"}, r"threads is 'two' in args; an integer is needed\."),
        ({"model": "a", "threads": "0"}, r"threads is 0; at least 1 is needed\."),
        ({"model": "a", "max_replicas": "2", "min_replicas": "3"}, r"max_replicas is 2; at least 3 is needed\."),
        ({"model": "a", "pin": "perhaps"}, r"pin is 'perhaps' in args; true or false is needed\."),
        ({"model": "a", "deadline_ms": "soon"}, r"deadline_ms is 'soon' in args; a number is needed\."),
        ({"models": [{"name": "a"}]}, r"A model in args has no path\."),
        ({"models": [3]}, r"A model is 3; PATH, NAME=PATH or a table is needed\."),
    ],
)
def test_arguments_that_are_refused(args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ours.app(args)


def test_arguments_of_the_command_line_are_those_of_a_file() -> None:
    words = {"model": "a=some/a", "precision": "int8", "threads": "2", "deadline_ms": "25", "pin": "false"}
    table = {"path": "some/a", "name": "a", "precision": "int8"}
    scale, rest = ours._scale(words)
    same, others = ours._scale({"models": [table], "threads": 2, "deadline_ms": 25, "pin": False})
    assert scale == same == ours.Scale(threads=2, pin=False)
    assert ours._settings(rest, 2) == ours._settings(others, 2)
    (model,) = ours._settings(rest, 2).models
    assert (model.name, model.path, model.precision, model.threads) == ("a", "some/a", "int8", 2)


@pytest.fixture
def replica(tiny_checkpoint: Make) -> Iterator[ours.Replica]:
    """As Ray makes it, in this process."""
    model = str(tiny_checkpoint("distilbert", "text-classification"))
    made = ours.Replica(ours._settings({"model": model, "deadline_ms": 5000, "drain_timeout": 0.1}, 1), None)
    yield made
    made._service.close()
    ours._served.clear()


def test_a_replica_is_healthy_until_its_batcher_is_closed(replica: ours.Replica) -> None:
    asyncio.run(replica.check_health())
    assert asyncio.run(replica.answer("a film"))[0]["label"].startswith("LABEL_")
    asyncio.run(replica.check_health())
    replica._service.close()
    with pytest.raises(ClosedError, match="The batcher is closed, or one of its threads has died"):
        asyncio.run(replica.check_health())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_replica_whose_thread_has_died_is_not_healthy(replica: ours.Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = replica._service.ready
    batcher.submit("a film").result(TIMEOUT_S)
    monkeypatch.setattr(batcher._scheduler, "take", lambda *_: sys.exit())  # ends the thread that asks
    batcher.submit("b")
    next(each for each in batcher._forwards.threads if each.name == "distilfast-short").join(TIMEOUT_S)
    with pytest.raises(ClosedError):
        asyncio.run(replica.check_health())


def test_a_forward_that_does_not_end_is_noticed(replica: ours.Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()
    monkeypatch.setattr(ours, "one_token", lambda _: ends.wait(TIMEOUT_S))
    monkeypatch.setattr(ours, "HEALTH_S", 0.01)

    async def check() -> None:
        with pytest.raises(BackendError, match="A forward of one token has not ended within"):
            await replica.check_health()
        ends.set()

    asyncio.run(check())


def test_a_deadline_is_changed_without_a_restart(replica: ours.Replica) -> None:
    batcher = replica._service.ready
    replica.reconfigure({"deadline_ms": 25, "most_texts": 3})
    assert (batcher.deadline, replica._service.settings.most_texts) == (0.025, 3)
    replica.reconfigure({})
    assert (batcher.deadline, replica._service.settings.most_texts) == (5.0, 128)
    for config, sentence in (
        ({"precision": "int8"}, "user_config sets 'precision'; there are deadline_ms, most_texts, the rest are args."),
        ({"deadline_ms": "soon"}, "deadline_ms is 'soon' in user_config; a number is needed."),
        ({"most_texts": 0}, "most_texts is 0; at least 1 is needed."),
    ):
        with pytest.raises(ConfigError) as error:
            replica.reconfigure(config)
        assert str(error.value) == sentence
    assert batcher.deadline == 5.0


# ----------------------------------------------------------------------------------------------------------- Ray itself


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two CPUs."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def port(cluster: None, tiny_checkpoint: Make) -> Iterator[int]:
    """Of two replicas."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    model = tiny_checkpoint("distilbert", "text-classification", num_labels=3)
    serve.start(http_options={"host": "127.0.0.1", "port": number, "request_timeout_s": TIMEOUT_S / 2})
    serve.run(ours.app({"model": f"intent={model}", "threads": 1, "min_replicas": 2, "deadline_ms": 0}), name="intent")
    yield number
    serve.shutdown()


def post(port: int, body: Any, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/predict", json.dumps(body), {"content-type": "application/json", **headers})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    return response.status, json.loads(text) if text[:1] in "[{" else text


def replicas() -> dict[int, list[int]]:
    """Processes of replicas, and the cores that each is bound to."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            name = (folder / "cmdline").read_bytes()
            if name.startswith(b"ray::ServeReplica:intent"):
                found[int(folder.name)] = sorted(os.sched_getaffinity(int(folder.name)))
        except OSError:
            continue
    return found


def test_replicas_answer_as_the_pipeline_on_cores_of_their_own(port: int, tiny_checkpoint: Make) -> None:
    pipe = pipeline("text-classification", str(tiny_checkpoint("distilbert", "text-classification", num_labels=3)))
    assert post(port, {"inputs": "a film"}) == (200, pipe("a film", top_k=None))
    assert post(port, {"inputs": 5})[0] == 422
    handle = serve.get_app_handle("intent")
    assert handle.answer.remote("a film").result(timeout_s=TIMEOUT_S) == pipe("a film")
    with pytest.raises(Exception, match="intent is a pipeline for text-classification"):
        handle.vector.remote("a").result(timeout_s=TIMEOUT_S)
    one, other = replicas().values()
    assert len(one) == len(other) == 1
    assert one != other


def test_the_batcher_refuses_what_would_be_late(port: int) -> None:
    status, answer = post(port, {"inputs": "a film"}, **{"x-deadline-ms": "0.001"})
    assert (status, answer["error_type"]) == (429, "Overloaded")


def _until(happened: Callable[[], bool], calls: list[Future[None]]) -> None:
    """Wait while every caller goes on; fails after a minute."""
    end = time.monotonic() + TIMEOUT_S
    while not happened():
        assert time.monotonic() < end
        wait(calls, timeout=0.05)
        assert not any(each.done() for each in calls)


def test_a_killed_replica_leaves_no_request_without_an_answer(port: int) -> None:
    """Each request is answered, or its client told that the server has failed, and another replica comes."""
    before = replicas()
    ended = threading.Event()
    answered: Counter[int] = Counter()

    def call() -> None:
        while not ended.is_set():
            answered[post(port, {"inputs": "a film"})[0]] += 1

    with ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(call) for _ in range(8)]
        try:
            _until(lambda: answered[200] >= 50, calls)
            victim = next(iter(before))
            os.kill(victim, signal.SIGKILL)
            _until(lambda: victim not in replicas() and len(replicas()) == 2, calls)
            more = answered[200] + 50
            _until(lambda: answered[200] >= more, calls)
        finally:
            ended.set()
        for each in calls:
            each.result(TIMEOUT_S)
    assert set(answered) <= {200, 500, 503}
    assert answered[500] + answered[503] < answered[200] / 4
    one, other = replicas().values()
    assert one != other  # the heir has the cores of the one that was killed


def test_a_killed_worker_leaves_every_row_once(cluster: None, tmp_path: Path, tiny_checkpoint: Make) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import dataset, parquet

    from distilfast.integrations.ray_data import MapJob

    serve.shutdown()  # its replicas have the CPUs
    texts = [f"a film {i}" for i in range(600)]
    parquet.write_table(pyarrow.table({"id": range(600), "text": texts}), tmp_path / "in.parquet", row_group_size=20)
    model = str(tiny_checkpoint("distilbert", "text-classification", num_labels=3))
    work = Work.of("text-classification", model, [])
    job = MapJob(work, tmp_path / "in.parquet", tmp_path / "out")
    done = job.run(workers=1)
    rows = next(done)
    workers = [p for p in Path("/proc").glob("[0-9]*") if (p / "cmdline").read_bytes().startswith(b"ray::MapWorker")]
    assert workers
    os.kill(int(workers[0].name), signal.SIGKILL)
    assert rows + sum(done) >= 600
    table = dataset.dataset(tmp_path / "out", format="parquet").to_table().sort_by("id")
    assert table.column("id").to_pylist() == list(range(600))
    assert table.column("answer").to_pylist() == pipeline("text-classification", model)(texts)
    assert MapJob(work, tmp_path / "in.parquet", tmp_path / "out").missing == []
    with pytest.raises(InputError, match="another job, with other options"):
        MapJob(
            Work.of("text-classification", model, [], options={"top_k": 2}), tmp_path / "in.parquet", tmp_path / "out"
        )


def test_what_a_worker_cannot_do_is_one_sentence(cluster: None, tmp_path: Path, tiny_checkpoint: Make) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    from distilfast.integrations.ray_data import MapJob

    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "in.parquet")
    work = Work.of("text-classification", str(tiny_checkpoint("distilbert", "text-classification")), [])
    job = MapJob(work, tmp_path / "in.parquet", tmp_path / "out")
    with pytest.raises(InputError, match=r"A worker needs 3 CPUs, and the cluster has 2\."):
        list(job.run(threads=3))
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "in.parquet")
    with pytest.raises(DistilfastError, match=r"in\.parquet has changed since the job began\."):
        list(job.run())
