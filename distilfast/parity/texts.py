"""The texts of a comparison: our own, or a file's, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distilfast.errors import InputError
from distilfast.evaluation import squad
from distilfast.parity.metrics import Label
from distilfast.tokenizer import Text

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1905 Einstein published four papers, each of which changed physics.",
    "Paris is the capital of [MASK].",
    "Rain.",
    "Where can I change my PIN?",
    "No.",
    "She plays the [MASK] in an orchestra.",
    "It cost $3,499.99, or so the invoice said; nobody had ordered it.",
    "What a film!",
    "Snow fell on the 2nd of May.",
    "Please book a table for two at eight.",
    "e = mc²",
    "My card was declined twice today, once abroad, although the account is not overdrawn; what should I do?",
    "Thanks, see you on Monday.",
    "Höchste Zeit!",
    "Is the museum open on [MASK] evenings?",
    "The train to Lyon leaves from platform 9 at 17:42.",
    "Never again.",
    "Who wrote the letter that was found in the attic?",
    "A B C",
    "He said that she said that they would be late.",
    "Turn left, then right.",
    "The results were, to put it mildly, unexpected.",
    "OK",
)
"""Ragged, with digits, signs, masks, and a word alone. There are enough of them that the error of a classifier, which
has a few numbers for each text, is no matter of luck; a caller's texts are filled up with them to this number."""


@dataclass(frozen=True)
class Texts:
    """What is compared: the caller's ``given`` first, then as many of our own as are needed."""

    texts: tuple[Text, ...]
    given: int


def enough(texts: Sequence[Text] | None) -> Texts:
    """``texts``, filled up with ours to ``len(TEXTS)``; raises InputError for an empty list."""
    if texts is None:
        return Texts(TEXTS, 0)
    if not texts:
        raise InputError("There are no texts; at least one is needed.")
    return Texts((*texts, *TEXTS[: max(0, len(TEXTS) - len(texts))]), len(texts))


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
