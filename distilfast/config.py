"""A checkpoint's config.json under one set of names, and the four environment variables.

DistilBERT and BERT spell the same sizes differently; ``ModelConfig`` has one name for each. Sources: the
``DistilBertConfig`` and ``BertConfig`` pages of the transformers documentation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distilfast.errors import ConfigError, InputError
from distilfast.files import Key, boolean, checked, integer, read_object, string
from distilfast.types import Task

ACTIVATIONS = ("gelu", "relu")
"""Feed-forward activations the backends implement; ``gelu`` is the exact erf form."""


def _is_eps(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_label_map(value: Any) -> bool:
    return isinstance(value, dict) and all(key.isdecimal() and len(key) < 10 for key in map(str, value))


MOST_LAYERS, MOST_LABELS = 1_000, 100_000
"""Far beyond every model; a table for more would be built before a tensor could show that it is wrong."""

# ModelConfig field -> key in config.json, by model_type.
_NAMES = {
    "distilbert": {
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "ffn_size": "hidden_dim",
        "activation": "activation",
    },
    "bert": {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "ffn_size": "intermediate_size",
        "activation": "hidden_act",
    },
}
_FIELDS = {
    "hidden_size": integer(1),
    "num_layers": integer(1, MOST_LAYERS),
    "num_heads": integer(1),
    "ffn_size": integer(1),
    "activation": Key(" or ".join(ACTIVATIONS), lambda value: value in ACTIVATIONS, "gelu"),
}
_COMMON = {
    "vocab_size": integer(1),
    "max_position_embeddings": integer(1),
    "pad_token_id": integer(0, default=0, optional=True),
    "tie_word_embeddings": boolean(True),
    "sinusoidal_pos_embds": boolean(False),
    "is_decoder": boolean(False),
    "position_embedding_type": string("absolute"),
    "problem_type": string(),
    "function_to_apply": string(),
    "num_labels": integer(1, MOST_LABELS, default=None, optional=True),
    "id2label": Key("a map from numbers to labels", _is_label_map, None, optional=True),
    "architectures": Key("a list of strings", _is_list_of_text, (), optional=True),
}
_BERT = {
    "layer_norm_eps": Key("a number of at least 0", _is_eps, 1e-12),
    "type_vocab_size": integer(1, default=2),
}
_DISTILBERT_EPS = 1e-12  # fixed in the model's definition, not in its config

_TASKS: dict[str, Task] = {
    "Model": "feature-extraction",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one encoder and the labels of its head.

    ``task`` is what the checkpoint's ``architectures`` entry names, in the task names of
    ``transformers.pipeline`` ("multiple-choice" has no pipeline there but the same style of name).
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    max_positions: int
    activation: Literal["gelu", "relu"]
    layer_norm_eps: float
    token_types: int  # rows of the token-type table; 0 for DistilBERT
    pad_token_id: int
    task: Task
    tied: bool  # the masked-LM projection is the word table
    sinusoidal: bool  # a position table that is not stored consists of sinusoids
    num_labels: int
    id2label: dict[int, str] = field(default_factory=dict)
    problem_type: str | None = None
    function_to_apply: str | None = None

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read ``config.json``; raises ConfigError with one sentence."""
        raw = read_object(Path(path))
        if raw is None:
            raise ConfigError(f"{path} does not exist; {_instead_of(Path(path).parent)}.")
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelConfig:
        """Translate the keys of one ``config.json``; raises ConfigError, which names all that are missing."""
        model_type = raw.get("model_type")
        if not isinstance(model_type, str) or model_type not in _NAMES:
            raise ConfigError(f"model_type {model_type!r} is not supported; distilfast runs {_joined(_NAMES)}.")
        bert, names = model_type == "bert", _NAMES[model_type]
        keys = {name: _FIELDS[field] for field, name in names.items()} | _COMMON | (_BERT if bert else {})
        read = checked(raw, keys, "config.json")
        _check_encoder_only(read)
        if read[names["hidden_size"]] % read[names["num_heads"]]:
            size, heads = names["hidden_size"], names["num_heads"]
            raise ConfigError(f"{size} = {read[size]} is not a multiple of {heads} = {read[heads]}.")
        id2label = _labels(read["id2label"], read["num_labels"])
        return cls(
            model_type=model_type,
            **{field: read[name] for field, name in names.items()},
            vocab_size=read["vocab_size"],
            max_positions=read["max_position_embeddings"],
            layer_norm_eps=float(read["layer_norm_eps"]) if bert else _DISTILBERT_EPS,
            token_types=read["type_vocab_size"] if bert else 0,
            pad_token_id=read["pad_token_id"],
            task=_task(read["architectures"]),
            tied=read["tie_word_embeddings"],
            sinusoidal=not bert and read["sinusoidal_pos_embds"],
            num_labels=len(id2label),
            id2label=id2label,
            problem_type=read["problem_type"],
            function_to_apply=read["function_to_apply"],
        )


