"""The engine on backend triton: on a GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilfast import Engine, PackedBatch, parity
from distilfast.backends import triton as backend
from distilfast.base_models import base_config
from distilfast.errors import BackendError
from distilfast.parity import NAIVE_FACTOR, relative_error
from distilfast.parity.budgets import sampling_slack

if reason := backend.unavailable():
    pytest.skip(f"backend triton: {reason}", allow_module_level=True)

import torch

from distilfast.kernels import runner, tuning
from distilfast.kernels.device import gpu_for
from distilfast.weights import Weights

Make = Callable[..., Path]
PRECISIONS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "bf16" and backend.is_interpreted(), reason="triton's interpreter computes bf16 products wrongly"
        ),
    )
    for name in backend.PRECISIONS
]
LENGTHS = (1, 17, 5, 40, 2, 16)
ONE_LAYER = {"n_layers": 1}


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def checkpoint(tiny_checkpoint: Make) -> Path:
    """Of one layer: the interpreter takes seconds for a forward of two."""
    return tiny_checkpoint("distilbert", "text-classification", config=ONE_LAYER)


def batch_of(lengths=LENGTHS, seed: int = 0) -> PackedBatch:
    rng = np.random.default_rng(seed)
    return PackedBatch.from_sequences([rng.integers(0, 200, length).tolist() for length in lengths])


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """fp32 answers of two buckets, whose tiles add in other orders, or of float64: apart by rounding and no more.

    A row in another's place would differ in its first digit. The bound is a float32 ulp times the additions in a row of
    the largest sum (width and FFN), for a layer and the head.
    """
    return relative_error(one, other) <= 2.0**-23 * 2 * (32 + 48)


def load(directory: Path, precision: str = "fp32", **options: Any) -> Engine:
    return Engine.from_pretrained(directory, backend="triton", precision=precision, **options)


def exact(directory: Path, **options: Any) -> Engine:
    return Engine.from_pretrained(directory, backend="reference", precision="fp64", **options)


@pytest.mark.usefixtures("few_texts", "hopper_arithmetic")
@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_every_intermediate_keeps_its_budget(tiny_checkpoint: Make, model_type, precision):
    directory = tiny_checkpoint(model_type, "fill-mask", config={"max_position_embeddings": 24})  # seconds each
    report = parity.compare(directory, backend="triton", precision=precision)
    assert report.passed, report.sentence


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_skipped_rows_change_nothing(tiny_checkpoint: Make, task, precision):
    """Where the last layer computes only the head's rows, its answers are as near to the truth as where it does all."""
    directory = tiny_checkpoint("bert", task, config={"num_hidden_layers": 1})
    engine, batch = load(directory, precision, task=task), batch_of()
    hidden, output = engine.encode_with_logits(batch)
    assert hidden.shape == (batch.num_tokens, 32)
    truth = exact(directory, task=task).logits(batch)
    skipped = engine.logits(batch)
    rows = np.array([0, 3, 60, 79], np.int32)
    asked = engine.logits(batch, rows=rows)
    assert skipped.dtype == output.dtype == np.float32
    whole = relative_error(output, truth)
    assert relative_error(skipped, truth) <= NAIVE_FACTOR * whole
    wanted = exact(directory, task=task).logits(batch, rows=rows)
    assert relative_error(asked, wanted) <= float(sampling_slack(len(rows))) * whole


def test_pieces_answer_as_one_batch(checkpoint: Path, monkeypatch):
    """More tokens than the largest bucket: pieces of whole sequences, their rows joined."""
    engine, batch = load(checkpoint), batch_of((9, 30, 1, 1, 14, 16, 3))
    hidden, output = engine.encode_with_logits(batch)
    rows = np.array([2, 8, 9, 73], np.int32)
    asked = engine.logits(batch, rows=rows)
    monkeypatch.setattr(tuning, "LARGEST_BUCKET", 32)
    for got, wanted in zip(engine.encode_with_logits(batch), (hidden, output), strict=True):
        assert same(got, wanted)
    assert same(engine.logits(batch, rows=rows), asked)
    with pytest.raises(BackendError, match="cannot run 74 tokens at once"):
        engine.forward_on_device(batch)


