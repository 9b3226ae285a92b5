"""A long run of mixed requests: answers that stay bit-equal, memory that stays flat.

    python -m benchmarks.soak                       1,000,000 requests on small checkpoints, some minutes
    python -m benchmarks.soak --requests 20000 --model CHECKPOINT

Callers in threads of their own take requests at random from a fixed set: texts through pipelines and batches of random
shapes through engines of different tasks. Each answer is compared with that of the first time, bit for bit. Resident
memory is read all along; what it grew by after the first tenth is the result. Exit status 1 where an answer changed or
memory grew by more than 1 %.

An engine keeps a workspace for each call that was ever under way at once, as large as the largest batch that was
computed in it. Left to chance these sizes are reached late, two megabytes at a time, so all callers first send the
largest batch to each engine together.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from distilfast import Engine, PackedBatch, pipeline
from distilfast.pipelines import ZeroShotClassificationPipeline
from distilfast.synthetic import write_checkpoint

GROWTH = 1.01
SMALL = {"dim": 64, "n_heads": 2, "n_layers": 2, "hidden_dim": 128, "vocab_size": 512, "max_position_embeddings": 128}
WORDS = ("a", "film", "What", "17:42", "not", "[MASK]", "Zürich", "?", "never", "PIN")

Request = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument(
        "--model", type=Path, help="a masked LM's checkpoint instead of a small one with seeded weights"
    )
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        requests, engines = _requests(given.model or _small(Path(scratch) / "lm", "fill-mask"), Path(scratch))
        for engine in engines:
            _fill_workspaces(engine, given.callers)
        began = time.perf_counter()
        changed, resident = _run(requests, given.requests, given.callers, console)
        seconds = time.perf_counter() - began
    first, most = resident[len(resident) // 10], max(resident[len(resident) // 10 :])
    console.print(f"{given.requests:,} requests of {len(requests)} kinds, {given.callers} callers, {seconds:,.0f} s")
    console.print(f"answers that changed: {changed}; resident {first:.1f} MiB, at most {most:.1f} MiB later")
    sys.exit(changed > 0 or most > GROWTH * first)


def _small(directory: Path, task: Any) -> Path:
    return write_checkpoint(directory, task=task, config={"model_type": "distilbert"} | SMALL)


def _requests(model: Path, scratch: Path) -> tuple[list[Request], list[Engine]]:
    """600 of them, each of which gives the same bytes every time, and the engines that answer."""
    rng = np.random.default_rng(0)
    filler = pipeline("fill-mask", model, threads=2)
    labels = pipeline("text-classification", _small(scratch / "labels", "text-classification"), threads=1)
    zero_shot = ZeroShotClassificationPipeline(labels.engine, {"candidate_labels": ["a film", "sport", "rain"]})
    similar = pipeline("sentence-similarity", _small(scratch / "vectors", "feature-extraction"), threads=1)
    choices = pipeline("multiple-choice", _small(scratch / "choices", "multiple-choice"), threads=2)
    engines = [filler.engine, Engine.from_pretrained(scratch / "labels", precision="int8", threads=2)]
    made: list[Request] = []
    for _ in range(100):
        texts = [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(rng.integers(1, 4))]
        made.append(lambda texts=texts: labels(texts))
        made.append(lambda texts=texts: filler([f"{text} [MASK]" for text in texts], top_k=2))
        made.append(lambda texts=texts: zero_shot(texts, multi_label=len(texts) > 1))
        made.append(lambda texts=texts: similar({"source_sentence": texts[0], "sentences": texts}))
        made.append(lambda texts=texts: choices({"prompt": texts[0], "choices": texts}, truncation=True))
        engine = engines[len(made) // 5 % 2]
        lengths = (engine.config.max_positions ** rng.random(rng.integers(1, 6))).astype(int)
        batch = PackedBatch.from_sequences([rng.integers(0, 200, n).tolist() for n in lengths])
        made.append(lambda engine=engine, batch=batch: engine.logits(batch).tobytes())
    return made, [*engines, labels.engine, similar.engine, choices.engine]


def _fill_workspaces(engine: Engine, callers: int) -> None:
    """``callers`` calls at once, of a batch larger than any request's, a hundred times."""
    positions = engine.config.max_positions
    batch = PackedBatch.from_sequences([[0] * positions] * 8)
    together = threading.Barrier(callers)

    def call() -> None:
        for _ in range(100):
            together.wait()
            engine.encode(batch)
            if engine.head.linears:
                engine.logits(batch)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run(requests: list[Request], count: int, callers: int, console: Console) -> tuple[int, list[float]]:
    """How many answers differed from their first, and resident MiB, read some thousand times."""
    wanted = [pickle.dumps(request()) for request in requests]
    resident, changed, each = [resident_mib()], [0] * callers, count // callers
    done, every = [0] * callers, max(count // 2000, 1)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("requests", total=count)

        def call(caller: int) -> None:
            rng = np.random.default_rng(caller)
            for i in range(each):
                which = int(rng.integers(len(requests)))
                changed[caller] += pickle.dumps(requests[which]()) != wanted[which]
                done[caller] += 1
                if caller == 0 and i % every == 0:
                    resident.append(resident_mib())
                    progress.update(task, completed=sum(done))

        threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sum(changed), resident


def resident_mib(process: int | str = "self") -> float:
    """Of a process, by its number."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
