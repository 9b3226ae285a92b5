"""``token-classification``: the answers of transformers, on known logits, on real text and on odd characters."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence
from pipeline_pairs import Both, both

import distilfast
from distilfast import Engine, InputError, PackedBatch
from distilfast.evaluation import ner
from distilfast.pipelines.token_classification import STRATEGIES
from distilfast.synthetic import spread_labels, write_checkpoint

Make = Callable[..., Path]

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "ORG", "B-ORG"]
SMALL = {"dim": 64, "n_heads": 2, "n_layers": 2, "hidden_dim": 64, "model_type": "distilbert"}


@pytest.fixture(scope="module")
def cases(data_directory: Path) -> Path:
    path = data_directory.parent / "cases"
    if not path.is_dir():
        pytest.skip("the folder shared/cases beside the project is absent")
    return path


@pytest.fixture(scope="module")
def lookup(cases: Path) -> ModuleType:
    """Writes checkpoints whose logits depend on the token alone."""
    spec = importlib.util.spec_from_file_location("lookup_checkpoint", cases / "lookup_checkpoint.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cased(tmp_path_factory: pytest.TempPathFactory, data_directory: Path) -> Path:
    """A small seeded model with the real vocabulary, whose labels vary from token to token."""
    directory = write_checkpoint(
        tmp_path_factory.mktemp("cased") / "model",
        task="token-classification",
        config=SMALL,
        num_labels=len(LABELS),
        vocabulary=data_directory / "vocab-cased",
    )
    engine = Engine.from_pretrained(directory)
    sentences = ner.read(data_directory / "wikigold" / "wikigold.conll.txt")[:20]
    ids = [engine.tokenizer.encode(" ".join(each.words)).ids for each in sentences]
    spread_labels(directory, engine.logits(PackedBatch.from_sequences(ids)))
    return labelled(directory, LABELS)


def labelled(directory: Path, names: list[str]) -> Path:
    config = json.loads((directory / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def pipes(cased: Path) -> Both:
    return both("token-classification", cased)


def assert_entities(got: list[dict[str, Any]], want: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    assert [list(each) for each in got] == [list(each) for each in want]
    for one, other in zip(got, want, strict=True):
        assert {**one, "score": 0} == {**other, "score": 0}
        assert abs(one["score"] - other["score"]) <= tolerance
        assert {type(value) for value in one.values()} <= {str, int, float}


def compare(pipes: Both, inputs: list[Any], **options: Any) -> int:
    """How many entities were compared."""
    ours, theirs = pipes.ours(inputs, **options), pipes.reference(inputs, **options)
    assert len(ours) == len(theirs) == len(inputs)
    for got, want in zip(ours, theirs, strict=True):
        assert_entities(got, want)
    return sum(map(len, ours))


def test_answers_on_known_logits(cases: Path, lookup: ModuleType, tmp_path: Path) -> None:
    """Sub-words, groups, labels without B-, strides: what transformers answered."""
    every = [case for case in json.loads((cases / "lookup_cases.json").read_text())["cases"] if case["task"] == "ner"]
    assert len(every) >= 12
    for number, case in enumerate(every):
        directory = tmp_path / str(number)
        lookup.ner(directory, case["labels"], case["tokens"])
        pipe = distilfast.pipeline("ner", directory)
        assert_entities(pipe(case["text"], **case["options"]), case["answer"], tolerance=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("source", ["wnut17/emerging.test.annotated", "wikigold/wikigold.conll.txt"])
def test_real_text(pipes: Both, data_directory: Path, source: str, strategy: str) -> None:
    sentences = ner.read(data_directory / source)[:60]
    options = {"aggregation_strategy": strategy}
    assert compare(pipes, [" ".join(each.words) for each in sentences], **options) > 200
    split = {"is_split_into_words": True}
    assert compare(pipes, [list(each.words) for each in sentences], **options, **split) > 200
    compare(pipes, [list(each.words) for each in sentences[:9]], **options, **split, delimiter="")


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("stride", [0, 1, 17])
def test_long_text_in_windows(pipes: Both, data_directory: Path, strategy: str, stride: int) -> None:
    """Windows of 48 tokens: most entities are cut somewhere, or seen twice."""
    sentences = ner.read(data_directory / "wikigold" / "wikigold.conll.txt")[:12]
    text = " ".join(word for each in sentences for word in each.words)
    limited = both("token-classification", pipes.ours.engine.directory)
    limited.reference.tokenizer.model_max_length = 48
    limited.ours.tokenizer._config["model_max_length"] = 48
    options = {"aggregation_strategy": strategy, "stride": stride}
    assert compare(limited, [text, "Paris", ""], **options) > 50
    words = [[word for each in sentences for word in each.words]]
    compare(limited, words, is_split_into_words=True, **options)
    if stride:
        compare(limited, [text], aggregation_strategy=strategy)  # cut


ODD = [
    "",
    " ",
    "\t\n",
    "a",
    "😀😀 Zürich 👩‍👩‍👧 e\u0301te\u0301 ﬁne",
    "東京は日本の首都 Tokyo東京Tokyo",
    "a\u0000b\u200bc\ufeffd \u202eabc",
    "Pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "don't U.S.A. 1,000.50 -- (x) ##ing [SEP] [MASK] [UNK] [CLS]x",
    "\U0001d4d0\U0001d4d1 ☃ ꙮ unknown",
    "McDonald's New-York's",
    "İstanbul ẞ ǅ",
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_odd_characters(pipes: Both, strategy: str) -> None:
    assert compare(pipes, ODD, aggregation_strategy=strategy, ignore_labels=[]) > 50
    words = [text.split() or ["a"] for text in ODD]
    compare(pipes, words, aggregation_strategy=strategy, ignore_labels=[], is_split_into_words=True)
    compare(pipes, [["", "a", "\u0000", "New York"]], aggregation_strategy=strategy, is_split_into_words=True)


@pytest.mark.parametrize("ignored", [[], ["O"], ["PER", "B-LOC"], ["B-PER", "O", "LOC"], None])
def test_ignored_labels(pipes: Both, ignored: list[str] | None) -> None:
    for strategy in STRATEGIES:
        compare(pipes, ODD[3:6], aggregation_strategy=strategy, ignore_labels=ignored)


def test_streams_and_single_inputs(pipes: Both) -> None:
    pipe = pipes.ours
    assert pipe("") == [] and pipe([]) == []
    assert_entities(pipe("New York"), pipes.reference("New York"))
    assert list(pipe(iter(["New York", ""]))) == [pipe("New York"), []]
    words = pipe(["New", "York"], is_split_into_words=True)
    assert len(words) == 1 and words == pipe([["New", "York"]], is_split_into_words=True)
    split = distilfast.pipeline("ner", pipe.engine, is_split_into_words=True, aggregation_strategy="FIRST")
    assert split(["New", "York"]) == pipe([["New", "York"]], is_split_into_words=True, aggregation_strategy="first")
    answers = pipe(["New York", None, "Paris"], errors="return")
    assert isinstance(answers[1], InputError) and "Input 1" in str(answers[1]) and answers[2] == pipe("Paris")


def test_answers_do_not_depend_on_the_batch(pipes: Both) -> None:
    texts = [text * (1 + 5 * i) for i, text in enumerate(ODD)]
    for strategy in STRATEGIES:
        together = pipes.ours(texts, aggregation_strategy=strategy)
        assert together == [pipes.ours(text, aggregation_strategy=strategy) for text in texts]


def test_what_was_cut(pipes: Both) -> None:
    answer = pipes.ours("a " * 600, return_truncation=True)
    assert answer["tokens_dropped"] == 600 - 510 and len(answer["answer"]) <= 510
    words = pipes.ours([["a"] * 600], is_split_into_words=True, return_truncation=True)
    assert words[0]["tokens_dropped"] == 600 - 510
    options = {"stride": 3, "aggregation_strategy": "simple"}
    assert pipes.ours("a " * 600, return_truncation=True, **options)["tokens_dropped"] == 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"aggregation_strategy": "mean"}, "aggregation_strategy 'mean' is not known"),
        ({"aggregation_strategy": 1}, "aggregation_strategy 1 is not known"),
        ({"ignore_labels": "O"}, "ignore_labels is 'O'; a list"),
        ({"ignore_labels": [5]}, "ignore_labels has 5"),
        ({"stride": 4}, "stride needs an aggregation_strategy"),
        ({"stride": 510, "aggregation_strategy": "first"}, "stride is 510; a window holds 510"),
        ({"stride": "x", "aggregation_strategy": "first"}, "stride is 'x'"),
        ({"delimiter": "-"}, "pass is_split_into_words=True"),
        ({"delimiter": 5, "is_split_into_words": True}, "delimiter is 5"),
        ({"is_split_into_words": "yes"}, "is_split_into_words is 'yes'"),
        ({"offset_mapping": []}, "the tokeniser's own offsets are used"),
        ({"grouped_entities": True}, 'aggregation_strategy="simple"'),
    ],
)
def test_bad_arguments(pipes: Both, options: dict[str, Any], what: str) -> None:
    raises_one_sentence(InputError, what, lambda: pipes.ours("a", **options))


@pytest.mark.parametrize(
    ("inputs", "split", "what"),
    [
        ([["a"]], False, "Input 0 is of type list"),
        ("a text", True, "Input 0 is not a list of words"),
        ([["a", 5]], True, "Input 0 has 5 among its words"),
        ([["a"], ["\ud800"]], True, "Input 1 holds half of a surrogate pair"),
    ],
)
def test_bad_inputs(pipes: Both, inputs: Any, split: bool, what: str) -> None:
    raises_one_sentence(InputError, what, lambda: pipes.ours(inputs, is_split_into_words=split))


def test_logits_that_are_no_numbers(pipes: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end in a score that is no number, and in no crash."""
    engine = pipes.ours.engine
    monkeypatch.setattr(engine, "logits", lambda batch: np.full((batch.num_tokens, len(LABELS)), np.nan, np.float32))
    for strategy in STRATEGIES:
        found = pipes.ours("New York", aggregation_strategy=strategy, ignore_labels=[])
        assert found and all(np.isnan(each["score"]) for each in found)
