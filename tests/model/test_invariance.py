"""An answer's bits depend on its text alone: not on its batch, its place there, the threads, or what else is computed.

Nothing here has a tolerance. Sizes straddle the vectors, the tiles and the 512 tokens after which the encoder closes
a chunk; the wide model has the widths of DistilBERT, the narrow one widths that are multiples of no vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isas import isas_and_precisions

from distilfast import Engine, PackedBatch
from distilfast.backends import cpu

Make = Callable[..., Path]
Load = Callable[..., Engine]

SHAPES: dict[str, dict[str, Any]] = {
    "narrow": {"dim": 84, "n_heads": 3, "n_layers": 3, "hidden_dim": 150},
    "wide": {"dim": 768, "n_heads": 12, "n_layers": 1, "hidden_dim": 3072},
}
LENGTHS = (250, 192, 130, 129, 128, 127, 96, 65, 64, 63, 47, 33, 32, 31, 30, 17, 16, 15, 13, 8, 5, 3, 2, 1)
"""1,497 tokens: one chunk and half of the next."""
THREADS = (1, 2, 3, 7)
TASKS = ("feature-extraction", "text-classification", "fill-mask")
VOCABULARY, MASK = 300, 299

each_kernel = pytest.mark.parametrize(("isa", "precision"), isas_and_precisions(*cpu.PRECISIONS), indirect=["isa"])

Answers = list[np.ndarray]
"""For each sequence what the task gives for it: hidden states, or logits."""


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def checkpoint(tiny_checkpoint: Make, shape: str) -> Callable[[str], Path]:
    """``checkpoint(task)``."""
    config = SHAPES[shape] | {"vocab_size": VOCABULARY, "max_position_embeddings": 512}
    return lambda task: tiny_checkpoint("distilbert", task, config=config)


@pytest.fixture
def sequences(isa: str, shape: str) -> list[list[int]]:
    """Random ids, a [MASK] in each second sequence at a random place; fewer for slow code."""
    slow = isa in ("ref", "amx_simulated")
    lengths = (LENGTHS[-12:] if shape == "wide" else LENGTHS[::2]) if slow else LENGTHS
    rng = np.random.default_rng(5)
    drawn = [rng.integers(0, MASK, length).tolist() for length in lengths]
    for sequence in drawn[::2]:
        sequence[rng.integers(len(sequence))] = MASK
    return drawn


def answers(engine: Engine, sequences: Sequence[Sequence[int]], hidden: bool = False) -> Answers:
    """Each sequence's own; a fill-mask answers at the masks only, as its pipeline asks."""
    batch = PackedBatch.from_sequences(sequences)
    if engine.task == "feature-extraction":
        return np.split(engine.encode(batch), batch.cu_seqlens[1:-1])
    if engine.task == "text-classification":
        return list(engine.encode_with_logits(batch)[1] if hidden else engine.logits(batch))
    rows = np.flatnonzero(batch.input_ids == MASK).astype(np.int32)
    logits = engine.encode_with_logits(batch, rows=rows)[1] if hidden else engine.logits(batch, rows=rows)
    return np.split(logits, np.searchsorted(rows, batch.cu_seqlens[1:-1]))


def alone(engine: Engine, sequences: Sequence[Sequence[int]]) -> Answers:
    return [answers(engine, [sequence])[0] for sequence in sequences]


def assert_same(got: Answers, wanted: Answers) -> None:
    assert len(got) == len(wanted)
    for each, want in zip(got, wanted, strict=True):
        assert each.shape == want.shape and each.tobytes() == want.tobytes()


