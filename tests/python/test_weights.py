"""Names and shapes against transformers' modules, every file format, and every way a checkpoint can be wrong."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from distilfast import Engine
from distilfast.config import ModelConfig
from distilfast.errors import DistilfastError, WeightsError
from distilfast.heads import TASKS
from distilfast.weights import Weights, load_weights, resolve

Make = Callable[..., Path]
Tensors = dict[str, np.ndarray]


def load(directory: Path, task: str | None = None) -> Weights:
    config = ModelConfig.from_file(directory / "config.json")
    return load_weights(directory, config, task or config.task)[0]


def refused(directory: Path, task: str | None = None) -> str:
    """The message of the WeightsError that loading raises: one sentence, on one line."""
    with pytest.raises(WeightsError) as caught:
        load(directory, task)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


@pytest.fixture
def rewritten(tiny_checkpoint: Make, tmp_path: Path) -> Callable[..., Path]:
    """``rewritten(model_type, task, change)``: a copy of a tiny checkpoint, its tensors changed in place."""
    safetensors = pytest.importorskip("safetensors.numpy")

    def rewrite(model_type: str, task: str, change: Callable[[Tensors], Any], **arguments: Any) -> Path:
        directory = tmp_path / "changed"
        shutil.copytree(tiny_checkpoint(model_type, task, **arguments), directory)
        tensors = safetensors.load_file(directory / "model.safetensors")
        change(tensors)
        safetensors.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return directory

    return rewrite


# --- names: what transformers calls each tensor, written out independently ---


def linear(name: str, module: Any) -> dict[str, Any]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}


def stacked(name: str, *modules: Any) -> dict[str, Any]:
    import torch

    return {
        f"{name}.weight": torch.cat([module.weight for module in modules]),
        f"{name}.bias": torch.cat([module.bias for module in modules]),
    }


def distilbert_layer(at: str, layer: Any) -> dict[str, Any]:
    attention = layer.attention
    return {
        **stacked(f"{at}.qkv", attention.q_lin, attention.k_lin, attention.v_lin),
        **linear(f"{at}.attention_out", attention.out_lin),
        **linear(f"{at}.attention_norm", layer.sa_layer_norm),
        **linear(f"{at}.ffn_in", layer.ffn.lin1),
        **linear(f"{at}.ffn_out", layer.ffn.lin2),
        **linear(f"{at}.output_norm", layer.output_layer_norm),
    }


def bert_layer(at: str, layer: Any) -> dict[str, Any]:
    attention = layer.attention.self
    return {
        **stacked(f"{at}.qkv", attention.query, attention.key, attention.value),
        **linear(f"{at}.attention_out", layer.attention.output.dense),
        **linear(f"{at}.attention_norm", layer.attention.output.LayerNorm),
        **linear(f"{at}.ffn_in", layer.intermediate.dense),
        **linear(f"{at}.ffn_out", layer.output.dense),
        **linear(f"{at}.output_norm", layer.output.LayerNorm),
    }


def head_truth(model: Any, task: str, bert: bool) -> dict[str, Any]:
    if task == "feature-extraction":
        return linear("head.0", model.pooler.dense) if bert else {}
    if task == "fill-mask" and bert:
        transform = model.cls.predictions.transform
        projection = model.cls.predictions.decoder
        return {
            **linear("head.0", transform.dense),
            **linear("head.0.norm", transform.LayerNorm),
            **linear("head.1", projection),
        }
    if task == "fill-mask":
        return {
            **linear("head.0", model.vocab_transform),
            **linear("head.0.norm", model.vocab_layer_norm),
            **linear("head.1", model.vocab_projector),
        }
    if task == "question-answering":
        return linear("head.0", model.qa_outputs)
    if task == "token-classification":
        return linear("head.0", model.classifier)
    first = model.bert.pooler.dense if bert else model.pre_classifier
    return linear("head.0", first) | linear("head.1", model.classifier)


def truth(model: Any, task: str) -> Tensors:
    """Canonical name -> the corresponding parameter of the transformers model."""
    bert = model.config.model_type == "bert"
    base = model.base_model
    tensors = {
        "embed.word": base.embeddings.word_embeddings.weight,
        "embed.position": base.embeddings.position_embeddings.weight,
        **linear("embed.norm", base.embeddings.LayerNorm),
    }
    if bert:
        tensors["embed.token_type"] = base.embeddings.token_type_embeddings.weight
    for i, layer in enumerate(base.encoder.layer if bert else base.transformer.layer):
        tensors |= bert_layer(f"layer.{i}", layer) if bert else distilbert_layer(f"layer.{i}", layer)
    tensors |= head_truth(model, task, bert)
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def transformers_model(directory: Path, task: str) -> Any:
    transformers = pytest.importorskip("transformers")
    suffix = {
        "feature-extraction": "",
        "fill-mask": "ForMaskedLM",
        "text-classification": "ForSequenceClassification",
        "token-classification": "ForTokenClassification",
        "question-answering": "ForQuestionAnswering",
        "multiple-choice": "ForMultipleChoice",
    }[task]
    return getattr(transformers, f"AutoModel{suffix}").from_pretrained(directory)


def assert_same(tensors: Tensors, expected: Tensors) -> None:
    assert sorted(tensors) == sorted(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32 and tensor.flags.c_contiguous, name
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("task", TASKS)
def test_every_tensor_is_the_one_transformers_uses(tiny_checkpoint: Make, model_type: str, task: str) -> None:
    directory = tiny_checkpoint(model_type, task, num_labels=3 if task.endswith("classification") else None)
    assert_same(load(directory).tensors, truth(transformers_model(directory, task), task))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(tiny_checkpoint: Make, dtype: str) -> None:
    directory = tiny_checkpoint("distilbert", "text-classification", dtype=dtype)
    assert_same(
        load(directory).tensors, truth(transformers_model(directory, "text-classification"), "text-classification")
    )


def test_minilm_has_no_prefix_a_pooler_and_a_buffer(minilm: Path) -> None:
    weights = load(minilm)
    assert_same(weights.tensors, truth(transformers_model(minilm, "feature-extraction"), "feature-extraction"))
    word = weights.tensors["embed.word"]
    assert not word.flags.owndata and not word.flags.writeable  # a view of the file


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_prefix_and_old_layer_norm_names_do_not_matter(rewritten: Any, tiny_checkpoint: Make, model_type: str) -> None:
    def to_old_names(tensors: Tensors) -> None:
        for name in list(tensors):
            old = name.removeprefix(f"{model_type}.")
            if "LayerNorm" in old or "layer_norm" in old:
                old = old.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[old] = tensors.pop(name)

    expected = load(tiny_checkpoint(model_type, "fill-mask")).tensors
    assert_same(load(rewritten(model_type, "fill-mask", to_old_names)).tensors, expected)


def test_the_bare_encoder_of_a_checkpoint_with_a_head(tiny_checkpoint: Make) -> None:
    tensors = load(tiny_checkpoint("distilbert", "fill-mask"), "feature-extraction").tensors
    assert not any(name.startswith("head.") for name in tensors)
    tensors = load(tiny_checkpoint("bert", "fill-mask"), "feature-extraction").tensors
    assert not any(name.startswith("head.") for name in tensors)  # no pooler is stored, so there is none


# --- the masked-LM projection ---


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_a_tied_projection_is_the_word_table(tiny_checkpoint: Make, model_type: str) -> None:
    tensors = load(tiny_checkpoint(model_type, "fill-mask")).tensors
    assert tensors["head.1.weight"] is tensors["embed.word"]


PROJECTION = {"distilbert": "vocab_projector.weight", "bert": "cls.predictions.decoder.weight"}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_a_stored_projection_takes_precedence_as_in_transformers(rewritten: Any, model_type: str, tied: bool) -> None:
    def change(tensors: Tensors) -> None:
        tensors[PROJECTION[model_type]] = np.full((256, 32), 0.25, np.float32)

    directory = rewritten(model_type, "fill-mask", change, config={"tie_word_embeddings": tied})
    tensors = load(directory).tensors
    assert (tensors["head.1.weight"] == 0.25).all() and (tensors["embed.word"] != 0.25).any()
    assert_same(tensors, truth(transformers_model(directory, "fill-mask"), "fill-mask"))


def test_a_word_table_stored_as_the_projection(rewritten: Any, tiny_checkpoint: Make) -> None:
    def change(tensors: Tensors) -> None:
        tensors["vocab_projector.weight"] = tensors.pop("distilbert.embeddings.word_embeddings.weight")

    assert_same(
        load(rewritten("distilbert", "fill-mask", change)).tensors,
        load(tiny_checkpoint("distilbert", "fill-mask")).tensors,
    )


def test_an_untied_projection_must_be_stored(rewritten: Any) -> None:
    untied = {"tie_word_embeddings": False}
    message = refused(
        rewritten("distilbert", "fill-mask", lambda tensors: tensors.pop("vocab_projector.weight"), config=untied)
    )
    assert (
        "no complete fill-mask head; missing: vocab_projector.weight; it can be loaded for feature-extraction."
        in message
    )


def test_both_spellings_of_the_bert_projection_bias(rewritten: Any) -> None:
    def change(tensors: Tensors) -> None:
        tensors["cls.predictions.decoder.bias"] = np.full(256, 2.0, np.float32)

    assert (load(rewritten("bert", "fill-mask", change)).tensors["head.1.bias"] == 2.0).all()


# --- one error names all mismatches ---


def test_one_error_names_all_mismatches(rewritten: Any) -> None:
    def change(tensors: Tensors) -> None:
        del tensors["distilbert.transformer.layer.1.ffn.lin1.bias"]
        tensors["distilbert.transformer.layer.2.ffn.lin1.bias"] = np.zeros(48, np.float32)
        tensors["classifier.weight"] = np.zeros((3, 32), np.float32)
        tensors["pre_classifier.bias"] = np.zeros(32, np.int32)

    message = refused(rewritten("distilbert", "text-classification", change))
    assert "missing: transformer.layer.1.ffn.lin1.bias;" in message
    assert "unexpected: transformer.layer.2.ffn.lin1.bias;" in message
    assert "classifier.weight is [3, 32] and must be [2, 32]" in message
    assert "pre_classifier.bias is int32 and must be" in message


def test_long_lists_are_cut(rewritten: Any) -> None:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if "layer.1." in name]:
            del tensors[name]

    assert " and 8 more." in refused(rewritten("distilbert", "fill-mask", change))  # a layer has 16 tensors


@pytest.mark.parametrize("task", ["fill-mask", "token-classification", "question-answering"])
@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_a_head_is_never_invented(tiny_checkpoint: Make, model_type: str, task: str) -> None:
    message = refused(tiny_checkpoint(model_type, "feature-extraction"), task)
    assert f" there is no complete {task} head; missing: " in message
    assert message.startswith("In ") and "unexpected" not in message


def test_a_classifier_without_its_pooler(rewritten: Any) -> None:
    message = refused(rewritten("bert", "text-classification", lambda tensors: tensors.pop("bert.pooler.dense.weight")))
    assert "no complete text-classification head; missing: pooler.dense.weight; it can be loaded for" in message


def test_heads_of_other_tasks_and_buffers_are_ignored(rewritten: Any) -> None:
    def change(tensors: Tensors) -> None:
        tensors["cls.seq_relationship.weight"] = np.zeros((2, 32), np.float32)
        tensors["bert.embeddings.position_ids"] = np.arange(64)[None]

    assert "head.0.weight" in load(rewritten("bert", "question-answering", change)).tensors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_named(rewritten: Any, value: float) -> None:
    def change(tensors: Tensors) -> None:
        tensors["distilbert.transformer.layer.0.ffn.lin2.weight"][3, 4] = value

    message = refused(rewritten("distilbert", "fill-mask", change))
    assert message.endswith("hold NaN or inf: transformer.layer.0.ffn.lin2.weight.")


def test_huge_finite_numbers_are_not_inf(rewritten: Any) -> None:
    def change(tensors: Tensors) -> None:
        tensors["distilbert.transformer.layer.0.ffn.lin2.weight"][:] = 3e38  # their sum overflows

    assert load(rewritten("distilbert", "fill-mask", change))


# --- files ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_hold_the_same_tensors_as_one_file(tiny_checkpoint: Make, dtype: str) -> None:
    whole = load(tiny_checkpoint("bert", "fill-mask", dtype=dtype)).tensors
    assert_same(load(tiny_checkpoint("bert", "fill-mask", dtype=dtype, shards=3)).tensors, whole)


@pytest.fixture
def sharded(tiny_checkpoint: Make, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint("distilbert", "fill-mask", shards=3), tmp_path / "sharded")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    assert "names model-00002-of-00003.safetensors, which does not exist" in refused(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = sharded / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "model-00003-of-00003.safetensors is not a complete safetensors file" in refused(sharded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": ["b"]}}', "[" * 100_000])
def test_a_malformed_index(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    message = refused(sharded)
    assert "model.safetensors.index.json is not" in message or "index.json has no weight_map" in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"])
def test_no_pipe_is_waited_for(copied: Path, name: str) -> None:
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(DistilfastError, match=rf"{name} is not a regular file\.$"):
        Engine.from_pretrained(copied).tokenizer  # noqa: B018 - read on first use


def test_a_masked_lm_opened_as_a_classifier(tiny_checkpoint: Make) -> None:
    message = refused(tiny_checkpoint("distilbert", "fill-mask"), "text-classification")
    assert message.endswith("it can be loaded for feature-extraction, fill-mask.")


def test_two_names_of_one_tensor(rewritten: Any) -> None:
    name = "embeddings.word_embeddings.weight"

    def twice(tensors: Tensors) -> None:
        tensors[name] = tensors[f"distilbert.{name}"]

    message = refused(rewritten("distilbert", "fill-mask", twice))
    assert f"distilbert.{name}" in message and f" {name}" in message and "the same tensor's names" in message


def test_a_projection_without_its_bias_has_zeros(rewritten: Any, tiny_checkpoint: Make) -> None:
    made = load(rewritten("distilbert", "fill-mask", lambda tensors: tensors.pop("vocab_projector.bias")))
    assert not made.tensors["head.1.bias"].any()
    assert made.tensors["head.1.bias"].shape == (256,)


def test_positions_that_are_not_stored_are_sinusoids(rewritten: Any) -> None:
    transformers = pytest.importorskip("transformers.models.distilbert.modeling_distilbert")
    torch = pytest.importorskip("torch")
    directory = rewritten(
        "distilbert",
        "fill-mask",
        lambda tensors: tensors.pop("distilbert.embeddings.position_embeddings.weight"),
        config={"sinusoidal_pos_embds": True},
    )
    table = load(directory).tensors["embed.position"]
    truth = torch.empty(64, 32)
    transformers.create_sinusoidal_embeddings(64, 32, truth)
    assert np.allclose(table, truth.numpy(), rtol=0, atol=1e-6)
    assert np.allclose(table[1, :2], [0.8415, 0.5403], atol=1e-4)


def test_an_index_cannot_name_files_outside_its_directory(sharded: Path) -> None:
    index = json.dumps({"weight_map": {"a": "../outside.safetensors"}})
    (sharded / "model.safetensors.index.json").write_text(index)
    assert "not a plain file name" in refused(sharded)


def with_header(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def grow_shape(header: dict[str, Any]) -> None:
    header["vocab_projector.bias"]["shape"] = [10**9]


def grow_offsets(header: dict[str, Any]) -> None:
    header["vocab_projector.bias"]["data_offsets"][1] += 10**9


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"tail",
    "header beyond the file": lambda data: (1 << 40).to_bytes(8, "little") + data[8:],
    "header not JSON": lambda data: data[:8] + b"x" * (len(data) - 8),
    "a Git LFS pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "shape too large": lambda data: with_header(data, grow_shape),
    "offsets too large": lambda data: with_header(data, grow_offsets),
}


@pytest.fixture
def copied(tiny_checkpoint: Make, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint("distilbert", "fill-mask"), tmp_path / "copied")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named(copied: Path, kind: str) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(BROKEN[kind](path.read_bytes()))
    wanted = "is a git-LFS pointer" if kind == "a Git LFS pointer" else "is not a complete safetensors file"
    assert f"{path} {wanted}" in refused(copied)


def test_an_unsupported_dtype_is_an_error(copied: Path) -> None:
    path = copied / "model.safetensors"

    def change(header: dict[str, Any]) -> None:
        header["vocab_projector.bias"] |= {"dtype": "F8_E4M3", "shape": [1024]}

    path.write_bytes(with_header(path.read_bytes(), change))
    assert "stores vocab_projector.bias as F8_E4M3" in refused(copied)


def test_a_file_whose_tensors_begin_at_an_odd_byte(copied: Path, tiny_checkpoint: Make) -> None:
    expected = load(tiny_checkpoint("distilbert", "fill-mask")).tensors
    path = copied / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes((size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :])
    assert_same(load(copied).tensors, expected)
    assert all(tensor.flags.aligned for tensor in load(copied).tensors.values())


def test_no_weights_at_all(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    assert "has no model.safetensors, model.safetensors.index.json or pytorch_model.bin; save" in refused(copied)


# --- pytorch_model.bin ---


@pytest.fixture
def pickled(tiny_checkpoint: Make, tmp_path: Path) -> Path:
    """The same tensors in pytorch_model.bin, as in older checkpoints, where tied tensors are stored twice."""
    torch = pytest.importorskip("torch")
    source = tiny_checkpoint("distilbert", "fill-mask", dtype="bfloat16")
    model = transformers_model(source, "fill-mask").to(torch.bfloat16)
    directory = tmp_path / "pickled"
    shutil.copytree(source, directory)
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    return directory


def test_a_pickle_holds_the_same_tensors(pickled: Path, tiny_checkpoint: Make) -> None:
    assert_same(load(pickled).tensors, load(tiny_checkpoint("distilbert", "fill-mask", dtype="bfloat16")).tensors)


def test_safetensors_take_precedence_over_a_pickle(pickled: Path, tiny_checkpoint: Make) -> None:
    shutil.copy(tiny_checkpoint("distilbert", "fill-mask") / "model.safetensors", pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    assert load(pickled)


def test_a_pickle_without_torch(pickled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "is a pickle and needs torch; install torch or convert it to model.safetensors." in refused(pickled)


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["code", "cut", "no tensors"])
def test_a_pickle_that_is_refused(pickled: Path, tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    path = pickled / "pytorch_model.bin"
    if kind == "code":
        path.write_bytes(pickle.dumps({"a": Exploit(tmp_path / "executed")}, protocol=2))
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        torch.save(["a list"], path)
    assert f"{path} cannot be read as plain tensors by torch" in refused(pickled)
    assert not (tmp_path / "executed").exists()


# --- where a checkpoint comes from: a directory, the hub's cache, the hub ---


def test_a_local_directory_is_used_as_it_is(copied: Path) -> None:
    assert resolve(copied) == copied
    assert resolve(str(copied)) == copied


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent-model", "a/b/c", "bad name", "x..y"])
def test_a_name_that_can_only_be_a_path_must_exist(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r" does not exist; a checkpoint's directory or hub id is needed\.$"):
        resolve(name)


def test_a_file_is_no_directory(copied: Path) -> None:
    with pytest.raises(WeightsError, match="is a file"):
        resolve(copied / "config.json")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def resolved(home: Path, *arguments: str, **environment: str) -> str:
    """What ``resolve(*arguments)`` returns, or the name and message of its error, with the hub's home at ``home``.

    In its own process, because the hub's client reads its environment when it is imported.
    """
    script = """
