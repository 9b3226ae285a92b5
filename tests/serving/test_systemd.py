"""Sockets that the service manager has opened, and what it is told: over real descriptors and datagrams."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import COMMAND, Client, started

from distilfast.errors import ConfigError
from distilfast.serving.http import systemd

TIMEOUT_S = 60
Make = Callable[..., Path]
AS_PASSED = ("sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "sh")
"""As the manager starts a service: its own number is in the environment."""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_passed_socket_is_served_and_the_manager_told(tiny_checkpoint: Make, tmp_path: Path, workers: str) -> None:
    model = tiny_checkpoint("distilbert", "feature-extraction")
    address = str(tmp_path / "notify")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(address)
        manager.settimeout(TIMEOUT_S)
        with started(
            *("--workers", workers, model),
            command=[*AS_PASSED, *COMMAND],
            env=os.environ | {"NOTIFY_SOCKET": address},
            pass_fds=(systemd.FIRST,),
            preexec_fn=lambda: os.dup2(listener.fileno(), systemd.FIRST),
        ) as server:
            assert manager.recv(100) == b"READY=1"
            client = Client(listener.getsockname()[1])
            assert client.get("/health") == (200, "ready")
            server.running.send_signal(signal.SIGHUP)
            told = manager.recv(100).decode()
            assert told.startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(100) == b"READY=1"
            server.running.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert server.running.wait(TIMEOUT_S) == 0


def test_a_socket_for_another_process_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    for number in ("1", "", str(os.getpid() + 1)):
        monkeypatch.setenv("LISTEN_PID", number)
        assert systemd.passed_socket() is None
    assert os.environ["LISTEN_FDS"] == "1"


@pytest.mark.parametrize("what", ["two", "datagram", "idle", "file"])
def test_what_is_no_listening_socket_is_an_error(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2" if what == "two" else "1")
    kind = socket.SOCK_DGRAM if what == "datagram" else socket.SOCK_STREAM
    file = os.open(tmp_path / "file", os.O_CREAT)
    number = file if what == "file" else socket.socket(socket.AF_INET, kind).detach()
    monkeypatch.setattr(systemd, "FIRST", number)
    with pytest.raises(ConfigError, match=r"^[^\n]*LISTEN_FDS[^\n]*\.$"):
        systemd.passed_socket()
    assert "LISTEN_FDS" not in os.environ  # no child may take it for its own


def test_where_nobody_listens_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nowhere"))
    systemd.notify("READY=1")


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0distilfast-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@distilfast-{os.getpid()}")
        systemd.notify("READY=1")
        manager.settimeout(TIMEOUT_S)
        assert manager.recv(100) == b"READY=1"
