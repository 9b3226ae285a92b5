"""benchmarks/quantized_formats.py: its numbers are torch's, its int8 is that of the kernels' reference."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quantized_formats as formats
from benchmarks import workloads
from distilfast.config import ModelConfig
from distilfast.weights import load_weights

sys.path.append(str(Path(__file__).resolve().parents[1] / "cuda"))
import elements

torch = pytest.importorskip("torch", reason="torch is not installed (pip install torch)")

SIZES = {"dim": 192, "hidden_dim": 320, "n_layers": 1}
CUDA = next(each for each in formats.FORMATS if each.name.endswith("(CUDA's)"))


def test_numbers_are_rounded_as_torch_rounds_them():
    """Every E4M3 value, halves between two of them, and what lies beyond 448."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    values = np.unique(values[np.isfinite(values)])
    halves = (values[1:] + values[:-1]) / 2
    x = np.concatenate(
        [values, halves, np.nextafter(halves, np.float32(1000)), np.nextafter(halves, np.float32(-1000))]
    )
    assert np.array_equal(formats.e4m3(x), torch.from_numpy(x).to(torch.float8_e4m3fn).float().numpy())
    assert formats.e4m3(np.array([1e4, -1e4], np.float32)).tolist() == [448, -448]
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert np.array_equal(formats.bf16(x), torch.from_numpy(x).bfloat16().float().numpy())


@pytest.mark.parametrize("size", [2, 64, 256])
def test_a_rotation_is_orthogonal(size):
    matrix = formats.hadamard(np.eye(size, dtype=np.float32))
    assert np.array_equal(matrix @ matrix.T, size * np.eye(size))
    assert np.array_equal(np.abs(matrix), np.ones((size, size)))


@pytest.fixture
def model(tiny_checkpoint):
    directory = tiny_checkpoint(
        "distilbert", "feature-extraction", config={"dim": 192, "hidden_dim": 320, "n_layers": 1}
    )
    config = ModelConfig.from_file(directory / "config.json")
    return config, dict(load_weights(directory, config, "feature-extraction")[0].tensors)


def test_int8_is_that_of_the_kernels(model):
    """The same product as the reference that the CUDA kernels are tested against."""
    config, tensors = model
    made = formats.QuantizedLinears(CUDA, config, tensors)
    x = formats.bf16(np.random.default_rng(0).standard_normal((70, 320)).astype(np.float32))
    name = "layer.0.ffn_out"
    channels = made._channels[f"{name}.channel_shift"], made._channels[f"{name}.outlier_channels"].astype(np.int32)
    wanted = elements.Int8Linear(tensors[f"{name}.weight"], *channels).product(x, np.float64)
    got = made(x, name) - made._channels[f"{name}.bias"]
    assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)


def test_fewer_bits_of_mantissa_cost_accuracy(model):
    """FP8 has a step of 1/16 to 1/8 of a value, int8 one of 1/127 of the largest."""
    config, tensors = model
    rng = np.random.default_rng(0)
    x, name = formats.bf16(rng.standard_normal((70, 192)).astype(np.float32)), "layer.0.qkv"
    exact = x.astype(np.float64) @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def error(number: str) -> float:
        fmt = formats.Format("", number, 128, rotated=True, signs=True)
        return float(np.linalg.norm(formats.QuantizedLinears(fmt, config, tensors)(x, name) - exact))

    assert 2 * error("int8") < error("e4m3") < 0.1 * np.linalg.norm(exact)


def test_what_a_format_costs():
    assert (CUDA.tensor_time(768), CUDA.bytes_a_weight(768)) == (0.5 + 128 / 768, 1 + 2 / 128 + 2 * 128 / 768)


@pytest.mark.skipif(workloads.unavailable() is not None, reason=str(workloads.unavailable()))
def test_a_whole_model(tiny_checkpoint, data_directory, monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", (CUDA, formats.Format("", "e4m3")))
    vocabulary = data_directory / "vocab-cased"
    sizes = {"vocab_size": 28996, "max_position_embeddings": 256, **SIZES}
    directory = tiny_checkpoint("distilbert", "feature-extraction", vocabulary=vocabulary, config=sizes)
    bf16, int8, fp8 = (error for _, error in formats.errors(directory, 1))
    assert bf16.relative < int8.relative < fp8.relative
    assert int8.worst > formats.PROMISED_COSINE > fp8.worst
    assert fp8.below > 0