def test_out_of_memory_halves_the_batch_and_the_engine_works_on(checkpoint: Path, monkeypatch):
    engine, batch = load(checkpoint), batch_of()
    wanted = engine.logits(batch)
    run, most = runner.ShapeRunner.run, 50

    def limited(self: Any, batch: PackedBatch, *rest: Any) -> Any:
        if batch.num_tokens > most:
            raise torch.OutOfMemoryError
        return run(self, batch, *rest)

    monkeypatch.setattr(runner.ShapeRunner, "run", limited)
    assert same(engine.logits(batch), wanted)
    most = 20
    with pytest.raises(BackendError, match=r"has too little memory for a sequence of 40 tokens\.$"):
        engine.logits(batch)
    with pytest.raises(BackendError, match=r"cannot run 81 tokens at once\.$"):
        engine.forward_on_device(batch)
    most = 1000
    assert same(engine.logits(batch), wanted)


def test_results_on_the_device(checkpoint: Path):
    engine, batch = load(checkpoint), batch_of()
    hidden, output = engine.encode_with_logits(batch)
    device_hidden, device_output = engine.forward_on_device(batch, hidden=True)
    assert np.array_equal(device_hidden.cpu().numpy(), hidden)
    assert np.array_equal(device_output.cpu().numpy(), output)
    with pytest.raises(BackendError, match="backend cpu computes on the host"):
        Engine.from_pretrained(checkpoint, backend="cpu").forward_on_device(batch)


def test_runs_again_to_the_same_bits(checkpoint: Path, precision):
    engine, batch = load(checkpoint, precision), batch_of()
    first = engine.encode_with_logits(batch)
    engine.logits(batch_of((64, 64), seed=1))  # leaves other numbers in every buffer
    for one, other in zip(first, engine.encode_with_logits(batch), strict=True):
        assert np.array_equal(one, other)


def test_graphs_are_bounded_and_scratch_follows_the_largest(checkpoint: Path, monkeypatch):
    engine = load(checkpoint)
    monkeypatch.setattr(backend, "MOST_GRAPHS", 3)
    engine.warm_up([(1, 64), (1, 1), (2, 10), (1, 40), (3, 1)])
    info = engine.info()
    assert info["shapes"] == 3
    engine.warm_up([(1, 60)])
    assert engine.info()["scratch_bytes"] == info["scratch_bytes"]
    engine.warm_up([(4, 60)])
    assert engine.info()["scratch_bytes"] > info["scratch_bytes"]


