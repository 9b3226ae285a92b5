"""Bad input of the pipelines: one sentence, the right class, and a pipeline that answers as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from one_sentence import raises_one_sentence

import distilfast
from distilfast import Engine, InputError

Make = Callable[..., Path]

LONG = {"max_position_embeddings": 512}
TASKS = ("fill-mask", "text-classification", "feature-extraction")
GOOD = "[MASK] ok"


@pytest.fixture(scope="module")
def pipes(tiny_checkpoint: Make) -> dict[str, Any]:
    return {task: distilfast.pipeline(task, tiny_checkpoint("distilbert", task, config=LONG)) for task in TASKS}


@pytest.fixture
def unchanged(pipes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pipelines; their answers must be the same before and after the test."""
    before = {task: pipe(GOOD) for task, pipe in pipes.items()}
    yield pipes
    assert {task: pipe(GOOD) for task, pipe in pipes.items()} == before


TEXTS: dict[str, tuple[Any, str]] = {
    "empty list": ([], "The list of texts is empty; at least one text is needed"),
    "empty text": ("", "Text 0 is empty"),
    "only spaces": (" \n\t", "Text 0 is empty"),
    "an empty text among others": ([GOOD, "", GOOD], "Text 1 is empty"),
    "513 tokens": ("a " * 510 + "[MASK]", "Text 0 has 513 tokens and the model 512 positions"),
    "513 tokens among others": ([GOOD, "a " * 510 + "[MASK]"], "Text 1 has 513 tokens"),
    "a number": (5, ""),
    "nothing": (None, ""),
    "a number among others": ([GOOD, 5], " 1 "),
    "nothing among others": ([GOOD, None], " 1 "),
    "bytes": (b"[MASK]", ""),
    "half a character": ("[MASK] \ud83d", "surrogate"),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", TEXTS)
def test_texts(unchanged: dict[str, Any], task: str, case: str) -> None:
    texts, what = TEXTS[case]
    raises_one_sentence(InputError, what, lambda: unchanged[task](texts))


CALLS: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "no mask": ("fill-mask", ["[MASK]", "no mask"], {}, "Text 1 has no [MASK] to fill"),
    "top_k of zero": ("fill-mask", GOOD, {"top_k": 0}, "top_k is 0; a positive integer is needed"),
    "top_k below zero": ("text-classification", GOOD, {"top_k": -1}, "top_k is -1"),
    "top_k that is text": ("text-classification", GOOD, {"top_k": "3"}, "top_k is"),
    "half a top_k": ("fill-mask", GOOD, {"top_k": 2.5}, "top_k is 2.5"),
    "no targets": ("fill-mask", GOOD, {"targets": []}, "targets holds no word of the vocabulary"),
    "a target that is no text": ("fill-mask", GOOD, {"targets": [5]}, ""),
    "a dict": ("fill-mask", {GOOD: GOOD}, {}, ""),
    "a dict of features": ("feature-extraction", {"text": GOOD}, {}, ""),
    "unknown function": ("text-classification", GOOD, {"function_to_apply": "tanh"}, "'tanh' is not known"),
    "a key too many": ("text-classification", {"text": GOOD, "pair": "b"}, {}, "Input 0 is neither a string nor"),
    "no text in the dict": ("text-classification", {"text_pair": "b"}, {}, "Input 0 is neither a string nor"),
    "a pair without a second text": ("text-classification", {"text": GOOD, "text_pair": 5}, {}, ""),
    "a list as a pair": ("text-classification", [["a", "b"]], {}, "Input 0 is neither a string nor"),
    "an empty pair": ("text-classification", {"text": " ", "text_pair": ""}, {}, "Text 0 is empty"),
    "truncation given twice": (
        "feature-extraction",
        GOOD,
        {"truncation": True, "tokenize_kwargs": {"truncation": True}},
        "truncation is given twice",
    ),
    "nothing left": ("text-classification", GOOD, {"truncation": True, "max_length": 1}, "max_length is 1"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls(unchanged: dict[str, Any], case: str) -> None:
    task, inputs, options, what = CALLS[case]
    raises_one_sentence(InputError, what, lambda: unchanged[task](inputs, **options))


EMBEDS = {
    "unknown pooling": ("a", {"pooling": "median"}, "pooling 'median' is not known; there are cls, mean, max"),
    "empty list": ([], {}, "The list of texts is empty"),
    "empty text": (["a", ""], {}, "Text 1 is empty"),
    "513 tokens": ("a " * 511, {"truncation": False}, "Text 0 has 513 tokens"),
}


@pytest.mark.parametrize("case", EMBEDS)
def test_embed(unchanged: dict[str, Any], case: str) -> None:
    texts, options, what = EMBEDS[case]
    raises_one_sentence(InputError, what, lambda: unchanged["feature-extraction"].embed(texts, **options))


@pytest.mark.parametrize("task", TASKS)
def test_long_texts_are_truncated_on_request(unchanged: dict[str, Any], task: str) -> None:
    assert unchanged[task]("[MASK] " + "a " * 509), "512 tokens fit"
    option = {"tokenizer_kwargs": {"truncation": True}} if task == "fill-mask" else {"truncation": True}
    assert unchanged[task]("[MASK] " + "a " * 600, **option)


def test_a_pipeline_of_the_wrong_task(unchanged: dict[str, Any], tiny_checkpoint: Make) -> None:
    """An unknown task, and an engine that was loaded for another one."""
    directory = tiny_checkpoint("distilbert", "fill-mask")
    what = "no pipeline for task 'translation'; there are fill-mask, text-classification, feature-extraction"
    raises_one_sentence(InputError, what, lambda: distilfast.pipeline("translation", directory))
    engine = Engine.from_pretrained(directory)
    what = "The engine was loaded for fill-mask, not for feature-extraction"
    raises_one_sentence(InputError, what, lambda: distilfast.pipeline("feature-extraction", engine))
