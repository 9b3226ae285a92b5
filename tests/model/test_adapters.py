"""LoRA directories that peft has saved, against the model that peft makes of them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import transformers_model
from one_sentence import raises_one_sentence
from safetensors.numpy import load_file, save_file

import distilfast
from distilfast import ConfigError, Engine, WeightsError

peft = pytest.importorskip("peft", reason="peft writes the adapters")
torch = pytest.importorskip("torch", reason="peft's models are torch's")

Make = Callable[..., Path]

IDS = np.array([[2, 70, 71, 72, 80, 3], [2, 90, 91, 100, 101, 3]])
QKV = {"distilbert": ["q_lin", "v_lin"], "bert": ["query", "value"]}
TYPES = {"text-classification": "SEQ_CLS", "token-classification": "TOKEN_CLS", "question-answering": "QUESTION_ANS"}


def saved(base: Path, task: str, directory: Path, **options: Any) -> Any:
    """peft's model on ``base`` with a random adapter, saved to ``directory``."""
    model_type = json.loads((base / "config.json").read_text())["model_type"]
    settings = {"r": 4, "lora_alpha": 24, "target_modules": QKV[model_type], "task_type": TYPES.get(task)} | options
    torch.manual_seed(0)
    model = peft.get_peft_model(transformers_model(base, task), peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.05 if "magnitude" in name else 0.2))
    model.save_pretrained(directory)
    return model.eval()


def answers(engine: Engine) -> np.ndarray:
    outputs = engine(IDS)
    return np.stack([outputs[name] for name in outputs], axis=-1)


def check(engine: Engine, model: Any, base: Path) -> None:
    with torch.no_grad():
        outputs = model(input_ids=torch.from_numpy(IDS))
    want = np.stack([outputs[name].numpy() for name in outputs if name != "loss"], axis=-1)
    np.testing.assert_allclose(answers(engine), want, rtol=0, atol=2e-5)
    assert np.abs(answers(Engine.from_pretrained(base, task=engine.task)) - want).max() > 1e-2


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "every linear": {"target_modules": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]},
    "alphas and ranks": {"alpha_pattern": {"layer.1.attention.q_lin": 3}, "rank_pattern": {"v_lin": 2}},
    "magnitudes": {"use_dora": True},
    "biases": {"bias": "all"},
    "biases of the update": {"lora_bias": True},
    "heads": {"modules_to_save": ["pre_classifier", "classifier"]},
    "word table": {"target_modules": ["word_embeddings", "lin1"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_answers_are_those_of_peft(tiny_checkpoint: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    base = tiny_checkpoint("distilbert", "text-classification")
    model = saved(base, "text-classification", tmp_path, **options)
    engine = Engine.from_pretrained(tmp_path)
    assert engine.task == "text-classification" and engine.directory == tmp_path
    check(engine, model, base)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_every_head(tiny_checkpoint: Make, tmp_path: Path, model_type: str, task: str) -> None:
    base = tiny_checkpoint(model_type, task)
    model = saved(base, task, tmp_path)
    check(Engine.from_pretrained(tmp_path), model, base)


def test_a_head_on_an_encoder_that_has_none(tiny_checkpoint: Make, tmp_path: Path) -> None:
    """The base is a masked LM with names of its own; five labels come from the adapter."""
    base = tiny_checkpoint("distilbert", "fill-mask")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=5)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_lin"], modules_to_save=["pre_classifier"])
    )
    adapted.save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path)
    assert engine.task == "text-classification" and engine.config.id2label[4] == "LABEL_4"
    with torch.no_grad():
        want = adapted.eval()(input_ids=torch.from_numpy(IDS)).logits
    np.testing.assert_allclose(engine(IDS).logits, want, rtol=0, atol=1e-5)
    answer = distilfast.pipeline("text-classification", engine)("a text")  # by the base's tokeniser
    assert answer[0]["label"].startswith("LABEL_")
    assert (pickle.loads(pickle.dumps(engine))(IDS).logits == engine(IDS).logits).all()
    assert (Engine.from_pretrained(tmp_path, precision="int8")(IDS).logits != engine(IDS).logits).any()


def changed(directory: Path, **settings: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def renamed(directory: Path, change: Callable[[str], str]) -> None:
    path = directory / "adapter_model.safetensors"
    save_file({change(name): array for name, array in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("break_it", "error", "what"),
    [
        (lambda at: changed(at, peft_type="IA3"), ConfigError, "peft_type = 'IA3'"),
        (lambda at: changed(at, base_model_name_or_path=None), ConfigError, "base_model_name_or_path = None"),
        (lambda at: changed(at, base_model_name_or_path="/absent"), WeightsError, "/absent does not exist"),
        (lambda at: changed(at, init_lora_weights="pissa_niter_4"), ConfigError, "changes the base model"),
        (lambda at: changed(at, alpha_pattern={"(a+)+$": 3}), ConfigError, "only names of modules are matched"),
        (lambda at: changed(at, lora_alpha="x"), ConfigError, "lora_alpha = 'x'"),
        (lambda at: (at / "adapter_model.safetensors").unlink(), WeightsError, "does not exist"),
        (lambda at: renamed(at, lambda name: name.replace("q_lin", "q_proj")), WeightsError, "has no such module"),
        (lambda at: renamed(at, lambda name: name.replace("lora_A", "lora_C")), WeightsError, "incomplete update"),
        (lambda at: renamed(at, lambda name: name.replace("attention.q_lin", "ffn.lin1")), WeightsError, "updates"),
    ],
)
def test_adapters_that_do_not_fit(
    tiny_checkpoint: Make, tmp_path: Path, break_it: Callable[[Path], Any], error: Any, what: str
) -> None:
    """Another kind, another base, a file that is missing."""
    saved(tiny_checkpoint("distilbert", "text-classification"), "text-classification", tmp_path)
    break_it(tmp_path)
    raises_one_sentence(error, what, lambda: Engine.from_pretrained(tmp_path))
