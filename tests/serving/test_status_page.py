"""The status page in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Client

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def test_it_shows_what_the_server_does(client: Client, tmp_path: Path) -> None:
    """After three readings of its own: the models by name, the counts, and three plots without an error."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("there is no browser (Debian: apt-get install chromium)")
    for _ in range(3):
        assert client.post("/embed", {"inputs": ["a", "b"]})[0] == 200
    command = [
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"),
        *("--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", f"http://127.0.0.1:{client.port}/"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Version 0.1.0. " in done.stdout
    for name in ("embedder", "intent", "question-answering"):
        assert f"<td>{name}</td>" in done.stdout
    assert "CONSOLE" not in done.stderr  # what the page's script complains of


def test_it_loads_nothing_from_elsewhere(client: Client) -> None:
    status, given, body = client.raw("GET", "/")
    assert status == 200
    assert given["content-type"].startswith("text/html")
    page = body.decode()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("-status", "")
    assert "src=" not in page
