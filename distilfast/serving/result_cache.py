"""Answers kept for requests that come again.

An answer depends on the model, its options and the input alone, never on the batch it was computed in, so one that was
given before is the same bits as one computed now.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

_ENTRY = 200
"""Bytes that a key and its place in the table take, about, beside the answer and the text."""


class ResultCache:
    """The answers asked for last, up to ``capacity`` bytes. Not safe for several threads: its owner locks.

    An answer is kept as bytes, so that its size is known, and each reader has one of its own to change.
    """

    def __init__(self, capacity: int) -> None:
        """An empty cache."""
        self.capacity = capacity
        self.hits = self.misses = self.evictions = self.bytes = 0
        self._answers: OrderedDict[Hashable, tuple[bytes, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: Hashable) -> tuple[bool, Any]:
        """Whether there is an answer, and the answer."""
        found = self._answers.get(key)
        if found is None:
            self.misses += 1
            return False, None
        self.hits += 1
        self._answers.move_to_end(key)
        return True, pickle.loads(found[0])

    def put(self, key: Hashable, text_bytes: int, answer: Any) -> None:
        """Keep ``answer``; ``text_bytes``: what the key's text takes. One that is larger than the cache is not kept."""
        stored = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
        size = len(stored) + text_bytes + _ENTRY
        if key in self._answers:
            self.bytes -= self._answers.pop(key)[1]
        if size > self.capacity:
            return
        self._answers[key] = stored, size
        self.bytes += size
        while self.bytes > self.capacity:
            _, (_, freed) = self._answers.popitem(last=False)
            self.bytes -= freed
            self.evictions += 1

    def clear(self) -> None:
        """Forget every answer, as after a reload of the model."""
        self._answers.clear()
        self.bytes = 0