import sys
from distilfast.weights import resolve
try:
    print(resolve(sys.argv[1], revision=sys.argv[2] if len(sys.argv) > 2 else None))
except Exception as error:
    print(type(error).__name__, error)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=clean | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def hub_home(tiny_checkpoint: Make, tmp_path: Path) -> Path:
    """A hub cache that holds team/model at the branch main and the tag v1, laid out as by the client itself."""
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "home" / "hub" / "models--team--model"
    (repository / "refs").mkdir(parents=True)
    for name, commit in (("main", COMMIT), ("v1", COMMIT[::-1])):
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(tiny_checkpoint("distilbert", "fill-mask"), repository / "snapshots" / commit)
    return tmp_path / "home"


def test_a_cached_model_is_found_offline(hub_home: Path) -> None:
    found = Path(resolved(hub_home, "team/model", HF_HUB_OFFLINE="1"))
    assert found.name == COMMIT and load(found)


def test_a_cached_revision_is_found_offline(hub_home: Path) -> None:
    assert resolved(hub_home, "team/model", "v1", HF_HUB_OFFLINE="1").endswith(COMMIT[::-1])
    assert resolved(hub_home, "team/model", COMMIT[::-1], HF_HUB_OFFLINE="1").endswith(COMMIT[::-1])


def test_an_uncached_revision_is_an_error_offline(hub_home: Path) -> None:
    message = resolved(hub_home, "team/model", "v2", HF_HUB_OFFLINE="1")
    assert message.startswith("WeightsError 'team/model' at revision 'v2' is neither")
    assert "fetching is switched off" in message and "\n" not in message


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    message = resolved(tmp_path, "team/model", HF_ENDPOINT="http://127.0.0.1:9")  # a closed port
    assert message.startswith("WeightsError 'team/model' is neither")
    assert "http://127.0.0.1:9 did not answer" in message and "\n" not in message


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub that the client uses: the commit of a revision, its files, their contents."""

    files: ClassVar[dict[str, bytes]]
    sent: ClassVar[list[str]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/team/model/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(json.dumps({"id": "team/model", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/models/team/model/tree/"):
            entries = [{"type": "file", "path": n, "size": len(d), "oid": n} for n, d in self.files.items()]
            self.answer(json.dumps(entries).encode())
        elif path.startswith("/api/models/team/model/revision/"):
            self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/team/model/resolve/{COMMIT}/"):
            name = path.partition(f"{COMMIT}/")[2]
            self.sent.append(name)
            self.answer(self.files[name], 200, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def hub(tiny_checkpoint: Make) -> Iterator[str]:
    """The address of a hub with one repository, team/model."""
    pytest.importorskip("huggingface_hub")
    directory = tiny_checkpoint("distilbert", "fill-mask")
    Hub.files = {path.name: path.read_bytes() for path in directory.iterdir()}
    Hub.files |= {"pytorch_model.bin": b"a pickle", "tf_model.h5": b"not wanted"}
    Hub.sent = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_only_the_needed_files_are_fetched_and_no_pickle(hub: str, tmp_path: Path) -> None:
    found = Path(resolved(tmp_path, "team/model", HF_ENDPOINT=hub))
    assert found.name == COMMIT and load(found)
    assert set(Hub.sent) == {"config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"}


def test_the_pickle_is_fetched_if_there_is_nothing_else(hub: str, tmp_path: Path) -> None:
    del Hub.files["model.safetensors"]
    assert (Path(resolved(tmp_path, "team/model", HF_ENDPOINT=hub)) / "pytorch_model.bin").exists()


MODULES = {"modules.json", "1_Pooling/config.json", "2_Dense/config.json", "config_sentence_transformers.json"}


def test_the_modules_of_sentence_transformers_are_fetched(hub: str, tmp_path: Path) -> None:
    """A Dense has weights of its own, and of these too a pickle only where there is nothing else."""
    Hub.files |= dict.fromkeys(
        [*MODULES, "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "onnx/m.onnx"], b"{}"
    )
    resolved(tmp_path / "one", "team/model", HF_ENDPOINT=hub)
    own = {"config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"}
    assert set(Hub.sent) == own | MODULES | {"2_Dense/model.safetensors"}
    del Hub.files["2_Dense/model.safetensors"]
    Hub.sent.clear()
    resolved(tmp_path / "two", "team/model", HF_ENDPOINT=hub)
    assert set(Hub.sent) == own | MODULES | {"2_Dense/pytorch_model.bin"}


def test_an_unknown_revision_or_model_is_an_error(hub: str, tmp_path: Path) -> None:
    assert "there is no such revision; " in resolved(tmp_path, "team/model", "v9", HF_ENDPOINT=hub)
    message = resolved(tmp_path, "team/other", HF_ENDPOINT=hub)
    assert "there is no such repository, or it is private, which needs HF_TOKEN" in message


def test_imports_load_none_of_the_heavy_libraries() -> None:
    heavy = ("torch", "transformers", "huggingface_hub", "safetensors", "tokenizers")
    script = (
        "import sys, distilfast.weights, distilfast.tokenizer, distilfast.synthetic\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
