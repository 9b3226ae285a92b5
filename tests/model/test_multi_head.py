"""Several heads on one encoder: the answers of each head's own pipeline, from one pass through the encoder."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence

import distilfast
from distilfast import BackendError, Engine, InputError, MultiHeadPipeline, PackedBatch, WeightsError
from distilfast.backends import cpu
from distilfast.backends.shared import SharedEncoder

Make = Callable[..., Path]
TEXTS = ["Oslo lies by the sea.", "[MASK] has a harbour.", "", "why? " * 40]
OPTIONS: dict[str, dict[str, Any]] = {
    "intent": {"top_k": 3},
    "topic": {"function_to_apply": "sigmoid"},
    "entities": {"aggregation_strategy": "simple"},
    "features": {"return_tensors": True},
}


@pytest.fixture(scope="module", params=["distilbert", "bert"])
def heads(request: pytest.FixtureRequest, tiny_checkpoint: Make) -> dict[str, Path]:
    """Four checkpoints with the encoder of one seed."""
    return {
        "intent": tiny_checkpoint(request.param, "text-classification", num_labels=7),
        "topic": tiny_checkpoint(request.param, "text-classification", num_labels=3),
        "entities": tiny_checkpoint(request.param, "token-classification", num_labels=5),
        "features": tiny_checkpoint(request.param, "feature-extraction"),
    }


@pytest.fixture
def encoded_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each pass through a shared encoder."""
    tokens: list[int] = []
    encode = SharedEncoder._encode

    def counted(self: SharedEncoder, batch: PackedBatch) -> np.ndarray:
        tokens.append(batch.num_tokens)
        return encode(self, batch)

    monkeypatch.setattr(SharedEncoder, "_encode", counted)
    return tokens


def alone(path: Path, precision: str, options: dict[str, Any]) -> list[Any]:
    engine = Engine.from_pretrained(path, precision=precision)  # type: ignore[arg-type]
    cut = {} if engine.task == "token-classification" else {"truncation": True}
    return distilfast.pipeline(engine.task, engine)(TEXTS, **(cut | options))


def assert_same(got: Any, want: Any) -> None:
    if isinstance(want, np.ndarray):
        assert np.array_equal(got, want)
    else:
        assert got == want


@pytest.mark.parametrize("precision", cpu.PRECISIONS)
def test_answers_are_those_of_each_head_by_itself(
    heads: dict[str, Path], precision: Any, encoded_batches: list[int]
) -> None:
    pipe = MultiHeadPipeline.from_pretrained(heads, precision=precision)
    answers = pipe(TEXTS, **OPTIONS)
    assert len(encoded_batches) == 1, "one pass for all heads"
    assert [list(answer) for answer in answers] == [list(heads)] * len(TEXTS)
    for name, path in heads.items():
        for answer, want in zip(answers, alone(path, precision, OPTIONS[name]), strict=True):
            assert_same(answer[name], want)
    assert_same(pipe(TEXTS[0], **OPTIONS)["intent"], answers[0]["intent"])


def test_fill_mask_beside_features(tiny_checkpoint: Make) -> None:
    heads = [tiny_checkpoint("bert", task) for task in ("fill-mask", "feature-extraction")]
    pipe = MultiHeadPipeline.from_pretrained({"words": heads[0], "features": heads[1]})
    text = "a [MASK] b [MASK]"
    answer = pipe(text, words={"top_k": 4}, features={"return_tensors": True, "truncation": True})
    assert answer["words"] == distilfast.pipeline("fill-mask", heads[0])(text, top_k=4)
    assert_same(answer["features"], distilfast.pipeline("feature-extraction", heads[1])(text, return_tensors=True))
    raises_one_sentence(InputError, "Text 1 has no [MASK]", lambda: pipe([text, "plain"]))


@pytest.mark.parametrize("precision", cpu.PRECISIONS)
def test_engines_have_the_bits_of_ones_loaded_alone(heads: dict[str, Path], precision: Any) -> None:
    rng = np.random.default_rng(0)
    batch = PackedBatch.from_sequences([rng.integers(0, 90, n).tolist() for n in (1, 7, 48, 64, 33)])
    _, engines = Engine.with_heads(list(heads.values()), precision=precision)
    for path, engine in zip(heads.values(), engines, strict=True):
        own = Engine.from_pretrained(path, precision=precision)
        assert np.array_equal(engine.encode(batch), own.encode(batch))
        if own.head.linears:
            assert np.array_equal(engine.logits(batch), own.logits(batch))
            rows, columns = np.array([0, 5, 50]), np.array([0, 2])
            want = own.logits(batch, rows=rows, columns=columns) if not own.head.linears[-1].norm else None
            assert np.array_equal(engine.logits(batch, rows=rows, columns=columns), want)


