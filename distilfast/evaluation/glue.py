"""The eight GLUE tasks that DistilBERT is measured by, from GLUE's own TSV files or through ``datasets``.

Layout, metrics and label names: Wang et al., GLUE, arXiv 1804.07461, its download_glue_data.py, and the loading
script of ``nyu-mll/glue``. A tab separates columns and nothing else does: quotes are text (``csv.QUOTE_NONE``). Texts
are truncated at the model's maximum length only; run_glue.py truncates at 128 tokens by default.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distilfast.config import ModelConfig
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.evaluation import metrics
from distilfast.evaluation.result import Scores
from distilfast.evaluation.sequences import Ids, Progress, head_outputs, longest, subset
from distilfast.tokenizer import Text

HUB = "nyu-mll/glue"
_METRICS: dict[str, Callable[..., float]] = {
    name: getattr(metrics, name) for name in ("accuracy", "f1", "matthews", "pearson", "spearman")
}


class Part(NamedTuple):
    """One labelled split: ``name`` ends its metrics' names; ``file`` in GLUE's folder, ``split`` on the hub."""

    name: str
    file: str
    split: str


@dataclass(frozen=True)
class Task:
    """One task: its folder, the header's names of its columns, its labels in the order of their numbers.

    ``labels``: () for a score. ``header``: the columns of a file that has no header line. ``hub_texts``: the text
    columns on the hub, where they are called otherwise.
    """

    folder: str
    texts: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    parts: tuple[Part, ...] = (Part("", "dev.tsv", "validation"),)
    header: tuple[str, ...] = ()
    hub_texts: tuple[str, ...] = ()


_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")

TASKS = {
    "cola": Task(
        "CoLA",
        ("sentence",),
        "label",
        ("unacceptable", "acceptable"),
        ("matthews",),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Task("SST-2", ("sentence",), "label", ("negative", "positive"), ("accuracy",)),
    "mrpc": Task(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        hub_texts=_SENTENCES,
    ),
    "qqp": Task(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
    ),
    "stsb": Task("STS-B", _SENTENCES, "score", (), ("pearson", "spearman")),
    "mnli": Task(
        "MNLI",
        _SENTENCES,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        parts=(
            Part("matched", "dev_matched.tsv", "validation_matched"),
            Part("mismatched", "dev_mismatched.tsv", "validation_mismatched"),
        ),
        hub_texts=("premise", "hypothesis"),
    ),
    "qnli": Task("QNLI", ("question", "sentence"), "label", _ENTAILMENT, ("accuracy",)),
    "rte": Task("RTE", _SENTENCES, "label", _ENTAILMENT, ("accuracy",)),
}


@dataclass(frozen=True)
class Examples:
    """N texts or pairs with their labels, numbers into ``Task.labels`` or scores; ``skipped``: lines without them."""

    texts: list[Text]
    labels: list[float]
    skipped: int = 0


def evaluate(engine: Engine, name: str, path: Path | None, limit: int | None, progress: Progress) -> Scores:
    """The official metrics of task ``name`` on its development sets.

    ``path``: GLUE's folder, the task's own, or one file; None loads through ``datasets``. ``limit`` holds for each
    part. Raises InputError.
    """
    task = TASKS[name]
    columns, notes = _columns(engine.config, name, task)
    scores: dict[str, float] = {}
    counts = {"examples": 0, "skipped": 0}
    predictions: list[float] = []
    for part, examples in read(name, path).items():
        chosen = subset(list(zip(examples.texts, examples.labels, strict=True)), limit)
        logits = classify(engine, [text for text, _ in chosen], progress)
        answers = logits[:, 0] if columns is None else logits[:, columns].argmax(axis=1)
        labels = [label for _, label in chosen]
        for metric in task.metrics:
            scores["_".join(filter(None, (metric, part)))] = _METRICS[metric](answers, labels)
        counts["examples"] += len(chosen)
        counts["skipped"] += examples.skipped
        predictions += answers.tolist()
    return Scores(metrics.percent(scores), counts, notes, tuple(predictions))


def classify(engine: Engine, texts: Sequence[Text], progress: Progress) -> np.ndarray:
    """The logits [N, C] of texts and pairs, truncated at the model's maximum length."""
    encodings = engine.tokenizer.encode_batch(texts, truncation=True, max_length=longest(engine))
    return np.stack(head_outputs(engine, [Ids(each.ids, each.type_ids) for each in encodings], progress))


