"""config.json against transformers' own config classes, and every way it can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distilfast.config import ModelConfig, environment_threads
from distilfast.errors import ConfigError, InputError

DISTILBERT = {
    "model_type": "distilbert",
    "activation": "gelu",
    "dim": 32,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 48,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}

NAMES = {  # of ModelConfig, and of the attribute that every transformers config class has for it
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
    "pad_token_id": "pad_token_id",
    "num_labels": "num_labels",
    "id2label": "id2label",
    "tied": "tie_word_embeddings",
}


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification", "fill-mask"])
def test_agrees_with_transformers(tiny_checkpoint: Callable[..., Path], model_type: str, task: str) -> None:
    transformers = pytest.importorskip("transformers")
    directory = tiny_checkpoint(model_type, task)
    config = ModelConfig.from_file(directory / "config.json")
    truth = transformers.AutoConfig.from_pretrained(directory)
    assert {name: getattr(config, name) for name in NAMES} == {
        name: getattr(truth, other) for name, other in NAMES.items()
    }
    assert config.ffn_size == (truth.hidden_dim if model_type == "distilbert" else truth.intermediate_size)
    assert config.task == task


def test_label_keys_are_sorted_numbers() -> None:
    labels = {"10": "k", "2": "c", "0": "a"}
    assert list(ModelConfig.from_dict(DISTILBERT | {"id2label": labels}).id2label) == [0, 2, 10]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "roberta"}, "'roberta' is not supported"),
        ({"dim": 30}, "dim = 30 is not a multiple of n_heads = 4"),
        ({"dim": "32"}, "dim = '32'"),
        ({"n_layers": 0}, "n_layers = 0"),
        ({"activation": "silu"}, "'silu' is not supported"),
        ({"is_decoder": True}, "encoders only"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
        ({"id2label": ["a", "b"]}, "id2label"),
        ({"architectures": ["DistilBertForNothing"]}, "'DistilBertForNothing' is not supported"),
    ],
)
def test_a_bad_value_is_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(DISTILBERT | change)
    assert words in str(caught.value)


def test_all_missing_keys_are_named_in_one_error() -> None:
    with pytest.raises(ConfigError, match="dim.*hidden_dim.*n_heads.*n_layers.*vocab_size"):
        ModelConfig.from_dict({"model_type": "distilbert"})


@pytest.mark.parametrize("text", ["{", "[]", '"text"'])
def test_a_file_that_is_not_a_json_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="JSON"):
        ModelConfig.from_file(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json does not exist\.$"):
        ModelConfig.from_file(tmp_path / "config.json")


def test_the_shipped_configs_are_read(data_directory: Path, minilm: Path) -> None:
    cased = ModelConfig.from_file(data_directory / "vocab-cased" / "config.json")
    assert (cased.task, cased.hidden_size, cased.head_size) == ("question-answering", 768, 64)
    trained = ModelConfig.from_file(minilm / "config.json")
    assert (trained.task, trained.hidden_size, trained.head_size, trained.token_types) == (
        "feature-extraction",
        384,
        32,
        2,
    )


def test_threads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTILFAST_THREADS", raising=False)
    assert environment_threads() is None
    monkeypatch.setenv("DISTILFAST_THREADS", "3")
    assert environment_threads() == 3
    for text in ("0", "-1", "two"):
        monkeypatch.setenv("DISTILFAST_THREADS", text)
        with pytest.raises(InputError, match="positive integer"):
            environment_threads()


def test_a_config_survives_json(tiny_checkpoint: Callable[..., Path]) -> None:
    path = tiny_checkpoint("bert", "text-classification", num_labels=3) / "config.json"
    assert ModelConfig.from_dict(json.loads(path.read_text())) == ModelConfig.from_file(path)
