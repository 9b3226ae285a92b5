"""The rows of `distilfast run`: lines, CSV, JSONL and Parquet, read one after the other and never whole.

A row that cannot be read is an InputError in its place.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from distilfast.errors import InputError

FORMATS = ("text", "csv", "tsv", "jsonl", "parquet")
_SUFFIXES = {".txt": "text", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

FIELDS: dict[str, tuple[str, ...]] = {
    "text-classification": ("text", "text_pair"),
    "question-answering": ("question", "context"),
    "sentence-similarity": ("source_sentence", "sentences"),
    "multiple-choice": ("prompt", "choices"),
}
"""What a row of a task consists of; of every other task, a text."""

_LONGEST_CELL = 1 << 27  # characters; the csv module's own limit is 131,072


def is_optional(field: str) -> bool:
    """Whether a row of its task may lack a field."""
    return field == "text_pair"


@dataclass(frozen=True)
class Source:
    """Where rows come from: a file, or standard input for "-"; ``columns``: the field of the task, and its column."""

    path: str
    format: str
    columns: dict[str, str]
    fields: tuple[str, ...]

    @classmethod
    def of(cls, path: str, format: str | None, task: str, columns: Sequence[str]) -> Source:
        """``columns``: "NAME" for the first field of the task, or "FIELD=NAME". Raises InputError."""
        fields = FIELDS.get(task, ("text",))
        found = format or ("text" if path == "-" else _SUFFIXES.get(Path(path).suffix.lower()))
        if Path(path).is_dir():
            raise InputError(f"{path} is a directory; --input takes a file.")
        if found is None:
            raise InputError(f"The format of {path} is not known; pass --format, one of {', '.join(FORMATS)}.")
        if found not in FORMATS:
            raise InputError(f"--format {found!r} is not known; there are {', '.join(FORMATS)}.")
        chosen = {}
        for given in columns:
            field, _, name = given.rpartition("=")
            field = field or fields[0]
            if field not in fields:
                raise InputError(f"--column {given!r} names no field of {task}; there are {', '.join(fields)}.")
            chosen[field] = name
        if found == "text" and (columns or len([each for each in fields if not is_optional(each)]) > 1):
            raise InputError(f"Lines of text have no columns; {task} needs {' and '.join(fields)} from CSV or JSONL.")
        return cls(path, found, chosen, fields)

    def rows(self, position: Position) -> Iterator[Any]:
        """Inputs of the pipeline, or an InputError for a row; ``position`` follows. Raises InputError."""
        if self.format == "parquet":
            yield from self._of_parquet(position)
            return
        try:
            with sys.stdin.buffer if self.path == "-" else open(self.path, "rb") as file:
                position.of_file(file)
                lines = _lines(file, position)
                if self.format == "text":
                    yield from lines
                elif self.format == "jsonl":
                    yield from (self._of_object(line) for line in lines)
                else:
                    yield from self._of_csv(lines)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}.") from None

    def _of_csv(self, lines: Iterator[str | InputError]) -> Iterator[Any]:
        csv.field_size_limit(_LONGEST_CELL)
        reader = csv.reader(map(_checked, lines), delimiter="\t" if self.format == "tsv" else ",", strict=True)
        header = _next(reader)
        if header is None:
            return
        if isinstance(header, InputError):
            raise header
        self._check_columns(header)
        while (cells := _next(reader)) is not None:
            if isinstance(cells, InputError):
                yield cells
            elif len(cells) != len(header):
                yield InputError(f"The row has {len(cells)} columns; the header has {len(header)}.")
            else:
                yield self._item(dict(zip(header, cells, strict=True)))

    def _check_columns(self, names: Sequence[str]) -> None:
        for field in self.fields:
            name = self.columns.get(field, field)
            if name not in names and (not is_optional(field) or field in self.columns):
                has = ", ".join(names)
                raise InputError(f"{self.path} has no column {name!r}; it has {has}; --column says which to read.")

    def _of_object(self, line: str | InputError) -> Any:
        if isinstance(line, InputError):
            return line
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return InputError("The row is not readable JSON.")
        if isinstance(value, dict):
            return self._item(value)
        return value if isinstance(value, str) else InputError("The row is neither a JSON object nor a string.")

    def _of_parquet(self, position: Position) -> Iterator[Any]:
        if self.path == "-":
            raise InputError("Parquet cannot be read from standard input.")
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise InputError("Parquet needs the package pyarrow (pip install pyarrow).") from None
        try:
            with parquet.ParquetFile(self.path) as file:
                self._check_columns(file.schema_arrow.names)
                names = [
                    name for field in self.fields if (name := self.columns.get(field, field)) in file.schema_arrow.names
                ]
                position.total = file.metadata.num_rows
                for batch in file.iter_batches(batch_size=1024, columns=names):
                    for row in batch.to_pylist():
                        position.done += 1
                        yield self._item(row)
        except (OSError, ArrowException) as error:
            raise InputError(f"{self.path} cannot be read: {str(error).splitlines()[0].rstrip('.')}.") from None

    def _item(self, row: dict[str, Any]) -> Any:
        """What the pipeline takes: a text, or a dict of the task's fields."""
        found = {}
        for field in self.fields:
            name = self.columns.get(field, field)
            if name in row:
                found[field] = row[name]
            elif not is_optional(field):
                return InputError(f"The row has no {name!r}.")
        return found["text"] if list(found) == ["text"] else found


class Position:
    """How far a source has been read, in bytes of a file or rows of a table; ``total`` None where it is not known."""

    def __init__(self) -> None:
        """At the beginning."""
        self.done = 0
        self.total: int | None = None

    def of_file(self, file: BinaryIO) -> None:
        """Take the size of ``file``, where it has one."""
        if file.seekable():
            self.total = file.seek(0, 2)
            file.seek(0)


def _lines(file: BinaryIO, position: Position) -> Iterator[str | InputError]:
    for number, line in enumerate(file):
        position.done += len(line)
        try:
            yield line.decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            yield InputError("The row is not text in UTF-8.")


def _checked(line: str | InputError) -> str:
    if isinstance(line, InputError):
        raise line
    return line + "\n"


def _next(reader: Any) -> list[str] | InputError | None:
    """The next row, None at the end."""
    try:
        return next(reader)
    except StopIteration:
        return None
    except InputError as error:
        return error
    except csv.Error as error:
        return InputError(f"The row is not readable CSV: {error}.")
