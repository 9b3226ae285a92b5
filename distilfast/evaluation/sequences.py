"""The engine over many sequences: packed batches, in the order of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from distilfast.batch import PackedBatch
from distilfast.engine import Engine

Progress = Callable[[int, int], None]
"""Called with the number of sequences done, and their total."""

Item = TypeVar("Item")

TOKENS = 4096
"""Tokens in one forward: enough to amortise a pass over the weights, few enough to bound the memory of the results."""


class Ids(NamedTuple):
    """One sequence of L tokens, special ones included: ids and token types."""

    ids: Sequence[int]
    type_ids: Sequence[int]


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


def subset(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` items, evenly spaced: data sorted by label keeps its labels."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def longest(engine: Engine) -> int:
    """The most tokens a sequence may have: the model's positions, or less where its tokeniser says so."""
    return min(engine.config.max_positions, engine.tokenizer.max_length or engine.config.max_positions)


def head_outputs(engine: Engine, sequences: Sequence[Ids], progress: Progress = no_progress) -> list[np.ndarray]:
    """The head's output for each sequence: [C] where it reads the first token, [L, C] where it reads all."""
    outputs: list[np.ndarray] = []
    for group in _groups(sequences):
        batch = PackedBatch.from_encodings(group, token_types=engine.config.token_types > 0)
        rows = engine.logits(batch)
        outputs += list(rows) if engine.head.rows == "first" else np.split(rows, batch.cu_seqlens[1:-1])
        progress(len(outputs), len(sequences))
    return outputs


def _groups(sequences: Sequence[Ids]) -> Iterator[list[Ids]]:
    """Consecutive sequences of at most TOKENS tokens together, or a single longer one."""
    group: list[Ids] = []
    tokens = 0
    for each in sequences:
        if group and tokens + len(each.ids) > TOKENS:
            yield group
            group, tokens = [], 0
        group.append(each)
        tokens += len(each.ids)
    if group:
        yield group
