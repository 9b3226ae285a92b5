"""A job from Parquet to Parquet, in parts that are each there or not: a job that is killed goes on where it was.

A part is a row group of an input file. Its answers are a file of their own in the output folder, which is written under
a temporary name and renamed when it is whole. Its name says which part it is, so a part that is done twice is there
once, and what is missing is what has no file. ``_job.json`` in the folder says what it is the output of, and a job with
another input, model or option is refused. Readers of Parquet folders skip names that begin with "_" or ".".
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distilfast.errors import InputError
from distilfast.files import read_json
from distilfast.pipelines.base import Pipeline

MANIFEST = "_job.json"
_HIDDEN = ("_", ".")
_MODEL_FILES = (".json", ".txt", ".safetensors", ".bin", ".model")

_SPAN = {"word": "string", "start": "int64", "end": "int64"}
ANSWERS: dict[str, dict[str, str]] = {
    "text-classification": {"label": "string", "score": "float64"},
    "token-classification": {"entity": "string", "score": "float64", "index": "int64", **_SPAN},
    "question-answering": {"score": "float64", "start": "int64", "end": "int64", "answer": "string"},
    "zero-shot-classification": {"sequence": "string", "labels": "list<string>", "scores": "list<float64>"},
    "feature-extraction": {},
}
"""By task, the fields of an answer and their types in Arrow; of feature-extraction it is a vector."""

FIELDS = {"text-classification": ("text", "text_pair"), "question-answering": ("question", "context")}
"""What a row of a task consists of; of every other task, a text."""
_OPTIONAL = ("text_pair",)


# ------------------------------------------------------------------------------------------------ which parts there are


@dataclass(frozen=True)
class Part:
    """Row group ``group`` of ``file``: ``rows`` rows, of which ``first`` others of the file come before.

    ``name``: of its file in the output folder.
    """

    file: str
    group: int
    first: int
    rows: int
    name: str


@dataclass(frozen=True)
class Work:
    """What is asked of each row.

    ``columns``: of the input, by field of the task. ``keep``: columns that the output has too, None for all.
    ``engine``: arguments of ``pipeline``; ``options``: of the task.
    """

    task: str
    model: str
    columns: Mapping[str, str]
    keep: tuple[str, ...] | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, task: str, model: str, columns: Sequence[str], **others: Any) -> Work:
        """``columns``: "NAME" for the first field of the task, or "FIELD=NAME". Raises InputError."""
        if task not in ANSWERS:
            raise InputError(f"Rows of Parquet cannot be mapped by {task!r}; there are {', '.join(ANSWERS)}.")
        if task == "feature-extraction" and others.get("options"):
            raise InputError("Vectors have no options; the checkpoint's own modules say how they are made.")
        fields = FIELDS.get(task, ("text",))
        chosen = {name: name for name in fields if name not in _OPTIONAL}
        for given in columns:
            name, _, column = given.rpartition("=")
            if name and name not in fields:
                raise InputError(f"column {given!r} names no field of {task}; there are {', '.join(fields)}.")
            chosen[name or fields[0]] = column
        return cls(task, model, chosen, **others)

    def kept(self, columns: Sequence[str]) -> list[str]:
        """The columns of an input with ``columns`` that the output has too; raises InputError."""
        for name in [*self.columns.values(), *(self.keep or ())]:
            if name not in columns:
                raise InputError(f"The input has no column {name!r}; it has {', '.join(columns)}.")
        kept = list(columns if self.keep is None else self.keep)
        for name in ("answer", "vector", "error"):
            if name in kept:
                raise InputError(f"The input has a column {name!r}, as the output does; keep other columns only.")
        return kept


def parquet_files(path: Path) -> list[tuple[Path, str]]:
    """A file, or the Parquet files below a folder, each with its name there; in order. Raises InputError."""
    if path.is_file():
        return [(path, path.name)]
    if not path.is_dir():
        raise InputError(f"{path} does not exist.")
    names = sorted(each.relative_to(path) for each in path.rglob("*.parquet"))
    shown = [name for name in names if not any(part.startswith(_HIDDEN) for part in name.parts)]
    if not shown:
        raise InputError(f"{path} has no file that ends in .parquet.")
    return [(path / name, name.as_posix()) for name in shown]


def parts(path: Path, work: Work) -> tuple[list[Part], list[dict[str, Any]]]:
    """The parts of an input, and what tells it from another: name, size and footer of each file. Raises InputError.

    A footer has the sizes and extremes of every column of every row group. All of the bytes would be read for hours.
    """
    found: list[Part] = []
    files = []
    columns: list[str] | None = None
    for file, name in parquet_files(path):
        rows, names = _groups(file)
        work.kept(names)
        if columns is not None and names != columns:
            raise InputError(f"{file} has other columns than the files before it.")
        columns = names
        stem = name.removesuffix(".parquet")
        firsts = [sum(rows[:group]) for group in range(len(rows))]
        found += [
            Part(str(file.absolute()), group, first, count, f"{stem}-{group:05}.parquet")
            for group, (first, count) in enumerate(zip(firsts, rows, strict=True))
        ]
        files.append({"name": name, "bytes": file.stat().st_size, "footer": _footer_digest(file), "rows": sum(rows)})
    return found, files


def _groups(path: Path) -> tuple[list[int], list[str]]:
    """The rows of each row group, and the columns."""
    parquet, error = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            metadata = file.metadata
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            return rows, list(file.schema_arrow.names)
    except (OSError, error) as reason:
        raise InputError(f"{path} cannot be read: {str(reason).splitlines()[0].rstrip('.')}.") from None


def _pyarrow() -> tuple[Any, type[Exception]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError("Parquet needs the package pyarrow (pip install pyarrow).") from None
    return parquet, ArrowException


def _footer_digest(path: Path) -> str:
    """Of the end of a Parquet file, which has the sizes, places and statistics of its columns."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(file.read(length)).hexdigest()


