"""Keys, slow clients, too many of them, and TLS: each over a real connection."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import socket
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Client, served

from distilfast.errors import ConfigError
from distilfast.serving.http.keys import Keys
from distilfast.serving.http.service import Service

FIRST, SECOND = "first-key-of-a-test", "second-key-of-a-test"


def with_settings(service: Service, **changed: object) -> Service:
    """The same models, which the server closes at its end: so their batcher is another one over the same pipelines."""
    from conftest import QUICK

    from distilfast.serving.batcher import Batcher

    made = Service(replace(service.settings, **changed))  # type: ignore[arg-type]
    assert service.batcher is not None
    pipelines = service.batcher.pipelines
    made.batcher = Batcher(pipelines, curves=dict.fromkeys(pipelines, QUICK))
    return made


def replaced(path: Path, text: str) -> None:
    """As an operator rotates keys: another file takes the name."""
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)


def test_only_a_known_key_is_served(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# keys\nalice {FIRST}\n{SECOND}  # of a script\n")
    closed = with_settings(service, keys=str(path))
    with served(closed.settings, closed) as client:
        body = {"inputs": "a"}
        for headers in (
            {"authorization": f"Bearer {FIRST}"},
            {"x_api_key": SECOND},
            {"authorization": f"bearer  {SECOND}"},
        ):
            assert client.post("/embed", body, **headers)[0] == 200
        for headers in (
            {},
            {"authorization": FIRST},
            {"authorization": f"Basic {FIRST}"},
            {"authorization": f"Bearer {FIRST}x"},
            {"authorization": "Bearer "},
            {"x_api_key": FIRST[:-1]},
            {"x_api_key": "alice"},
        ):
            status, answer = client.post("/embed", body, **headers)
            assert status == 401, headers
            assert "key is" in answer["error"]
        for name in ("/metrics", "/info", "/docs", "/openapi.json", "/v1/models", "/nowhere"):
            assert client.raw("GET", name)[0] == 401, name
        assert client.get("/v1/models")[1]["error"]["type"] == "invalid_request_error"
        assert client.get("/info")[1]["error_type"] == "Unauthorized"
        assert client.get("/health") == (200, "ready")
        assert client.get("/live") == (200, "alive")

        replaced(path, f"{SECOND}\n")
        assert client.post("/embed", body, x_api_key=FIRST)[0] == 401
        assert client.post("/embed", body, x_api_key=SECOND)[0] == 200
        replaced(path, "short\n")  # cannot be used: what was there before stays
        assert client.post("/embed", body, x_api_key=SECOND)[0] == 200
        path.unlink()
        assert client.post("/embed", body, x_api_key=SECOND)[0] == 200


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no key."),
        ("# nothing\n", "holds no key."),
        ("alice short\n", "Line 1 of"),
        ("a b sixteen-characters-and-more\n", "Line 1 of"),
        (f"alice {FIRST}\nalice {SECOND}\n", "has two keys called 'alice'."),
        ("\udcff" * 20, "is not UTF-8."),
    ],
)
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as error:
        Keys(path)
    assert sentence in str(error.value)
    assert "short" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(tmp_path / "nowhere")


def test_keys_are_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"alice {FIRST}\n")
    assert FIRST not in repr(vars(Keys(path)))


def test_the_log_has_no_texts_and_no_keys(service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A line for each request, with its id, its status and the name of its key: of answers and of errors alike."""
    path = tmp_path / "keys"
    path.write_text(f"alice {FIRST}\n")
    closed = with_settings(service, keys=str(path))
    with caplog.at_level(logging.INFO), served(closed.settings, closed) as client:
        for i, (body, key, status) in enumerate(
            [
                ({"inputs": "a secret"}, FIRST, 200),
                ({"inputs": "a secret " * 60}, FIRST, 422),
                ({"secret": 1}, FIRST, 422),
                ({"inputs": "a secret"}, SECOND, 401),
            ]
        ):
            assert client.post("/embed", body, x_api_key=key, x_request_id=f"id-{i}")[0] == status
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "distilfast.serve"]
    assert [(each["request_id"], each["status"], each["key"]) for each in lines] == [
        ("id-0", 200, "alice"),
        ("id-1", 422, "alice"),
        ("id-2", 422, "alice"),
        ("id-3", 401, None),
    ]
    for word in ("secret", FIRST, SECOND):
        assert word not in caplog.text


def test_a_slow_client_is_cut_off(service: Service) -> None:
    """In the middle of its headers, of its body, and without a byte; others are served meanwhile."""
    quick = with_settings(service, header_timeout=0.2)
    with served(quick.settings, quick) as client:
        headers = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n"
        beginnings = (b"", headers, headers + b"\r\n{")
        slow = [socket.create_connection(("127.0.0.1", client.port), timeout=60) for _ in beginnings]
        for connection, bytes_ in zip(slow, beginnings, strict=True):
            connection.sendall(bytes_)
        assert client.post("/embed", {"inputs": "a"})[0] == 200
        for connection in slow:
            with connection, contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""


def test_a_connection_can_be_used_again_and_again(service: Service) -> None:
    """The time for a request is that request's own."""
    quick = with_settings(service, header_timeout=5.0)
    with served(quick.settings, quick) as client:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
        for _ in range(5):
            connection.request("POST", "/embed", b'{"inputs": "a"}', {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200
            json.loads(answer.read())
        connection.close()


def test_more_connections_than_allowed_are_told_so(service: Service) -> None:
    few = with_settings(service, most_connections=4)
    with served(few.settings, few) as client:
        idle = [socket.create_connection(("127.0.0.1", client.port), timeout=60) for _ in range(8)]
        for each in idle:
            each.sendall(b"POST /embed HTTP/1.1\r\nHost: a\r\n")
        status, _, _ = client.raw("GET", "/live")
        assert status == 503
        for each in idle:
            each.close()


def test_tls(service: Service, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("openssl, which makes the certificate, is not installed")
    secure = with_settings(service, certificate=str(certificate), private_key=str(key))
    with served(secure.settings, secure) as client:
        context = ssl.create_default_context(cafile=str(certificate))
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", client.port, timeout=60, context=context)
        connection.request("POST", "/embed", b'{"inputs": "a"}', {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert len(json.loads(answer.read())[0]) == 32
        connection.close()
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            Client(client.port).raw("GET", "/live")
