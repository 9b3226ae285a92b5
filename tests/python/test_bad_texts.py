"""Bad input of the pipelines: one sentence, the right class, and a pipeline that answers as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from one_sentence import raises_one_sentence

import distilfast
from distilfast import Engine, InputError
from distilfast.pipelines.base import KEPT_PLANS

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
    "513 tokens": ("a " * 510 + "[MASK]", "Text 0 has 513 tokens and the model 512 positions"),
    "513 tokens among others": ([GOOD, "a " * 510 + "[MASK]"], "Text 1 has 513 tokens"),
    "a number": (5, ""),
    "nothing": (None, ""),
    "a number among others": ([GOOD, 5], " 1 "),
    "nothing among others": ([GOOD, None], " 1 "),
    "a bad text after more than are read at once": ([GOOD] * 70 + [None], " 70 "),
    "a text too long among many": ([GOOD] * 70 + ["[MASK] " * 600], "Text 70 has 602 tokens"),
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
    "no mask in an empty text": ("fill-mask", [GOOD, ""], {}, "Text 1 has no [MASK] to fill"),
    "top_k below zero": ("text-classification", GOOD, {"top_k": -1}, "top_k is -1; an integer of 0 or more is needed"),
    "top_k that is a truth value": ("text-classification", GOOD, {"top_k": True}, "top_k is True"),
    "top_k that is a truth value, of masks": ("fill-mask", GOOD, {"top_k": True}, "top_k is True"),
    "top_k that is text": ("text-classification", GOOD, {"top_k": "3"}, "top_k is"),
    "half a top_k": ("fill-mask", GOOD, {"top_k": 2.5}, "top_k is 2.5"),
    "no targets": ("fill-mask", GOOD, {"targets": []}, "targets holds no word of the vocabulary"),
    "a target that is no text": ("fill-mask", GOOD, {"targets": [5]}, "targets has 5; strings are needed"),
    "a target that is a list": ("fill-mask", GOOD, {"targets": [["a"]]}, "targets has ['a']"),
    "a number of targets": ("fill-mask", GOOD, {"targets": 5}, "targets is of type int; a word or a list of words"),
    "a dict": ("fill-mask", {GOOD: GOOD}, {}, ""),
    "a dict of features": ("feature-extraction", {"text": GOOD}, {}, ""),
    "unknown function": ("text-classification", GOOD, {"function_to_apply": "tanh"}, "'tanh' is not known"),
    "a key too many": ("text-classification", {"text": GOOD, "pair": "b"}, {}, "Input 0 is neither a string nor"),
    "no text in the dict": ("text-classification", {"text_pair": "b"}, {}, "Input 0 is neither a string nor"),
    "a pair without a second text": ("text-classification", {"text": GOOD, "text_pair": 5}, {}, ""),
    "a list as a pair": ("text-classification", [["a", "b"]], {}, "Input 0 is neither a string nor"),
    "a tuple": ("text-classification", ("good", "bad"), {}, 'a pair of texts as {"text": …, "text_pair": …}'),
    "a pair where there are none": ("fill-mask", [GOOD, (GOOD, GOOD)], {}, "Input 1 is of type tuple"),
    "truncation given twice": (
        "feature-extraction",
        GOOD,
        {"truncation": True, "tokenize_kwargs": {"truncation": True}},
        "truncation is given twice",
    ),
    "nothing left": ("text-classification", GOOD, {"truncation": True, "max_length": 1}, "max_length is 1"),
    "nothing left of masks": ("fill-mask", GOOD, {"tokenizer_kwargs": {"max_length": 1}}, "max_length is 1"),
    "a length that is a truth value": ("text-classification", GOOD, {"max_length": True}, "max_length is True"),
    "a length of zero": ("text-classification", GOOD, {"max_length": 0}, "max_length is 0; a positive integer"),
    "a length that cuts nothing": (
        "text-classification",
        GOOD,
        {"max_length": 5, "truncation": False},
        "max_length is 5, and truncation=False cuts nothing",
    ),
    "a length beside padding": (
        "text-classification",
        GOOD,
        {"max_length": 5, "padding": True},
        "max_length is 5, which cuts nothing beside padding=True",
    ),
    "a strategy that is not known": (
        "text-classification",
        GOOD,
        {"truncation": "bogus"},
        "truncation 'bogus' is not known",
    ),
    "a number as strategy": ("text-classification", GOOD, {"truncation": 5}, "truncation is 5; True or False"),
    "the second text of one": (
        "text-classification",
        [GOOD],
        {"truncation": "only_second", "max_length": 4},
        "Text 0 ",
    ),
    "a padding that is not known": ("text-classification", GOOD, {"padding": "left"}, "padding 'left' is not known"),
    "rows of padding": ("feature-extraction", GOOD, {"tokenize_kwargs": {"padding": "max_length"}}, "rows of padding"),
    "a length beside padding, of features": (
        "feature-extraction",
        GOOD,
        {"tokenize_kwargs": {"padding": True, "max_length": 5}},
        "which cuts nothing beside padding=True",
    ),
    "special tokens or not": ("text-classification", GOOD, {"add_special_tokens": 0}, "add_special_tokens is 0"),
    "no tokens at all": ("text-classification", ["a", ""], {"add_special_tokens": False}, "Text 1 has no token"),
    "an option of another task": (
        "fill-mask",
        GOOD,
        {"function_to_apply": "none"},
        "function_to_apply is not an option",
    ),
    "a length outside its dict": ("feature-extraction", GOOD, {"max_length": 5}, "tokenize_kwargs takes it"),
    "all scores": ("text-classification", GOOD, {"return_all_scores": True}, "top_k=None gives all scores"),
    "a key of the tokeniser": ("fill-mask", GOOD, {"tokenizer_kwargs": {"stride": 2}}, "tokenizer_kwargs has 'stride'"),
    "another key of it": (
        "feature-extraction",
        GOOD,
        {"tokenize_kwargs": {"stride": 2}},
        "tokenize_kwargs has 'stride'",
    ),
    "options that are no dict": ("fill-mask", GOOD, {"tokenizer_kwargs": 5}, "tokenizer_kwargs is of type int"),
    "no batch": ("fill-mask", GOOD, {"batch_size": 0}, "batch_size is 0; a positive integer is needed"),
    "a batch of truth": ("fill-mask", GOOD, {"batch_size": True}, "batch_size is True"),
    "unknown errors": (
        "fill-mask",
        GOOD,
        {"errors": "ignore"},
        "errors 'ignore' is not known; there are raise, return",
    ),
    "unknown tensors": ("feature-extraction", GOOD, {"return_tensors": "pt"}, "return_tensors is 'pt'"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls(unchanged: dict[str, Any], case: str) -> None:
    task, inputs, options, what = CALLS[case]
    raises_one_sentence(InputError, what, lambda: unchanged[task](inputs, **options))


EMBEDS = {
    "unknown pooling": ("a", {"pooling": "median"}, "pooling 'median' is not known; there are cls, mean, max"),
    "a number of poolings": ("a", {"pooling": 5}, "pooling 5 is not known"),
    "no pooling": ("a", {"pooling": []}, "pooling names none; there are cls, mean, max"),
    "nothing": (["a", None], {}, "Input 1 is of type NoneType"),
    "513 tokens": ("a " * 511, {"truncation": False}, "Text 0 has 513 tokens"),
    "a length that cuts nothing": ("a", {"truncation": False, "max_length": 8}, "truncation=False cuts nothing"),
    "normalised or not": ("a", {"normalize": "l2"}, "normalize is 'l2'; True or False is needed"),
    "a batch of half": ("a", {"batch_size": 0.5}, "batch_size is 0.5"),
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
    what = "no pipeline for task 'translation'; there are fill-mask, text-classification, "
    raises_one_sentence(InputError, what, lambda: distilfast.pipeline("translation", directory))
    engine = Engine.from_pretrained(directory)
    what = "The engine was loaded for fill-mask, not for feature-extraction"
    raises_one_sentence(InputError, what, lambda: distilfast.pipeline("feature-extraction", engine))


@pytest.mark.parametrize(
    ("defaults", "what"),
    [
        ({"device": 0}, 'device is not an option of text-classification; backend="cuda" or "triton" runs on a GPU'),
        ({"return_all_scores": True}, "top_k=None gives all scores"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_n": 1}, "top_n is not an option of text-classification; there are top_k, function_to_apply, truncation"),
        ({"max_length": 5, "truncation": False}, "cuts nothing"),
    ],
)
def test_default_options_are_checked_at_once(tiny_checkpoint: Make, defaults: dict[str, Any], what: str) -> None:
    directory = tiny_checkpoint("distilbert", "text-classification", config=LONG)
    raises_one_sentence(InputError, what, lambda: distilfast.pipeline("text-classification", directory, **defaults))


def test_the_name_of_an_option_is_checked_before_anything_is_loaded() -> None:
    what = "device is not an option of fill-mask"
    raises_one_sentence(InputError, what, lambda: distilfast.pipeline("fill-mask", "/absent", device=0))


TOO_LONG = "[MASK] " * 511


@pytest.mark.parametrize("task", TASKS)
def test_errors_in_their_places(unchanged: dict[str, Any], task: str) -> None:
    """The others are answered; each error names its index, and a text's length where it is too long."""
    pipe = unchanged[task]
    texts = [GOOD, None, "a [MASK]", TOO_LONG, "[MASK] \ud83d", *[GOOD] * 70, 5]
    answers = pipe(texts, errors="return")
    wrong = {i: str(answer) for i, answer in enumerate(answers) if isinstance(answer, InputError)}
    assert list(wrong) == [1, 3, 4, 75]
    assert all(f" {i} " in message for i, message in wrong.items())
    assert "513 tokens" in wrong[3]
    good = [i for i in range(len(texts)) if i not in wrong]
    assert [answers[i] for i in good] == pipe([texts[i] for i in good])
    assert isinstance(pipe(TOO_LONG, errors="return"), InputError)
    with pytest.raises(InputError, match="Input 1 "):
        pipe(texts)


def test_an_error_comes_after_the_answers_before_it(unchanged: dict[str, Any]) -> None:
    answers = unchanged["text-classification"](iter([GOOD, "b", None]))
    assert [type(next(answers)) for _ in range(2)] == [dict, dict]
    with pytest.raises(InputError, match="Input 2 "):
        next(answers)


def test_checked_options_are_kept_for_calls_with_the_same_ones_only(tiny_checkpoint: Make) -> None:
    """Options that are equal and of another type are others; and no more plans are kept than ``KEPT_PLANS``."""
    pipe = distilfast.pipeline("text-classification", tiny_checkpoint("distilbert", "text-classification"))
    assert len(pipe("a", top_k=1)) == 1
    for wrong in (True, 1.0):
        with pytest.raises(InputError, match="top_k is"):
            pipe("a", top_k=wrong)
    assert len(pipe("a", top_k=1)) == 1
    for length in range(KEPT_PLANS + 10):
        pipe("a", truncation=True, max_length=4 + length)
    assert 0 < len(pipe._plans) <= KEPT_PLANS
