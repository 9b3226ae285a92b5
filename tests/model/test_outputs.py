"""``engine(...)`` as a transformers model is called: the same fields, shapes and numbers, for any mask, on every ISA.

Small models, so the breadth is here: every head of both families, hidden states and attentions. The tolerance is the
project's: twice the error of the reference's naive fp32 against transformers' float64, field by field.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import Padded, naive_outputs, ragged, split, transformers_model, transformers_outputs

from distilfast import Engine
from distilfast.heads import TASKS
from distilfast.parity import NAIVE_FACTOR, relative_error

Make = Callable[..., Path]
Load = Callable[..., Engine]

EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
LABELS = 40  # with fewer numbers the ratio of two errors varies too much


def question(task: str, model_type: str) -> Padded:
    batch = ragged(np.random.default_rng(11 + TASKS.index(task)), task)
    return batch if model_type == "bert" else batch._replace(types=None)


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("task", TASKS)
def test_every_field(tiny_checkpoint: Make, forced_engine: Load, task: str, model_type: str) -> None:
    labels = LABELS if task.endswith("classification") else None
    directory = tiny_checkpoint(model_type, task, num_labels=labels)
    batch = question(task, model_type)
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
def test_only_what_was_asked_for(tiny_checkpoint: Make, task: str) -> None:
    """The fields are there or None, and asking for more changes none of the others."""
    engine = Engine.from_pretrained(tiny_checkpoint("bert", task))
    batch = question(task, "bert")
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
    batch = question("feature-extraction", "distilbert")
    for layer in engine(*batch, output_attentions=True).attentions:
        sums: Any = layer.sum(axis=-1, dtype=np.float64).transpose(0, 2, 1)[batch.keep]
        # As many roundings as there are columns, each of half a unit in the last place of a number below one.
        np.testing.assert_allclose(sums, 1.0, rtol=0, atol=layer.shape[-1] * np.finfo(np.float32).eps)
