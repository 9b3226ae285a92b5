"""Writes outputs.npz with transformers in float64: python -m tests.golden.make (needs torch and transformers).

For each model type and task: the outputs of transformers for a seeded tiny checkpoint and two sequences, one of them
padded. test_golden.py needs neither torch nor transformers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from distilfast.heads import TASKS
from distilfast.synthetic import write_checkpoint

OUTPUTS = Path(__file__).with_name("outputs.npz")
IDS = np.array([[5, 17, 200, 9, 31, 77, 6], [5, 42, 6, 0, 0, 0, 0]])
MASK = (IDS > 0).astype(np.int64)
CONFIGS: dict[str, dict[str, Any]] = {
    "distilbert": {
        "model_type": "distilbert",
        "dim": 24,
        "n_heads": 3,
        "n_layers": 2,
        "hidden_dim": 40,
        "vocab_size": 256,
        "max_position_embeddings": 16,
    },
    "bert": {
        "model_type": "bert",
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "intermediate_size": 40,
        "vocab_size": 256,
        "max_position_embeddings": 16,
    },
}
CASES = [(model_type, task) for model_type in CONFIGS for task in TASKS]


def inputs(task: str) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of a task: [2, 7], or [1, 2, 7] for multiple-choice."""
    return (IDS[None], MASK[None]) if task == "multiple-choice" else (IDS, MASK)


def checkpoint(directory: Path, model_type: str, task: str) -> Path:
    """The seeded checkpoint of a case."""
    return write_checkpoint(directory, task=task, config=CONFIGS[model_type], seed=7)


def main() -> None:
    """Run transformers and write its outputs."""
    import torch
    import transformers

    from distilfast.parity.oracles import AUTO_CLASSES

    answers = {}
    for model_type, task in CASES:
        with tempfile.TemporaryDirectory() as directory:
            path = checkpoint(Path(directory), model_type, task)
            model = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(path, dtype=torch.float64).eval()
            with torch.no_grad():
                ids, mask = (torch.from_numpy(array) for array in inputs(task))
                output = model(ids, mask)
        for name, value in output.items():
            kept = value.numpy()
            if kept.shape[:2] == MASK.shape and name != "pooler_output" and task != "text-classification":
                kept = np.where(MASK.reshape(*MASK.shape, *[1] * (kept.ndim - 2)) == 1, kept, 0)  # not of padding
            answers[f"{model_type}/{task}/{name}"] = kept
    np.savez_compressed(OUTPUTS, **answers)


if __name__ == "__main__":
    main()
