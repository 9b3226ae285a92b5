"""``multiple-choice`` and ``sentence-similarity``, for which transformers has models and no pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison import transformers_model
from one_sentence import raises_one_sentence

import distilfast
from distilfast import InputError

Make = Callable[..., Path]

PROMPT = "The cook opens the oven and"
CHOICES = ["takes out the bread.", "flies to the moon.", "sings", ""]


@pytest.fixture(scope="module")
def choosing(tiny_checkpoint: Make) -> Path:
    return tiny_checkpoint("distilbert", "multiple-choice")


@pytest.fixture(scope="module")
def choose(choosing: Path) -> Any:
    return distilfast.pipeline("multiple-choice", choosing)


@pytest.fixture(scope="module")
def compare(tiny_checkpoint: Make) -> Any:
    return distilfast.pipeline("sentence-similarity", tiny_checkpoint("distilbert", "feature-extraction"))


def test_choices_are_those_of_the_model_class(choose: Any, choosing: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    tokenizer = transformers.AutoTokenizer.from_pretrained(choosing)
    encoded = tokenizer([PROMPT] * 4, CHOICES, return_tensors="pt", padding=True)
    model = transformers_model(choosing, "multiple-choice")
    with torch.no_grad():
        logits = model(**{name: value[None] for name, value in encoded.items()}).logits[0]
    want = torch.softmax(logits.double(), 0).numpy()
    got = choose({"prompt": PROMPT, "choices": CHOICES})
    assert [each["choice"] for each in got] == np.argsort(-want, kind="stable").tolist()
    assert [each["text"] for each in got] == [CHOICES[each["choice"]] for each in got]
    np.testing.assert_allclose([each["score"] for each in got], np.sort(want)[::-1], rtol=0, atol=1e-6)
    assert choose({"prompt": PROMPT, "choices": CHOICES}, top_k=1) == got[:1]


def test_inputs_of_several_numbers_of_choices(choose: Any) -> None:
    inputs = [{"prompt": PROMPT, "choices": CHOICES[:count]} for count in (1, 4, 2)]
    assert choose(inputs) == [choose(each) for each in inputs] == list(choose(iter(inputs)))
    assert choose(inputs[0])[0]["score"] == 1.0


def test_what_was_cut_of_the_choices(choose: Any) -> None:
    item = {"prompt": "a " * 70, "choices": ["b", "b c d"]}
    raises_one_sentence(InputError, "pass truncation=True", lambda: choose(item))
    assert choose(item, truncation=True, return_truncation=True)["tokens_dropped"] == 70 + 3 + 3 - 64


@pytest.mark.parametrize(
    ("item", "what"),
    [
        ("a text", "Input 0 is not {"),
        ({"prompt": "a"}, "Input 0 is not {"),
        ({"prompt": "a", "choices": []}, "Input 0 has no choices"),
        ({"prompt": "a", "choices": "b"}, "Input 0 has no choices"),
        ({"prompt": "a", "choices": ["b", None]}, "Input 0 is neither a string nor a pair of strings"),
        ({"prompt": None, "choices": ["b"]}, "Input 0 is neither a string nor a pair of strings"),
    ],
)
def test_bad_choices(choose: Any, item: Any, what: str) -> None:
    inputs = item if isinstance(item, dict) else [item]
    raises_one_sentence(InputError, what, lambda: choose(inputs))


def test_similarities_are_cosines_of_the_vectors(compare: Any) -> None:
    source, others = "a film", ["a match", "a film", "rain " * 100]
    vectors = compare.embed([source, *others]).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    want = vectors[1:] @ vectors[0] / (norms[1:] * norms[0])
    item = {"source_sentence": source, "sentences": others}
    np.testing.assert_allclose(compare(item), want, rtol=0, atol=1e-7)
    assert compare([item, {"source_sentence": "x", "sentences": []}]) == [compare(item), []]


def test_similarities_are_those_of_sentence_transformers(minilm: Path, sentences: Any) -> None:
    library = pytest.importorskip("sentence_transformers")
    source, *others = sentences(20, (2, 30), seed=8)
    model = library.SentenceTransformer(str(minilm), device="cpu")
    want = library.util.cos_sim(model.encode(source), model.encode(others))[0].tolist()
    got = distilfast.pipeline("sentence-similarity", minilm)({"source_sentence": source, "sentences": others})
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_what_was_cut_of_the_sentences(compare: Any) -> None:
    item = {"source_sentence": "a " * 70, "sentences": ["a", "a " * 65]}
    assert compare(item, return_truncation=True)["tokens_dropped"] == (70 - 62) + (65 - 62)


@pytest.mark.parametrize(
    ("item", "what"),
    [
        ({"source_sentence": "a"}, "Input 0 is not {"),
        ({"source_sentence": "a", "sentences": "b"}, "Input 0 has no list of sentences"),
        ({"source_sentence": "a", "sentences": [5]}, "Input 0 has a sentence of type int"),
        ({"source_sentence": None, "sentences": []}, "Input 0 has a sentence of type NoneType"),
    ],
)
def test_bad_sentences(compare: Any, item: Any, what: str) -> None:
    raises_one_sentence(InputError, what, lambda: compare(item))
    raises_one_sentence(InputError, "Input 0 is not {", lambda: compare(["a"]))