def test_callers_at_once_get_their_own_answers(checkpoint: Path):
    """Two engines, each called from several threads."""
    engines = [load(checkpoint), load(checkpoint)]
    batches = [batch_of((3, 9), seed) for seed in range(2)]
    wanted = [engines[0].logits(batch) for batch in batches]
    wrong: list[int] = []

    def call(engine: Engine) -> None:
        for i, batch in enumerate(batches):
            if not np.array_equal(engine.logits(batch), wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=call, args=(engine,)) for engine in engines * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_torch_in_torch_out(checkpoint: Path):
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    outputs = load(checkpoint)(ids, attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    assert isinstance(outputs.logits, torch.Tensor)
    truth = exact(checkpoint)(ids.numpy(), attention_mask=np.array([[1, 1, 1], [1, 1, 0]]))
    assert same(outputs.logits.numpy(), truth.logits)


def test_info_says_what_runs(checkpoint: Path):
    info = load(checkpoint, "fp16").info()
    assert info["detail"].startswith("triton 3.")
    assert " fp16, " in info["detail"]
    alone = ", no dependent launches: the interpreter runs one kernel at a time"
    assert info["detail"].endswith(", persistent linears from 1024 tokens on" + alone)
    assert info["packed_bytes"] > 0
    assert load(checkpoint).info()["detail"].endswith(", no persistent linears: fp32 operands have none" + alone)


PERSISTENT = "persistent linears from 1024 tokens on"
NONE = "no persistent linears: they need the tensor descriptors of a data-centre GPU from Hopper on"
TOO_OLD = "no dependent launches: they need an NVIDIA GPU from Hopper on"


@pytest.mark.parametrize(
    ("capability", "hip", "driver", "width", "detail"),
    [
        ((9, 0), None, 12_030, 32, f"{PERSISTENT}, dependent launches"),
        ((10, 0), None, 13_000, 32, f"{PERSISTENT}, dependent launches"),
        ((12, 0), None, 13_000, 32, f"{NONE}, dependent launches"),
        ((8, 9), None, 13_000, 32, f"{NONE}, {TOO_OLD}"),
        ((9, 4), "7.0", 0, 32, f"{NONE}, {TOO_OLD}"),
        ((9, 0), None, 12_020, 36, "no persistent linears: a width is no multiple of 8, "
         "no dependent launches: they need a driver of CUDA 12.3 or newer"),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_kernels_make_of_a_gpu(monkeypatch, capability, hip, driver, width, detail):
    class Properties:
        multi_processor_count, gcnArchName = 114, "gfx942:sramecc+"

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: Properties)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    config = replace(base_config("text-classification"), hidden_size=width)
    made = gpu_for(torch.device("cuda", 0), config, is_half=True)
    assert made.detail == detail
    assert made.multiprocessors == (114 if detail.startswith("persistent") else 0)
    assert made.dependent_launches == detail.endswith(", dependent launches")


# -------------------------------------------------------------------------------------------------- what cannot be had


def test_unknown_precision(checkpoint: Path):
    with pytest.raises(BackendError, match=r"'int8' is not available on backend triton; it has fp32, bf16, fp16\.$"):
        load(checkpoint, "int8")


def test_weights_beyond_fp16(checkpoint: Path, monkeypatch):
    engine = load(checkpoint, "fp32")
    weights = Weights(engine.config, {"layer.0.qkv.weight": np.full((2, 2), 1e6, np.float32)})
    with pytest.raises(BackendError, match=r"^layer\.0\.qkv\.weight does not fit fp16: some of its numbers"):
        backend.TritonBackend().load(weights, engine.head, "fp16")


@pytest.mark.skipif(not backend.is_interpreted(), reason="on a GPU bf16 is right")
def test_bf16_is_refused_by_the_interpreter(checkpoint: Path):
    with pytest.raises(BackendError, match="'bf16' is wrong in triton's interpreter"):
        load(checkpoint, "bf16")


@pytest.mark.parametrize(
    ("cuda", "reason"),
    [(None, r"torch \S+ is the build for CPUs; a GPU needs"), ("13.0", "torch sees no GPU; nvidia-smi")],
)
def test_no_gpu(checkpoint: Path, monkeypatch, cuda, reason):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=f"^backend 'triton' is not available: {reason}"):
        load(checkpoint)


def test_a_gpu_that_is_too_old(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    assert backend.unavailable() == (
        "Tesla V100 is too old or unknown; NVIDIA from Ampere on and AMD CDNA 3 are needed."
    )


def test_missing_broken_and_old_packages(monkeypatch):
    find = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
        assert backend.unavailable() == "triton is not installed (pip install distilfast[gpu])."
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "triton", None)
        patch.setattr(importlib.util, "find_spec", lambda name: object())
        assert backend.unavailable().startswith("torch and triton cannot be imported: ")
    monkeypatch.setattr(importlib.import_module("triton"), "__version__", "3.2.0")
    assert backend.unavailable() == "triton 3.2.0 is too old; 3.6 or newer is needed."
