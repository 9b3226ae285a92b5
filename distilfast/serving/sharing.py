"""Answers that several requests share: given before, or being computed for an identical one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from distilfast.serving.result_cache import ResultCache
from distilfast.serving.scheduler import Request
from distilfast.serving.work import Work


class SharedAnswers:
    """By the key of a request's Work. Not safe for several threads: its owner locks."""

    def __init__(self, capacity: int) -> None:
        """``capacity``: bytes for answers that were given before; 0 shares none."""
        self.cache = ResultCache(capacity)
        self._in_flight: dict[Hashable, Request] = {}

    def find(self, key: Hashable) -> tuple[bool, Any, Request | None]:
        """Whether there is an answer, the answer, and else the request that will have it, if there is one."""
        found, answer = self.cache.get(key)
        return found, answer, None if found else self._in_flight.get(key)

    def begin(self, request: Request) -> None:
        """From now on identical requests can wait for this one."""
        if request.payload.key is not None:
            self._in_flight[request.payload.key] = request

    def end(self, request: Request) -> None:
        """No longer."""
        key = request.payload.key
        if key is not None and self._in_flight.get(key) is request:
            del self._in_flight[key]

    def keep(self, work: Work, answer: Any) -> None:
        """For later requests."""
        if work.key is not None:
            self.cache.put(work.key, work.text_bytes, answer)


def frozen(value: Any) -> Hashable:
    """An equal key for equal options; for what cannot be compared, one that equals no other."""
    if isinstance(value, dict):
        return tuple(sorted((str(name), frozen(each)) for name, each in value.items()))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, *map(frozen, value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return type(value).__name__, value
    return object()


def characters(given: Any) -> int:
    """Of all texts in an input."""
    if isinstance(given, str):
        return len(given)
    if isinstance(given, dict):
        return sum(map(characters, given.values()))
    return sum(map(characters, given)) if isinstance(given, (list, tuple)) else 0


def copied(answer: Any) -> Any:
    """A copy, for one of several who get the same answer and may change it."""
    if isinstance(answer, np.ndarray):
        return answer.copy()
    if isinstance(answer, dict):
        return {name: copied(value) for name, value in answer.items()}
    return [copied(value) for value in answer] if isinstance(answer, list) else answer
