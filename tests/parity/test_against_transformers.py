"""`--against transformers`: every intermediate of its modules, and both errors side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from planting import dropped, scaled

from distilfast import PackedBatch
from distilfast.config import ModelConfig
from distilfast.errors import BackendError
from distilfast.heads import TASKS
from distilfast.parity import compare, relative_error
from distilfast.parity.oracles import TransformersModel, in_float64, load_transformers
from distilfast.parity.steps import forward, steps
from distilfast.weights import load_weights

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _needs() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("task", TASKS)
def test_its_modules_give_every_intermediate_of_the_reference(
    tiny_checkpoint: Make, model_type: str, task: str
) -> None:
    """In float64, on a ragged batch with token types: the same names, shapes and numbers."""
    directory = tiny_checkpoint(model_type, task, num_labels=5 if task.endswith("classification") else None)
    config = ModelConfig.from_file(directory / "config.json")
    weights, head = load_weights(directory, config, task)
    batch = PackedBatch.from_sequences([[2, 77, 3], [2, 5, 6, 200, 3], [9]], [[0, 1, 1], [0, 0, 1, 1, 1], [0]])
    if not config.token_types:
        batch = PackedBatch(batch.input_ids, batch.positions, batch.cu_seqlens)
    got = TransformersModel(load_transformers(directory, task).double(), weights, head)(batch)
    want = forward(steps(batch, config, head), in_float64(weights))
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].shape == array.shape, name
        assert relative_error(got[name], array) < 1e-10, name


@pytest.mark.parametrize(("model_type", "task"), [("distilbert", "fill-mask"), ("bert", "text-classification")])
def test_a_correct_model_passes(tiny_checkpoint: Make, isa: str, model_type: str, task: str) -> None:
    report = compare(tiny_checkpoint(model_type, task), against="transformers")
    assert report.passed, report.sentence
    assert report.yardstick == "plain fp32"


def test_the_error_of_torch_is_shown_and_sets_no_budget(tiny_checkpoint: Make) -> None:
    """It is as large as the error of the reference's naive float32, from which the budgets come either way."""
    directory = tiny_checkpoint("bert", "fill-mask")
    with_torch, without = (compare(directory, against=against).rows_ for against in ("transformers", "reference"))
    ratios = np.array([row.torch / row.naive for row in with_torch])
    assert (ratios > 0.2).all() and (ratios < 5.0).all() and (ratios != 1.0).any()
    assert all(row.torch is None for row in without)
    for a, b in zip(with_torch, without, strict=True):  # two truths in float64, which differ by roundings of 1e-16
        assert a.budget == pytest.approx(b.budget, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (dropped("layer.1.ffn_out.bias"), "layer.1.ffn_out"),
        (scaled("layer.0.qkv.weight", 1234, 1.5), "layer.0.qkv"),
    ],
)
def test_a_planted_error_fails(cpp_with: Callable[..., str], tiny_checkpoint: Make, change: object, name: str) -> None:
    cpp_with(change)
    report = compare(tiny_checkpoint("distilbert", "fill-mask"), against="transformers", backend="planted")
    assert report.first_wrong == name


def test_for_bf16_torch_runs_in_bfloat16(register: Callable[..., str], tiny_checkpoint: Make) -> None:
    register()  # plain float32, which is more accurate
    directory = tiny_checkpoint("distilbert", "text-classification")
    report = compare(directory, backend="planted", precision="bf16", against="transformers")
    assert report.passed
    assert all(1e-4 < row.torch < 0.1 for row in report.rows_)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_a_missing_package_is_an_error_of_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Make, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BackendError, match=r"^transformers cannot be compared with, .*\.$"):
        compare(tiny_checkpoint("bert", "fill-mask"), against="transformers")
