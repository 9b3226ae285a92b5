"""Texts with their labels, read from the files that ``distilfast parity --text`` takes."""

from __future__ import annotations

from pathlib import Path

from distilfast.errors import InputError
from distilfast.evaluation import squad
from distilfast.tokenizer import Text

Label = str | tuple[str, ...]
"""The label of a text; a tuple holds several answers, each of them right."""


def read_texts(path: Path, label_column: int | None = None) -> tuple[list[Text], list[Label] | None]:
    """The texts of a file, one on each line, a tab between the two of a pair, and the labels where it has some.

    ``label_column`` counts from 1. A file in SQuAD's JSON holds pairs (question, context) and their answers. Raises
    InputError naming the line that does not fit.
    """
    if holds_answers(path):
        questions = squad.read(path)
        return [(each.text, each.context) for each in questions], [each.answers for each in questions]
    texts: list[Text] = []
    labels: list[Label] = []
    for number, line in enumerate(_lines(path), 1):
        columns = line.split("\t")
        if label_column is not None:
            if not 1 <= label_column <= len(columns):
                raise InputError(f"{path}, line {number}, has {len(columns)} column(s), and no column {label_column}.")
            labels.append(columns.pop(label_column - 1).strip())
        if len(columns) not in (1, 2) or not all(column.strip() for column in columns):
            raise InputError(f"{path}, line {number}, is neither a text nor two texts with a tab between them.")
        texts.append(columns[0] if len(columns) == 1 else (columns[0], columns[1]))
    return texts, labels if label_column is not None else None


def holds_answers(path: Path) -> bool:
    """Is it SQuAD's JSON, which needs no labels beside it?"""
    return path.suffix.lower() == ".json"


def read_labels(path: Path, count: int) -> list[Label]:
    """One label on each line; raises InputError where there are not ``count``."""
    labels: list[Label] = [line.strip() for line in _lines(path)]
    if len(labels) != count:
        raise InputError(f"{path} has {len(labels)} labels for {count} texts.")
    return labels


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from None
    lines = text.rstrip("\r\n").split("\n")
    if not lines[0] and len(lines) == 1:
        raise InputError(f"{path} is empty; at least one line is needed.")
    return [line.rstrip("\r") for line in lines]
