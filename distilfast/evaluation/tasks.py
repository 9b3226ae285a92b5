"""``evaluate``: any data set by its name."""

from __future__ import annotations

from pathlib import Path

from distilfast.arguments import listed
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.evaluation import glue, intents, ner, squad
from distilfast.evaluation.result import Result, Scores
from distilfast.evaluation.sequences import Progress, no_progress
from distilfast.types import BackendName, Precision, Task

# Data set -> the task whose head it needs.
DATASETS: dict[str, Task] = {
    **dict.fromkeys(glue.TASKS, "text-classification"),
    "squad": "question-answering",
    "ner": "token-classification",
    **dict.fromkeys(intents.DATA, "feature-extraction"),
}
_ALIASES = {"sst-2": "sst2", "sts-b": "stsb"}


def evaluate(
    model: str | Path | Engine,
    dataset: str,
    path: str | Path | None = None,
    *,
    precision: Precision = "fp32",
    backend: BackendName = "auto",
    threads: int | None = None,
    revision: str | None = None,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> Result:
    """The official metrics of ``model`` on labelled data, in percent.

    ``model``: a directory, a hub id, or an ``Engine`` loaded for the task of ``dataset``, whose precision and backend
    then hold. ``dataset``: one of ``DATASETS``. ``path``: GLUE's folder, the task's own or a file; SQuAD's JSON; a
    CoNLL file; the folder of an intent data set; None fetches GLUE through the package ``datasets``. ``limit``: at
    most so many examples, evenly spaced over the data (of each part of MNLI; of neighbours and of queries). Raises
    the errors of ``Engine.from_pretrained``, and InputError for data that cannot be used.
    """
    name = _ALIASES.get(dataset.lower(), dataset.lower())
    if name not in DATASETS:
        raise InputError(f"dataset {dataset!r} is not known; {listed(name, DATASETS)}.")
    where = _existing(name, path)
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; a positive integer is needed.")
    name_of_model = str(model.directory if isinstance(model, Engine) else model)
    if not isinstance(model, Engine):
        model = Engine.from_pretrained(
            model, task=DATASETS[name], precision=precision, backend=backend, threads=threads, revision=revision
        )
    if model.task != DATASETS[name]:
        raise InputError(f"The engine was loaded for {model.task}; {name} needs {DATASETS[name]}.")
    scores = _scores(model, name, where, limit, progress)
    return Result(
        **vars(scores),
        dataset=name,
        model=name_of_model,
        precision=model.precision,
        detail=str(model.info()["detail"]),
    )


def _existing(name: str, path: str | Path | None) -> Path | None:
    if path is None and name not in glue.TASKS:
        raise InputError(f"{name} needs the path of its data.")
    if path is not None and not Path(path).expanduser().exists():
        raise InputError(f"{path} does not exist.")
    return None if path is None else Path(path).expanduser()


def _scores(engine: Engine, name: str, path: Path | None, limit: int | None, progress: Progress) -> Scores:
    if path is None or name in glue.TASKS:
        return glue.evaluate(engine, name, path, limit, progress)
    if name in intents.DATA:
        return intents.evaluate(engine, name, path, limit, progress)
    return (squad if name == "squad" else ner).evaluate(engine, path, limit, progress)
