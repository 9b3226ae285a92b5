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


@pytest.mark.parametrize("family", ["distilbert", "bert"])
@pytest.mark.parametrize("longer", [0, 1])
@pytest.mark.parametrize(("length", "stride"), [(64, 0), (30, 5)])
def test_windows_of_a_pair(tiny_checkpoint: Make, family: str, longer: int, length: int, stride: int) -> None:
    """The shorter text whole in each, beside so much of the longer one; token types of a pair."""
    pipe = distilfast.pipeline("text-classification", tiny_checkpoint(family, "text-classification"))
    texts = [text_of(7), text_of(7)]
    texts[longer] = text_of(60)
    cls, *short, sep = pipe.tokenizer.encode(texts[1 - longer]).ids
    _, *long, _ = pipe.tokenizer.encode(texts[longer]).ids
    room = length - 3 - len(short)
    parts = [long[start : start + room] for start in range(0, len(long) - stride, room - stride)]
    pairs = [(short, part) if longer else (part, short) for part in parts]
    (found,) = pipe.tokenizer.encode_windows([tuple(texts)], max_length=length, stride=stride)
    assert len(found) > 1
    assert [each.ids for each in found] == [[cls, *first, sep, *second, sep] for first, second in pairs]
    types = [[0] * (len(first) + 2) + [1] * (len(second) + 1) for first, second in pairs]
    assert [each.type_ids for each in found] == types
    sequences = [each.sequence_ids for each in found]
    assert sequences == [[None, *[0] * len(first), None, *[1] * len(second), None] for first, second in pairs]

    batch = PackedBatch.from_encodings(found, token_types=family == "bert")
    logits = pipe.engine.logits(batch).astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    item = {"text": texts[0], "text_pair": texts[1]}
    by_name = {
        each["label"]: each["score"]
        for each in pipe([item], top_k=None, window=length, stride=stride, over_windows="max")[0]
    }
    assert list(by_name.values()) == pytest.approx(sorted(scores.max(axis=0), reverse=True), abs=1e-6)
    whole = {"text": "a", "text_pair": "b"}
    assert pipe([whole], window=length, stride=stride) == pipe([whole])
    raises_one_sentence(InputError, "a window holds", lambda: pipe([item], window=len(short) + 3))


@pytest.mark.parametrize("rule", ["mean", "max"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_in_windows(tiny_checkpoint: Make, rule: str, multi_label: bool) -> None:
    """All hypotheses beside the same windows, as long as the longest leaves room for."""
    pipe = distilfast.pipeline("zero-shot-classification", tiny_checkpoint("bert", "text-classification", num_labels=3))
    labels, template, text = ["sea", "harbour", "a b"], "{}!", text_of(60)
    hypotheses = [pipe.tokenizer.encode(template.format(label)).ids[1:-1] for label in labels]
    cls, *body, sep = pipe.tokenizer.encode(text).ids
    room = 40 - 3 - max(map(len, hypotheses))
    parts = [body[start : start + room] for start in range(0, len(body) - 4, room - 4)]
    scores, weights = [], []
    for part in parts:
        ids = [[cls, *part, sep, *each, sep] for each in hypotheses]
        types = [[0] * (len(part) + 2) + [1] * (len(each) + 1) for each in hypotheses]
        logits = pipe.engine.logits(PackedBatch.from_sequences(ids, types)).astype(np.float64)
        chosen = logits[:, [0, -1]] if multi_label else logits[:, -1][None]
        shares = np.exp(chosen) / np.exp(chosen).sum(axis=1, keepdims=True)
        scores.append(shares[:, 1] if multi_label else shares[0])
        weights.append(len(part) + len(hypotheses[0]))
    assert len(parts) > 2
    want = np.max(scores, axis=0) if rule == "max" else np.average(scores, axis=0, weights=weights)
    answer = pipe(
        text, labels, hypothesis_template=template, multi_label=multi_label, window=40, stride=4, over_windows=rule
    )
    by_label = dict(zip(answer["labels"], answer["scores"], strict=True))
    assert [by_label[label] for label in labels] == pytest.approx(want.tolist(), abs=1e-6)
    assert pipe("a", labels, window=40) == pipe("a", labels)
    raises_one_sentence(InputError, "a window holds", lambda: pipe("a", labels, window=10))


def owners(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """By trying all windows: for each token of a text, the window with the most context, and its place there."""
    starts = list(range(0, max(length - stride, 1), room - stride))
    found = []
    for token in range(length):
        contexts = []
        for k, start in enumerate(starts):
            end = min(start + room, length)
            if start <= token < end:
                contexts.append((-min(token - start, end - 1 - token), k, token - start))
        _, k, place = min(contexts)
        found.append((k, place))
    return found


@pytest.mark.parametrize(("window", "stride"), [(64, 0), (20, 7), (20, 17)])
def test_features_of_a_long_text(pipes: dict[str, Any], window: int, stride: int) -> None:
    pipe, text = pipes["feature-extraction"], text_of(90)
    _, *body, _ = pipe.tokenizer.encode(text).ids
    windows = windows_by_hand(pipe, text, window, stride)
    states = [pipe.engine.encode(PackedBatch.from_sequences([each])) for each in windows]
    rows = [states[0][0], *(states[k][1 + place] for k, place in owners(len(body), window - 2, stride)), states[-1][-1]]
    (found,) = pipe([text], window=window, stride=stride, return_tensors=True)
    assert np.array_equal(found[0], np.stack(rows))
    assert pipe(["a b"], window=window) == pipe(["a b"])


@pytest.mark.parametrize("masks", [(3,), (17, 40, 89)])
def test_masks_of_a_long_text(tiny_checkpoint: Make, masks: tuple[int, ...]) -> None:
    pipe = distilfast.pipeline("fill-mask", tiny_checkpoint("distilbert", "fill-mask"))
    words = text_of(90).split()
    for mask in masks:
        words[mask] = "[MASK]"
    text = " ".join(words)
    cls, *body, sep = pipe.tokenizer.encode(text).ids
    windows = windows_by_hand(pipe, text, 20, 7)
    places = [place for place, token in enumerate(body) if token == pipe.tokenizer.mask_id]
    answers = pipe(text, window=20, stride=7, top_k=3)
    answers = [answers] if len(masks) == 1 else answers
    for place, answer in zip(places, answers, strict=True):
        k, at = owners(len(body), 18, 7)[place]
        logits = pipe.engine.logits(PackedBatch.from_sequences([windows[k]]), rows=np.array([1 + at]))[0]
        best = np.argsort(-logits, kind="stable")[:3]
        assert [each["token"] for each in answer] == best.tolist()
        filled = [*body[:place], best[0], *body[place + 1 :]]
        whole = filled if len(masks) == 1 else [cls, *filled, sep]
        assert answer[0]["sequence"] == pipe.tokenizer.decode(whole)
    raises_one_sentence(InputError, "has no [MASK]", lambda: pipe(text_of(90), window=20))
    raises_one_sentence(InputError, "would cut it", lambda: pipe(text, stride=3, tokenizer_kwargs={"truncation": True}))


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