def _columns(config: ModelConfig, name: str, task: Task) -> tuple[list[int] | None, tuple[str, ...]]:
    """The model's number of each of the task's labels, None for a score; and how they were matched, if by number.

    By name where the model names its labels, since the order differs between checkpoints of MNLI; by number where it
    only counts them ("LABEL_0" or "0"). Raises InputError for any other labels: a guessed order would silently give a
    wrong score.
    """
    if not task.labels:
        if config.num_labels != 1:
            raise InputError(f"{name} is a score and needs a model with one label; this one has {config.num_labels}.")
        return None, ()
    numbers = {_plain(label): number for number, label in config.id2label.items()}
    if set(numbers) == set(task.labels):
        return [numbers[label] for label in task.labels], ()
    if len(numbers) == len(task.labels) and set(numbers) in _counted(len(numbers)):
        order = [number for _, number in sorted(numbers.items())]
        order_of_labels = ", ".join(f"{i} is {label}" for i, label in enumerate(task.labels))
        return order, (f"The model does not name its labels; they were taken by number: {order_of_labels}.",)
    raise InputError(
        f"The model's labels are {', '.join(config.id2label.values())} and those of {name} {', '.join(task.labels)}; "
        "id2label in its config.json must name them so."
    )


def _plain(label: str) -> str:
    return re.sub(r"[\s-]+", "_", label.strip().lower())


def _counted(number: int) -> list[set[str]]:
    """What the labels of a model that names none are called."""
    return [{f"{word}{i}" for i in range(number)} for word in ("label_", "")]


def read(dataset: str, path: Path | None) -> dict[str, Examples]:
    """The examples of each part of task ``dataset``, whose name is "" where there is only one. Raises InputError."""
    task = TASKS[dataset]
    if path is None:
        return {part.name: _from_hub(dataset, task, part) for part in task.parts}
    if path.is_file():
        return {"": read_tsv(path, task)}
    folders = [path, path / task.folder]
    candidates = [(part.name, folder / part.file) for folder in folders for part in task.parts]
    files = {name: file for name, file in candidates if file.is_file()}
    if not files:
        wanted = " or ".join(part.file for part in task.parts)
        raise InputError(f"{path} holds no {wanted}, nor does a folder {task.folder} in it.")
    return {part: read_tsv(file, task) for part, file in files.items()}


def read_tsv(path: Path, task: Task) -> Examples:
    """A labelled file in GLUE's layout; a line with too few columns or no label of the task is skipped and counted.

    QQP has some such lines, and MNLI marks with "-" what its annotators did not agree on. Raises InputError for a
    file without the task's columns, or without any usable line.
    """
    try:
        # One line ends where the file says so, not at the other characters that Python takes for line ends.
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            lines = [line.rstrip("\r\n").split("\t") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable text: {error}.") from None
    header = list(task.header) or (lines.pop(0) if lines else [])
    if missing := [name for name in (*task.texts, task.label) if name not in header]:
        raise InputError(f"{path} has no column {', '.join(missing)}; a labelled file in GLUE's layout is needed.")
    text_columns, label_column = [header.index(name) for name in task.texts], header.index(task.label)
    rows = [line for line in lines if len(line) > max(*text_columns, label_column)]
    numbered = [(_text([row[i] for i in text_columns]), _label(row[label_column], task)) for row in rows]
    usable = [(text, label) for text, label in numbered if label is not None]
    if not usable:
        raise InputError(f"{path} holds no usable line for {task.folder}.")
    texts, labels = zip(*usable, strict=True)
    return Examples(list(texts), list(labels), len(lines) - len(usable))


def _text(parts: list[str]) -> Text:
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _label(cell: str, task: Task) -> float | None:
    """The number of a label that is written as a name or a number; a score as it is; None for anything else."""
    if cell in task.labels:
        return task.labels.index(cell)
    try:
        value = float(cell)
    except ValueError:
        return None
    fits = math.isfinite(value) if not task.labels else value in range(len(task.labels))
    return value if fits else None


def _from_hub(name: str, task: Task, part: Part) -> Examples:
    """A split through ``datasets``, which need not be installed; a label of −1 says that there is none."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise InputError(
            f"No local data was named for {name} and the package datasets is not installed; "
            "name GLUE's folder, or pip install datasets."
        ) from None
    try:
        split = datasets.load_dataset(HUB, name, split=part.split)
    except Exception as error:  # what it raises for a hub that does not answer is not documented
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{HUB} {name} cannot be had through datasets: {reason}.") from error
    columns = [split[column] for column in (*(task.hub_texts or task.texts), "label")]
    rows = [(_text(list(texts)), float(label)) for *texts, label in zip(*columns, strict=True)]
    usable = [(text, label) for text, label in rows if label >= 0]
    if not usable:
        raise InputError(f"{HUB} {name} has no labels in its split {part.split}.")
    return Examples([text for text, _ in usable], [label for _, label in usable], len(rows) - len(usable))
