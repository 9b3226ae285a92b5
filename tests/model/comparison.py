"""transformers for comparisons: its models, its outputs as numpy, and padded batches for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from distilfast import Engine
from distilfast.parity.oracles import AUTO_CLASSES

FIRST_ROW_TASKS = ("text-classification", "multiple-choice", "feature-extraction")
"""Tasks whose head, BERT's pooler among them, reads the first token."""

Values = dict[str, Any]
"""Outputs by field name: an array, or a tuple with one for each layer."""


class Padded(NamedTuple):
    """int64 [B, L] each; ``mask`` is 1 where a token counts."""

    ids: np.ndarray
    mask: np.ndarray
    types: np.ndarray | None = None

    @property
    def keep(self) -> np.ndarray:
        """bool [B, L]."""
        return self.mask.reshape(-1, self.mask.shape[-1]) != 0


def pad(sequences: Sequence[Sequence[int]]) -> Padded:
    """Sequences of ids, padded on the right."""
    length = max(map(len, sequences))
    ids, mask = (np.zeros((len(sequences), length), np.int64) for _ in range(2))
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return Padded(ids, mask)


def transformers_model(directory: Path, task: str, dtype: str = "float32") -> Any:
    """The model of ``task``, with eager attention, in eval mode."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    load = getattr(transformers, AUTO_CLASSES[task]).from_pretrained
    return load(directory, attn_implementation="eager", dtype=getattr(torch, dtype)).eval()


def naive_outputs(directory: Path, batch: Padded, **asked: bool) -> Values:
    """Likewise by the reference in naive float32, whose error the limits come from; the same bits on every machine."""
    engine = Engine.from_pretrained(directory, backend="reference", precision="fp64")
    tensors = engine._backend._tensors
    engine._backend._tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    outputs = engine(*batch, **asked).to_dict()
    assert all(values.dtype == np.float32 for values in outputs.values() if not isinstance(values, tuple))
    return outputs


def transformers_outputs(model: Any, batch: Padded, **asked: bool) -> Values:
    """The outputs of ``model``; ``asked``: ``output_hidden_states`` and ``output_attentions``."""
    import torch

    arguments = {"input_ids": batch.ids, "attention_mask": batch.mask}
    if batch.types is not None:
        arguments["token_type_ids"] = batch.types
    with torch.inference_mode():
        outputs = model(**{name: torch.from_numpy(array) for name, array in arguments.items()}, **asked)
    return {
        name: tuple(layer.numpy() for layer in value) if isinstance(value, tuple) else value.numpy()
        for name, value in outputs.items()
        if len(value)  # an encoder's cross_attentions are an empty tuple
    }


def split(name: str, value: Any, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of output ``name`` that belong to tokens, and those that belong to padding, each flat."""
    if isinstance(value, tuple):
        layers = [split(name, layer, keep) for layer in value]
        return np.concatenate([of_tokens for of_tokens, _ in layers]), np.concatenate([rest for _, rest in layers])
    where = keep
    if name == "attentions":
        value = value.transpose(0, 2, 3, 1)  # [B, H, L, L] -> [B, L, L, H]
        where = keep[:, :, None] & keep[:, None, :]
    elif value.ndim < 3 and name not in ("start_logits", "end_logits"):
        where = np.ones(value.shape, bool)  # one answer for each sequence
    return value[where].ravel(), value[~where].ravel()


def ragged(rng: np.random.Generator, task: str, length: int = 23) -> Padded:
    """Six rows of each: no padding, padding at the end, inside, at the start, all but one token, and random padding."""
    mask = np.ones((36, length), np.int64)
    mask[6:12, 9:] = 0
    mask[12:18, 3:7] = mask[12:18, 12] = 0
    mask[18:24, :5] = 0
    mask[24:30, 1:] = 0
    mask[30:] = rng.integers(0, 2, mask[30:].shape)
    mask[30:, 8] = 1
    if task in FIRST_ROW_TASKS:
        mask[:, 0] = 1  # transformers reads the first column, and computes it even where it is padding
    ids, types = rng.integers(0, 256, mask.shape), rng.integers(0, 2, mask.shape)
    shape = (18, 2, length) if task == "multiple-choice" else mask.shape
    return Padded(*(array.reshape(shape) for array in (ids, mask, types)))
