"""The launches that benchmarks/gpu_launches.py counts are those that csrc/cuda makes, on the simulated device."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from host_build import simulated_cuda

from benchmarks import gpu_launches
from distilfast import Engine
from distilfast.backends import cuda
from distilfast.batch import PackedBatch

SIZES = {"dim": 128, "n_heads": 2, "hidden_dim": 512, "n_layers": 1, "max_position_embeddings": 300}
# A bucket for each CTA tile; the last one of two sequences, and of more than one chunk.
BATCHES = ((16,), (17,), (60, 40), (257,), (150, 200, 70))


@pytest.fixture(scope="module")
def extension():
    return simulated_cuda()


@pytest.fixture(scope="module")
def launches(extension):
    """``launches()``: (kernel, grid, threads, bytes of shared memory) of each since the last call."""
    read = ctypes.CDLL(extension.__file__).simulated_launches
    read.restype = ctypes.c_char_p

    def call() -> list[tuple[str, tuple[int, ...], int, int]]:
        found = []
        for line in read().decode().splitlines():
            name, *numbers = re.fullmatch(r"(.+?) (\d+) (\d+) (\d+) (\d+) (\d+)", line).groups()
            *grid, threads, shared_bytes = map(int, numbers)
            operation = re.match(r"\w+?(?=_kernel|_w8a8|<|$)", name)[0]
            found.append((operation, tuple(grid), threads, shared_bytes))
        return found

    return call


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return tiny_checkpoint("distilbert", gpu_launches.TASK, config=SIZES)


def load(checkpoint, extension, monkeypatch, **options) -> Engine:
    monkeypatch.setattr(cuda, "extension", lambda: extension)
    for name, value in options.items():
        monkeypatch.setattr(cuda, name, value)
    return Engine.from_pretrained(checkpoint, backend="cuda", precision="bf16")


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
def test_the_graph_is_counted_as_it_is_launched(checkpoint, extension, launches, monkeypatch, lengths):
    monkeypatch.setattr(gpu_launches, "CHUNK_TOKENS", 350)
    engine = load(checkpoint, extension, monkeypatch, CHUNK_TOKENS=350)
    rng, _ = np.random.default_rng(0), launches()
    engine.encode_with_logits(PackedBatch.from_sequences([rng.integers(0, 200, n).tolist() for n in lengths]))
    made = launches()
    counted = [each for each in gpu_launches.cuda_graph(engine.config, lengths) if each.kernel != "copy"]
    assert [(name, grid, threads) for name, grid, threads, _ in made] == [
        (each.kernel, (*each.grid, 1, 1)[:3], each.threads) for each in counted
    ]
    # In a linear the model counts the stages alone, and a kernel may keep more beside them.
    linears = [(one[3], each.shared_bytes) for one, each in zip(made, counted, strict=True) if each.kernel == "linear"]
    assert all(counted <= asked <= 1.05 * counted for asked, counted in linears)


def test_few_tokens_are_one_persistent_launch(checkpoint, extension, launches, monkeypatch):
    engine = load(checkpoint, extension, monkeypatch, PERSISTENT=True)
    for tokens in (gpu_launches.persistent_rows(), gpu_launches.persistent_rows() + 1):
        launches()
        engine.encode(PackedBatch.from_sequences([[5] * tokens]))
        assert (len(launches()) == 1) == (gpu_launches.persistent(engine.config, [tokens]) is not None)


@pytest.mark.parametrize(("n", "k"), [(768, 768), (768, 3072), (384, 1536), (2, 768)])
def test_split_k_is_that_of_the_launcher(extension, n, k):
    linear = extension.Linear(np.zeros((n, k), np.float32), np.zeros(n, np.float32), precision="bf16")
    for bucket in (2**i for i in range(4, 17)):
        assert gpu_launches.split_k(n, k, bucket) == linear.split_k(bucket), bucket
