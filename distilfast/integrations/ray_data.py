"""Ray Data over the row groups of Parquet files: actors hold an engine each, and every row is answered exactly once.

    distilfast map text-classification MODEL reviews/ answers/ --column review

The same on a cluster, where the folders are those of a file system that all of its machines see:

    ray job submit --address http://HEAD:8265 -- distilfast map text-classification MODEL reviews/ answers/ …

Ray Data hands out numbers of row groups, not rows: an actor reads its own and writes their answers. So what
``parquet_job`` promises does not depend on how often Ray runs a task.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from distilfast import checkpoint
from distilfast.errors import DistilfastError
from distilfast.integrations.parquet_job import Output, Part, Work, answer_part, facts, model_digest, parts
from distilfast.pipelines import pipeline


class MapJob:
    """A job of ``work`` from ``input``, a Parquet file or a folder of them, into the folder ``output``.

    ``parts``: all of them; ``missing``: those that are not in ``output`` yet. Raises InputError, also where ``output``
    belongs to another job, and the errors of ``pipeline``.
    """

    def __init__(self, work: Work, input: str | Path, output: str | Path) -> None:
        self.work = work
        self.parts, files = parts(Path(input), work)
        directory = checkpoint.resolve(work.model, revision=work.engine.get("revision"))
        if work.engine.get("backend", "auto") in ("auto", "cpu", "reference"):
            pipeline(
                work.task, work.model, **work.engine, **work.options
            )  # its errors, and its packed weights are kept
        self.output = Output(Path(output).absolute(), facts(work, files, model_digest(directory)))
        self.missing = self.output.missing(self.parts)

    def run(self, *, threads: int = 1, gpus: float = 0, workers: int | None = None) -> Iterator[int]:
        """Do what is missing; the rows of each part as it is done.

        ``workers``: actors at most, None for as many as the cluster has room for; each takes ``threads`` of Ray's CPUs
        and ``gpus`` of its GPUs. Raises the error of a part that cannot be done.
        """
        if not self.missing:
            self.output.finish()
            return
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error")
        ray.data.DataContext.get_current().enable_progress_bars = False
        room = int(ray.cluster_resources().get("CPU", 1) // threads) or 1
        most = min(workers or room, len(self.missing))
        numbers = ray.data.from_items(list(range(len(self.missing))), override_num_blocks=len(self.missing))
        done = numbers.map_batches(
            _Worker,
            fn_constructor_args=(self.work, self.output, self.missing),
            batch_size=1,
            num_cpus=threads,
            num_gpus=gpus,
            compute=ActorPoolStrategy(min_size=1, max_size=most),
        )
        try:
            for row in done.iter_rows():
                yield int(row["rows"])
        except Exception as error:
            raise _reason(error) from None
        self.output.finish()


class _Worker:
    """What an actor holds."""

    def __init__(self, work: Work, output: Output, parts: list[Part]) -> None:
        self._work, self._output, self._parts = work, output, parts
        self._pipe = pipeline(work.task, work.model, **work.engine, **work.options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        rows = []
        for number in batch["item"]:
            part = self._parts[number]
            with self._output.writing(part) as path:
                answer_part(self._pipe, self._work, part, path)
            rows.append(part.rows)
        return {"rows": rows}


def _reason(error: BaseException) -> BaseException:
    """The error of ours that Ray has wrapped, or what it says itself."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, DistilfastError):
            return at
        at = getattr(at, "cause", None) or at.__cause__
    return error
