"""``engine(...)``, called like a transformers model: the same fields, shapes and values, for any mask, on every ISA.

On small models, so that all variants run: every head of both families, hidden states and attentions. The tolerance is
the project's: twice the error of the reference's naive fp32 against transformers' float64, field by field.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import Padded, naive_outputs, ragged, split, transformers_model, transformers_outputs

from distilfast import Engine, PackedBatch
from distilfast.heads import TASKS
from distilfast.parity import NAIVE_FACTOR, relative_error

Make = Callable[..., Path]
Load = Callable[..., Engine]

EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
LABELS = 40  # with fewer values the ratio of two errors varies too much


def batch_for(task: str, model_type: str) -> Padded:
    batch = ragged(np.random.default_rng(11 + TASKS.index(task)), task)
    return batch if model_type == "bert" else batch._replace(types=None)


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("task", TASKS)
def test_every_field(tiny_checkpoint: Make, forced_engine: Load, task: str, model_type: str) -> None:
    labels = LABELS if task.endswith("classification") else None
    directory = tiny_checkpoint(model_type, task, num_labels=labels)
    batch = batch_for(task, model_type)
    naive = naive_outputs(directory, batch, **EVERYTHING)
    truth = transformers_outputs(transformers_model(directory, task).double(), batch, **EVERYTHING)
    got = forced_engine(directory)(*batch, **EVERYTHING).to_dict()
    assert got.keys() == truth.keys()
    for name, value in truth.items():
        of_tokens, of_padding = split(name, got[name], batch.keep)
        wanted = split(name, value, batch.keep)[0]
        budget = NAIVE_FACTOR * relative_error(split(name, naive[name], batch.keep)[0], wanted)
        assert of_tokens.dtype == np.float32
        assert relative_error(of_tokens, wanted) <= budget, name
        assert not of_padding.any(), name


@pytest.mark.parametrize("task", TASKS)
def test_only_requested_fields(tiny_checkpoint: Make, task: str) -> None:
    """Requesting hidden states or attentions adds that field and changes no bit of the others."""
    engine = Engine.from_pretrained(tiny_checkpoint("bert", task))
    batch = batch_for(task, "bert")
    plain = engine(*batch).to_dict()
    more = engine(*batch, **EVERYTHING).to_dict()
    assert more.keys() - plain.keys() == {"hidden_states", "attentions"}
    for name, value in plain.items():
        assert value.tobytes() == more[name].tobytes()
    for name in ("hidden_states", "attentions"):
        alone = engine(*batch, **{f"output_{name}": True})
        assert alone.to_dict().keys() - plain.keys() == {name}
        assert all(a.tobytes() == b.tobytes() for a, b in zip(alone[name], more[name], strict=True))


def test_attentions_of_a_token_sum_to_one(tiny_checkpoint: Make, forced_engine: Load) -> None:
    engine = forced_engine(tiny_checkpoint("distilbert", "feature-extraction"))
    batch = batch_for("feature-extraction", "distilbert")
    for layer in engine(*batch, output_attentions=True).attentions:
        sums: Any = layer.sum(axis=-1, dtype=np.float64).transpose(0, 2, 1)[batch.keep]
        # One rounding for each column, of half an ulp of a number below one.
        np.testing.assert_allclose(sums, 1.0, rtol=0, atol=layer.shape[-1] * np.finfo(np.float32).eps)


@pytest.mark.parametrize("task", ["fill-mask", "text-classification"])
def test_a_trace_of_several_chunks(tiny_checkpoint: Make, task: str) -> None:
    """Every intermediate of 1,500 tokens has the bits of those of each sequence by itself."""
    engine = Engine.from_pretrained(
        tiny_checkpoint("bert", task, config={"max_position_embeddings": 512}), backend="cpu"
    )
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, 256, length).tolist() for length in (300, 1, 212, 512, 7, 400, 68)]
    together = engine.trace(PackedBatch.from_sequences(sequences))
    alone = [engine.trace(PackedBatch.from_sequences([each])) for each in sequences]
    assert list(together) == list(alone[0])
    for name, values in together.items():
        assert values.tobytes() == np.concatenate([each[name] for each in alone]).tobytes(), name


def test_only_the_intermediates_that_are_asked_for(tiny_checkpoint: Make) -> None:
    """Beside the results themselves no more than the widest of them a second time is in memory."""
    engine = Engine.from_pretrained(tiny_checkpoint("distilbert", "feature-extraction"), backend="cpu")
    ids = np.random.default_rng(5).integers(0, 256, (64, 64))
    engine(ids, output_hidden_states=True)
    tracemalloc.start()
    outputs = engine(ids, output_hidden_states=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    results = [outputs.last_hidden_state, *outputs.hidden_states]
    assert peak < 1.6 * sum(each.nbytes for each in results)
    batch = PackedBatch.from_sequences(ids.tolist())
    for backend in ("cpu", "reference"):
        engine = Engine.from_pretrained(
            engine.directory, backend=backend, precision="fp32" if backend == "cpu" else "fp64"
        )
        trace: dict[str, np.ndarray] = {}
        engine._backend.forward(batch, None, True, trace, None, {"embed", "layer.1.probabilities"})
        assert list(trace) == ["embed", "layer.1.probabilities"]
