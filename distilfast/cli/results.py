"""What `distilfast run` writes: a line for each row, as text, JSONL or CSV, so that a run can go on after the last."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from distilfast.cli.terminal import json_line
from distilfast.errors import InputError

FORMATS = ("text", "jsonl", "csv")
_SUFFIXES = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_HEADER = ["row", "answer", "score", "error"]
_TAIL = 1 << 16  # bytes of the end of a file that are searched at a time for the last line


def format_of(path: str | None, format: str | None) -> str:
    """The format of an output; raises InputError."""
    found = format or (_SUFFIXES.get(Path(path).suffix.lower()) if path else "jsonl")
    if found is None:
        raise InputError(f"The format of {path} is not known; pass --to, one of {', '.join(FORMATS)}.")
    if found not in FORMATS:
        raise InputError(f"--to {found!r} is not known; there are {', '.join(FORMATS)}.")
    return found


class Results:
    """A file, or standard output, that has a line for each row from 1; ``done``: rows that it holds already."""

    def __init__(self, path: str | None, format: str, *, resume: bool = False, overwrite: bool = False) -> None:
        """Raises InputError for a file that is there, unless it may be overwritten or gone on with."""
        self.format = format
        self.done = 0
        self._name = path or "standard output"
        if resume and path is None:
            raise InputError("--resume needs --output.")
        if resume and format == "text":
            raise InputError("--resume needs rows that are numbered; write JSONL or CSV.")
        try:
            self._file = sys.stdout if path is None else self._opened(path, resume, overwrite)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}.") from None
        is_new = path is None or self._file.tell() == 0
        if format == "csv" and is_new:
            self._file.write(",".join(_HEADER) + "\n")

    def _opened(self, path: str, resume: bool, overwrite: bool) -> TextIO:
        if Path(path).exists() and not overwrite:
            if not resume:
                raise InputError(f"{path} exists; --resume goes on after its last row, --overwrite replaces it.")
            self.done = _cut_to_whole_rows(path, self.format)
            return open(path, "a", encoding="utf-8", newline="")
        return open(path, "w", encoding="utf-8", newline="")

    def write(self, row: int, answer: Any) -> None:
        """The answer to a row, or its InputError; raises InputError where the file cannot take it."""
        with self._writing():
            self._file.write(_LINES[self.format](row, answer) + "\n")
        self.done = row

    def flush(self) -> None:
        """Hand what was written to the system; raises InputError."""
        with self._writing():
            self._file.flush()

    def close(self) -> None:
        """After the last row; raises InputError."""
        with self._writing():
            self._file.flush()
            if self._file is not sys.stdout:
                self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # whoever read has enough
            raise
        except OSError as error:
            raise InputError(f"{self._name} cannot be written: {error.strerror}.") from None


def _cut_to_whole_rows(path: str, format: str) -> int:
    """Remove what follows the last whole line, and return the row of that line; 0 where there is none."""
    with open(path, "rb+") as file:
        end = _last_newline(file, file.seek(0, os.SEEK_END)) + 1
        file.truncate(end)
        if end == 0:
            return 0
        file.seek(begin := _last_newline(file, end - 1) + 1)
        line = file.read(end - begin).decode("utf-8", "replace").rstrip("\n")
    if format == "csv" and line == ",".join(_HEADER):
        return 0
    try:
        return int(line.split(",", 1)[0]) if format == "csv" else int(json.loads(line)["row"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} does not end with a row that this command wrote.") from None


def _last_newline(file: Any, end: int) -> int:
    """The place of the last newline before ``end``, -1 where there is none."""
    while end > 0:
        begin = max(end - _TAIL, 0)
        file.seek(begin)
        found: int = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found
        end = begin
    return -1


def _jsonl(row: int, answer: Any) -> str:
    if isinstance(answer, InputError):
        return json_line({"row": row, "error": str(answer)})
    return json_line({"row": row, "answer": answer})


def _csv(row: int, answer: Any) -> str:
    """``answer`` and ``score`` where the answer has one best, else JSON; no cell has a line break."""
    if isinstance(answer, InputError):
        cells = [row, "", "", str(answer)]
    elif (best := _best(answer)) is not None:
        cells = [row, best[0], best[1], ""]
    else:
        cells = [row, json_line(answer), "", ""]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([" ".join(str(cell).splitlines()) for cell in cells])
    return line.getvalue()


def _text(row: int, answer: Any) -> str:
    if isinstance(answer, InputError):
        return f"error: row {row}: {answer}"
    best = _best(answer)
    if best is not None:
        return f"{best[1]:.4f}\t{' '.join(best[0].splitlines())}"
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        return "\t".join(" ".join(_named(each).split()) for each in answer)
    return json_line(answer)


def _best(answer: Any) -> tuple[str, float] | None:
    """The one answer, or the best of several alternatives, and its score."""
    first = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(first, dict):
        return None
    if "labels" in first:
        return str(first["labels"][0]), float(first["scores"][0])
    for key in ("label", "answer", "sequence", "text"):
        if key in first and "score" in first:
            return str(first[key]), float(first["score"])
    return None


def _named(entity: dict[str, Any]) -> str:
    """A word and its label."""
    label = entity.get("entity_group", entity.get("entity", ""))
    return f"{entity.get('word', '')} ({label})"


_LINES = {"jsonl": _jsonl, "csv": _csv, "text": _text}
