"""What is run: batches of padded ids, the same bits for every contestant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """``batch`` sequences of ``tokens`` tokens, no padding."""

    batch: int
    tokens: int

    @property
    def name(self) -> str:
        """For tables: "8x128"."""
        return f"{self.batch}x{self.tokens}"

    def ids(self, vocabulary: int) -> np.ndarray:
        """int64 [batch, tokens], seeded by the case."""
        rng = np.random.default_rng([self.batch, self.tokens])
        return rng.integers(0, vocabulary, (self.batch, self.tokens))


QUICK = (Case(1, 16), Case(1, 128), Case(8, 128))
GRID = (*(Case(1, n) for n in (8, 16, 32, 64, 128, 256, 512)), *(Case(8, n) for n in (32, 128, 512)), Case(32, 128))