def test_the_kept_state_is_of_that_batch_alone(heads: dict[str, Path], encoded_batches: list[int]) -> None:
    encoder, (intent, topic, *_) = Engine.with_heads(list(heads.values()))
    one, other = (PackedBatch.from_sequences([ids]) for ids in ([1, 2, 3], [4, 5, 6, 7]))
    with encoder.encoded(one):
        first, second = intent.logits(one), topic.logits(one)
        assert encoded_batches == [3]
        assert np.array_equal(intent.logits(other), Engine.from_pretrained(heads["intent"]).logits(other))
    assert encoded_batches == [3, 4]
    assert np.array_equal(intent.logits(one), first)
    assert np.array_equal(topic.logits(one), second)
    assert encoded_batches == [3, 4, 3, 3], "nothing is kept after the block"


def test_windows_for_every_head(heads: dict[str, Path]) -> None:
    two = {name: heads[name] for name in ("intent", "entities")}
    pipe = MultiHeadPipeline.from_pretrained(two)
    text = "Oslo or Bergen " * 20
    options = {"intent": {"stride": 8, "top_k": 2}, "entities": {"stride": 8, "aggregation_strategy": "simple"}}
    answer = pipe(text, **options)
    assert answer["intent"] == distilfast.pipeline("text-classification", two["intent"])(text, **options["intent"])
    assert answer["entities"] == distilfast.pipeline("ner", two["entities"])(text, **options["entities"])
    raises_one_sentence(
        InputError, "Heads intent and entities cut texts in different ways", lambda: pipe(text, intent={"stride": 8})
    )


def test_streams_errors_and_copies(heads: dict[str, Path]) -> None:
    pipe = MultiHeadPipeline.from_pretrained([heads["intent"], heads["entities"]])
    assert list(pipe.pipelines) == [heads["intent"].name, heads["entities"].name]
    answers = list(pipe.stream(text for text in ("a", None, "b")))
    assert isinstance(answers[1], InputError)
    assert "Input 1" in str(answers[1])
    assert answers[2] == pipe("b")
    assert pickle.loads(pickle.dumps(pipe))("b") == answers[2]
    assert pipe(["a " * 500], return_truncation=True)[0]["tokens_dropped"] > 0


def test_checkpoints_that_do_not_belong_together(heads: dict[str, Path], tiny_checkpoint: Make, tmp_path: Path) -> None:
    load = MultiHeadPipeline.from_pretrained
    family = json.loads((heads["intent"] / "config.json").read_text())["model_type"]
    other_seed = tiny_checkpoint(family, "token-classification", seed=1)
    raises_one_sentence(
        WeightsError, "different encoders: embed.word differs", lambda: load([heads["intent"], other_seed])
    )
    more_layers = "n_layers" if family == "distilbert" else "num_hidden_layers"
    longer = tiny_checkpoint(family, "token-classification", config={more_layers: 5})
    raises_one_sentence(WeightsError, "different encoders: num_layers is", lambda: load([heads["intent"], longer]))
    answers = tiny_checkpoint(family, "question-answering")
    raises_one_sentence(InputError, "is for question-answering", lambda: load([heads["intent"], answers]))

    renamed = shutil.copytree(heads["entities"], tmp_path / "renamed")
    vocabulary = (renamed / "vocab.txt").read_text().splitlines()
    vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]
    (renamed / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    raises_one_sentence(InputError, "have different tokenisers", lambda: load([heads["intent"], renamed]))


def test_arguments_that_are_wrong(heads: dict[str, Path]) -> None:
    load = MultiHeadPipeline.from_pretrained
    for wrong in ([], {}, "directory", 5):
        raises_one_sentence(InputError, "heads must be", lambda wrong=wrong: load(wrong))
    raises_one_sentence(InputError, "one name", lambda: load([heads["intent"], heads["intent"]]))
    raises_one_sentence(InputError, "'errors' cannot be", lambda: load({"errors": heads["intent"]}))
    raises_one_sentence(BackendError, "fp16", lambda: load([heads["intent"]], precision="fp16"))
    pipe = load({"intent": heads["intent"]})
    raises_one_sentence(InputError, "topic is neither a head", lambda: pipe("a", topic={}))
    raises_one_sentence(InputError, "intent is of type int", lambda: pipe("a", intent=3))
    raises_one_sentence(InputError, "errors is an option of all heads", lambda: pipe("a", intent={"errors": "return"}))
    raises_one_sentence(InputError, "labels is not an option", lambda: pipe("a", intent={"labels": 3}))
    batch = PackedBatch.from_sequences([[1]])
    raises_one_sentence(BackendError, "no trace", lambda: pipe.pipelines["intent"].engine.trace(batch))
