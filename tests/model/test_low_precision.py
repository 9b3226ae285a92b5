"""Precisions below fp32 on the CPU: the budget of every intermediate, and bits that do not depend on the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from identities import SIMULATED
from isas import NATIVE, SLOW, isas_and_precisions
from memoized_oracle import MemoizedOracle

from distilfast import Engine, parity
from distilfast import _cpu as cpu_module
from distilfast.backends import cpu
from distilfast.parity import comparison
from distilfast.parity.sample_texts import TEXTS

Make = Callable[..., Path]
WIDE = {"dim": 192, "n_heads": 3, "hidden_dim": 600, "vocab_size": 256, "max_position_embeddings": 512}
"""Widths that end inside a panel and inside a k-block."""


PRECISIONS = [name for name in cpu.PRECISIONS if name != "fp32"]
each_kernel = pytest.mark.parametrize(("isa", "precision"), isas_and_precisions(*PRECISIONS), indirect=["isa"])


@pytest.fixture(autouse=True)
def _memoized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "ReferenceOracle", MemoizedOracle)


@each_kernel
@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_every_intermediate_keeps_its_budget(tiny_checkpoint: Make, isa: str, precision, model_type):
    directory = tiny_checkpoint(model_type, "fill-mask", config=WIDE if model_type == "distilbert" else {})
    report = parity.compare(directory, backend="cpu", precision=precision)
    assert report.passed, report.sentence
    assert isa in report.detail
    assert precision in report.detail


@pytest.mark.skipif(not cpu.isas().get("avx2_vnni"), reason="this processor has no avx2_vnni")
def test_int8_products_of_avx2_vnni_keep_their_budget(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DISTILFAST_ISA", "avx2_vnni")
    directory = tiny_checkpoint("distilbert", "fill-mask", config=WIDE)
    report = parity.compare(directory, backend="cpu", precision="int8")
    assert report.passed, report.sentence
    assert parity.check_invariance(directory, backend="cpu", precision="int8").passed


def runs_fp32(isa: str, precision: str) -> bool:
    """Whether the precision is fp32's own function there, which test_parity.py runs in full size with every head."""
    own = cpu_module.kernel_identities().get(isa, {})
    return ("linear", precision) in own and own["linear", precision] == own["linear", "fp32"]


@each_kernel
def test_full_size_keeps_its_budget(
    full_checkpoint: Callable[[str], Path], isa: str, precision, request: pytest.FixtureRequest
):
    if isa == "ref":
        pytest.skip("plain C++ takes minutes for a model of this size")
    if isa != NATIVE or runs_fp32(isa, precision) or not request.config.getoption("nightly"):
        request.getfixturevalue("few_texts")
    report = parity.compare(full_checkpoint("text-classification"), backend="cpu", precision=precision)
    assert report.passed, report.sentence


@pytest.mark.parametrize("precision", PRECISIONS)
def test_trained_weights_keep_their_budget(minilm: Path, precision):
    report = parity.compare(minilm, backend="cpu", precision=precision)
    assert report.passed, report.sentence


@each_kernel
def test_batch_and_threads_change_no_bit(tiny_checkpoint: Make, isa: str, precision):
    directory = tiny_checkpoint("distilbert", "text-classification", config=WIDE)
    fewer: dict[str, Any] = {"texts": TEXTS[:8], "batches": 8} if isa in SLOW else {}
    outcome = parity.check_invariance(directory, backend="cpu", precision=precision, **fewer)
    assert outcome.passed


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("isa", [name for name, there in cpu.isas().items() if there] + [SIMULATED], indirect=True)
def test_info_says_how_it_is_computed(tiny_checkpoint: Make, isa: str, precision):
    info = Engine.from_pretrained(tiny_checkpoint("bert", "fill-mask"), backend="cpu", precision=precision).info()
    assert info["arithmetic"].startswith(f"{precision} ")
    # Without bf16 products attention multiplies in fp32, which is as fast there and more accurate.
    narrow = isa not in ("avx512_vnni", "avx512", "avx2_vnni", "avx2") and precision in ("bf16", "int8")
    assert info["attention_arithmetic"].startswith("bf16 " if narrow else "fp32 ")
    assert info["detail"].startswith(f"{isa} {precision}, ")
