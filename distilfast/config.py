"""A checkpoint's config.json under one set of names, and the four environment variables.

DistilBERT and BERT spell the same sizes differently; ``ModelConfig`` has one name for each. Sources: the
``DistilBertConfig`` and ``BertConfig`` pages of the transformers documentation.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distilfast.errors import ConfigError, InputError
from distilfast.types import Task

ACTIVATIONS = ("gelu", "relu")
"""Feed-forward activations the backends implement; ``gelu`` is the exact erf form."""

# ModelConfig field -> key in config.json, by model_type.
_KEYS = {
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
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist.") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is not readable JSON: {error}.") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} is not a JSON object.")
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelConfig:
        """Translate the keys of one ``config.json``; raises ConfigError naming every problem at once."""
        model_type = raw.get("model_type")
        if model_type not in _KEYS:
            raise ConfigError(f"model_type {model_type!r} is not supported; distilfast runs {_joined(_KEYS)}.")
        keys = _KEYS[model_type] | {"vocab_size": "vocab_size", "max_positions": "max_position_embeddings"}
        missing = sorted(key for key in keys.values() if key not in raw)
        if missing:
            raise ConfigError(f"config.json lacks {_joined(missing)}.")
        values = {name: raw[key] for name, key in keys.items()}
        _check_values(values, keys)
        _check_encoder_only(raw)
        id2label = _labels(raw)
        return cls(
            model_type=model_type,
            **values,
            layer_norm_eps=float(raw.get("layer_norm_eps", 1e-12)) if model_type == "bert" else _DISTILBERT_EPS,
            token_types=int(raw.get("type_vocab_size", 2)) if model_type == "bert" else 0,
            pad_token_id=int(raw.get("pad_token_id") or 0),
            task=_task(raw),
            tied=bool(raw.get("tie_word_embeddings", True)),
            num_labels=len(id2label),
            id2label=id2label,
            problem_type=raw.get("problem_type"),
            function_to_apply=raw.get("function_to_apply"),
        )


def _check_values(values: dict[str, Any], keys: dict[str, str]) -> None:
    for name, value in values.items():
        if name == "activation":
            if value not in ACTIVATIONS:
                raise ConfigError(f"activation {value!r} is not supported; distilfast has {_joined(ACTIVATIONS)}.")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"config.json says {keys[name]} = {value!r}; a positive integer is needed.")
    if values["hidden_size"] % values["num_heads"]:
        raise ConfigError(
            f"{keys['hidden_size']} = {values['hidden_size']} is not a multiple of "
            f"{keys['num_heads']} = {values['num_heads']}."
        )


def _check_encoder_only(raw: dict[str, Any]) -> None:
    if raw.get("is_decoder"):
        raise ConfigError("is_decoder is true; distilfast runs encoders only.")
    kind = raw.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ConfigError(f"position_embedding_type {kind!r} is not supported; only 'absolute' is.")


def _labels(raw: dict[str, Any]) -> dict[int, str]:
    """``id2label`` with integer keys; LABEL_0 … where the config names none, as the reference does."""
    named = raw.get("id2label")
    if named is None:
        return {i: f"LABEL_{i}" for i in range(int(raw.get("num_labels", 2)))}
    try:
        return dict(sorted((int(key), str(label)) for key, label in named.items()))
    except (AttributeError, ValueError):
        raise ConfigError("id2label in config.json is not a map from numbers to labels.") from None


def _task(raw: dict[str, Any]) -> Task:
    architecture = str((raw.get("architectures") or ["Model"])[0])
    for suffix, task in _TASKS.items():
        if architecture.endswith(suffix) and architecture[: -len(suffix)].lower() in ("", *_KEYS):
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
