"""`--invariance`: equal bits pass, and a backend whose answers depend on the batch or on threads is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilfast import reference
from distilfast.backends import cpu
from distilfast.errors import InputError
from distilfast.parity import check_invariance

Make = Callable[..., Path]


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction", "fill-mask"])
def test_the_cpu_backend_gives_equal_bits(tiny_checkpoint: Make, isa: str, task: str) -> None:
    found = check_invariance(tiny_checkpoint("bert", task), batches=8, threads=3)
    assert found.passed, found.sentence
    assert found.threads == (1, 2, 3)
    assert found.compared[0] == "last hidden state"
    assert found.comparisons > 3 * (24 + 2 * 8)
    assert "equal to the bit: 24 texts alone and in 8 random batches, with 1, 2 and 3 threads" in found.sentence
    assert isa in found.details[0]


def one_scale_for_all(tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Dynamic int8 with one scale for the whole batch, so that each token's rounding depends on the others."""
    step = np.abs(x).max() / np.float32(127)
    rounded = (np.round(x / step) * step).astype(np.float32)
    return reference.linear(rounded, tensors["layer.0.ffn_out.weight"], tensors["layer.0.ffn_out.bias"])


def test_one_scale_for_a_batch_is_caught(register: Callable[..., str], tiny_checkpoint: Make) -> None:
    register(steps={"layer.0.ffn_out": one_scale_for_all})
    found = check_invariance(tiny_checkpoint("distilbert", "text-classification"), backend="planted", batches=5)
    assert not found.passed
    difference = found.difference
    assert difference is not None
    assert (difference.batch, difference.threads) == (0, 1)
    assert difference.companions[difference.position] == difference.text
    assert difference.max_abs > 1e-4
    assert f"text {difference.text} at place {difference.position} of batch 0 (texts " in found.sentence


class DependsOnThreads(cpu.CpuBackend):
    """The C++ backend, whose head rounds differently with two threads; numpy's bits already depend on the batch."""

    def forward(self, batch: Any, rows: Any, hidden: bool, *rest: Any) -> Any:
        states, output = super().forward(batch, rows, hidden, *rest)
        if self.info()["threads"] == 2 and output is not None:
            output = np.nextafter(output, np.float32(9))
        return states, output


def test_threads_that_change_a_bit_are_caught(register: Callable[..., str], tiny_checkpoint: Make) -> None:
    """At the first text alone, in the head."""
    register(DependsOnThreads)
    found = check_invariance(
        tiny_checkpoint("distilbert", "text-classification"), backend="planted", texts=["Rain.", "Snow."], batches=2
    )
    difference = found.difference
    assert difference is not None
    assert (difference.text, difference.batch, difference.threads) == (0, None, 2)
    assert found.sentence.startswith("text 0 alone, 2 threads, differs in the head's answer by up to ")
    assert found.to_dict()["passed"] is False


def test_the_same_seed_draws_the_same_batches(register: Callable[..., str], tiny_checkpoint: Make) -> None:
    register(steps={"layer.0.ffn_out": one_scale_for_all})
    directory = tiny_checkpoint("distilbert", "text-classification")
    first, again, other = (check_invariance(directory, backend="planted", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.difference != other.difference


def test_no_texts_is_an_error(tiny_checkpoint: Make) -> None:
    with pytest.raises(InputError, match="no texts"):
        check_invariance(tiny_checkpoint("bert", "fill-mask"), texts=[])
