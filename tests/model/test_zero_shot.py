"""``zero-shot-classification`` against ``transformers.pipeline``, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence
from pipeline_pairs import TOLERANCE, Both, both

import distilfast
from distilfast import InputError

Make = Callable[..., Path]

LABELS = ["travel", "banking and money", "sport", "the weather", "a", "art"]


def relabelled(directory: Path, names: list[str]) -> Path:
    config = json.loads((directory / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module", params=[["contradiction", "neutral", "ENTAILMENT"], ["entailment", "neutral", "no"]])
def pipes(request: pytest.FixtureRequest, tiny_checkpoint: Make) -> Both:
    """Entailment last, as most models have it, and first."""
    directory = tiny_checkpoint("distilbert", "text-classification", num_labels=3)
    return both("zero-shot-classification", relabelled(directory, request.param))


def same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert list(got) == list(want)
    assert got["sequence"] == want["sequence"]
    np.testing.assert_allclose(got["scores"], want["scores"], rtol=0, atol=TOLERANCE)
    assert dict(zip(got["labels"], np.round(got["scores"], 4), strict=True)) == pytest.approx(
        dict(zip(want["labels"], want["scores"], strict=True)), abs=1e-4
    )
    gaps = np.abs(np.diff([np.inf, *want["scores"], -np.inf]))
    for i in np.flatnonzero(np.minimum(gaps[:-1], gaps[1:]) > 2 * TOLERANCE):
        assert got["labels"][i] == want["labels"][i]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"multi_label": True},
        {"hypothesis_template": "It is about {}, {{not}} more."},
        {"candidate_labels": "one"},
        {"candidate_labels": " travel, sport,,banking "},
        {"candidate_labels": ["sport", "sport"]},
    ],
)
def test_answers_are_those_of_transformers(pipes: Both, sentences: Any, options: dict[str, Any]) -> None:
    texts = sentences(20, (1, 30), seed=6)
    options = {"candidate_labels": LABELS} | options
    for got, want in zip(pipes.ours(texts, **options), pipes.reference(texts, **options), strict=True):
        same(got, want)
    same(pipes.ours(texts[0], **options), pipes.reference(texts[0], **options))


def test_only_the_text_is_cut(pipes: Both) -> None:
    """64 positions: of a text of 90 tokens less is kept the longer the label is."""
    text = " ".join(f"word{i % 7}" for i in range(90))
    labels = ["x", "a rather long label of several words"]
    tokenizer = pipes.reference.tokenizer
    tokenizer.model_max_length = 64
    same(pipes.ours(text, labels), pipes.reference(text, labels))
    whole = len(tokenizer(text, "This example is x.")["input_ids"])
    longest = len(tokenizer(text, f"This example is {labels[1]}.")["input_ids"])
    assert longest > whole > 64
    answer = pipes.ours(text, labels, return_truncation=True)
    assert answer["tokens_dropped"] == longest - 64 and answer["answer"] == pipes.ours(text, labels)


def test_each_text_is_tokenised_once(pipes: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """And pairs of all texts share forwards."""
    sizes: list[int] = []
    logits = pipes.ours.engine.logits

    def counted(batch: Any, **options: Any) -> Any:
        sizes.append(batch.num_sequences)
        return logits(batch, **options)

    monkeypatch.setattr(pipes.ours.engine, "logits", counted)
    pipes.ours(["a film", "a match", "rain"], LABELS)
    assert sizes == [3 * len(LABELS)]


def test_streams_and_defaults(pipes: Both) -> None:
    pipe = distilfast.pipeline("zero-shot-classification", pipes.ours.engine, candidate_labels=LABELS)
    answers = pipe(iter(["a film", "a match"]))
    assert next(answers) == pipes.ours("a film", LABELS)
    assert pipe([]) == [] and pipe("a film", ["x"])["labels"] == ["x"]
    mixed = pipe(["a film", None], errors="return")
    assert mixed[0] == pipe("a film") and isinstance(mixed[1], InputError) and "Input 1" in str(mixed[1])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "candidate_labels is missing"),
        ({"candidate_labels": []}, "candidate_labels is empty"),
        ({"candidate_labels": " , "}, "candidate_labels is empty"),
        ({"candidate_labels": ["a", 5]}, "candidate_labels has 5"),
        ({"candidate_labels": 5}, "candidate_labels is of type int"),
        ({"candidate_labels": ["a"], "hypothesis_template": "no place"}, "has no {} for the label"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{} {}"}, "one {} is needed"),
        ({"candidate_labels": ["a"], "hypothesis_template": "{x}"}, "one {} is needed"),
        ({"candidate_labels": ["a"], "hypothesis_template": None}, "hypothesis_template is None"),
        ({"candidate_labels": ["a"], "multi_label": "yes"}, "multi_label is 'yes'"),
        ({"candidate_labels": ["word " * 80]}, "cannot be encoded"),
    ],
)
def test_bad_arguments(pipes: Both, options: dict[str, Any], what: str) -> None:
    raises_one_sentence(InputError, what, lambda: pipes.ours("a text", **options))


def test_a_model_without_entailment(tiny_checkpoint: Make) -> None:
    """The last label is taken, with a warning; of one label nothing can be told."""
    directory = relabelled(tiny_checkpoint("distilbert", "text-classification", num_labels=2), ["no", "yes"])
    with pytest.warns(UserWarning, match="'yes', is taken for entailment"):
        pipe = distilfast.pipeline("zero-shot-classification", directory)
    reference = both("zero-shot-classification", directory).reference
    same(pipe("a film", LABELS), reference("a film", LABELS))
    single = tiny_checkpoint("distilbert", "text-classification", num_labels=1)
    raises_one_sentence(
        InputError, "The model has one label", lambda: distilfast.pipeline("zero-shot-classification", single)
    )
