"""``embed`` does what a folder of sentence-transformers says: poolings, Dense, Normalize, length, case and prompt.

The truth is computed here from the hidden states of transformers, in torch, and where sentence-transformers is
installed its own ``encode`` is another.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import transformers_model
from pipeline_pairs import TOLERANCE

import distilfast
from distilfast import ConfigError

Make = Callable[..., Path]

TEXTS = ["What a film.", "NO, Émile: no!", "", "a b c d e f g h i j k l m n o p q r s t u v", "x"]
LIBRARY = "sentence_transformers.models."
NEW_HOME = {
    "Pooling": "sentence_transformers.sentence_transformer.modules.",
    "Dense": "sentence_transformers.base.modules.",
}
SWITCHES = {  # how older folders name each pooling
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
POOLINGS = list(SWITCHES)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def sentence_folder(directory: Path, checkpoint: Path, modules: list[tuple[str, dict[str, Any]]], **texts: Any) -> Path:
    """A copy of ``checkpoint`` with ``modules`` (class, config) and sentence_bert_config.json ``texts``."""
    shutil.copytree(checkpoint, directory)
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{LIBRARY}Transformer"}]
    for i, (kind, config) in enumerate(modules, 1):
        config = dict(config)
        tensors = config.pop("tensors", None)
        package = NEW_HOME.get(kind, LIBRARY) if config.pop("new", False) else LIBRARY
        listed.append({"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": package + kind})
        write(directory / f"{i}_{kind}" / "config.json", config) if config else (directory / f"{i}_{kind}").mkdir()
        if tensors is not None:
            from safetensors.numpy import save_file

            save_file(tensors, directory / f"{i}_{kind}" / "model.safetensors")
    write(directory / "modules.json", listed)
    write(directory / "sentence_bert_config.json", texts)
    return directory


def pooling(*names: str) -> tuple[str, dict[str, Any]]:
    """As every release before the sixth wrote it."""
    return "Pooling", {"word_embedding_dimension": 32} | {
        f"pooling_mode_{SWITCHES[name]}": name in names for name in SWITCHES
    }


def dense(width: int, out: int, activation: str = "activation.Tanh", bias: bool = True, **more: Any) -> tuple[str, Any]:
    rng = np.random.default_rng(out)
    tensors = {"linear.weight": rng.normal(0, 0.3, (out, width)).astype(np.float32)}
    if bias:
        tensors["linear.bias"] = rng.normal(0, 0.3, out).astype(np.float32)
    if more.get("use_residual") and width != out:
        tensors["residual.weight"] = rng.normal(0, 0.3, (out, width)).astype(np.float32)
    config = {
        "in_features": width,
        "out_features": out,
        "bias": bias,
        "activation_function": f"torch.nn.modules.{activation}",
    }
    return "Dense", config | more | {"tensors": tensors}


NORMALIZE: tuple[str, dict[str, Any]] = ("Normalize", {})
CASES: dict[str, tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]] = {
    **{name: ([pooling(name)], {}) for name in POOLINGS},
    **{f"{name}, normalised": ([pooling(name), NORMALIZE], {}) for name in POOLINGS},
    "all together": ([pooling(*POOLINGS), NORMALIZE], {"max_seq_length": 9}),
    "none switched on": ([pooling()], {}),
    "in another order": ([("Pooling", {"embedding_dimension": 32, "pooling_mode": ["mean", "cls"], "new": True})], {}),
    "one by name": ([("Pooling", {"embedding_dimension": 32, "pooling_mode": "max"})], {}),
    "Dense": ([pooling("mean"), dense(32, 20)], {}),
    "Dense, Normalize": ([pooling("cls"), dense(32, 48, new=True), NORMALIZE], {"max_seq_length": 16}),
    "Normalize, Dense": ([pooling("mean"), NORMALIZE, dense(32, 16)], {}),
    "two Dense": ([pooling("cls", "mean"), dense(64, 40, "activation.GELU"), dense(40, 8, "activation.ReLU")], {}),
    "a linear Dense": ([pooling("mean"), dense(32, 32, "linear.Identity", bias=False)], {}),
    "a residual": ([pooling("mean"), dense(32, 32, use_residual=True)], {}),
    "a projected residual": ([pooling("mean"), dense(32, 12, use_residual=True), NORMALIZE], {}),
    "a short text": ([pooling("lasttoken"), NORMALIZE], {"max_seq_length": 5}),
    "small letters": ([pooling("mean"), NORMALIZE], {"max_seq_length": 20, "do_lower_case": True}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tiny_checkpoint: Make, tmp_path: Path) -> Path:
    modules, texts = CASES[request.param]
    model_type = "bert" if len(request.param) % 2 else "distilbert"
    checkpoint = tiny_checkpoint(model_type, "feature-extraction")
    return sentence_folder(tmp_path / "model", checkpoint, modules, **texts)


def test_vectors_of_a_folder(case: Path) -> None:
    got = distilfast.pipeline("feature-extraction", case).embed(TEXTS)
    want = expected(case, TEXTS)
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
def test_vectors_of_the_library(case: Path) -> None:
    from sentence_transformers import SentenceTransformer

    want = SentenceTransformer(str(case), device="cpu").encode(TEXTS)
    got = distilfast.pipeline("feature-extraction", case).embed(TEXTS)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pooled", ["mean", "cls"])
def test_a_trained_checkpoint(minilm: Path, tmp_path: Path, pooled: str) -> None:
    """The vectors of one that is pooled by its first token are not its means: their cosine is some 0.6."""
    texts = ["A man is playing the guitar.", "Stocks fell on Monday.", "word " * 300]
    kind, config = pooling(pooled)
    directory = sentence_folder(tmp_path / "model", minilm, [(kind, config), NORMALIZE], max_seq_length=128)
    got = distilfast.pipeline("feature-extraction", directory).embed(texts)
    want = expected(directory, texts)
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    other = distilfast.pipeline("feature-extraction", minilm).embed(texts, pooling="mean")
    assert (pooled == "mean") == ((got[:2] * other[:2]).sum(axis=1).min() > 0.9)


PROMPTS = {"prompts": {"query": "Find: ", "none": ""}, "default_prompt_name": "query"}


@pytest.fixture(params=POOLINGS)
def prompted(request: pytest.FixtureRequest, tiny_checkpoint: Make, tmp_path: Path) -> Path:
    """A folder whose default prompt is not pooled."""
    kind, config = pooling(request.param)
    checkpoint = tiny_checkpoint("bert", "feature-extraction")
    directory = sentence_folder(tmp_path / "model", checkpoint, [(kind, config | {"include_prompt": False})])
    write(directory / "config_sentence_transformers.json", PROMPTS)
    return directory


def test_a_default_prompt_that_is_not_pooled(prompted: Path) -> None:
    got = distilfast.pipeline("feature-extraction", prompted).embed(TEXTS)
    np.testing.assert_allclose(got, expected(prompted, TEXTS, "Find: ", skip=6), rtol=0, atol=TOLERANCE)


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
def test_a_default_prompt_of_the_library(prompted: Path) -> None:
    from sentence_transformers import SentenceTransformer

    want = SentenceTransformer(str(prompted), device="cpu").encode(TEXTS)
    got = distilfast.pipeline("feature-extraction", prompted).embed(TEXTS)
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def expected(directory: Path, texts: list[str], prompt: str = "", skip: int = 0) -> np.ndarray:
    """Every module of ``directory`` as its documentation defines it, over the hidden states of transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = json.loads((directory / "sentence_bert_config.json").read_text(encoding="utf-8"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers_model(directory, "feature-extraction")
    vectors = []
    for text in texts:
        text = prompt + (text.lower() if settings.get("do_lower_case") else text)
        encoded = tokenizer(text, truncation=True, max_length=settings.get("max_seq_length", 64), return_tensors="pt")
        with torch.inference_mode():
            x = model(**encoded).last_hidden_state[0].double()
        for module in json.loads((directory / "modules.json").read_text(encoding="utf-8"))[1:]:
            x = apply(directory / module["path"], module["type"].rpartition(".")[2], x, skip)
        vectors.append(x.numpy())
    return np.stack(vectors)


def apply(folder: Path, kind: str, x: Any, skip: int) -> Any:
    import torch

    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if kind == "Normalize":
        return x / x.norm()
    if kind == "Dense":
        from safetensors.torch import load_file

        tensors = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
        activation = getattr(torch.nn, config["activation_function"].rpartition(".")[2])()
        out = activation(torch.nn.functional.linear(x, tensors["linear.weight"], tensors.get("linear.bias")))
        if config.get("use_residual"):
            out = out + (tensors["residual.weight"] @ x if "residual.weight" in tensors else x)
        return out
    modes = config.get("pooling_mode") or [name for name in SWITCHES if config[f"pooling_mode_{SWITCHES[name]}"]]
    rows, places = x[skip:], torch.arange(1, len(x) + 1, dtype=torch.float64)[skip:, None]
    pooled = {
        "cls": rows[0],
        "max": rows.max(0).values,
        "mean": rows.mean(0),
        "mean_sqrt_len_tokens": rows.sum(0) / len(rows) ** 0.5,
        "weightedmean": (rows * places).sum(0) / places.sum(),
        "lasttoken": rows[-1],
    }
    return torch.cat([pooled[mode] for mode in ([modes] if isinstance(modes, str) else modes or ["mean"])])


def test_what_the_sixth_release_writes(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """Other keys in every file, and the length as the tokeniser's own; an older file name counts likewise."""
    config = {"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True, "new": True}
    texts = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings", "modality_config": {}}
    checkpoint = tiny_checkpoint("distilbert", "feature-extraction")
    directory = sentence_folder(tmp_path / "model", checkpoint, [("Pooling", config), NORMALIZE], **texts)
    prompts = {"prompts": {"document": "", "query": ""}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write(directory / "config_sentence_transformers.json", prompts)
    got = distilfast.pipeline("feature-extraction", directory).embed(TEXTS)
    np.testing.assert_allclose(got, expected(directory, TEXTS), rtol=0, atol=TOLERANCE)
    write(directory / "sentence_bert_config.json", {"max_seq_length": 6})
    want = expected(directory, TEXTS)
    (directory / "sentence_bert_config.json").rename(directory / "sentence_distilbert_config.json")
    got = distilfast.pipeline("feature-extraction", directory).embed(TEXTS)
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def test_arguments_over_the_folder(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """A pooling by name runs nothing else of the folder; ``normalize`` adds a division, or leaves out the last one."""
    checkpoint = tiny_checkpoint("bert", "feature-extraction")
    modules = [pooling("cls"), dense(32, 20), NORMALIZE]
    folder = distilfast.pipeline("feature-extraction", sentence_folder(tmp_path / "model", checkpoint, modules))
    plain = distilfast.pipeline("feature-extraction", checkpoint)
    length = np.linalg.norm
    np.testing.assert_array_equal(folder.embed(TEXTS, pooling="max"), plain.embed(TEXTS, pooling="max"))
    assert folder.embed(TEXTS, pooling=["cls", "mean"]).shape == (len(TEXTS), 64)
    assert plain.embed([]).shape == (0, 32) and folder.embed([]).shape == (0, 20)
    np.testing.assert_allclose(length(folder.embed(TEXTS), axis=1), 1, rtol=1e-6)
    raw = folder.embed(TEXTS, normalize=False)
    assert np.abs(length(raw, axis=1) - 1).min() > 0.01
    np.testing.assert_allclose(raw / length(raw, axis=1, keepdims=True), folder.embed(TEXTS), rtol=0, atol=1e-6)
    cut = folder.embed("a b c d e f", max_length=4)
    np.testing.assert_allclose(cut, folder.embed("a b"), rtol=0, atol=1e-6)


BAD: dict[str, tuple[list[tuple[str, dict[str, Any]]], str]] = {
    "a module that is not run": (
        [pooling("mean"), ("LayerNorm", {"dimension": 32})],
        "models.LayerNorm, which embed does",
    ),
    "no Pooling": ([NORMALIZE], "does not begin with a Transformer and a Pooling"),
    "a second Pooling": ([pooling("mean"), pooling("cls")], "has a second Pooling"),
    "an unknown pooling": ([("Pooling", {"pooling_mode": "median"})], "has the pooling 'median', which is not known"),
    "another activation": ([pooling("mean"), dense(32, 8, "activation.SELU")], "has the activation torch.nn.modules"),
    "a Dense of another width": (
        [pooling("mean"), dense(31, 8)],
        "linear.weight with shape [8, 31]; [any, 32] is needed",
    ),
    "a Dense without its bias": (
        [pooling("mean"), ("Dense", dense(32, 8, bias=False)[1] | {"bias": True})],
        "has no tensor linear.bias",
    ),
    "a Dense of token rows": (
        [pooling("mean"), dense(32, 8, module_input_name="token_embeddings")],
        "module_input_name 'token_embeddings'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_run_is_an_error(tiny_checkpoint: Make, tmp_path: Path, name: str) -> None:
    """The rows of the tokens, and a pooling by name, are to be had all the same."""
    modules, what = BAD[name]
    directory = sentence_folder(tmp_path / "model", tiny_checkpoint("bert", "feature-extraction"), modules)
    pipe = distilfast.pipeline("feature-extraction", directory)
    with pytest.raises(ConfigError) as caught:
        pipe.embed("a")
    assert what in str(caught.value) and "\n" not in str(caught.value)
    assert pipe("a") and pipe.embed("a", pooling="cls").shape == (1, 32)


@pytest.mark.parametrize(
    ("file", "value", "what"),
    [
        ("modules.json", {}, "is not a JSON array"),
        ("modules.json", [{"type": "my_code.Transformer", "path": ""}], "has the module my_code.Transformer, which"),
        ("sentence_bert_config.json", {"max_seq_length": "8"}, "max_seq_length = '8'; a positive integer is needed"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "fill-mask"},
            "transformer_task 'fill-mask', which embed does",
        ),
        ("sentence_bert_config.json", {"tokenizer_args": {"padding_side": "left"}}, "has tokenizer_args"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "has no prompt 'q'"),
    ],
)
def test_files_that_cannot_be_used(tiny_checkpoint: Make, tmp_path: Path, file: str, value: Any, what: str) -> None:
    checkpoint = tiny_checkpoint("bert", "feature-extraction")
    directory = sentence_folder(tmp_path / "model", checkpoint, [pooling("mean")])
    write(directory / file, value)
    with pytest.raises(ConfigError) as caught:
        distilfast.pipeline("feature-extraction", directory).embed("a")
    assert what in str(caught.value)


def test_a_pipe_is_not_waited_for(tiny_checkpoint, tmp_path):
    directory = shutil.copytree(tiny_checkpoint("distilbert", "feature-extraction"), tmp_path / "tiny")
    os.mkfifo(directory / "modules.json")
    with pytest.raises(ConfigError, match=r"modules\.json is not a regular file\.$"):
        distilfast.pipeline("feature-extraction", directory).embed("a text")
