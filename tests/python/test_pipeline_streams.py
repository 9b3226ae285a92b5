"""Inputs of the pipelines as streams: order, how far is read ahead, how much is computed and kept at a time."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distilfast
from distilfast.pipelines.base import CHARACTERS, READ_AHEAD, TOKENS

Make = Callable[..., Path]

LONG = {"max_position_embeddings": 512}
TASKS = ("fill-mask", "text-classification", "feature-extraction")
MIB = 2**20


@pytest.fixture(scope="module")
def pipes(tiny_checkpoint: Make) -> dict[str, Any]:
    return {task: distilfast.pipeline(task, tiny_checkpoint("distilbert", task, config=LONG)) for task in TASKS}


def ragged(count: int) -> list[str]:
    """Texts of 4 to 512 tokens, none like its neighbours."""
    return [f"[MASK] {i}" + " a" * (37 * i % 505) for i in range(count)]


class Source(Iterator[str]):
    """``texts`` one after the other, and how many have been read."""

    def __init__(self, texts: Any) -> None:
        self.texts, self.read = iter(texts), 0

    def __next__(self) -> str:
        text: str = next(self.texts)
        self.read += 1
        return text


@pytest.mark.parametrize("task", TASKS)
def test_an_iterator_gives_an_iterator(pipes: dict[str, Any], task: str) -> None:
    """The same answers as a list and as single texts, in the same order; a list gives a list."""
    texts = ragged(READ_AHEAD + 7)
    answers = pipes[task](iter(texts))
    assert isinstance(answers, Iterator)
    together = list(answers)
    assert isinstance(pipes[task](texts), list) and pipes[task](texts) == together
    alone = [pipes[task](text) for text in texts[::10]]
    assert together[::10] == [answer[0] if task == "text-classification" else answer for answer in alone]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("options", "ahead"), [({}, READ_AHEAD), ({"batch_size": 3}, 3), ({"batch_size": 1}, 1)])
def test_no_more_is_read_than_a_batch(pipes: dict[str, Any], task: str, options: dict[str, Any], ahead: int) -> None:
    """Of an endless source, one answer after the other."""
    source = Source(f"[MASK] {i}" for i in itertools.count())
    answers = pipes[task](source, **options)
    assert source.read == 0
    for i in range(2 * ahead + 1):
        next(answers)
        assert source.read == ahead * (i // ahead + 1)


def test_embed_takes_an_iterator(pipes: dict[str, Any]) -> None:
    pipe, texts = pipes["feature-extraction"], ragged(READ_AHEAD + 7)
    source = Source(texts)
    vectors = pipe.embed(source, batch_size=5)
    first = next(vectors)
    assert source.read == 5
    np.testing.assert_array_equal([first, *vectors], pipe.embed(texts))


def test_fewer_long_texts_are_read_ahead(pipes: dict[str, Any]) -> None:
    """Else what a tokeniser makes of 64 books would be in memory at once."""
    source = Source("a " * CHARACTERS for _ in itertools.count())
    answers = pipes["text-classification"](source, truncation=True)
    for i in range(3):
        next(answers)
        assert source.read == i + 1


@pytest.mark.parametrize("task", TASKS)
def test_no_texts_no_answers(pipes: dict[str, Any], task: str) -> None:
    assert pipes[task]([]) == [] and list(pipes[task](iter([]))) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_forward_has_some_thousand_tokens(pipes: dict[str, Any], task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many texts as fit, in one forward: short ones all together, long ones up to the budget."""
    engine, sizes = pipes[task].engine, []
    forward = engine._forward
    monkeypatch.setattr(
        engine, "_forward", lambda batch, *rest, **more: sizes.append(batch.num_tokens) or forward(batch, *rest, **more)
    )
    pipes[task](["[MASK] a"] * READ_AHEAD)
    assert sizes == [4 * READ_AHEAD]
    sizes.clear()
    pipes[task](["[MASK]" + " a" * 509] * 20)
    assert sizes == [TOKENS, TOKENS, 4 * 512]


def peak(call: Callable[[], Any]) -> int:
    """The most bytes that Python and numpy hold at a time while ``call`` runs, over what they held before."""
    call()  # what is made once, say the vocabulary
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_texts_full_of_masks(tiny_checkpoint: Make) -> None:
    """Logits of 512 masks in float32, and float64 scores of a few rows at a time, however many masks there are."""
    words = 4000
    directory = tiny_checkpoint("distilbert", "fill-mask", config=LONG | {"vocab_size": words})
    pipe = distilfast.pipeline("fill-mask", directory)
    texts = ["[MASK] " * 510] * 3

    def call() -> None:
        for answer in pipe(iter(texts), top_k=1):
            assert len(answer) == 510 and len(answer[0]) == 1

    logits = 512 * words * 4
    assert peak(call) < 1.25 * logits + 6 * MIB, "of 3 texts; 24 MiB of logits in float32, 47 MiB of scores"


def test_memory_of_embed(tiny_checkpoint: Make) -> None:
    """Of the rows of all tokens only those of one forward; the rest is what 64 encoded texts take."""
    width, texts = 256, ["a " * 510] * 64
    config = LONG | {"dim": width, "n_layers": 1}
    pipe = distilfast.pipeline("feature-extraction", tiny_checkpoint("distilbert", "feature-extraction", config=config))
    rows = len(texts) * 512 * width * 4
    assert peak(lambda: pipe.embed(texts)) < rows // 2


class ItemsOnly:
    """A data set as torch defines it: a length and items, and no iterator."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


@pytest.mark.parametrize("task", TASKS)
def test_data_sets_are_lists(pipes: dict[str, Any], task: str) -> None:
    """What has a length and items, and the columns that transformers' pipelines are given."""
    from transformers.pipelines.pt_utils import KeyDataset

    texts = ragged(5)
    assert pipes[task](ItemsOnly(texts)) == pipes[task](texts)
    rows = ItemsOnly([{"label": 1, "text": text} for text in texts])
    assert pipes[task](KeyDataset(rows, "text")) == pipes[task](texts)