def _instead_of(directory: Path) -> str:
    """What to name in the place of a directory without config.json: the hub's cache has one below a commit's name."""
    found = [file.parent for at in ("*", "snapshots/*") for file in directory.glob(f"{at}/config.json")]
    if found:
        return f"{min(found)} has one"
    return "a checkpoint's directory has config.json, model.safetensors and the tokeniser's files"


def _check_encoder_only(read: dict[str, Any]) -> None:
    if read["is_decoder"]:
        raise ConfigError("is_decoder is true; distilfast runs encoders only.")
    kind = read["position_embedding_type"]
    if kind != "absolute":
        raise ConfigError(f"position_embedding_type {kind!r} is not supported; only 'absolute' is.")


def _labels(named: dict[Any, Any] | None, count: int | None) -> dict[int, str]:
    """``id2label`` with integer keys; LABEL_0 … where there are no names, or ``num_labels`` asks for another number."""
    labels = dict(sorted((int(key), str(label)) for key, label in (named or {}).items()))
    if named is None or (count is not None and count != len(labels)):
        return {i: f"LABEL_{i}" for i in range(2 if count is None else count)}
    if list(labels) != list(range(len(labels))):
        first, last = min(labels, default=0), max(labels, default=0)
        raise ConfigError(f"id2label in config.json has {len(labels)} keys from {first} to {last}; 0, 1, … are needed.")
    return labels


def _task(architectures: Sequence[str]) -> Task:
    architecture = architectures[0] if architectures else "Model"
    for suffix, task in _TASKS.items():
        if architecture.endswith(suffix) and architecture[: -len(suffix)].lower() in ("", *_NAMES):
            return task
    raise ConfigError(f"architecture {architecture!r} is not supported; distilfast has heads for {_joined(_TASKS)}.")


def _joined(names: Any) -> str:
    return ", ".join(str(name) for name in names)


def environment(name: str) -> str | None:
    """The value of ``DISTILFAST_<name>``, or None where unset or empty."""
    return os.environ.get(f"DISTILFAST_{name}") or None


def cache_directory() -> Path | None:
    """Where packed weights are kept: ``DISTILFAST_CACHE``, None where it is "off" in any case; else the user's cache.

    Raises OSError where the user has no home directory.
    """
    chosen = environment("CACHE")
    if chosen is not None and chosen.lower() == "off":
        return None
    directory = Path(chosen or os.path.join(_user_cache(), "distilfast"))
    try:
        return directory.expanduser()
    except RuntimeError:
        raise OSError("there is no home directory") from None


def _user_cache() -> str:
    """``XDG_CACHE_HOME``, or its default; the specification says to ignore a relative path."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return chosen if os.path.isabs(chosen) else "~/.cache"


def environment_threads() -> int | None:
    """``DISTILFAST_THREADS`` as a number; raises InputError where it is none."""
    text = environment("THREADS")
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"DISTILFAST_THREADS is {text!r}; a positive integer is needed.")
    return int(text)
