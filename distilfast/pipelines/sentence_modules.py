"""How a sentence-transformers folder makes one vector of a text: modules.json and the folders that it names.

Sources: the modules ``Transformer``, ``Pooling``, ``Dense`` and ``Normalize`` of sentence-transformers 6, whose results
these are: Reimers and Gurevych, arXiv 1908.10084.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distilfast.batch import PackedBatch
from distilfast.checkpoint import open_checkpoint
from distilfast.errors import ConfigError
from distilfast.files import read_json
from distilfast.operations import ACTIVATIONS


def _weighted_mean(rows: np.ndarray, skip: int) -> np.ndarray:
    """Each row weighs its place in the text, from 1."""
    weights = np.arange(skip + 1, len(rows) + 1, dtype=rows.dtype)
    mean: np.ndarray = weights @ rows[skip:] / weights.sum()
    return mean


POOLINGS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "cls": lambda rows, skip: rows[skip],
    "mean": lambda rows, skip: rows[skip:].mean(axis=0),
    "max": lambda rows, skip: rows[skip:].max(axis=0),
    "mean_sqrt_len_tokens": lambda rows, skip: rows[skip:].sum(axis=0) / np.sqrt(rows.dtype.type(len(rows) - skip)),
    "weightedmean": _weighted_mean,
    "lasttoken": lambda rows, skip: rows[-1],
}
"""From the rows of a text's tokens, [L, D], and how many of them to leave out in front, to one vector [D]."""

# Older folders switch each pooling on by itself; several are concatenated in this order.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {"Identity": "none", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}
_TEXT_FILES = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json")
# Keys there that would change the vectors, and the only value of each that is run; absent or empty is the same.
_TEXT_KEYS = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "processing_kwargs": None,
    "processor_kwargs": None,
    "tokenizer_args": None,
    "query_expansion": None,
}
_EPSILON = 1e-12  # that of torch.nn.functional.normalize

Step = Callable[[np.ndarray], np.ndarray]


