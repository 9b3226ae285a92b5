"""Long texts read in windows: every token once, merged by the stated rules; what was cut is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence

import distilfast
from distilfast import InputError, PackedBatch
from distilfast.pipelines import encoders

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def pipes(tiny_checkpoint: Make) -> dict[str, Any]:
    """64 positions."""
    return {
        task: distilfast.pipeline(task, tiny_checkpoint("distilbert", task))
        for task in ("text-classification", "feature-extraction")
    }


def windows_by_hand(pipe: Any, text: str, length: int, stride: int) -> list[list[int]]:
    """Ids of each window, from those of the whole text."""
    cls, *body, sep = pipe.tokenizer.encode(text).ids
    room = length - 2
    starts = range(0, max(len(body) - stride, 1), room - stride)
    return [[cls, *body[start : start + room], sep] for start in starts]


def text_of(words: int) -> str:
    return " ".join(f"a{i % 13}" for i in range(words))


@pytest.mark.parametrize(("length", "stride"), [(64, 0), (64, 10), (16, 0), (16, 13), (3, 0)])
@pytest.mark.parametrize("words", [0, 1, 5, 30, 31, 62, 63, 200])
def test_the_windows_of_a_text(pipes: dict[str, Any], length: int, stride: int, words: int) -> None:
    pipe = pipes["text-classification"]
    text = text_of(words)
    (found,) = pipe.tokenizer.encode_windows([text], max_length=length, stride=stride)
    assert [each.ids for each in found] == windows_by_hand(pipe, text, length, stride)


@pytest.mark.parametrize("rule", ["mean", "max"])
@pytest.mark.parametrize("options", [{"stride": 5}, {"window": 20}, {"window": 20, "stride": 7}])
def test_scores_of_a_long_text(pipes: dict[str, Any], rule: str, options: dict[str, int]) -> None:
    pipe, text = pipes["text-classification"], text_of(150)
    windows = windows_by_hand(pipe, text, options.get("window", 64), options.get("stride", 0))
    logits = pipe.engine.logits(PackedBatch.from_sequences(windows)).astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    tokens = np.array([len(window) - 2 for window in windows])
    want = scores.max(axis=0) if rule == "max" else (scores * tokens[:, None]).sum(axis=0) / tokens.sum()
    by_name = {each["label"]: each["score"] for each in pipe(text, top_k=None, over_windows=rule, **options)}
    got = [by_name[name] for name in pipe.engine.config.id2label.values()]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_vectors_of_a_long_text(pipes: dict[str, Any], rule: str) -> None:
    """Merged, then normalised."""
    pipe, text = pipes["feature-extraction"], text_of(150)
    windows = windows_by_hand(pipe, text, 24, 4)
    pooled = np.stack([pipe.engine.encode(PackedBatch.from_sequences([ids])).mean(axis=0) for ids in windows])
    tokens = np.array([len(window) - 2 for window in windows])
    want = pooled.max(axis=0) if rule == "max" else tokens @ pooled / tokens.sum()
    got = pipe.embed([text, "short"], window=24, stride=4, over_windows=rule)
    np.testing.assert_allclose(got[0], want / np.linalg.norm(want), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got[1], pipe.embed("short")[0])


def test_a_short_text_has_one_window(pipes: dict[str, Any]) -> None:
    pipe = pipes["text-classification"]
    for text in ("", "a film", text_of(5)):
        assert pipe(text, stride=3) == pipe(text)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"stride": 62}, "stride is 62; a window holds 62 tokens of the text"),
        ({"stride": -1}, "stride is -1"),
        ({"stride": 2.0}, "stride is 2.0"),
        ({"window": 65}, "window is 65; the model has 64 positions"),
        ({"window": 2}, "a window holds 0 tokens"),
        ({"window": 0}, "window is 0"),
        ({"stride": 3, "truncation": True}, "truncation and max_length would cut it"),
        ({"window": 30, "max_length": 20}, "truncation and max_length would cut it"),
        ({"stride": 3, "over_windows": "median"}, "over_windows 'median' is not known"),
    ],
)
def test_bad_arguments(pipes: dict[str, Any], options: dict[str, Any], what: str) -> None:
    raises_one_sentence(InputError, what, lambda: pipes["text-classification"]("a", **options))
    if "truncation" not in options:
        raises_one_sentence(InputError, what, lambda: pipes["feature-extraction"].embed("a", **options))


def test_a_pair_has_no_windows(pipes: dict[str, Any]) -> None:
    pair = {"text": "a", "text_pair": "b"}
    raises_one_sentence(InputError, "windows are of single texts", lambda: pipes["text-classification"](pair, stride=0))


def test_how_much_was_cut(pipes: dict[str, Any]) -> None:
    """62 tokens of a text fit; of a pair 61."""
    pipe = pipes["text-classification"]
    cls, *body, sep = pipe.tokenizer.encode(text_of(100)).ids
    fits = pipe.tokenizer.decode(body[:62])
    wrapped = pipe([text_of(100), fits, "a"], truncation=True, return_truncation=True)
    assert [each["tokens_dropped"] for each in wrapped] == [len(body) - 62, 0, 0]
    assert wrapped[2]["answer"] == pipe("a")[0] and sep != cls
    pair = {"text": text_of(100), "text_pair": "a b"}
    length = len(pipe.tokenizer.encode(text_of(100), "a b").ids)
    (one,) = pipe([pair], truncation=True, max_length=30, return_truncation=True)
    assert one["tokens_dropped"] == length - 30


def test_the_first_cut_of_a_process_warns(pipes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders.TruncationWarning, "given", False)
    pipe = pipes["text-classification"]
    dropped = len(pipe.tokenizer.encode(text_of(100)).ids) - 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("a", truncation=True)
        pipe(text_of(100), truncation=True, return_truncation=True)
    with pytest.warns(encoders.TruncationWarning, match=f"Input 1 is cut by {dropped} tokens"):
        pipe(["a", text_of(100)], truncation=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(text_of(100), truncation=True)
