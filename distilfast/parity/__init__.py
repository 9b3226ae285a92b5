"""Parity: the error of every named intermediate against float64, how far the answers agree, and batch invariance.

``compare`` runs texts through an engine and through the reference (or transformers) in float64; ``check_invariance``
checks for equal bits. Tolerances are in ``budgets`` only.
"""

from __future__ import annotations

from distilfast.parity.budgets import NAIVE_FACTOR
from distilfast.parity.comparison import AGAINST, Report, compare
from distilfast.parity.invariance import check_invariance
from distilfast.parity.tally import Row, relative_error

__all__ = [
    "AGAINST",
    "NAIVE_FACTOR",
    "Report",
    "Row",
    "check_invariance",
    "compare",
    "relative_error",
]
