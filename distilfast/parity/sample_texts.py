"""The texts of a comparison: the caller's, filled up with the package's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distilfast.errors import InputError
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
"""Ragged, with digits, signs, masks, and a word alone. There are enough of them to estimate the error of a classifier,
which has only a few numbers for each text; a caller's texts are filled up with them to this number."""


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
