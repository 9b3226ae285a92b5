"""What `distilfast doctor` finds: one record for each matter, and what the modules that examine them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

State = Literal["good", "advice", "absent", "broken"]
"""As it should be; could be better; optional and not there; distilfast cannot do what was asked of it."""


@dataclass(frozen=True)
class Matter:
    """What was found, in phrases, and what to do about it; ``facts`` are for --json."""

    state: State
    found: str
    advice: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, found: str, advice: list[str], facts: dict[str, Any]) -> Matter:
        """Good unless there is advice."""
        return cls("advice" if advice else "good", found, tuple(advice), facts)


def version(package: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def text(path: str) -> str | None:
    """What a small file of the system says; None where there is no such file, or it is empty."""
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def several(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def clause(sentence: object) -> str:
    """A sentence as the part of another."""
    return str(sentence).rstrip(".")
