"""Throughput of whole pipelines, from strings to answers, beside transformers and ONNX Runtime.

    python -m benchmarks.from_strings                       all tasks, some fifteen minutes
    python -m benchmarks.from_strings --tasks text-classification --limit 500
    python -m benchmarks.from_strings --question-python PYTHON      where transformers 4.57 and onnxruntime are

10,000 requests of CLINC150 are classified, the tweets of WNUT17's test set searched for entities, XQuAD's questions
answered in windows; full-size seeded checkpoints with the real vocabulary. Every contestant has a process of its own,
and they take turns, a fifth of the data at a time; the others in the fastest of their batch sizes. transformers has had
no question-answering pipeline since 5.3, so for that task the others run in ``--question-python``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import rows, tables
from benchmarks.workloads import DATA
from distilfast import Engine, PackedBatch, machine
from distilfast.evaluation import ner, squad
from distilfast.synthetic import spread_labels, write_checkpoint

CONTESTANTS = (
    ("distilfast", "fp32"),
    ("transformers", "fp32"),
    ("distilfast", "bf16"),
    ("transformers", "bf16"),
    ("distilfast", "int8"),
    ("onnxruntime", "int8"),
)
LABELS = {"text-classification": 151, "token-classification": 13, "question-answering": None}
BATCH_SIZES = (1, 8, 32)
PARTS = 5
REQUESTS = 10_000


def main() -> None:
    arguments = _arguments()
    console = Console(markup=False, highlight=False)
    origin = {"model": "synthetic", **rows.provenance()}
    out = arguments.out or rows.RESULTS / f"{date.today()}-{origin['commit']}.jsonl"
    found = []
    with tempfile.TemporaryDirectory() as scratch, Progress(console=console, transient=True) as progress:
        for task in arguments.tasks:
            for row in _measured(task, arguments, Path(scratch), progress):
                found.append({**row, **origin})
                rows.append(out, found[-1:])
    tables.show(found, console)
    console.print(f"rows: {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--limit", type=int, help="at most so many inputs of each task")
    parser.add_argument("--threads", type=int, default=machine.info()["threads"])
    parser.add_argument("--question-python", help="a Python with transformers 4.57 for question-answering")
    parser.add_argument("--out", type=Path, help="append the rows to this file")
    return parser.parse_args()


def inputs_of(task: str) -> list[Any]:
    """Real inputs."""
    if task == "text-classification":
        data = json.loads((DATA / "clinc150" / "data_full.json").read_text())
        return [text for part in ("test", "train") for text, _ in data[part]][:REQUESTS]
    if task == "token-classification":
        return [" ".join(each.words) for each in ner.read(DATA / "wnut17" / "emerging.test.annotated")]
    questions = squad.read(DATA / "squad-xquad-en" / "xquad.en.json")
    return [{"question": each.text, "context": each.context} for each in questions]


class Contestant:
    """A pipeline in its own process."""

    def __init__(self, library: str, precision: str, python: str, *words: object) -> None:
        self.library, self.precision, self.batch_size = library, precision, None
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.pipeline_worker", library, precision, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )
        self.detail = self._read()["detail"]
        self.seconds = self.forward = 0.0
        self.error: str | None = None

    def timed(self, inputs: list[Any], batch_size: int | None) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"inputs": inputs, "batch_size": batch_size}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended", "detail": ""}

    def choose_batch_size(self, inputs: list[Any]) -> None:
        """The fastest on a few inputs; of ours the default."""
        self.error = self.timed(inputs[:8], None).get("error")
        if self.error or self.library == "distilfast":
            return
        found = {size: self.timed(inputs, size) for size in BATCH_SIZES}
        self.batch_size = min(found, key=lambda size: found[size].get("seconds", float("inf")))

    def answer(self, inputs: list[Any]) -> None:
        """Add the seconds for ``inputs``."""
        found = self.timed(inputs, self.batch_size) if self.error is None else {"error": self.error}
        self.error = found.get("error")
        self.seconds += found.get("seconds", 0.0)
        self.forward += found.get("forward") or 0.0

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _measured(task: str, arguments: argparse.Namespace, scratch: Path, progress: Progress) -> Iterator[rows.Row]:
    everything = inputs_of(task)[: arguments.limit]
    checkpoint = write_checkpoint(
        scratch / task / "model", task=task, num_labels=LABELS[task], vocabulary=DATA / "vocab-cased"
    )
    if task == "token-classification":  # or every token had one label, and nothing were to be decoded
        engine = Engine.from_pretrained(checkpoint)
        ids = [each.ids for each in engine.tokenizer.encode_batch(everything[:32])]
        spread_labels(checkpoint, engine.logits(PackedBatch.from_sequences(ids)))
    bar = progress.add_task(task, total=PARTS * len(CONTESTANTS))
    playing = []
    for library, precision in CONTESTANTS:
        elsewhere = task == "question-answering" and library != "distilfast"
        python = arguments.question_python if elsewhere else sys.executable
        if python is None:
            continue  # transformers has no such pipeline here
        playing.append(Contestant(library, precision, python, task, checkpoint, arguments.threads, scratch / task))
    try:
        for contestant in playing:
            contestant.choose_batch_size(everything[:128])
        for part in range(PARTS):
            for contestant in playing:
                contestant.answer(everything[part::PARTS])
                progress.advance(bar)
    finally:
        for contestant in playing:
            contestant.close()
    for each in playing:
        yield _row(task, each, len(everything), arguments.threads)


def _row(task: str, contestant: Contestant, count: int, threads: int) -> rows.Row:
    row: rows.Row = {
        "what": "pipeline",
        "task": task,
        "contestant": contestant.library,
        "precision": contestant.precision,
        "threads": threads,
        "detail": contestant.detail,
    }
    if contestant.error is not None:
        return row | {"error": contestant.error}
    row |= {"inputs": count, "seconds": contestant.seconds, "per_second": count / contestant.seconds}
    if contestant.library == "distilfast":
        return row | {"outside_forward": 1 - contestant.forward / contestant.seconds}
    return row | {"batch_size": contestant.batch_size}


if __name__ == "__main__":
    main()
