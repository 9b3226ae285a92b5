"""One result for a text that was read in windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distilfast.arguments import one_of
from distilfast.tokenizer import Encoding

RULES = ("mean", "max")


def checked_rule(over_windows: Any) -> str:
    """One of ``RULES``; raises InputError."""
    return one_of("over_windows", over_windows, RULES)


def merged(rows: Sequence[np.ndarray], windows: Sequence[Encoding], rule: str) -> np.ndarray:
    """One row [C] for a text from those of its windows, the row itself where there is one window.

    "mean": each weighs the tokens that its window holds, special ones aside; those that two windows share count in
    both, and the text of a pair that every window holds counts in all.
    "max": the highest of each column.
    """
    if len(rows) == 1:
        return rows[0]
    stacked = np.stack(rows)
    if rule == "max":
        highest: np.ndarray = stacked.max(axis=0)
        return highest
    weights = np.array([len(window.ids) - sum(window.special_mask) for window in windows], stacked.dtype)
    return weights @ stacked / weights.sum()


class Place(NamedTuple):
    """A token of a text: the window that it is taken from, and where in that window."""

    window: int
    token: int


def most_context(windows: Sequence[Encoding], stride: int) -> list[Place]:
    """For each token of a text, special ones included, the window in which it is farthest from the nearer end.

    Of two alike the first. ``stride``: tokens that two neighbours have in common. Special tokens before the text are
    those of the first window, and those after it of the last.
    """
    texts = [window.part(0) for window in windows]
    starts = [k * (len(texts[0]) - stride) for k in range(len(windows))]  # of each window, in tokens of the text
    length = starts[-1] + len(texts[-1])
    best: list[tuple[int, Place] | None] = [None] * length
    for k, (start, text) in enumerate(zip(starts, texts, strict=True)):
        for i in range(len(text)):
            context = min(i, len(text) - 1 - i)
            known = best[start + i]
            if known is None or context > known[0]:
                best[start + i] = context, Place(k, text.start + i)
    before = [Place(0, i) for i in range(texts[0].start)]
    last = len(windows) - 1
    after = [Place(last, i) for i in range(texts[-1].stop, len(windows[-1].ids))]
    return [*before, *(found[1] for found in best if found is not None), *after]
