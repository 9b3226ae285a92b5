"""A long run of HTTP requests to `distilfast serve`: answers stay bit-equal, memory and descriptors stay flat.

    python -m benchmarks.soak_server                       1,000,000 requests to small models
    python -m benchmarks.soak_server --requests 20000 --workers 2

Callers take requests at random from a fixed set, over several routes and with bad ones among them, and open a new
connection after every hundred. Status and body of each are compared with those of the first time. The resident memory
and the descriptors of the server's processes are read all along; what they grew by after the first tenth is the result.
Exit status 1 where an answer changed, memory grew by more than 2 %, or a descriptor was left open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from rich.console import Console
from rich.progress import Progress

from benchmarks.soak import SMALL, WORDS, resident_mib
from distilfast.synthetic import write_checkpoint

GROWTH = 1.02
KEPT_OPEN = 100
"""Requests over one connection."""

Answer = tuple[int, bytes]


@dataclass
class Server:
    """The processes of one server, and what they have had."""

    process: subprocess.Popen[bytes]
    port: int
    resident: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Read MiB and descriptors of all its processes."""
        every = [self.process.pid, *_children(self.process.pid)]
        self.resident.append(sum(resident_mib(pid) for pid in every))
        self.descriptors.append(sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in every))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        server = _started(Path(scratch), given.workers)
        try:
            began = time.perf_counter()
            changed = uvloop.run(_run(server, given.requests, given.callers, console))
            seconds = time.perf_counter() - began
        finally:
            server.process.terminate()
            status = server.process.wait(60)
    tenth = len(server.resident) // 10
    first, most = server.resident[tenth], max(server.resident[tenth:])
    opened, last = max(server.descriptors[: tenth + 1]), server.descriptors[-1]
    console.print(f"{given.requests:,} requests, {given.callers} callers, {seconds:,.0f} s; exit status {status}")
    console.print(f"answers that changed: {changed}; resident {first:.1f} MiB, at most {most:.1f} MiB later")
    console.print(f"descriptors: at most {opened} in the first tenth, {last} at the end")
    sys.exit(changed > 0 or most > GROWTH * first or last > opened or status != 0)


def _started(scratch: Path, workers: int) -> Server:
    """A server of three small models, which answers already."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words: list[Any] = ["-c", "from distilfast.cli import main; main()", "serve", "--port", port, "--deadline-ms", 0]
    for name, task in (("intent", "text-classification"), ("vectors", "feature-extraction"), ("masks", "fill-mask")):
        model = write_checkpoint(scratch / name, task=task, config={"model_type": "distilbert"} | SMALL)
        words.append(f"{name}={model}")
    words += ["--workers", workers, "--threads", 1, "--log-level", "warning"]
    process = subprocess.Popen([sys.executable, *map(str, words)])
    while process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return Server(process, port)
        time.sleep(0.2)
    raise RuntimeError(f"The server has ended with status {process.returncode}.")


def _requests() -> list[bytes]:
    """300 of them, each of which gives the same answer every time."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(60):
        texts = [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(rng.integers(1, 4))]
        made.append(_request("/predict", {"inputs": [[text] for text in texts], "truncate": True}))
        made.append(_request("/embed", {"inputs": texts, "truncate": True}))
        made.append(_request("/fill-mask", {"inputs": f"{texts[0]} [MASK]", "parameters": {"top_k": 2}}))
        made.append(_request("/v1/embeddings", {"input": texts[0], "model": "vectors"}))
        made.append(_request("/predict", {"inputs": len(texts)}))
    return made


def _request(path: str, body: dict[str, Any]) -> bytes:
    sent = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
    return head.encode() + sent


async def _run(server: Server, count: int, callers: int, console: Console) -> int:
    """How many answers differed from their first."""
    requests = _requests()
    wanted: list[Answer] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for request in requests:
        writer.write(request)
        wanted.append(await _answer(reader))
    writer.close()
    done = changed = 0
    every = max(count // 2000, 1)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("requests", total=count)

        async def call(caller: int) -> None:
            nonlocal done, changed
            rng = np.random.default_rng(caller)
            while done < count:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                for which in rng.integers(len(requests), size=KEPT_OPEN):
                    writer.write(requests[which])
                    answer = await _answer(reader)
                    changed += answer != wanted[which]
                    done += 1
                    if done % every == 0:
                        server.look()
                        progress.update(task, completed=done)
                writer.close()

        await asyncio.gather(*(call(caller) for caller in range(callers)))
    await asyncio.sleep(1)  # until the server has seen the last connections close
    server.look()
    return changed


async def _answer(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(head[9:12]), await reader.readexactly(int(length[15:]))


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(each) for each in found.read_text().split()] if found.exists() else []


if __name__ == "__main__":
    main()
