"""``engine(...)``, called like a transformers model: the same fields, shapes and values, for any mask, on every ISA.

On small models, so that all variants run: every head of both families, hidden states and attentions. The tolerance is
the project's: twice the error of the reference's naive fp32 against transformers' float64, field by field.
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
