"""Errors that `distilfast parity` must find: each fails, and the report names its place."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from planting import Float32Backend, dropped, scaled, with_eps
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from distilfast import reference
from distilfast.backends import cpu
from distilfast.cli import app
from distilfast.config import ModelConfig
from distilfast.errors import BackendError
from distilfast.parity import Report, compare
from distilfast.parity.oracles import in_float64
from distilfast.parity.steps import forward as run_steps
from distilfast.parity.steps import steps
from distilfast.weights import Weights, load_weights

Make = Callable[..., Path]
Change = Callable[[Weights], Weights]


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Make) -> Path:
    """Three layers, so that there is one before and one after the faulty one."""
    return tiny_checkpoint("distilbert", "text-classification", config={"n_layers": 3}, num_labels=5)


def judged(checkpoint: Path) -> Report:
    return compare(checkpoint, backend="planted")


def row(report: Report, name: str) -> Any:
    return next(row for row in report.rows_ if row.name == name)


def assert_first_wrong(report: Report, name: str) -> None:
    """It is named, in the sentence too, as the first that fails."""
    assert not report.passed
    assert report.first_wrong == name, report.sentence
    assert name in report.sentence


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        ("embed.norm.weight", "embed"),
        ("layer.0.qkv.weight", "layer.0.qkv"),
        ("layer.1.attention_out.weight", "layer.1.attention_out"),
        ("layer.1.attention_norm.weight", "layer.1.attention_norm"),
        ("layer.2.ffn_in.weight", "layer.2.ffn_in"),
        ("layer.1.ffn_out.weight", "layer.1.ffn_out"),
        ("layer.2.output_norm.weight", "layer.2.output"),
        ("head.0.weight", "head.0"),
        ("head.1.weight", "head.1"),
    ],
)
def test_one_weight_changed_by_one_percent(
    cpp_with: Callable[[Change], str], checkpoint: Path, tensor: str, name: str
) -> None:
    """In the weights of the C++ backend only, at a weight of typical size; the truth keeps the right ones."""
    config = ModelConfig.from_file(checkpoint / "config.json")
    values = load_weights(checkpoint, config, config.task)[0].tensors[tensor].ravel()
    cpp_with(scaled(tensor, int(np.argsort(np.abs(values))[len(values) * 3 // 4]), 1.01))
    assert_first_wrong(judged(checkpoint), name)


def test_one_element_of_the_word_table(cpp_with: Callable[[Change], str], checkpoint: Path) -> None:
    """In the row of [CLS], which every text contains."""
    config = ModelConfig.from_file(checkpoint / "config.json")
    cpp_with(scaled("embed.word", 2 * config.hidden_size + 7, 1.01))
    assert_first_wrong(judged(checkpoint), "embed")


@pytest.mark.parametrize("name", ["layer.0.qkv", "layer.1.ffn_in", "layer.2.attention_out", "head.0", "head.1"])
def test_a_dropped_bias(cpp_with: Callable[[Change], str], checkpoint: Path, name: str) -> None:
    cpp_with(dropped(f"{name}.bias"))
    assert_first_wrong(judged(checkpoint), name)


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def test_tanh_gelu_for_erf_gelu(register: Callable[..., str], checkpoint: Path) -> None:
    register(patched=lambda: mock.patch.dict(reference.ACTIVATIONS, {"gelu": tanh_gelu}))
    assert_first_wrong(judged(checkpoint), "layer.0.ffn_in")


def test_a_wrong_eps_where_rows_have_a_small_variance(
    cpp_with: Callable[[Change], str], tiny_checkpoint: Make, checkpoint: Path
) -> None:
    """Embeddings have a variance of 0.005, of which an eps of 1e-6 instead of 1e-12 is 0.02 %."""
    cpp_with(with_eps(1e-6))
    assert_first_wrong(judged(checkpoint), "embed")
    assert_first_wrong(compare(tiny_checkpoint("bert", "fill-mask"), backend="planted"), "embed")


def test_a_wrong_eps_of_one_norm(register: Callable[..., str], checkpoint: Path, tmp_path: Path) -> None:
    """The last norm of layer 1, whose input is scaled by a thousandth."""
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    stored = load_file(tmp_path / "model.safetensors")
    for name in ("sa_layer_norm", "ffn.lin2"):
        for kind in ("weight", "bias"):
            stored[f"distilbert.transformer.layer.1.{name}.{kind}"] *= np.float32(1e-3)
    save_file(stored, tmp_path / "model.safetensors")
    assert compare(tmp_path).passed

    def norm(tensors: dict[str, np.ndarray], x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        weight, bias = (tensors[f"layer.1.output_norm.{kind}"] for kind in ("weight", "bias"))
        return reference.add_layer_norm(x, residual, weight, bias, 1e-6)

    register(steps={"layer.1.output": norm})
    assert_first_wrong(judged(tmp_path), "layer.1.output")


class OffByOne:
    """``reference.attention`` where, in layer 1 of the first batch, head 2 of text 3 has a key too few or too many.

    ``only_context``: the traced probabilities stay right.
    """

    TEXT, HEAD = 3, 2

    def __init__(self, extra: bool, only_context: bool) -> None:
        self.extra, self.only_context = extra, only_context
        self.right = reference.attention
        self.calls = 0

    def __call__(self, qkv: np.ndarray, cu_seqlens: np.ndarray, num_heads: int) -> tuple[np.ndarray, np.ndarray]:
        context, probabilities = self.right(qkv, cu_seqlens, num_heads)
        self.calls += 1
        if self.calls not in (3, 4):  # each layer calls it for the probabilities and for the context
            return context, probabilities
        start, end = cu_seqlens[self.TEXT], cu_seqlens[self.TEXT + 1]
        q, k, v = qkv.reshape(len(qkv), 3, num_heads, -1)[start : end + self.extra, :, self.HEAD].swapaxes(0, 1)
        weights = self.weights(q[: end - start], k)
        context.reshape(len(qkv), num_heads, -1)[start:end, self.HEAD] = weights @ v
        lengths = np.diff(cu_seqlens)
        at = num_heads * (lengths[: self.TEXT] ** 2).sum() + self.HEAD * (end - start) ** 2
        if not self.only_context:
            probabilities[at : at + (end - start) ** 2] = weights[:, : end - start].ravel()
        return context, probabilities

    def weights(self, q: np.ndarray, k: np.ndarray) -> np.ndarray:
        scores = q @ k.T / math.sqrt(q.shape[-1])
        if not self.extra:
            scores[:, -1] = -np.inf
        exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("only_context", [False, True])
def test_a_mask_off_by_one(register: Callable[..., str], checkpoint: Path, extra: bool, only_context: bool) -> None:
    """One head of one sequence; the report names layer, text and head."""
    wrong = OffByOne(extra, only_context)
    register(patched=lambda: mock.patch.object(reference, "attention", wrong))
    report = judged(checkpoint)
    name = "layer.1.context" if only_context else "layer.1.probabilities"
    assert_first_wrong(report, name)
    assert row(report, name).where.startswith("text 3, ")
    assert "head 2" in row(report, name).where


def test_the_rows_after_an_error_are_checked_on_their_own(cpp_with: Callable[[Change], str], checkpoint: Path) -> None:
    """Layer 1 gets wrong inputs and computes correctly with them."""
    cpp_with(dropped("layer.0.ffn_out.bias"))
    report = judged(checkpoint)
    for each in report.rows_:
        assert (each.share > 1.0) == (each.name == "layer.0.ffn_out"), each
    assert not row(report, "layer.2.output").passed, "the error is still there, end to end"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_inf_fail(register: Callable[..., str], checkpoint: Path, value: float) -> None:
    def spoiled(tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        y = reference.linear(x, tensors["layer.1.ffn_out.weight"], tensors["layer.1.ffn_out.bias"])
        y[5, 7] = value
        return y

    register(steps={"layer.1.ffn_out": spoiled})
    report = judged(checkpoint)
    assert_first_wrong(report, "layer.1.ffn_out")
    assert row(report, "layer.1.ffn_out").where.endswith("column 7")
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_an_engine_that_is_less_accurate(register: Callable[..., str], checkpoint: Path, factor: float) -> None:
    """The C++ backend passes with its own errors, and fails with every error times 2.5."""

    class LessExact(cpu.CpuBackend):
        def load(self, weights: Weights, head: Any, precision: str) -> None:
            super().load(weights, head, precision)
            self.exact, self.right = in_float64(weights), (weights.config, head)

        def forward(self, batch: Any, rows: Any, hidden: bool, trace: Any = None, *rest: Any) -> Any:
            result = super().forward(batch, rows, hidden, trace, *rest)
            truth = run_steps(steps(batch, *self.right), self.exact)
            for name, right in truth.items():
                trace[name] = (right + factor * (trace[name] - right)).astype(np.float32)
            return result

    register(LessExact)
    assert judged(checkpoint).passed == (factor == 1.0)


def test_an_incomplete_trace_is_an_error(register: Callable[..., str], checkpoint: Path) -> None:
    class Silent(Float32Backend):
        def forward(self, batch: Any, rows: Any, hidden: bool, trace: Any = None, *rest: Any) -> Any:
            result = super().forward(batch, rows, hidden, trace, *rest)
            if trace is not None:
                del trace["layer.1.context"]
            return result

    register(Silent)
    with pytest.raises(BackendError, match=r"layer\.1\.context"):
        judged(checkpoint)


def test_the_command_names_the_place_and_exits_with_1(cpp_with: Callable[[Change], str], checkpoint: Path) -> None:
    cpp_with(dropped("layer.1.ffn_in.bias"))
    done = CliRunner().invoke(app, ["parity", str(checkpoint), "--backend", "planted"])
    assert done.exit_code == 1, done.output
    assert "FAIL: the first wrong intermediate is layer.1.ffn_in:" in done.output
    payload = CliRunner().invoke(app, ["parity", str(checkpoint), "--backend", "planted", "--json"])
    assert payload.exit_code == 1
    assert json.loads(payload.output)["first_wrong"] == "layer.1.ffn_in"
