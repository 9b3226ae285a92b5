"""One result for a text that was read in windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distilfast.arguments import one_of
from distilfast.tokenizer import Encoding

RULES = ("mean", "max")


def checked_rule(over_windows: Any) -> str:
    """One of ``RULES``; raises InputError."""
    return one_of("over_windows", over_windows, RULES)


def merged(rows: Sequence[np.ndarray], windows: Sequence[Encoding], rule: str) -> np.ndarray:
    """One row [C] for a text from those of its windows, the row itself where there is one window.

    "mean": each weighs the tokens of the text that its window holds; those that two windows share count in both.
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
