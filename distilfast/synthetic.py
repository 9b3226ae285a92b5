"""Checkpoints with seeded weights in the hub's own file layout.

``python -m distilfast.synthetic DIR --task fill-mask``: for tests and benchmarks, where trained weights
are not available. The files are what ``save_pretrained`` of transformers writes, tensor for tensor, so the real loading
code runs on them. Gaussian weights alone would flatter int8: a trained DistilBERT carries a few huge channels through
every layer (308 and 381 of 768), made here by the gains and biases of the LayerNorms.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distilfast.base_models import CONFIGS, raw_config
from distilfast.config import ModelConfig
from distilfast.errors import InputError
from distilfast.heads import TASKS
from distilfast.types import Task
from distilfast.weights import StoredTensor, layout

_HEAD_MODULES = ("vocab_", "pre_classifier", "classifier", "qa_outputs", "cls.")
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_OUTLIERS = (308 / 768, 381 / 768)
# Standard deviation of a weight times √K, by what its name in the checkpoint holds: queries and keys so large that
# attention is far from uniform, the rest so small that a token stays itself through the layers.
_GAINS = {
    ("q_lin.weight", "k_lin.weight", "query.weight", "key.weight"): 3.0,
    ("out_lin.weight", "attention.output.dense.weight"): 0.7,
    ("lin2.weight", "output.dense.weight"): 1.2,
}


def write_checkpoint(
    directory: str | Path,
    *,
    task: Task,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    dtype: str = "float32",
    num_labels: int | None = None,
    vocabulary: Path | None = None,
    shards: int = 1,
) -> Path:
    """Write config.json, the weights and the tokenizer; returns ``directory``.

    ``config``: keys of a hub-style config.json over those of distilbert-base-cased (or of bert-base-cased where its
    model_type is "bert"). ``dtype``: float32, float16 or bfloat16. ``vocabulary``: a directory whose tokenizer files
    are copied; without one a tokenizer of single characters is written. Raises InputError or ConfigError.
    """
    directory = Path(directory)
    if task not in TASKS:
        raise InputError(f"task {task!r} is not known; distilfast has {', '.join(TASKS)}.")
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is not known; there are {', '.join(_DTYPES)}.")
    if shards < 1:
        raise InputError(f"shards is {shards}; at least one is needed.")
    raw = raw_config(task, config or {}, dtype, num_labels)
    model = ModelConfig.from_dict(raw)
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", raw)
    _write_tokenizer(directory, model, vocabulary)
    _write_weights(directory, dict(_tensors(model, task, seed)), dtype, shards)
    return directory


def spread_labels(directory: str | Path, logits: np.ndarray) -> None:
    """Rewrite a token classifier so that its labels differ from token to token.

    ``logits`` [T, C]: what it gives for some text now, one label for every token, since with seeded weights the large
    channels decide. The same text then has logits of mean 0 and standard deviation 2.
    """
    from safetensors.numpy import load_file, save_file

    path = Path(directory) / "model.safetensors"
    tensors = load_file(path)
    scale = 2 / logits.std(axis=0)
    tensors["classifier.weight"] = tensors["classifier.weight"] * scale[:, None]
    tensors["classifier.bias"] = ((tensors["classifier.bias"] - logits.mean(axis=0)) * scale).astype(np.float32)
    save_file(tensors, path, {"format": "pt"})


def _tensors(model: ModelConfig, task: Task, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor transformers would save for this architecture: (its full name, float32 values)."""
    rng = np.random.default_rng(seed)
    alone = task == "feature-extraction"  # the bare model is saved without its prefix
    for need in layout(model, task, pooler=True):
        for piece in need.pieces:
            values = _values(rng, piece, need, model)
            if piece == "cls.predictions.decoder.bias":
                yield "cls.predictions.bias", values
            if need.name.startswith("head.1.") and task == "fill-mask" and _is_tied(piece, model):
                continue
            yield piece if alone or piece.startswith(_HEAD_MODULES) else f"{model.model_type}.{piece}", values


def _is_tied(piece: str, model: ModelConfig) -> bool:
    return model.tied and piece in (
        "vocab_projector.weight",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    )