@pytest.mark.parametrize("task", TASKS)
def test_alone_or_in_a_batch_with_any_number_of_threads(
    checkpoint: Callable[[str], Path], forced_engine: Load, sequences: list[list[int]], task: str
) -> None:
    """All together, in random company of random order, and alone; each with 1, 2, 3 and 7 threads."""
    rng = np.random.default_rng(0)
    wanted = alone(forced_engine(checkpoint(task), threads=1), sequences)
    for threads in THREADS:
        engine = forced_engine(checkpoint(task), threads=threads)
        assert engine.info()["threads"] == threads
        assert_same(answers(engine, sequences), wanted)
        assert_same(alone(engine, sequences[::3]), wanted[::3])
        for _ in range(3):
            chosen = rng.permutation(len(sequences))[: rng.integers(2, len(sequences))]
            assert_same(answers(engine, [sequences[i] for i in chosen]), [wanted[i] for i in chosen])


@pytest.mark.parametrize("task", TASKS)
def test_any_place_in_a_batch(
    checkpoint: Callable[[str], Path], forced_engine: Load, sequences: list[list[int]], task: str
) -> None:
    """One sequence at the beginning, inside and at the end, twice in a batch, and in the second chunk of it."""
    engine = forced_engine(checkpoint(task), threads=2)
    probe, others = sequences[-12], [*sequences[:-12], *sequences[-11:]]
    [wanted] = alone(engine, [probe])
    for place in (0, 1, len(others) // 2, len(others)):
        assert_same([answers(engine, [*others[:place], probe, *others[place:]])[place]], [wanted])
    together = answers(engine, [probe, *others, probe, probe])
    assert_same([together[0], *together[-2:]], [wanted] * 3)


@each_kernel
@pytest.mark.parametrize("task", ["text-classification", "fill-mask"])
def test_rows_that_nobody_reads_change_nothing(
    checkpoint: Callable[[str], Path], forced_engine: Load, sequences: list[list[int]], task: str, precision: str
) -> None:
    """Skipped in the last layer, computed because the hidden state is wanted, or computed for a trace."""
    engine = forced_engine(checkpoint(task), threads=2, precision=precision)
    skipped = answers(engine, sequences)
    assert_same(answers(engine, sequences, hidden=True), skipped)
    if task == "text-classification":
        longest = max(map(len, sequences))
        ids = np.array([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences])
        mask = np.arange(longest) < np.array([len(sequence) for sequence in sequences])[:, None]
        for asked in ({}, {"output_hidden_states": True}, {"output_attentions": True}):
            assert_same(list(engine(ids, mask, **asked).logits), skipped)


@each_kernel
def test_any_rows_of_a_masked_lm(
    checkpoint: Callable[[str], Path], forced_engine: Load, sequences: list[list[int]], precision: str
) -> None:
    """The scores of a row are the same whichever other rows are asked for; also none in some sequences."""
    engine = forced_engine(checkpoint("fill-mask"), threads=2, precision=precision)
    batch = PackedBatch.from_sequences(sequences)
    every = engine.logits(batch)
    rng = np.random.default_rng(1)
    for count in (1, 2, 17, batch.num_tokens // 2, batch.num_tokens):
        rows = np.sort(rng.choice(batch.num_tokens, count, replace=False)).astype(np.int32)
        some = engine.logits(batch, rows=rows)
        assert some.tobytes() == every[rows].tobytes()


def test_holes_in_the_mask_are_as_good_as_their_absence(
    checkpoint: Callable[[str], Path], forced_engine: Load, isa: str
) -> None:
    """What stands under a hole, and how many columns there are, is read by nobody."""
    engine = forced_engine(checkpoint("feature-extraction"), threads=2)
    rng = np.random.default_rng(2)
    ids, mask = rng.integers(0, VOCABULARY, (5, 60)), rng.integers(0, 2, (5, 60))
    mask[:, 0] = mask[:, 40:] = 0
    mask[:, 7] = 1
    wanted = engine(ids, mask).last_hidden_state
    other = np.where(mask == 1, ids, rng.integers(0, VOCABULARY, ids.shape))
    assert engine(other, mask).last_hidden_state.tobytes() == wanted.tobytes()
    assert engine(ids[:, :40], mask[:, :40]).last_hidden_state.tobytes() == wanted[:, :40].tobytes()
    for row in range(len(ids)):
        assert engine(ids[[row]], mask[[row]]).last_hidden_state.tobytes() == wanted[[row]].tobytes()
