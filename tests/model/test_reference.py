"""The oracle itself: ``reference.py`` agrees with transformers, both in float64, for every head, to 1e-10."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import Padded, ragged, split, transformers_model, transformers_outputs

from distilfast import Engine, PackedBatch, reference
from distilfast.config import ModelConfig
from distilfast.heads import TASKS
from distilfast.parity import relative_error
from distilfast.weights import load_weights

Make = Callable[..., Path]

BUDGET = 1e-10  # stated by the project: float64 against float64
MODEL_TYPES = ("distilbert", "bert")
WIDTHS = {"distilbert": ("dim", "n_heads"), "bert": ("hidden_size", "num_attention_heads")}


def both(directory: Path, task: str, batch: Padded) -> tuple[dict[str, Any], dict[str, Any]]:
    """All outputs of the reference backend and of transformers, in float64."""
    engine = Engine.from_pretrained(directory, task=task, backend="reference", precision="fp64")
    got = engine(*batch, output_hidden_states=True, output_attentions=True).to_dict()
    model = transformers_model(directory, task, "float64")
    want = transformers_outputs(model, batch, output_hidden_states=True, output_attentions=True)
    return got, want


def assert_same(got: dict[str, Any], want: dict[str, Any], keep: np.ndarray) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        of_tokens, of_padding = split(name, got[name], keep)
        assert of_tokens.dtype == np.float64
        assert relative_error(of_tokens, split(name, value, keep)[0]) <= BUDGET, name
        assert not of_padding.any(), name


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("task", TASKS)
def test_every_output_is_that_of_transformers(tiny_checkpoint: Make, model_type: str, task: str) -> None:
    """The head's answer, the hidden states and the attentions, on any mask; zeros where there is no token."""
    batch = ragged(np.random.default_rng(TASKS.index(task)), task)
    if model_type == "distilbert":
        batch = batch._replace(types=None)
    labels = 5 if task.endswith("classification") else None
    assert_same(*both(tiny_checkpoint(model_type, task, num_labels=labels), task, batch), batch.keep)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("width", "heads"), [(36, 3), (30, 6), (33, 1), (8, 8)])
def test_any_head_size(tiny_checkpoint: Make, model_type: str, width: int, heads: int) -> None:
    config = dict(zip(WIDTHS[model_type], (width, heads), strict=True))
    batch = ragged(np.random.default_rng(width), "fill-mask")._replace(types=None)
    directory = tiny_checkpoint(model_type, "fill-mask", config=config)
    assert_same(*both(directory, "fill-mask", batch), batch.keep)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_each_activation(tiny_checkpoint: Make, model_type: str, activation: str) -> None:
    key = "activation" if model_type == "distilbert" else "hidden_act"
    directory = tiny_checkpoint(model_type, "fill-mask", config={key: activation})
    batch = ragged(np.random.default_rng(1), "fill-mask")._replace(types=None)
    assert_same(*both(directory, "fill-mask", batch), batch.keep)


def test_the_defaults_are_a_mask_of_ones_and_types_of_zeros(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("bert", "feature-extraction")
    engine = Engine.from_pretrained(directory, backend="reference", precision="fp64")
    ids = np.random.default_rng(2).integers(0, 256, (3, 11))
    bare, spelled = engine(ids), engine(ids, np.ones_like(ids), np.zeros_like(ids))
    for name, value in spelled.to_dict().items():
        np.testing.assert_array_equal(bare[name], value)


def test_a_classifier_reads_the_first_token_that_is_not_padding(tiny_checkpoint: Make) -> None:
    """With padding on the left, where transformers reads the first column, which is padding."""
    engine = Engine.from_pretrained(
        tiny_checkpoint("bert", "text-classification"), backend="reference", precision="fp64"
    )
    batch = PackedBatch.from_padded(np.array([[0, 0, 0, 2, 90, 91, 3]]), np.array([[0, 0, 0, 1, 1, 1, 1]]))
    np.testing.assert_array_equal(batch.positions, [3, 4, 5, 6])
    want = engine.logits(batch, rows=np.array([0], np.int32))
    np.testing.assert_array_equal(engine([[0, 0, 0, 2, 90, 91, 3]], [[0, 0, 0, 1, 1, 1, 1]]).logits, want)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("task", ["fill-mask", "text-classification"])
def test_a_float32_forward_stays_float32(tiny_checkpoint: Make, model_type: str, task: str) -> None:
    """The float32 budget is derived from it, so nothing in it may be computed in a higher precision."""
    directory = tiny_checkpoint(model_type, task)
    config = ModelConfig.from_file(directory / "config.json")
    weights, head = load_weights(directory, config, task)
    batch = PackedBatch.from_sequences([[2, 77, 3], [2, 5, 6, 200, 3]])
    trace: dict[str, np.ndarray] = {}
    x = reference.encoder(batch, weights.tensors, config, trace)
    reference.run_head(x, head, weights.tensors, config.layer_norm_eps, trace)
    assert {name: array.dtype for name, array in trace.items()} == dict.fromkeys(trace, np.dtype(np.float32))
