"""Prints as JSON hashes of the naive arithmetic, of int8's channels and of an engine, and budgets of a comparison.

Run by test_arithmetic.py under several settings of the libraries. Inputs are integers over powers of two, so that they
are the same with every version of numpy.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np

from distilfast import PackedBatch, arithmetic, parity, quantize, reference
from distilfast.config import ModelConfig
from distilfast.engine import Engine
from distilfast.parity.budgets import BUDGETS
from distilfast.parity.steps import forward, narrowed, steps
from distilfast.synthetic import write_checkpoint
from distilfast.weights import load_weights

CONFIG = {
    "model_type": "bert", "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 300,
    "vocab_size": 256, "max_position_embeddings": 100,
}  # fmt: skip


def numbers(seed: int, *shape: int) -> np.ndarray:
    """float32, uniform from -1/2 to 1/2."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(40)).astype(np.float64) * 2.0**-24 - 0.5).astype(np.float32).reshape(shape)


def digest(arrays: dict[str, np.ndarray]) -> str:
    """A hash of names and bits; both zeros count as the same."""
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(name.encode())
        sha.update((array + 0.0).tobytes())
    return sha.hexdigest()[:16]


def operations() -> dict[str, np.ndarray]:
    """Each operation in naive float32, at sizes whose sums have several blocks."""
    x, weight, bias, qkv = numbers(1, 9, 700), numbers(2, 70, 700), numbers(3, 70), numbers(4, 150, 3 * 3 * 40)
    found = {f"linear {name}": reference.linear(x, weight, bias, name) for name in reference.ACTIVATIONS}
    found["norm"] = reference.layer_norm(x, numbers(5, 700), numbers(6, 700), 1e-12)
    found["context"], found["probabilities"] = reference.attention(qkv * 8, np.array([0, 17, 150]), 3)
    wide = numbers(7, 3000) * np.float32(30)
    return found | {name: getattr(arithmetic, name)(wide) for name in ("exp", "erf", "tanh")}


def models(directory: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Naive forwards of a checkpoint in every precision, and its ``quantize.channels`` for int8."""
    config = ModelConfig.from_file(directory / "config.json")
    weights, head = load_weights(directory, config, config.task)
    tensors = {name: numbers(i, *weights.tensors[name].shape) for i, name in enumerate(sorted(weights.tensors))}
    batch = PackedBatch.from_sequences([[2, 77, 3], list(range(2, 90)), [9]])
    found = {}
    for precision, budget in BUDGETS.items():
        plain = narrowed(tensors, budget.arithmetic)
        trace = forward(steps(batch, config, head), plain, budget.arithmetic)
        found |= {f"{precision} {name}": array for name, array in trace.items()}
    return found, quantize.channels(config, tensors)


def main() -> None:
    """Everything, as one object."""
    with tempfile.TemporaryDirectory() as folder:
        directory = write_checkpoint(Path(folder), task="text-classification", config=CONFIG, num_labels=7)
        naive, channels = models(directory)
        report = parity.compare(directory)
        trace = Engine.from_pretrained(directory, precision="int8").trace(PackedBatch.from_sequences([[2, 7, 3]]))
    found = {
        "naive": digest(operations() | naive),
        "int8 channels": digest(channels),
        "engine": digest(trace),
        "passed": report.passed,
        "budgets": [row.budget for row in report.rows_],
        "shares": [row.share for row in report.rows_],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
