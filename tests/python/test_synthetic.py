"""Synthetic checkpoints: transformers loads every tensor, and their activations resemble those of trained models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilfast.errors import ConfigError, InputError
from distilfast.heads import TASKS
from distilfast.parity.oracles import AUTO_CLASSES
from distilfast.synthetic import main, outliers, write_checkpoint

Make = Callable[..., Path]


def loaded(directory: Path, task: str) -> Any:
    """The transformers model; no tensor may be missing from the file, and none unused."""
    transformers = pytest.importorskip("transformers")
    model, info = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("task", TASKS)
def test_transformers_loads_every_tensor(tiny_checkpoint: Make, model_type: str, task: str, tied: bool) -> None:
    model = loaded(tiny_checkpoint(model_type, task, config={"tie_word_embeddings": tied}), task)
    assert type(model).__name__ == model.config.architectures[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_types_round_to_nearest_even(tiny_checkpoint: Make, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    fp32 = load_file(tiny_checkpoint("distilbert", "fill-mask") / "model.safetensors")
    half = load_file(tiny_checkpoint("distilbert", "fill-mask", dtype=dtype) / "model.safetensors")
    for name, tensor in fp32.items():
        assert torch.equal(tensor.to(getattr(torch, dtype)), half[name]), name


def test_shards_and_one_file_are_the_same_model(tiny_checkpoint: Make) -> None:
    torch = pytest.importorskip("torch")
    whole = loaded(tiny_checkpoint("bert", "fill-mask"), "fill-mask").state_dict()
    parts = loaded(tiny_checkpoint("bert", "fill-mask", shards=4), "fill-mask").state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_seed_determines_the_bytes(tmp_path: Path, tiny_checkpoint: Make) -> None:
    files = [tiny_checkpoint("distilbert", "fill-mask", seed=seed, shards=1) / "model.safetensors" for seed in (5, 6)]
    config = json.loads((files[0].parent / "config.json").read_text())
    again = write_checkpoint(tmp_path, task="fill-mask", config=config, seed=5) / "model.safetensors"
    assert again.read_bytes() == files[0].read_bytes() != files[1].read_bytes()


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Hidden states [layers + 1, B, L, D] and attention [layers, B, H, L, L] of 8 random texts at the real width."""
    torch = pytest.importorskip("torch")
    config = {"vocab_size": 2000, "hidden_dim": 1536}
    directory = write_checkpoint(tmp_path_factory.mktemp("wide"), task="feature-extraction", config=config)
    ids = torch.from_numpy(np.random.default_rng(0).integers(200, 2000, (8, 24)))
    ids[:, 0] = 101
    with torch.no_grad():
        out = loaded(directory, "feature-extraction")(ids, output_hidden_states=True, output_attentions=True)
    return {"hidden": torch.stack(out.hidden_states).numpy(), "attention": torch.stack(out.attentions).numpy()}


def test_outlier_channels_are_the_same_in_every_layer(activations: dict[str, np.ndarray]) -> None:
    for hidden in activations["hidden"]:
        largest = np.argsort(np.abs(hidden).mean(axis=(0, 1)))[-2:]
        assert sorted(largest) == [308, 381]
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        kurtosis = (centred**4).mean(axis=-1) / (centred**2).mean(axis=-1) ** 2
        assert 4 < np.abs(hidden).max() < 12
        assert 8 < kurtosis.mean() < 90


def test_attention_is_not_uniform_and_answers_differ(activations: dict[str, np.ndarray]) -> None:
    probabilities = activations["attention"].astype(np.float64)
    entropy = -(probabilities * np.log(probabilities + 1e-30)).sum(axis=-1).mean(axis=(1, 2, 3))
    assert (entropy < 0.8 * np.log(24)).all()  # log 24 is the entropy of uniform attention
    first = activations["hidden"][-1][:, 0]
    assert (first - first.mean(axis=0)).std() > 0.1 * first.std()


@pytest.mark.parametrize("width", [8, 32, 384, 768, 1024])
def test_outlier_channels_scale_with_the_width(width: int) -> None:
    first, second = outliers(width)
    assert 0 < first < second < width
    assert width != 768 or (first, second) == (308, 381)


def test_labels(tiny_checkpoint: Make) -> None:
    def labels(task: str, **arguments: Any) -> list[str]:
        config = json.loads((tiny_checkpoint("bert", task, **arguments) / "config.json").read_text())
        assert {label: int(i) for i, label in config["id2label"].items()} == config["label2id"]
        return list(config["id2label"].values())

    assert labels("text-classification") == ["LABEL_0", "LABEL_1"]
    assert labels("text-classification", num_labels=3) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert labels("token-classification")[:3] == ["O", "B-PER", "I-PER"]
    assert labels("text-classification", config={"id2label": {"0": "no", "1": "yes"}}) == ["no", "yes"]


def test_a_given_vocabulary_is_copied(data_directory: Path, tmp_path: Path) -> None:
    source = data_directory / "vocab-cased"
    config = {"dim": 32, "n_heads": 4, "n_layers": 1, "hidden_dim": 48}
    write_checkpoint(tmp_path, task="fill-mask", config=config, vocabulary=source)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 28996


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"task": "translation"}, InputError, "'translation' is not known"),
        ({"dtype": "int8"}, InputError, "'int8' is not known"),
        ({"shards": 0}, InputError, "shards is 0"),
        ({"config": {"vocab_size": 100}}, InputError, "vocab_size is 100"),
        ({"config": {"model_type": "gpt2"}}, ConfigError, "'gpt2' is not supported"),
        ({"config": {"dim": 100, "vocab_size": 256}}, ConfigError, "not a multiple"),
        ({"vocabulary": Path("absent")}, InputError, "absent holds no tokenizer files"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        write_checkpoint(tmp_path / "new", **({"task": "fill-mask"} | arguments))
    assert not (tmp_path / "new" / "model.safetensors").exists()


def test_the_command_line(tmp_path: Path, tiny_checkpoint: Make) -> None:
    source = tiny_checkpoint("bert", "question-answering")
    config = shutil.copyfile(source / "config.json", tmp_path / "given.json")
    out = tmp_path / "out"
    main([str(out), "--task", "question-answering", "--config", str(config), "--vocabulary", str(source)])
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