def model_digest(directory: Path) -> str:
    """Of the files of a checkpoint."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.suffix in _MODEL_FILES and path.is_file() and not any(each.startswith(".") for each in name.parts):
            with path.open("rb") as file:
                inner = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest_of(file)
            digest.update(name.as_posix().encode() + b"\0" + inner.digest())
    return digest.hexdigest()


def _digest_of(file: Any) -> Any:
    """``hashlib.file_digest``, which Python 3.10 does not have."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


# ---------------------------------------------------------------------------------------------------- the output folder


class Output:
    """The folder of a job's answers."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Makes the folder, or goes on with that of the same ``facts``; raises InputError for any other.

        ``facts``: what the answers depend on, by a word for it, as JSON has it.
        """
        self.folder = folder
        wanted = json.loads(json.dumps(facts))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()) and not (folder / MANIFEST).exists() and not self._only_begun():
                raise InputError(f"{folder} is neither empty nor the output of a job; name another folder.")
            self._claim(json.dumps(wanted, indent=1))
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}.") from None
        known = read_json(folder / MANIFEST, dict, InputError)
        if different := [name for name in wanted if known.get(name) != wanted[name]]:
            raise InputError(f"{folder} holds the answers of another job, with other {', '.join(different)}.")

    def _only_begun(self) -> bool:
        """Whether all that is there are temporary files, as of a job that was killed while it wrote its first one."""
        return all(path.name.startswith(".") for path in self.folder.iterdir())

    def _claim(self, text: str) -> None:
        """Write the manifest, unless there is one: of two jobs that begin at once, one is the first."""
        temporary = self.folder / f".{MANIFEST}.{uuid.uuid4().hex}"
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, self.folder / MANIFEST)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()

    def missing(self, parts: Sequence[Part]) -> list[Part]:
        """Those that have no file yet."""
        return [part for part in parts if not (self.folder / part.name).exists()]

    @contextmanager
    def writing(self, part: Part) -> Iterator[Path]:
        """A temporary file, which becomes the part's own at the end of the context, unless that is left by an error."""
        final = self.folder / part.name
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def finish(self) -> None:
        """After the last part: remove what killed processes have left."""
        for path in self.folder.rglob(".*.parquet.*"):
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------ one part's rows


