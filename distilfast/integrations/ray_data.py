"""Ray Data over the row groups of Parquet files: actors hold an engine each, and every row is answered exactly once.

    distilfast map text-classification MODEL reviews/ answers/ --column review

The same on a cluster, where the folders are those of a file system that all of its machines see:

    ray job submit --address http://HEAD:8265 -- distilfast map text-classification MODEL reviews/ answers/ …

Ray Data hands out row groups by their places, not rows: an actor reads them and writes their answers. So what
``parquet_job`` promises does not depend on how often Ray runs a task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from distilfast import checkpoint
from distilfast.errors import DistilfastError, InputError
from distilfast.integrations.parquet_job import Output, Part, Work, answer_part, facts, model_digest, parts
from distilfast.pipelines import pipeline

_BLOCKS = 10_000
"""Tasks of Ray at most: each costs it some memory, whatever it does."""


class MapJob:
    """A job of ``work`` from ``input``, a Parquet file or a folder of them, into the folder ``output``.

    ``parts``: all of them; ``missing``: those that are not in ``output`` yet. Raises InputError, also where ``output``
    belongs to another job, and the errors of ``pipeline``.
    """

    def __init__(self, work: Work, input: str | Path, output: str | Path) -> None:
        self.work = work
        self.parts, files = parts(Path(input), work)
        directory = checkpoint.resolve(work.model, revision=work.engine.get("revision"))
        if work.engine.get("backend", "auto") not in ("cuda", "triton"):  # this machine may have no GPU
            # An error of the model is met here, in one sentence, and workers find its weights packed.
            pipeline(work.task, work.model, **work.engine, **work.options)
        self.output = Output(Path(output).absolute(), facts(work, files, model_digest(directory)))
        self.missing = self.output.missing(self.parts)

    def run(self, *, threads: int = 1, gpus: float = 0, workers: int | None = None) -> Iterator[int]:
        """Do what is missing; the rows of each part as it is done.

        ``workers``: actors at most, None for as many as the cluster has room for; each takes ``threads`` of Ray's CPUs
        and ``gpus`` of its GPUs. Raises InputError for a part that cannot be done, and where no worker fits.
        """
        if not self.missing:
            self.output.finish()
            return
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        most = min(workers or len(self.missing), _room({"CPU": threads, "GPU": gpus}), len(self.missing))
        blocks = min(len(self.missing), _BLOCKS)
        missing = ray.data.from_items([asdict(part) for part in self.missing], override_num_blocks=blocks)
        done = missing.map_batches(
            _Worker,
            fn_constructor_args=(self.work, self.output),
            batch_size=1,
            num_cpus=threads,
            num_gpus=gpus,
            compute=ActorPoolStrategy(min_size=1, max_size=most),
        )
        for row in done.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            yield int(row["rows"])
        self.output.finish()


def _room(needed: dict[str, float]) -> int:
    """How many workers the cluster has room for; raises InputError for none, which Ray would wait for."""
    there = ray.cluster_resources()
    for name, count in needed.items():
        if count > there.get(name, 0):
            raise InputError(f"A worker needs {count:g} {name}s, and the cluster has {there.get(name, 0):g}.")
    return min(int(there[name] // count) for name, count in needed.items() if count)


class _Worker:
    """What an actor holds."""

    def __init__(self, work: Work, output: Output) -> None:
        self._work, self._output = work, output
        self._pipe = pipeline(work.task, work.model, **work.engine, **work.options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Of a batch of parts, a column for each field."""
        rows = zip(*(column.tolist() for column in batch.values()), strict=True)
        parts = [Part(**dict(zip(batch, row, strict=True))) for row in rows]
        errors = [self._done(part) for part in parts]
        return {"rows": [part.rows for part in parts], "error": errors}

    def _done(self, part: Part) -> str:
        """Why it cannot be done, or "": of an exception Ray hands on the text of a traceback only."""
        try:
            with self._output.writing(part) as path:
                answer_part(self._pipe, self._work, part, path)
        except DistilfastError as error:
            return str(error)
        except OSError as error:
            return f"{part.name} cannot be written: {error.strerror}."
        return ""
