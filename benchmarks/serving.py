"""Servers under open-loop load: requests arrive when they arrive, whether or not others have been answered.

    python -m benchmarks.serving                        every server, 50, 80, 100 and 300 % of our capacity
    python -m benchmarks.serving --only distilfast onnxruntime --loads 0.5 --seconds 5
    python -m benchmarks.serving --mixed                5 % of the texts have 512 tokens

Texts of CLINC150 are classified by full-size seeded weights with the real vocabulary. A latency counts from the moment
at which a request was due, so a server that falls behind is charged for it. Goodput is what is answered within the
deadline. Our capacity is the rate at which 32 callers, who ask again as soon as they are answered, are served. The
servers run one after the other on the same cores as the caller, and each load is offered to all of them before the
next.

Beside ours stands what the simulator predicts for the same arrivals, from two measurements: what forwards cost, and
our capacity, whose inverse less a text's share of a forward is what a request costs beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import rows
from benchmarks.engines import missing
from benchmarks.from_strings import inputs_of
from distilfast import machine, pipeline
from distilfast.serving.cost import Cost, Curve
from distilfast.serving.curves import measured_curve
from distilfast.serving.scheduler import Batch, Model, Scheduler
from distilfast.serving.simulation import Arrival, Simulation
from distilfast.synthetic import write_checkpoint

DEADLINE_MS = 25.0
LABELS = 151
CALLERS = 32
START_S = 120
_HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
_OURS = {"truncate": True, "parameters": {"top_k": 1}}  # what the other servers do anyway; they ignore these fields
SERVERS = {
    "distilfast": ("int8", ("fastapi", "uvicorn")),
    "transformers": ("fp32", ("torch", "transformers", "fastapi", "uvicorn")),
    "onnxruntime": ("int8", ("torch", "transformers", "onnxruntime", "onnx", "fastapi", "uvicorn")),
    "ctranslate2": ("int8", ("torch", "transformers", "ctranslate2", "fastapi", "uvicorn")),
    "ray": ("fp32", ("torch", "transformers", "ray")),
}
"""By name: the precision, and the packages that are needed; ``benchmarks.servers`` has all but ours."""


def main() -> None:
    arguments = _arguments()
    console = Console(markup=False, highlight=False)
    origin = {"model": "synthetic", **rows.provenance()}
    out = arguments.out or rows.default_file(origin)
    texts = inputs_of("text-classification")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_checkpoint(
            Path(scratch) / "intent",
            task="text-classification",
            num_labels=LABELS,
            vocabulary=Path(rows.__file__).resolve().parents[2] / "shared" / "data" / "vocab-cased",
        )
        bodies = [json.dumps({"inputs": text} | _OURS).encode() for text in texts]
        long = json.dumps({"inputs": " ".join(texts)[:3000]} | _OURS).encode()
        capacity = arguments.capacity or _capacity(checkpoint, Path(scratch), bodies, arguments)
        console.print(f"capacity: {capacity:.0f} requests a second")
        curve, lengths = _costs(checkpoint, texts, arguments.threads)
        for load in arguments.loads:
            due, kinds = arrivals(load * capacity, arguments.seconds, arguments.arrivals, 0.05 * arguments.mixed)
            sent = [long if kind else bodies[i % len(bodies)] for i, kind in enumerate(kinds)]
            for name in arguments.only:
                row = _offered(name, checkpoint, Path(scratch), due, kinds, sent, arguments)
                row |= {"load": load, "rate": load * capacity, "arrivals": arguments.arrivals, "mixed": arguments.mixed}
                if name == "distilfast" and "error" not in row:
                    tokens = [512 if kind else lengths[i % len(lengths)] for i, kind in enumerate(kinds)]
                    latencies, statuses = predicted(curve, tokens, due, capacity)
                    row["predicted"] = summary(latencies[~kinds], statuses[~kinds], arguments.seconds)
                rows.append(out, [{"what": "serving", "contestant": name, **row, **origin}])
                console.print(_line(name, row))
                if "predicted" in row:
                    console.print(_line("(predicted)", {"load": load} | row["predicted"]))
    console.print(f"rows: {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--loads", nargs="+", type=float, default=[0.5, 0.8, 1.0, 3.0], help="parts of our capacity")
    parser.add_argument("--capacity", type=float, help="requests a second, instead of measuring them")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--arrivals", choices=("poisson", "bursty"), default="poisson")
    parser.add_argument("--mixed", action="store_true", help="one text of twenty has 512 tokens")
    parser.add_argument("--threads", type=int, default=machine.info()["threads"])
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    return parser.parse_args()


def arrivals(rate: float, seconds: float, kind: str, long: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """When requests are due, in seconds from the start, and which of them are long; ``rate`` a second on average.

    "poisson": independent of each other. "bursty": for a tenth of a second of each half at three times the rate, and
    for the rest of it at half of it.
    """
    rng = np.random.default_rng(7)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds * 1.5) + 100))
    if kind == "bursty":
        due = _stretched(due)
    due = due[due < seconds]
    return due, rng.random(len(due)) < long


def _stretched(due: np.ndarray) -> np.ndarray:
    """Times of a constant rate as those of one that is 3 for 0.1 s and 0.5 for 0.4 s, again and again."""
    period, burst = 0.5, 0.1
    cycle, rest = np.divmod(due, period)
    within = np.where(rest < 3 * burst, rest / 3, burst + (rest - 3 * burst) / 0.5)
    return cycle * period + within


def _costs(checkpoint: Path, texts: Sequence[str], threads: int) -> tuple[Curve, list[int]]:
    """What forwards cost here, and the tokens of each text."""
    pipe = pipeline("text-classification", checkpoint, precision="int8", threads=threads)
    encodings = pipe.tokenizer.encode_batch(list(texts), truncation=True, max_length=512)
    return measured_curve(pipe), [len(each.ids) for each in encodings]


def predicted(
    curve: Curve, tokens: Sequence[int], due: np.ndarray, capacity: float, deadline: float = DEADLINE_MS
) -> tuple[np.ndarray, np.ndarray]:
    """Latencies in ms and statuses of requests that are ``due``, by simulation of the scheduler.

    ``tokens``: of each request. A batch takes its forward and, for each request in it, what HTTP and tokenising take.
    """
    cost = Cost(curve)
    short = [length for length in tokens if length <= cost.quantum]
    beside = max(0.0, 1 / capacity - sum(cost.share([length]) for length in short) / len(short))

    def seconds(batch: Batch) -> float:
        return curve(batch.lengths) + beside * len(batch.pieces)

    simulation = Simulation(Scheduler({"": Model(cost)}), seconds)
    results = simulation.run(Arrival(at, [n], deadline / 1e3) for at, n in zip(due, tokens, strict=True))
    latencies = np.array([1e3 * (each.latency or 0.0) for each in results])
    return latencies, np.array([200 if each.latency is not None else 504 if each.late else 429 for each in results])


def summary(latencies: np.ndarray, statuses: np.ndarray, seconds: float, deadline: float = DEADLINE_MS) -> rows.Row:
    """Of requests with ``latencies`` in ms and HTTP ``statuses``, 0 for no answer, that arrived in ``seconds``."""
    answered, refused = latencies[statuses == 200], latencies[statuses == 429]
    percentiles = {f"p{share:g}_ms": float(np.percentile(answered, share)) for share in (50, 99, 99.9) if len(answered)}
    return {
        "requests": len(statuses),
        "answered": len(answered),
        "refused": len(refused),
        "failed": int(len(statuses) - len(answered) - len(refused)),
        "deadline_ms": deadline,
        "goodput": float((answered <= deadline).sum() / seconds),
        **percentiles,
        **({"refused_p99_ms": float(np.percentile(refused, 99))} if len(refused) else {}),
    }


def _line(name: str, row: rows.Row) -> str:
    if "error" in row:
        return f"{name}: {row['error']}"
    words = [f"{key} {row[key]:.1f}" for key in ("p50_ms", "p99_ms", "p99.9_ms", "refused_p99_ms") if key in row]
    counts = f"{row['refused']} refused, {row['failed']} failed of {row['requests']}"
    return f"{row['load']:4.0%} {name:13} goodput {row['goodput']:6.1f}/s  {'  '.join(words)}  {counts}"


def _offered(
    name: str,
    checkpoint: Path,
    scratch: Path,
    due: np.ndarray,
    kinds: np.ndarray,
    sent: Sequence[bytes],
    arguments: argparse.Namespace,
) -> rows.Row:
    """One server under one load."""
    precision, packages = SERVERS[name]
    row: rows.Row = {"precision": precision, "threads": arguments.threads}
    if reason := missing(*packages):
        return row | {"error": reason}
    try:
        with _server(name, checkpoint, scratch, arguments) as port:
            asyncio.run(_closed_loop(port, sent[:200], 4, 3.0))  # warm
            latencies, statuses = asyncio.run(_open_loop(port, due, sent))
    except RuntimeError as error:
        return row | {"error": str(error)}
    row |= summary(latencies[~kinds], statuses[~kinds], arguments.seconds)
    if kinds.any():
        row["long"] = summary(latencies[kinds], statuses[kinds], arguments.seconds)
    return row


def _capacity(checkpoint: Path, scratch: Path, bodies: Sequence[bytes], arguments: argparse.Namespace) -> float:
    with _server("distilfast", checkpoint, scratch, arguments, deadline_ms=0) as port:
        asyncio.run(_closed_loop(port, bodies, CALLERS, 3.0))
        count, seconds = asyncio.run(_closed_loop(port, bodies, CALLERS, 8.0))
    return count / seconds


@contextmanager
def _server(
    name: str, checkpoint: Path, scratch: Path, arguments: argparse.Namespace, deadline_ms: float = DEADLINE_MS
) -> Iterator[int]:
    """A server's port, as soon as it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if name == "distilfast":
        code = "from distilfast.cli import main; main()"
        words: list[Any] = ["-c", code, "serve", f"intent={checkpoint}", "--precision", "int8", "--port", port]
        words += ["--deadline-ms", deadline_ms, "--threads", arguments.threads, "--log-level", "error"]
    else:
        words = ["-m", "benchmarks.servers", name, checkpoint, arguments.threads, scratch, port]
    root = Path(__file__).resolve().parents[1]
    with (scratch / f"{name}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, *map(str, words)], cwd=root, stdout=log, stderr=log)
    try:
        if reason := _not_started(port, process):
            last = (scratch / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"The server {reason}: {''.join(last)}")
        yield port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _not_started(port: int, process: subprocess.Popen[bytes]) -> str | None:
    """None as soon as an answer comes, or what has happened instead."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            return f"has ended with status {process.returncode}"
        try:
            if asyncio.run(_asked(port)) == 200:
                return None
        except OSError:
            pass
        time.sleep(0.2)
    return f"has not answered within {START_S} s"


async def _asked(port: int) -> int:
    connections = Connections(port)
    try:
        return await connections.post(b'{"inputs": "hello"}')
    finally:
        connections.close()


async def _open_loop(port: int, due: np.ndarray, sent: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Latencies in ms from the moment each request was due, and statuses."""
    connections = Connections(port)
    latencies, statuses = np.zeros(len(due)), np.zeros(len(due), int)
    loop = asyncio.get_running_loop()
    begin = loop.time() + 0.1

    async def ask(i: int) -> None:
        try:
            statuses[i] = await asyncio.wait_for(connections.post(sent[i]), 30)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            statuses[i] = 0
        latencies[i] = 1e3 * (loop.time() - begin - due[i])

    tasks = []
    for i, at in enumerate(due):
        if (wait := begin + at - loop.time()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(ask(i)))
    await asyncio.gather(*tasks)
    connections.close()
    return latencies, statuses


async def _closed_loop(port: int, bodies: Sequence[bytes], callers: int, seconds: float) -> tuple[int, float]:
    """Answers to callers that ask again at once, and the seconds that they took."""
    connections = Connections(port)
    loop = asyncio.get_running_loop()
    begin, count = loop.time(), 0

    async def call(k: int) -> None:
        nonlocal count
        i = k
        while loop.time() - begin < seconds:
            status = await connections.post(bodies[i % len(bodies)])
            count += status == 200  # not in one line with the await, before which the old count would be read
            i += callers

    await asyncio.gather(*(call(k) for k in range(callers)))
    connections.close()
    return count, loop.time() - begin


async def _read_body(reader: asyncio.StreamReader, headers: Sequence[bytes]) -> None:
    for line in headers:
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line[15:]))
            return
    size = 1
    while size:  # in chunks, each with its length and ended by a line's end
        size = int(await reader.readline(), 16)
        await reader.readexactly(size + 2)


class Connections:
    """Connections to one server that are kept open, as many as there are requests at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> int:
        """The status of the answer to ``/predict``."""
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"%sContent-Length: %d\r\n\r\n%s" % (_HEAD, len(body), body))
            answer = await reader.readuntil(b"\r\n\r\n")
            lines = answer.lower().split(b"\r\n")
            await _read_body(reader, lines)
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in lines:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(answer[9:12])

    def close(self) -> None:
        """Every one of them."""
        for _, writer in self._idle:
            writer.close()


if __name__ == "__main__":
    main()
