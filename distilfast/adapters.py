"""Models from checkpoints, and from LoRA directories: low-rank updates of a base checkpoint, merged on loading.

W + s · B A for a linear's weight W [N, K], A [r, K] and B [N, r]; s is alpha / r, or alpha / √r where the adapter is
rank-stabilised. With a magnitude m [N] (DoRA) each row of the sum is scaled to length m. Sources: Hu et al., arXiv
2106.09685; Kalajdzievski, 2312.03732; Liu et al., 2402.09353; the layout of the files is that of peft 0.21.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distilfast.checkpoint import Checkpoint, Stored, open_checkpoint, open_tensors, resolve
from distilfast.config import ModelConfig
from distilfast.errors import ConfigError, WeightsError
from distilfast.files import Key, boolean, checked, read_object, string
from distilfast.heads import Head
from distilfast.types import Task
from distilfast.weights import Weights, fit_weights, open_weights, plain_names

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_TASKS: dict[str, Task] = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_ALPHAS = Key(
    "a map from modules to numbers",
    lambda value: isinstance(value, dict) and all(type(each) in (int, float) for each in value.values()),
    {},
    optional=True,
)
_KEYS = {
    "peft_type": Key('"LORA"', lambda value: value == "LORA"),
    "base_model_name_or_path": Key("the name of the base model", lambda value: isinstance(value, str)),
    "revision": string(),
    "task_type": string(),
    "lora_alpha": Key("a number", lambda value: type(value) in (int, float) and math.isfinite(value), 8),
    "alpha_pattern": _ALPHAS,
    "use_rslora": boolean(False),
    "fan_in_fan_out": boolean(False),
    "init_lora_weights": Key(
        "true, false or a name", lambda value: isinstance(value, (bool, str)), True, optional=True
    ),
}
# Ways to begin a training that change the base model's weights, which the directory does not hold.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "bias",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}


@dataclass(frozen=True)
class OpenModel:
    """A local checkpoint, merged with its base where it is an adapter; values are read on first access.

    ``tokenizer``: the directory that has the tokeniser's files.
    """

    weights: Weights
    head: Head
    directory: Path
    tokenizer: Path


def open_model(
    model: str | Path, task: Task | None, *, revision: str | None = None, allow_pickle: bool = True
) -> OpenModel:
    """A local directory or a hub id, for ``task`` or the one that it was saved for; see ``Engine.from_pretrained``."""
    directory = resolve(model, revision=revision, allow_pickle=allow_pickle)
    if is_adapter(directory):
        adapted = open_adapted(directory, allow_pickle=allow_pickle)
        weights, head = fit_weights(adapted.checkpoint, directory, adapted.config, task or adapted.config.task)
        return OpenModel(weights, head, directory, adapted.tokenizer)
    config = ModelConfig.from_file(directory / "config.json")
    opened = open_weights(directory, config, task or config.task, allow_pickle=allow_pickle)
    return OpenModel(*opened, directory, directory)


@dataclass(frozen=True)
class Adapted:
    """A base checkpoint with its adapter merged; ``tokenizer``: the directory that has the tokeniser's files."""

    config: ModelConfig
    checkpoint: Checkpoint
    tokenizer: Path


def is_adapter(directory: Path) -> bool:
    """Whether ``directory`` holds an adapter rather than a whole checkpoint."""
    return (directory / CONFIG).exists()


def open_adapted(directory: Path, *, allow_pickle: bool = True) -> Adapted:
    """The model that the adapter in ``directory`` makes of its base, which is fetched where it is not local.

    The task is the adapter's, and so is the number of labels where it stores a classifier. Raises ConfigError and
    WeightsError.
    """
    path = directory / CONFIG
    settings = checked(read_object(path) or {}, _KEYS, str(path))
    _check_base_unchanged(path, settings["init_lora_weights"])
    base = resolve(settings["base_model_name_or_path"], revision=settings["revision"], allow_pickle=allow_pickle)
    own_config = directory / "config.json"
    config = ModelConfig.from_file(own_config if own_config.exists() else base / "config.json")
    tensors = plain_names(base, open_checkpoint(base, allow_pickle=allow_pickle).tensors, config.model_type)
    updates, whole = _parts(directory, config.model_type)
    for module, parts in updates.items():
        _merge(directory, tensors, module, parts, _scale(path, settings, module, parts))
    tensors |= whole
    config = _with_labels(config, whole, _TASKS.get(settings["task_type"] or "", config.task))
    has_tokenizer = any((directory / name).exists() for name in ("tokenizer.json", "vocab.txt"))
    return Adapted(config, Checkpoint(tensors), directory if has_tokenizer else base)


