"""Correct models pass: every task, several seeds, every instruction set and every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planting import Float32Backend

from distilfast import reference
from distilfast.errors import BackendError, InputError
from distilfast.heads import TASKS
from distilfast.parity import compare
from distilfast.parity.budgets import BUDGETS, Arithmetic, to_bf16, to_fp16, to_int8, to_two_bf16
from distilfast.parity.sample_texts import TEXTS

Make = Callable[..., Path]
SHORT = {"max_position_embeddings": 24}
LINEARS = {"linears_only": True}


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task(tiny_checkpoint: Make, isa: str, model_type: str, task: str) -> None:
    report = compare(tiny_checkpoint(model_type, task, config=SHORT))
    assert report.passed, report.sentence
    assert isa in report.detail
    assert report.agreement.top1 == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_every_seed(tiny_checkpoint: Make, isa: str, seed: int) -> None:
    """Two labels or one; the sample texts, and one given text, which the sample texts complete."""
    directory = tiny_checkpoint("bert", "text-classification", seed=seed, num_labels=2 - seed % 2, config=SHORT)
    for texts in (None, ["A single sentence."]):
        report = compare(directory, texts=texts, threads=1 + seed % 2)
        assert report.passed, report.sentence
        assert (report.texts, report.given) == (len(TEXTS), len(texts or ()))


def test_trained_weights(minilm: Path) -> None:
    """Their activations have a few values a hundred times larger than the rest."""
    report = compare(minilm, texts=TEXTS[:6])
    assert report.passed, report.sentence


def test_full_size(tiny_checkpoint: Make, isa: str) -> None:
    """The width of DistilBERT, one layer of it."""
    wide = {"dim": 768, "n_heads": 12, "n_layers": 1, "hidden_dim": 3072, "max_position_embeddings": 12}
    report = compare(tiny_checkpoint("distilbert", "text-classification", config=wide))
    assert report.passed, report.sentence


@pytest.mark.parametrize(
    ("precision", "arithmetic"),
    [
        ("fp32", Arithmetic()),
        ("bf16x3", Arithmetic(to_two_bf16, to_two_bf16, **LINEARS)),
        ("bf16", Arithmetic(to_bf16, to_bf16, **LINEARS)),
        ("fp16", Arithmetic(to_fp16, to_fp16, **LINEARS)),
        ("int8", Arithmetic(to_int8, to_int8, **LINEARS)),
    ],
)
def test_each_precision_keeps_its_own_budget(
    register: Callable[..., str], tiny_checkpoint: Make, precision: str, arithmetic: Arithmetic
) -> None:
    """Rounded operands and a float32 residual stream, as in an engine; budgets of finer precisions are exceeded."""
    register(arithmetic=arithmetic)
    directory = tiny_checkpoint("distilbert", "text-classification", config=SHORT | {"dim": 64, "hidden_dim": 128})
    report = compare(directory, backend="planted", precision=precision)
    assert report.passed, report.sentence
    if precision != "fp32":
        assert not compare(directory, backend="planted", precision="fp32").passed
    if precision in ("bf16", "int8"):
        assert not compare(directory, backend="planted", precision="bf16x3").passed


def test_int8_is_checked_at_every_token(register: Callable[..., str], tiny_checkpoint: Make) -> None:
    """One wrong token in an otherwise correct hidden state: its cosine is below 0.999."""

    def negated(tensors: dict[str, Any], x: Any, residual: Any) -> Any:
        weight, bias = (tensors[f"layer.0.output_norm.{kind}"] for kind in ("weight", "bias"))
        y = reference.add_layer_norm(x, residual, weight, bias, 1e-12)
        y[3] = -y[3]
        return y

    register(steps={"layer.0.output": negated}, arithmetic=BUDGETS["int8"].arithmetic)
    report = compare(tiny_checkpoint("distilbert", "fill-mask"), backend="planted", precision="int8")
    assert report.first_wrong == "layer.0.output"
    assert next(row for row in report.rows_ if row.name == "layer.0.output").cosine < -0.99


def test_the_reference_itself(tiny_checkpoint: Make) -> None:
    report = compare(tiny_checkpoint("bert", "fill-mask"), backend="reference", precision="fp64")
    assert report.passed
    assert max(row.relative for row in report.rows_) == 0.0


def test_a_precision_without_a_budget_is_an_error(register: Callable[..., str], tiny_checkpoint: Make) -> None:
    register(Float32Backend)
    with pytest.raises(BackendError, match="'fp4' has no budget"):
        compare(tiny_checkpoint("bert", "fill-mask"), backend="planted", precision="fp4")


def test_an_unknown_oracle_or_no_texts_is_an_error(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("bert", "fill-mask")
    with pytest.raises(InputError, match="'onnx' is not known"):
        compare(directory, against="onnx")
    with pytest.raises(InputError, match="no texts"):
        compare(directory, texts=[])
