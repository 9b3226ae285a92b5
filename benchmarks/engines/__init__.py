"""The contestants, one module each, named as their library.

A module has ``PRECISION``, ``unavailable() -> str | None`` (why it cannot run here, in one sentence) and
``load(directory, threads, scratch)``, which prepares the checkpoint by itself and returns a callable
``(ids int64 [B, L], mask int64 [B, L]) -> last hidden state [B, L, D]``.
"""

from __future__ import annotations

import importlib.util

CONTESTANTS = ("distilfast", "onnxruntime", "transformers")


def missing(*packages: str) -> str | None:
    """The sentence for packages that are not installed, or None."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed." if absent else None
