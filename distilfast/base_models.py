"""The config.json of the base models, distilbert-base-cased and bert-base-cased, with any head."""

from __future__ import annotations

from typing import Any

from distilfast.config import ModelConfig
from distilfast.errors import ConfigError
from distilfast.types import Task

CONFIGS: dict[str, dict[str, Any]] = {
    "distilbert": {
        "activation": "gelu",
        "dim": 768,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
        "model_type": "distilbert",
        "n_heads": 12,
        "n_layers": 6,
        "pad_token_id": 0,
        "sinusoidal_pos_embds": False,
        "tie_weights_": True,
        "vocab_size": 28996,
    },
    "bert": {
        "hidden_act": "gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": 28996,
    },
}
_CLASSES = {"distilbert": "DistilBert", "bert": "Bert"}
_ARCHITECTURES = {
    "feature-extraction": "Model",
    "fill-mask": "ForMaskedLM",
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "multiple-choice": "ForMultipleChoice",
}
_ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def base_config(task: Task) -> ModelConfig:
    """distilbert-base-cased with the head of ``task``."""
    return ModelConfig.from_dict(raw_config(task, {}, "float32", None))


def raw_config(task: Task, config: dict[str, Any], dtype: str, num_labels: int | None) -> dict[str, Any]:
    """The base model's keys, replaced by those of ``config``, as ``save_pretrained`` writes them for ``task``."""
    model_type = config.get("model_type", "distilbert")
    if model_type not in CONFIGS:
        raise ConfigError(f"model_type {model_type!r} is not supported; distilfast runs {', '.join(CONFIGS)}.")
    raw = {**CONFIGS[model_type], **config}
    raw["architectures"] = [_CLASSES[model_type] + _ARCHITECTURES[task]]
    raw["torch_dtype"] = dtype
    labels = [f"LABEL_{i}" for i in range(num_labels or 2)]
    if task == "token-classification" and num_labels is None:
        labels = list(_ENTITIES)
    raw.setdefault("id2label", {str(i): label for i, label in enumerate(labels)})
    raw["label2id"] = {label: int(i) for i, label in raw["id2label"].items()}
    return raw
