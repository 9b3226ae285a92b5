"""The result of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scores:
    """What one data set gives.

    ``metrics``: in percent, correlations times 100 too, as GLUE and SQuAD report them; ``counts``: examples that were
    scored, and what was left out; ``notes``: sentences on how the numbers were computed; ``predictions``: one for each
    example, in the order of the data.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    notes: tuple[str, ...] = ()
    predictions: tuple[Any, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Result(Scores):
    """Scores, and of what: ``detail`` is the backend's own line, "avx512 fp32, 2 threads"."""

    dataset: str = ""
    model: str = ""
    precision: str = ""
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON and for tables; without the predictions."""
        facts = asdict(self)
        names = ("dataset", "model", "precision", "detail", "metrics", "counts", "notes")
        return {name: list(facts[name]) if name == "notes" else facts[name] for name in names}
