"""Our models where transformers expects its own: the same outputs, in its pipelines and by its signatures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence

from distilfast import ConfigError, Engine, InputError

transformers = pytest.importorskip("transformers", reason="transformers is the library that the models are for")
torch = pytest.importorskip("torch", reason="transformers' models give torch tensors")

from distilfast.integrations import transformers as ours  # noqa: E402

Make = Callable[..., Path]

HEADS = {
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
}
IDS = torch.tensor([[2, 70, 71, 72, 3], [2, 80, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TEXTS = ["a [MASK] film", "what is [MASK] this ? yes no"]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Make) -> Callable[..., Any]:
    def load(model_type: str, task: str) -> Any:
        found = getattr(transformers, HEADS[task]).from_pretrained(
            tiny_checkpoint(model_type, task), attn_implementation="eager"
        )
        return found.eval()

    return load


def arguments(task: str) -> dict[str, Any]:
    choices = task == "multiple-choice"
    return {"input_ids": IDS[None] if choices else IDS, "attention_mask": MASK[None] if choices else MASK}


def assert_same(got: Any, want: Any) -> None:
    """Type, fields and values; rows of padding are zeros here and are not compared."""
    assert type(got) is type(want) and list(got) == list(want)
    for name in want:
        one, other = (each if isinstance(each, tuple) else (each,) for each in (got[name], want[name]))
        for a, b in zip(one, other, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            keep = MASK.bool() if a.shape[:2] == MASK.shape else torch.ones(a.shape[:2]).bool()
            if name == "attentions":
                keep = (MASK[:, None, :, None] * MASK[:, None, None, :]).bool().expand(a.shape)
            np.testing.assert_allclose(a[keep].numpy(), b[keep].detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("how", ["from_pretrained", "accelerate"])
def test_outputs_are_those_of_the_reference(
    reference: Callable[..., Any], tiny_checkpoint: Make, model_type: str, task: str, how: str
) -> None:
    wanted = reference(model_type, task)
    if how == "accelerate":
        model = ours.accelerate(wanted)
    else:
        model = getattr(ours, HEADS[task]).from_pretrained(tiny_checkpoint(model_type, task))
        assert type(model) is getattr(ours, type(wanted).__name__)
    assert type(model).__name__ == type(wanted).__name__ and model.config.to_dict() == wanted.config.to_dict()
    given = arguments(task)
    with torch.no_grad():
        assert_same(model(**given), wanted(**given))
        everything = {"output_hidden_states": True, "output_attentions": task != "multiple-choice"}
        if task != "multiple-choice":
            assert_same(model(**given, **everything), wanted(**given, **everything))
        plain = model(**given, return_dict=False)
    assert isinstance(plain, tuple) and torch.equal(plain[0], model(**given)[0])


@pytest.mark.parametrize("task", ["feature-extraction", "fill-mask", "text-classification", "token-classification"])
@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_pipelines_of_transformers_run_on_it(
    reference: Callable[..., Any], tiny_checkpoint: Make, model_type: str, task: str
) -> None:
    wanted = reference(model_type, task)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint(model_type, task))
    theirs = transformers.pipeline(task, model=wanted, tokenizer=tokenizer)
    fast = transformers.pipeline(task, model=ours.accelerate(wanted), tokenizer=tokenizer)
    assert nearly(fast(TEXTS), theirs(TEXTS))
    if task != "feature-extraction":  # whose batches show the rows of padding, zeros here
        assert nearly(fast(TEXTS, batch_size=2), theirs(TEXTS, batch_size=2))


def nearly(got: Any, want: Any) -> bool:
    """Equal in everything but numbers, which may differ by 1e-5."""
    if isinstance(want, dict):
        return list(got) == list(want) and all(nearly(got[key], want[key]) for key in want)
    if isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(map(nearly, got, want))
    if isinstance(want, (float, np.floating)):
        return abs(got - want) <= 1e-5
    return bool(got == want)


def test_the_copy_does_not_follow_the_model(reference: Callable[..., Any]) -> None:
    wanted = reference("distilbert", "text-classification")
    model = ours.accelerate(wanted)
    before = model(IDS).logits
    with torch.no_grad():
        for parameter in wanted.parameters():
            parameter.zero_()
    assert torch.equal(model(IDS).logits, before) and before.abs().sum() > 0
    assert torch.equal(ours.accelerate(wanted)(IDS).logits, torch.zeros(2, before.shape[1]))


def test_half_precision_weights_are_widened(reference: Callable[..., Any]) -> None:
    halved = reference("distilbert", "text-classification").to(torch.bfloat16)
    widened = reference("distilbert", "text-classification").to(torch.bfloat16).float()
    assert_same(ours.accelerate(halved)(IDS, MASK), widened(IDS, MASK))


def test_what_a_module_can_do(tiny_checkpoint: Make) -> None:
    model = ours.DistilBertModel.from_pretrained(tiny_checkpoint("distilbert", "feature-extraction"), precision="int8")
    assert model.engine.precision == "int8"
    assert model.eval() is model and model.to("cpu") is model and model.float() is model and model.cpu() is model
    assert model.to(device="cpu", dtype=torch.float32) is model and not list(model.parameters())
    assert model.device == torch.device("cpu") and model.dtype == torch.float32 and not model.can_generate()
    listed = model([[2, 70, 3]], [[1, 1, 1]]).last_hidden_state
    assert torch.equal(listed, model(torch.tensor([[2, 70, 3]])).last_hidden_state)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda model: model.train(), "train with transformers"),
        (lambda model: model.to("cuda"), "cannot be moved to cuda; load it with backend="),
        (lambda model: model.cuda(), "cannot be moved to cuda"),
        (lambda model: model.half(), "cannot be moved to torch.float16; load it with another precision"),
        (lambda model: model.bfloat16(), "torch.bfloat16"),
        (lambda model: model.double(), "torch.float64"),
        (lambda model: model.save_pretrained("x"), "no weights to save"),
        (lambda model: model(), "input_ids is missing"),
        (lambda model: model(IDS, labels=IDS), "labels is given; no loss is computed"),
        (lambda model: model(IDS, inputs_embeds=IDS), "inputs_embeds is given"),
        (lambda model: model(IDS[0]), "input_ids has 1 dimension"),
        (lambda model: type(model).from_pretrained("x", num_labels=3), "from_pretrained has no option num_labels"),
        (lambda model: type(model).from_pretrained("x", dtype="bfloat16"), "precision says how the model computes"),
        (lambda model: type(model).from_pretrained("x", device_map="cuda"), "device_map 'cuda' is not known"),
        (lambda model: ours.accelerate(model), "one of transformers' is needed"),
        (lambda model: ours.BertForMaskedLM(model.engine, model.config), "loaded for feature-extraction"),
    ],
)
def test_what_it_cannot_do(tiny_checkpoint: Make, call: Callable[[Any], Any], what: str) -> None:
    model = ours.DistilBertModel.from_pretrained(tiny_checkpoint("distilbert", "feature-extraction"))
    raises_one_sentence(InputError, what, lambda: call(model))


def test_another_architecture_is_refused() -> None:
    config = transformers.RobertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.RobertaModel(config)
    raises_one_sentence(ConfigError, "model_type 'roberta' is not supported", lambda: ours.accelerate(model))


def test_an_engine_from_tensors_has_no_checkpoint(reference: Callable[..., Any]) -> None:
    wanted = reference("distilbert", "fill-mask")
    config = wanted.config.to_dict() | {"architectures": ["DistilBertForMaskedLM"]}
    engine = Engine.from_tensors(config, wanted.state_dict())
    raises_one_sentence(InputError, "it has no tokeniser", lambda: engine.tokenizer)
    broken = {name: tensor for name, tensor in wanted.state_dict().items() if "q_lin" not in name}
    with pytest.raises(Exception, match=r"The tensors in the model do not fit .* missing: transformer\.layer\.0"):
        Engine.from_tensors(config, broken)
