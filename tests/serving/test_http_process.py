"""`distilfast serve` as a process: its signals, a reload, and what it says where it cannot start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import COMMAND, Client, process
from typer.testing import CliRunner

from distilfast.cli import app

TIMEOUT_S = 60
SLOW = {"dim": 128, "n_heads": 4, "hidden_dim": 512, "max_position_embeddings": 512}
"""On the reference backend a text of 500 tokens takes some 0.1 s."""

Make = Callable[..., Path]


def metric(client: Client, name: str) -> float:
    """Of all workers."""
    lines = client.get("/metrics")[1].splitlines()
    return sum(float(line.split()[1]) for line in lines if re.match(rf"distilfast_{name}[ {{]", line))


def test_sigterm_answers_what_has_been_accepted(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("distilbert", "feature-extraction", config=SLOW)
    arguments = ("embedder=" + str(directory), "--backend", "reference", "--precision", "fp64", "--deadline-ms", "0")
    arguments += ("--most-waiting", "100000")  # where others compute, what waits is thought to take long
    with process(*arguments) as (running, client), ThreadPoolExecutor(6) as callers:
        text = "a b c d " * 120
        asked = [callers.submit(client.post, "/embed", {"inputs": text}) for _ in range(6)]
        while metric(client, "inputs_submitted_total") < len(asked):  # what nobody has accepted yet is refused
            assert not any(each.done() and each.exception() for each in asked)
        running.send_signal(signal.SIGTERM)
        answers = [each.result(TIMEOUT_S) for each in asked]
        assert [status for status, _ in answers] == [200] * 6
        assert all(answer == answers[0][1] for _, answer in answers)
        assert running.wait(TIMEOUT_S) == 0
        with pytest.raises(ConnectionRefusedError):
            client.get("/live")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_sigterm_ends_at_once(tiny_checkpoint: Make, workers: str) -> None:
    """The first one closes the door, also for those who would wait in the queue of a socket that nobody accepts at."""
    directory = tiny_checkpoint("distilbert", "feature-extraction", config=SLOW)
    arguments = ("embedder=" + str(directory), "--backend", "reference", "--precision", "fp64", "--deadline-ms", "0")
    with (
        process(*arguments, "--most-waiting", "100000", "--workers", workers) as (running, client),
        ThreadPoolExecutor(4) as callers,
    ):
        texts = ["a b c d " * 120] * 120  # a minute of work
        asked = [callers.submit(client.post, "/embed", {"inputs": texts}) for _ in range(4)]
        while not metric(client, "running"):
            assert not any(each.done() for each in asked)
        running.send_signal(signal.SIGTERM)
        while True:  # until it has been noticed
            try:
                socket.create_connection(("127.0.0.1", client.port), timeout=TIMEOUT_S).close()
            except ConnectionError:
                break
        running.send_signal(signal.SIGTERM)
        assert running.wait(TIMEOUT_S / 2) is not None
        outcomes = [each.exception(TIMEOUT_S) or each.result()[0] for each in asked]
        assert all(isinstance(each, Exception) or each >= 500 for each in outcomes), outcomes


def test_sighup_replaces_the_models_without_losing_a_request(tiny_checkpoint: Make, tmp_path: Path) -> None:
    served = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("distilbert", "feature-extraction", seed=1), tmp_path / "first")
    shutil.copytree(tiny_checkpoint("distilbert", "feature-extraction", seed=2), tmp_path / "second")
    served.symlink_to(tmp_path / "first")
    with process(served, "--deadline-ms", "0") as (running, client):  # refused for other reasons is not lost
        first = client.post("/embed", {"inputs": "a b"})[1]
        (tmp_path / "link").symlink_to(tmp_path / "second")
        os.replace(tmp_path / "link", served)
        running.send_signal(signal.SIGHUP)
        seen = []
        for _ in range(20_000):
            status, answer = client.post("/embed", {"inputs": "a b"})
            assert status == 200
            seen.append(answer)
            if answer != first:
                break
        second = seen[-1]
        assert second != first
        assert client.post("/embed", {"inputs": "a b"})[1] == second

        shutil.rmtree(tmp_path / "second")  # what cannot be loaded changes nothing
        running.send_signal(signal.SIGHUP)
        assert all(client.post("/embed", {"inputs": "a b"}) == (200, second) for _ in range(200))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is no model to serve; name one, as in: distilfast serve MODEL."),
        (["a", "--port", "99999"], "port is 99999; a number from 0 to 65535 is needed."),
        (["a", "--host", "no.such.host.invalid"], "no.such.host.invalid:8000 cannot be listened at:"),
        (["a", "--task", "b=ner"], "task 'b=ner' names no model; there are a."),
        (["a", "--config", "nowhere.toml"], "nowhere.toml cannot be read: No such file or directory."),
        (["a", "--keys", "nowhere"], "nowhere cannot be read: No such file or directory."),
    ],
)
def test_where_it_cannot_start_it_says_why(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["serve", *arguments])
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert not isinstance(done.exception, Exception)


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [*COMMAND, "nowhere/model", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert "nowhere/model" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("distilbert", "feature-extraction")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["serve", str(directory), "--port", port])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].endswith(f"127.0.0.1:{port} cannot be listened at: Address already in use.")


def test_show_config_starts_nothing() -> None:
    done = CliRunner().invoke(app, ["serve", "a", "--show-config"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["port"] == {"value": 8000, "from": "default"}
