"""config.json against transformers' own config classes, and every way it can be wrong."""

from __future__ import annotations

import json
import os
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
    labels = {str(i): "abcdefghijk"[i] for i in (10, 2, 0, 1, 9, 8, 7, 6, 5, 4, 3)}
    assert list(ModelConfig.from_dict(DISTILBERT | {"id2label": labels}).id2label.values()) == list("abcdefghijk")


def test_label_names_that_do_not_fit_the_number_of_labels() -> None:
    """As the reference: the number wins, and the names are LABEL_0 to LABEL_11."""
    config = ModelConfig.from_dict(DISTILBERT | {"num_labels": 12, "id2label": {"0": "no", "1": "yes"}})
    assert config.id2label == {i: f"LABEL_{i}" for i in range(12)}


def test_an_absent_activation_is_gelu() -> None:
    assert ModelConfig.from_dict({k: v for k, v in DISTILBERT.items() if k != "activation"}).activation == "gelu"


def test_null_counts_as_absent_where_a_key_may_be_absent() -> None:
    nulls = dict.fromkeys(("num_labels", "id2label", "architectures", "pad_token_id", "problem_type", "is_decoder"))
    assert ModelConfig.from_dict(DISTILBERT | nulls) == ModelConfig.from_dict(DISTILBERT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "roberta"}, "'roberta' is not supported"),
        ({"dim": 30}, "dim = 30 is not a multiple of n_heads = 4"),
        ({"dim": "32"}, "dim = '32'"),
        ({"n_layers": 0}, "n_layers = 0"),
        ({"activation": "silu"}, "activation = 'silu'; gelu or relu is needed"),
        ({"activation": []}, "activation = []"),
        ({"model_type": ["distilbert"]}, "['distilbert'] is not supported"),
        ({"n_layers": True}, "n_layers = True"),
        ({"n_layers": 10**9}, "n_layers = 1000000000; a positive integer, at most 1,000, is needed"),
        ({"num_labels": 10**9}, "num_labels = 1000000000"),
        ({"num_labels": "x"}, "num_labels = 'x'"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"pad_token_id": "x"}, "pad_token_id = 'x'"),
        ({"pad_token_id": -1}, "pad_token_id = -1"),
        ({"architectures": {}}, "architectures = {}; a list of strings is needed"),
        ({"architectures": 5}, "architectures = 5"),
        ({"architectures": [5]}, "architectures = [5]"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'; true or false is needed"),
        ({"problem_type": 3}, "problem_type = 3; a string is needed"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label in config.json has 2 keys from 1 to 2"),
        ({"id2label": {"x": "a"}}, "id2label"),
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


BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("value", ["x", None, -1, float("nan"), float("inf"), True])
@pytest.mark.parametrize("key", ["layer_norm_eps", "type_vocab_size"])
def test_bad_numbers_of_bert(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^config\.json says {key} = .*; .* is needed\.$"):
        ModelConfig.from_dict(BERT | {key: value})


def test_all_missing_keys_are_named_in_one_error() -> None:
    with pytest.raises(ConfigError, match="dim.*hidden_dim.*n_heads.*n_layers.*vocab_size"):
        ModelConfig.from_dict({"model_type": "distilbert"})


@pytest.mark.parametrize(
    "text", ["{", "[]", '"text"', "[" * 100_000, '{"a":' * 100_000, '{"dim": 1' + "0" * 5000 + "}"]
)
def test_a_file_that_is_not_a_json_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="JSON"):
        ModelConfig.from_file(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"config\.json is not a regular file\.$"):
        ModelConfig.from_file(tmp_path / "config.json")


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(
        ConfigError, match=r"is a git-LFS pointer and not the file itself; `git lfs pull` fetches it\.$"
    ):
        ModelConfig.from_file(tmp_path / "config.json")


def test_a_missing_file(tmp_path: Path) -> None:
    wanted = r"config.json does not exist; a checkpoint's directory has config.json, .* files\.$"
    with pytest.raises(ConfigError, match=wanted):
        ModelConfig.from_file(tmp_path / "config.json")


def test_a_folder_of_the_hubs_cache_names_the_one_inside(tmp_path: Path) -> None:
    inside = tmp_path / "snapshots" / "0123abc"
    inside.mkdir(parents=True)
    (inside / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"does not exist; {inside} has one\.$"):
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
