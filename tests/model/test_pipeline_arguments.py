"""Every argument of the pipelines and every kind of input, on small models, against ``transformers.pipeline``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_pairs import TOLERANCE, Both, assert_same, both

import distilfast
from distilfast.pipelines.text_classification import sigmoid

Make = Callable[..., Path]

LONG = {"max_position_embeddings": 512}  # the small tokenizer has one token for each character
MODEL_TYPES = ("distilbert", "bert")


@pytest.fixture(scope="module")
def fill_mask(tiny_checkpoint: Make) -> Both:
    return both("fill-mask", tiny_checkpoint("distilbert", "fill-mask", config=LONG))


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 9}, {"top_k": None}, {"top_k": 0}, {"batch_size": 1}])
@pytest.mark.parametrize(
    "inputs",
    [
        "Paris is [MASK].",
        "[MASK] is [MASK], [MASK]!",
        ["Paris is [MASK]."],
        ["[MASK][MASK]"],
        ["Paris is [MASK].", "[MASK] and [MASK]", "a [MASK]"],
    ],
)
def test_fill_mask(fill_mask: Both, inputs: Any, options: dict[str, Any]) -> None:
    """One mask and several, a text, a list, and a list of one, which is answered like the text alone."""
    fill_mask.check(inputs, **options)


@pytest.mark.parametrize("text", ["Paris is [MASK].", "[MASK] or [MASK]"])
@pytest.mark.parametrize(
    ("targets", "outside"),
    [
        ("a", 0),
        (["a", "b", "##c", "[SEP]"], 0),
        (["b", "a", "b"], 0),
        ("word", 1),
        (["word", "a", "more"], 2),
        (["", "a"], 1),
    ],
)
def test_fill_mask_targets(fill_mask: Both, text: str, targets: Any, outside: int) -> None:
    """A word outside the vocabulary is replaced by its first token, with a warning for each."""
    for options in ({}, {"top_k": 1}, {"top_k": 2}):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            fill_mask.check(text, targets=targets, **options)
        of_targets = [each for each in seen if "The target" in str(each.message)]
        assert len(of_targets) == outside
        assert {Path(each.filename).name for each in of_targets} <= {"pipeline_pairs.py"}  # the caller


@pytest.mark.parametrize(
    "options",
    [
        {"truncation": True, "max_length": 9},
        {"max_length": 9},
        {"max_length": 9, "truncation": True, "padding": "max_length"},
        {"max_length": 30, "padding": "max_length"},
        {"padding": True},
        {"add_special_tokens": False},
        {"truncation": "only_first", "max_length": 9, "add_special_tokens": False},
        {"truncation": "do_not_truncate"},
    ],
)
def test_fill_mask_tokenizer_options(fill_mask: Both, options: dict[str, Any]) -> None:
    fill_mask.check("a [MASK] in a long text", tokenizer_kwargs=options)


def test_fill_mask_bert(tiny_checkpoint: Make) -> None:
    pipes = both("fill-mask", tiny_checkpoint("bert", "fill-mask", config=LONG))
    pipes.check(["Paris is [MASK].", "[MASK] and [MASK]", "a [MASK]"])


@pytest.fixture(scope="module", params=MODEL_TYPES)
def classifier(request: pytest.FixtureRequest, tiny_checkpoint: Make) -> Both:
    names = {"0": "sad", "1": "glad", "2": "mad", "3": "Ärger"}
    config = LONG | {"id2label": names}
    return both("text-classification", tiny_checkpoint(request.param, "text-classification", config=config))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": None},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 9},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "softmax", "top_k": 2},
        {"function_to_apply": "none", "top_k": None},
        {"function_to_apply": "NONE"},
        {"top_k": 0},
        {"truncation": True, "max_length": 6},
        {"max_length": 6},
        {"max_length": 40, "padding": "max_length"},
        {"max_length": 6, "padding": "max_length", "truncation": "longest_first"},
        {"padding": True, "batch_size": 2},
        {"add_special_tokens": False},
    ],
)
@pytest.mark.parametrize(
    "inputs",
    [
        "What a film.",
        ["What a film."],
        ["What a film.", "No.", "[UNK] and 12"],
        {"text": "What a film."},
        {"text": "What a film.", "text_pair": "Which one?"},
        [{"text": "What a film.", "text_pair": "Which one?"}, {"text": "b", "text_pair": "a"}],
    ],
)
def test_text_classification(classifier: Both, inputs: Any, options: dict[str, Any]) -> None:
    """A text, a list, a list of one, a pair as a dict: the four nest their answers differently."""
    classifier.check(inputs, **options)


HEADS = {
    "single label": {"id2label": {"0": "only"}},
    "regression": {"id2label": {"0": "score"}, "problem_type": "regression"},
    "two regressions": {"problem_type": "regression"},
    "several labels at once": {"problem_type": "multi_label_classification"},
    "one of several": {"problem_type": "single_label_classification"},
}


@pytest.mark.parametrize("head", HEADS)
def test_the_function_follows_from_the_config(tiny_checkpoint: Make, head: str) -> None:
    """Sigmoid, nothing or softmax, by number of labels and ``problem_type``; an explicit argument overrides it."""
    pipes = both("text-classification", tiny_checkpoint("distilbert", "text-classification", config=LONG | HEADS[head]))
    for options in ({}, {"top_k": None}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}):
        pipes.check(["What a film.", "No."], **options)


@pytest.mark.parametrize("inputs", ["What a film.", ["What a film.", "No."], {"text": "a", "text_pair": "b"}])
@pytest.mark.parametrize("defaults", [{"top_k": None}, {"top_k": 2}, {"function_to_apply": "none"}])
def test_default_arguments_of_a_pipeline(tiny_checkpoint: Make, inputs: Any, defaults: dict[str, Any]) -> None:
    pipes = both("text-classification", tiny_checkpoint("distilbert", "text-classification", config=LONG), **defaults)
    pipes.check(inputs)


@pytest.fixture(scope="module", params=MODEL_TYPES)
def extractor(request: pytest.FixtureRequest, tiny_checkpoint: Make) -> Both:
    return both("feature-extraction", tiny_checkpoint(request.param, "feature-extraction", config=LONG))


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_texts_are_answered(classifier: Both, extractor: Both, text: str) -> None:
    """Their tokens are [CLS] and [SEP]."""
    for pipes in (classifier, extractor):
        pipes.check(text)
        pipes.check(["a", text])


def test_generators(classifier: Both, fill_mask: Both) -> None:
    for pipes, texts in ((classifier, ["What a film.", "No."]), (fill_mask, ["a [MASK]"])):
        ours, reference = (pipe(text for text in texts) for pipe in pipes)
        assert not isinstance(ours, list) and not isinstance(reference, list)
        assert_same(list(ours), list(reference))


@pytest.mark.parametrize("count", [np.int64(2), np.int32(2), np.uint8(2)])
def test_counts_of_numpy(classifier: Both, fill_mask: Both, count: Any) -> None:
    for pipe, text in ((classifier.ours, "What a film."), (fill_mask.ours, "a [MASK]")):
        assert pipe(text, top_k=count, batch_size=count) == pipe(text, top_k=2)
    assert classifier.ours("What a film.", max_length=count) == classifier.ours("")


def test_scores_at_the_ends_of_a_sigmoid() -> None:
    """1 / (1 + e^-x), with no overflow."""
    logits = np.array([[-1e4, -800, -1, 0, 1, 800, 1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(sigmoid(logits)[0], [0, 0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1, 1], rtol=1e-15)


@pytest.mark.parametrize("inputs", ["What a film.", ["What a film."], ["What a film.", "No."]])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncation": True},
        {"tokenize_kwargs": {"truncation": True, "max_length": 6}},
        {"tokenize_kwargs": {"max_length": 6}},
        {"tokenize_kwargs": {"add_special_tokens": False, "padding": True}},
    ],
)
def test_feature_extraction(extractor: Both, inputs: Any, options: dict[str, Any]) -> None:
    extractor.check(inputs, **options)


def test_feature_extraction_as_arrays(extractor: Both) -> None:
    got, want = (pipe(["What a film.", "No."], return_tensors=True) for pipe in extractor)
    for states, wanted in zip(got, want, strict=True):
        assert states.dtype == np.float32 and states.shape == tuple(wanted.shape)
        np.testing.assert_allclose(states, wanted.numpy(), rtol=0, atol=TOLERANCE)


POOLINGS = {"cls": lambda rows: rows[0], "mean": lambda rows: rows.mean(0), "max": lambda rows: rows.max(0)}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_embed_pools_the_features(extractor: Both, pooling: str, normalize: bool) -> None:
    texts = ["What a film.", "No.", "c" * 40]
    vectors = extractor.ours.embed(texts, pooling=pooling, normalize=normalize)
    for vector, text in zip(vectors, texts, strict=True):
        want = POOLINGS[pooling](np.array(extractor.reference(text)[0]))
        want = want / np.linalg.norm(want) if normalize else want
        np.testing.assert_allclose(vector, want, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(extractor.ours.embed(text, pooling=pooling, normalize=normalize), [vector])


def test_sentiment_analysis_is_text_classification(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("distilbert", "text-classification")
    assert distilfast.pipeline("sentiment-analysis", directory).task == "text-classification"


def test_a_list_longer_than_one_forward(tiny_checkpoint: Make) -> None:
    """Texts go through the engine in groups; the order of the answers is that of the texts."""
    pipe = distilfast.pipeline("text-classification", tiny_checkpoint("distilbert", "text-classification"))
    texts = [f"number {i}" for i in range(150)]
    assert pipe(texts) == [pipe(text)[0] for text in texts]