def _values(rng: np.random.Generator, piece: str, need: StoredTensor, model: ModelConfig) -> np.ndarray:
    if "norm." in need.name:
        return _norm(rng, need, model)
    if need.name.startswith("embed."):
        return _normal(rng, need.shape, 0.05)
    if piece.endswith("bias"):
        values = _normal(rng, need.shape, 0.05)
    else:
        gain = next((gain for ends, gain in _GAINS.items() if piece.endswith(ends)), 1.0)
        values = _normal(rng, need.shape, gain / math.sqrt(need.shape[1]))
    if need.name.endswith("ffn_out.weight"):
        # GELU's outputs have a mean above zero, which would push every token the same way, layer after layer.
        values -= values.mean(axis=1, keepdims=True)
    if need.name.endswith("ffn_out.bias"):
        values[outliers(model.hidden_size)] = (10.0, -8.0)
    return values


def _norm(rng: np.random.Generator, need: StoredTensor, model: ModelConfig) -> np.ndarray:
    """Gains around 0.8 and small biases; in the encoder the outlier channels leave every LayerNorm at 5 to 9."""
    is_gain = need.name.endswith("weight")
    values = _normal(rng, need.shape, 0.1) + np.float32(0.8 if is_gain else 0.0)
    if not need.name.startswith("head."):
        # The embeddings have no FFN before them that feeds the channels, so their bias does it alone.
        bias = (7.0, -5.0) if need.name.startswith("embed.") else (1.5, -1.0)
        values[outliers(model.hidden_size)] = (0.5, 0.5) if is_gain else bias
    return values


def outliers(hidden_size: int) -> np.ndarray:
    """The two outlier channels at this width; int [2]."""
    return np.array([round(share * hidden_size) for share in _OUTLIERS])


def _normal(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(deviation)
    return values


def _write_weights(directory: Path, tensors: dict[str, np.ndarray], dtype: str, shards: int) -> None:
    if shards == 1:
        _write_safetensors(directory / "model.safetensors", tensors, dtype)
        return
    names = np.array(list(tensors))
    weight_map: dict[str, str] = {}
    for i, part in enumerate(np.array_split(names, shards)):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        _write_safetensors(directory / file, {name: tensors[name] for name in part}, dtype)
        weight_map |= {str(name): file for name in part}
    _write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    """The format is short enough to write directly, and its own library cannot take bfloat16 from numpy."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size, offset = 4 if dtype == "float32" else 2, 0
    for name, tensor in tensors.items():
        end = offset + tensor.size * size
        header[name] = {"dtype": _DTYPES[dtype], "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(_narrowed(tensor, dtype).data)


def _narrowed(tensor: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float32":
        return tensor
    if dtype == "float16":
        return tensor.astype(np.float16)
    bits = tensor.view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))  # round to nearest, ties to even
    return ((bits + half) >> 16).astype(np.uint16)


def _write_tokenizer(directory: Path, model: ModelConfig, vocabulary: Path | None) -> None:
    if vocabulary is not None:
        found = [Path(vocabulary) / name for name in _TOKENIZER_FILES if (Path(vocabulary) / name).exists()]
        if not found:
            raise InputError(f"{vocabulary} holds no tokenizer files.")
        for path in found:
            shutil.copyfile(path, directory / path.name)
        return
    characters = sorted(string.digits + string.ascii_letters + string.punctuation)
    tokens = [*_SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    unused = model.vocab_size - len(tokens)
    if unused < 0:
        raise InputError(f"vocab_size is {model.vocab_size}; the tokenizer of single characters needs {len(tokens)}.")
    tokens += [f"[unused{i}]" for i in range(unused)]
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    _write_json(
        directory / "tokenizer_config.json",
        {"do_lower_case": False, "model_max_length": model.max_positions, "tokenizer_class": "BertTokenizer"},
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """``python -m distilfast.synthetic``."""
    parser = argparse.ArgumentParser(description="Write a checkpoint with seeded weights.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--model-type", choices=CONFIGS, default="distilbert")
    parser.add_argument("--config", type=Path, help="a config.json whose keys replace the base model's")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--labels", type=int, help="number of labels")
    parser.add_argument("--vocabulary", type=Path, help="a directory whose tokenizer files are copied")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    config = json.loads(given.config.read_text(encoding="utf-8")) if given.config else {}
    write_checkpoint(
        given.directory,
        task=given.task,
        config={"model_type": given.model_type, **config},
        seed=given.seed,
        dtype=given.dtype,
        num_labels=given.labels,
        vocabulary=given.vocabulary,
        shards=given.shards,
    )


if __name__ == "__main__":
    main()