def normalized(vectors: np.ndarray) -> np.ndarray:
    """[B, D], each divided by its Euclidean length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _EPSILON)


@dataclass(frozen=True)
class Dense:
    """activation(x · weightᵀ + bias) (+ x, or x · residualᵀ), in float64: [B, D] → [B, E]."""

    weight: np.ndarray  # [E, D]
    bias: np.ndarray  # [E]
    activation: Callable[[np.ndarray], np.ndarray]
    residual: np.ndarray | None  # [E, D]; the unit matrix where x itself is added

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """The same dtype as ``vectors``."""
        x = vectors.astype(np.float64)
        out = self.activation(x @ self.weight.T + self.bias)
        return (out if self.residual is None else out + x @ self.residual.T).astype(vectors.dtype)


@dataclass(frozen=True)
class SentenceModules:
    """What a folder says about the vector of a text; the defaults are those of a folder without modules.json.

    ``poolings`` are concatenated, and ``steps`` follow them in order. ``max_length``: tokens that a text is cut to;
    ``lowercase``: letters are made small first; ``prompt``: what is put before every text, pooled with it if
    ``pool_prompt``; ``width``: of the vectors.
    """

    width: int
    poolings: tuple[str, ...] = ("mean",)
    steps: tuple[Step, ...] = (normalized,)
    max_length: int | None = None
    lowercase: bool = False
    prompt: str = ""
    pool_prompt: bool = True

    def pooled(self, rows: Sequence[np.ndarray], skip: int) -> np.ndarray:
        """[B, D] of the token rows of B texts, each [L, D]; ``skip`` tokens in front of each are left out."""
        left_out = [min(skip, len(each) - 1) for each in rows]
        vectors = [
            np.stack([POOLINGS[name](each, k) for each, k in zip(rows, left_out, strict=True)])
            for name in self.poolings
        ]
        return vectors[0] if len(vectors) == 1 else np.concatenate(vectors, axis=1)

    def finished(self, vectors: np.ndarray) -> np.ndarray:
        """What the steps after the pooling make of [B, D]."""
        for step in self.steps:
            vectors = step(vectors)
        return vectors

    def directions(self, hidden: np.ndarray, batch: PackedBatch) -> np.ndarray:
        """Vectors [B, width] of length 1, whose products are cosines, from the token rows of a batch, [T, D]."""
        rows = np.split(hidden, batch.cu_seqlens[1:-1])
        return normalized(self.finished(self.pooled(rows, 0)))


def read_modules(directory: Path | None, hidden_size: int, *, allow_pickle: bool = True) -> SentenceModules:
    """What the folder says; raises ConfigError for a module that is not run here, and for files that do not fit.

    None, for a model without a folder, has the defaults.
    """
    if directory is None:
        return SentenceModules(hidden_size)
    path = directory / "modules.json"
    if not path.exists():
        return SentenceModules(hidden_size)
    entries = _read(path, list)
    kinds = [_kind(path, entry) for entry in entries]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ConfigError(f"{path} does not begin with a Transformer and a Pooling, so embed cannot run it.")
    if entries[0].get("path", ""):
        raise ConfigError(f"{path} keeps the encoder in {entries[0]['path']!r}, and only one beside it can be run.")
    pooling = _read(directory / _folder(path, entries[1]) / "config.json", dict)
    poolings = _poolings(directory, pooling)
    width = hidden_size * len(poolings)
    steps: list[Step] = []
    for kind, entry in zip(kinds[2:], entries[2:], strict=True):
        folder = directory / _folder(path, entry)
        if kind == "Dense":
            dense = _dense(folder, width, allow_pickle)
            width = len(dense.weight)
            steps.append(dense)
        elif kind == "Normalize":
            if (folder / "config.json").exists():
                _check_features(folder, _read(folder / "config.json", dict))
            steps.append(normalized)
        else:
            raise ConfigError(f"{path} has a second {kind}, which embed does not run.")
    pool_prompt = bool(pooling.get("include_prompt", True))
    return SentenceModules(width, poolings, tuple(steps), *text_settings(directory), pool_prompt)


def _kind(path: Path, entry: Any) -> str:
    """The class of a module by its last name: releases of the library have moved them between its packages."""
    name = str(entry.get("type")) if isinstance(entry, dict) else str(entry)
    package, _, kind = name.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers" or kind not in (
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ):
        raise ConfigError(f"{path} has the module {name}, which embed does not run.")
    return kind


def _folder(path: Path, entry: dict[str, Any]) -> str:
    folder = str(entry.get("path", ""))
    if Path(folder).name != folder or folder == "..":  # it must not lead out of its own directory
        raise ConfigError(f"{path} names {folder!r}, which is not a plain folder name.")
    return folder


def _poolings(directory: Path, config: dict[str, Any]) -> tuple[str, ...]:
    chosen = config.get("pooling_mode")
    if chosen is None:
        chosen = [name for switch, name in _SWITCHES.items() if config.get(switch)] or ["mean"]
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    for name in names:
        if name not in POOLINGS:
            raise ConfigError(f"{directory} has the pooling {name!r}, which is not known.")
    return tuple(names)


def _dense(folder: Path, width: int, allow_pickle: bool) -> Dense:
    config = _read(folder / "config.json", dict)
    _check_features(folder, config)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in _ACTIVATIONS:
        raise ConfigError(f"{folder} has the activation {activation}, and embed runs {', '.join(_ACTIVATIONS)}.")
    tensors = open_checkpoint(folder, allow_pickle=allow_pickle).tensors
    weight = _tensor(folder, tensors, "linear.weight", (None, width))
    bias = (
        _tensor(folder, tensors, "linear.bias", (len(weight),)) if config.get("bias", True) else np.zeros(len(weight))
    )
    residual = None
    if config.get("use_residual", False):
        same = len(weight) == width
        residual = np.eye(width) if same else _tensor(folder, tensors, "residual.weight", weight.shape)
    return Dense(weight, bias, ACTIVATIONS[_ACTIVATIONS[name]], residual)


def _check_features(folder: Path, config: dict[str, Any]) -> None:
    for key in ("module_input_name", "module_output_name"):
        name = config.get(key) or "sentence_embedding"
        if name != "sentence_embedding":
            raise ConfigError(f"{folder} has {key} {name!r}, and embed computes sentence_embedding only.")


def _tensor(folder: Path, tensors: Any, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    if name not in tensors:
        raise ConfigError(f"{folder} has no tensor {name}.")
    found = tensors[name].shape
    if len(found) != len(shape) or any(wanted not in (None, size) for wanted, size in zip(shape, found, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ConfigError(f"{folder} stores {name} with shape {list(found)}; [{wanted}] is needed.")
    array: np.ndarray = tensors[name].array.astype(np.float64)
    return array


def text_settings(directory: Path) -> tuple[int | None, bool, str]:
    """``max_length``, ``lowercase`` and ``prompt`` of ``SentenceModules``, where there is a modules.json."""
    if not (directory / "modules.json").exists():
        return None, False, ""
    path = next((path for name in _TEXT_FILES if (path := directory / name).exists()), None)
    longest, lowercase = (None, False) if path is None else _limits(path, _read(path, dict))
    prompts, default = read_prompts(directory)
    return longest, lowercase, "" if default is None else prompts[default]


def _limits(path: Path, config: dict[str, Any]) -> tuple[int | None, bool]:
    for key, ours in _TEXT_KEYS.items():
        if config.get(key) not in (None, {}, ours):
            raise ConfigError(f"{path} has {key} {config[key]!r}, which embed does not run.")
    longest = config.get("max_seq_length")
    if longest is not None and (not isinstance(longest, int) or isinstance(longest, bool) or longest < 1):
        raise ConfigError(f"{path} says max_seq_length = {longest!r}; a positive integer is needed.")
    return longest, bool(config.get("do_lower_case", False))


def read_prompts(directory: Path) -> tuple[dict[str, str], str | None]:
    """What config_sentence_transformers.json puts before texts, by name, and the name used by default."""
    path = directory / "config_sentence_transformers.json"
    config = _read(path, dict) if path.exists() else {}
    prompts, name = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or (name is not None and name not in prompts):
        raise ConfigError(f"{path} has no prompt {name!r}, which is its default_prompt_name.")
    return {str(key): str(value or "") for key, value in prompts.items()}, name


def _read(path: Path, kind: type) -> Any:
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