def _check_base_unchanged(path: Path, begun: Any) -> None:
    if isinstance(begun, str) and begun.lower().startswith(_CHANGED_BASE):
        raise ConfigError(
            f"{path} says init_lora_weights = {begun!r}, which changes the base model; save the adapter converted to "
            "plain LoRA, or merged."
        )


def _parts(directory: Path, model_type: str) -> tuple[dict[str, dict[str, Stored]], dict[str, Stored]]:
    """The low-rank parts of each module, and tensors that are stored whole: heads, and biases that were trained."""
    updates: dict[str, dict[str, Stored]] = defaultdict(dict)
    whole: dict[str, Stored] = {}
    stored = {
        name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.", "."): tensor
        for name, tensor in open_tensors(directory / TENSORS).items()
    }
    for name, tensor in plain_names(directory, stored, model_type).items():
        ending = next((ending for ending in _PARTS if name.endswith("." + ending)), None)
        if ending:
            updates[name.removesuffix("." + ending)][_PARTS[ending]] = tensor
        else:
            whole[name] = tensor
    return updates, whole


def _scale(path: Path, settings: Mapping[str, Any], module: str, parts: Mapping[str, Stored]) -> float:
    alpha = settings["lora_alpha"]
    for pattern, other in settings["alpha_pattern"].items():
        if not re.fullmatch(r"[\w.]+", pattern):
            raise ConfigError(f"{path} has the alpha_pattern {pattern!r}; only names of modules are matched.")
        if f".{module}".endswith(f".{pattern}"):
            alpha = other
            break
    rank = parts["a"].shape[0] if "a" in parts else 1
    return float(alpha) / (math.sqrt(rank) if settings["use_rslora"] else rank)


def _merge(directory: Path, tensors: dict[str, Stored], module: str, parts: Mapping[str, Stored], scale: float) -> None:
    """Replace the tensors of ``module`` by their sums with its update, made on first use."""
    weight = tensors.get(f"{module}.weight")
    if weight is None or "a" not in parts or "b" not in parts:
        raise WeightsError(f"{directory} has an incomplete update of {module}, or the base model has no such module.")
    is_table = module.endswith("_embeddings")
    wanted = (parts["b"].shape[0], parts["a"].shape[1])
    if (wanted[::-1] if is_table else wanted) != weight.shape or parts["a"].shape[0] != parts["b"].shape[1]:
        raise WeightsError(
            f"{directory} updates {module} with shape {list(wanted)}; the base's is {list(weight.shape)}."
        )

    def merged() -> np.ndarray:
        a, b = (parts[name].array.astype(np.float64) for name in ("a", "b"))
        update = scale * (b @ a)
        total = weight.array + (update.T if is_table else update)
        if "magnitude" in parts:
            total *= (parts["magnitude"].array.reshape(-1) / np.linalg.norm(total, axis=1))[:, None]
        return total.astype(np.float32)

    tensors[f"{module}.weight"] = Stored(weight.shape, np.dtype(np.float32), merged)
    if "bias" in parts:
        bias = tensors[f"{module}.bias"]
        both = parts["bias"]
        tensors[f"{module}.bias"] = Stored(bias.shape, bias.dtype, lambda: bias.array + np.float32(scale) * both.array)


def _with_labels(config: ModelConfig, whole: Mapping[str, Stored], task: Task) -> ModelConfig:
    """``config`` for the adapter's task; labels without names where the base has another number of them."""
    config = replace(config, task=task)
    classifier = whole.get("classifier.weight")
    if classifier is None or classifier.shape[0] == config.num_labels:
        return config
    labels = {i: f"LABEL_{i}" for i in range(classifier.shape[0])}
    return replace(config, num_labels=len(labels), id2label=labels)