def answer_part(pipe: Pipeline, work: Work, part: Part, path: Path) -> None:
    """Write the answers of a part to ``path``: its rows in their order, with ``vector`` or ``answer``, and ``error``.

    A row that cannot be answered has its reason as ``error``, and else null. Raises InputError.
    """
    import pyarrow

    parquet, error = _pyarrow()
    try:
        with parquet.ParquetFile(part.file) as file:
            kept = work.kept(file.schema_arrow.names)
            table = file.read_row_group(part.group, columns=list(dict.fromkeys([*kept, *work.columns.values()])))
    except (OSError, error) as reason:
        raise InputError(f"{part.file} cannot be read: {str(reason).splitlines()[0].rstrip('.')}.") from None
    if table.num_rows != part.rows:
        raise InputError(f"{part.file} has changed since the job began.")
    answers = list(_answers(pipe, work, table, part.first))
    errors = [str(each) if isinstance(each, InputError) else None for each in answers]
    name = "vector" if work.task == "feature-extraction" else "answer"
    column = _column(pipe, work, [None if isinstance(each, InputError) else each for each in answers])
    made = table.select(kept).replace_schema_metadata(None)
    made = made.append_column(name, column).append_column("error", pyarrow.array(errors, pyarrow.string()))
    parquet.write_table(made, path)


def _answers(pipe: Any, work: Work, table: Any, first: int) -> Iterator[Any]:
    columns = {name: table.column(column).to_pylist() for name, column in work.columns.items()}
    if list(columns) == ["text"]:
        rows: list[Any] = columns["text"]
    else:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if work.task == "feature-extraction":
        return iter(pipe.stream_vectors(rows, first=first))
    return iter(pipe.stream(rows, first=first, **work.options))


def _column(pipe: Any, work: Work, answers: list[Any]) -> Any:
    """As Arrow; every part has the same type, whatever its answers are."""
    import pyarrow

    if work.task == "feature-extraction":
        kind = pyarrow.list_(pyarrow.float32(), pipe.width)
        return pyarrow.array([None if each is None else each.tolist() for each in answers], kind)
    fields = _fields(work)
    kind = pyarrow.struct([(name, _arrow_type(pyarrow, word)) for name, word in fields.items()])
    if not _has_several(work):
        return pyarrow.array([_checked(each, fields) for each in answers], kind)
    lists = [each if isinstance(each, list) or each is None else [each] for each in answers]
    several = [None if each is None else [_checked(one, fields) for one in each] for each in lists]
    return pyarrow.array(several, pyarrow.list_(kind))


def _fields(work: Work) -> dict[str, str]:
    grouped = work.options.get("aggregation_strategy", "none") not in (None, "none")
    if work.task == "token-classification" and grouped:
        return {"entity_group": "string", "score": "float64", **_SPAN}
    return ANSWERS[work.task]


def _has_several(work: Work) -> bool:
    """Whether a row is answered by a list."""
    if work.task == "question-answering":
        return work.options.get("top_k", 1) != 1
    return work.task == "token-classification" or (work.task == "text-classification" and "top_k" in work.options)


def _checked(answer: Any, fields: Mapping[str, str]) -> Any:
    """``answer``, all of whose fields have a place; raises InputError."""
    if answer is not None and (not isinstance(answer, dict) or set(answer) != set(fields)):
        raise InputError(f"An answer is {str(answer)[:80]!r}; the columns of the output are {', '.join(fields)}.")
    return answer


def _arrow_type(pyarrow: Any, word: str) -> Any:
    if word.startswith("list<"):
        return pyarrow.list_(_arrow_type(pyarrow, word[5:-1]))
    return getattr(pyarrow, word)()


def facts(work: Work, files: Sequence[Mapping[str, Any]], model: str) -> dict[str, Any]:
    """What the answers depend on; ``model``: ``model_digest``. Threads and revisions change no bit of them."""
    named = asdict(work)
    engine = {name: value for name, value in named.pop("engine").items() if name not in ("threads", "revision")}
    return {"input": list(files), **named, **engine, "model": model}
