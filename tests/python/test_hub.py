"""Checkpoints from a hub: a local server speaks its protocol, and the installed client fetches from it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import distilfast
from distilfast.checkpoint import resolve
from distilfast.errors import WeightsError

pytest.importorskip("huggingface_hub")
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
WEIGHTS = "model.safetensors"


class Hub(ThreadingHTTPServer):
    """One repository, team/model, whose ``files`` are kept by commit; team/gated is gated, and no other exists."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.cut = False  # the next download of weights ends in its middle
        self.ranges: list[int] = []  # where downloads of weights began
        self.fetched: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/gated" in path:
            return self.answer(401, b"", {"X-Error-Code": "GatedRepo"})
        if "/team/model" not in path:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if lfs := re.fullmatch("/lfs/team/model/(.*)/(.*)", path):
            return self.send_weights(self.server.files[lfs[1]][lfs[2]])
        found = re.fullmatch("(?:/api/models)?/team/model(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        assert found, path
        revision = found[2] or "main"
        commit = COMMITS.get(revision, revision)
        if commit not in self.server.files:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = self.server.files[commit]
        if found[1] == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)} for name, data in files.items()
            ]
            return self.answer(200, json.dumps(tree).encode())
        if found[1] != "resolve":
            info = {"id": "team/model", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return self.answer(200, json.dumps(info).encode())
        data = files[found[3]]
        self.server.fetched.add(found[3])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(data)}"'}
        if found[3] != WEIGHTS:
            return self.answer(200, data, headers)
        linked = {"X-Linked-Etag": f'"{etag(data)}"', "X-Linked-Size": str(len(data))}
        # Another host, as the real hub has: the client follows redirects of the same host when it asks for headers.
        where = f"http://localhost:{self.server.server_port}/lfs/team/model/{commit}/{WEIGHTS}"
        return self.answer(302, b"", headers | linked | {"Location": where})

    def send_weights(self, data: bytes) -> None:
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if asked else {}
        if self.command == "GET":
            self.server.ranges.append(start)
        self.answer(206 if asked else 200, data[start:], headers, cut=self.server.cut and self.command == "GET")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.server.cut = False


def etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub(tiny_checkpoint: Callable[..., Path]) -> Iterator[Hub]:
    server = Hub()
    for commit, task in ((COMMITS["main"], "text-classification"), (COMMITS["v1"], "fill-mask")):
        folder = tiny_checkpoint("distilbert", task)
        server.files[commit] = {path.name: path.read_bytes() for path in folder.iterdir()}
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def resolved(hub: Hub, home: Path, name: str, revision: str | None = None, **environment: str) -> str:
    """The directory of the checkpoint or the sentence of the error; the client reads its environment at import."""
    script = """
import sys
from distilfast.errors import WeightsError
from distilfast.weights import resolve
try:
    print(resolve(sys.argv[1], revision=sys.argv[2] or None))
except WeightsError as error:
    print(error)
"""
    return output(hub, home, script, name, revision or "", **environment)


def output(hub: Hub, home: Path, script: str, *args: str, **environment: str) -> str:
    """What ``script`` prints where its hub is this one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "NO_PROXY": "*"}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *args],
        env=clean | settings | quiet | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def weights_in(directory: str) -> bytes:
    return (Path(directory) / WEIGHTS).read_bytes()


def test_first_load_then_offline_then_another_revision(hub: Hub, tmp_path: Path) -> None:
    first = resolved(hub, tmp_path, "team/model")
    assert weights_in(first) == hub.files[COMMITS["main"]][WEIGHTS]
    hub.fetched.clear()
    assert resolved(hub, tmp_path, "team/model", HF_HUB_OFFLINE="1") == first and not hub.fetched
    other = resolved(hub, tmp_path, "team/model", "v1")
    assert weights_in(other) == hub.files[COMMITS["v1"]][WEIGHTS]


@pytest.mark.parametrize(
    ("name", "revision", "reason"),
    [
        ("team/gated", None, "access to it must be asked for at {hub}/team/gated, and then HF_TOKEN"),
        ("team/absent", None, "there is no such repository, or it is private, which needs HF_TOKEN"),
        ("team/model", "v9", "there is no such revision; {hub}/team/model/tree/main lists them"),
    ],
)
def test_what_is_not_to_be_had(hub: Hub, tmp_path: Path, name: str, revision: str | None, reason: str) -> None:
    message = resolved(hub, tmp_path, name, revision)
    address = f"http://127.0.0.1:{hub.server_port}"
    assert f"nor to be had from the hub: {reason.format(hub=address)}" in message and "\n" not in message


@pytest.mark.parametrize("both", [False, True])
def test_a_pickle_is_fetched_only_without_safetensors(hub: Hub, tmp_path: Path, both: bool) -> None:
    files = hub.files[COMMITS["main"]]
    files["pytorch_model.bin"] = b"a pickle"
    if not both:
        del files[WEIGHTS]
    assert Path(resolved(hub, tmp_path, "team/model")).is_dir()
    assert ("pytorch_model.bin" in hub.fetched) is not both and "config.json" in hub.fetched


def test_a_mistyped_path_names_what_lies_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the hub client's tracebacks."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "models" / "ner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"; here models has ner\.$") as refused:
        resolve("models/nerr")
    assert refused.value.__suppress_context__


def test_a_cut_connection_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.cut = True
    whole = bytes(range(251)) * 100_000  # the client keeps whole chunks of 10 MiB
    hub.files[COMMITS["main"]][WEIGHTS] = whole
    assert weights_in(resolved(hub, tmp_path, "team/model")) == whole
    first, second = hub.ranges
    assert first == 0 and 0 < second <= len(whole) // 2


DEMO = """
from distilfast.cli import demo, hub, rich_tables
import json, sys
demo.MASKED_LM = "team/model"
shown = demo.fill_mask(None, rich_tables.console(stderr=True))
print(json.dumps([shown, [hub.refusal(name) for name in ("team/model", "team/gated", "team/absent")]]))
"""


def test_the_demo_fetches_what_the_hub_has(hub: Hub, tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    """Fill-mask as on the model card, and afterwards, without the hub, from its cache."""
    hub.files[COMMITS["main"]] = hub.files[COMMITS["v1"]]
    first, refusals = json.loads(output(hub, tmp_path, DEMO))
    pipe = distilfast.pipeline("fill-mask", tiny_checkpoint("distilbert", "fill-mask"))
    assert first["results"]["Hello I'm a [MASK] model."] == pipe("Hello I'm a [MASK] model.")
    assert refusals[0] is None and "only to those" in refusals[1] and "shows no team/absent" in refusals[2]
    hub.fetched.clear()
    again, refusals = json.loads(output(hub, tmp_path, DEMO, HF_HUB_OFFLINE="1"))
    assert again == first and not hub.fetched and "is not asked" in refusals[0]
