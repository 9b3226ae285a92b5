"""``token-classification``: the answers of transformers, on known logits, on real text and on odd characters."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence
from pipeline_pairs import Both, both
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

import distilfast
from distilfast import Engine, InputError, PackedBatch
from distilfast.evaluation import ner
from distilfast.pipelines.token_classification import STRATEGIES
from distilfast.synthetic import spread_labels, write_checkpoint

Make = Callable[..., Path]

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "ORG", "B-ORG", "I-LOC-2"]
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


def with_tokenizer_settings(source: Path, directory: Path, **settings: Any) -> Path:
    """A copy of a checkpoint, with other values in tokenizer_config.json."""
    shutil.copytree(source, directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return directory


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tokens_that_are_shorter_than_their_text(cased: Path, tmp_path: Path, strategy: str) -> None:
    """Without accents and capitals a token's length no longer tells that it begins a word: the reference is misled."""
    lowered = both(
        "token-classification", with_tokenizer_settings(cased, tmp_path / "m", do_lower_case=True, strip_accents=True)
    )
    assert compare(lowered, ODD, aggregation_strategy=strategy, ignore_labels=[]) > 50


def test_spaces_in_a_word_close_up_when_words_are_joined(lookup: ModuleType, tmp_path: Path) -> None:
    """A token that lost an accent inside it goes on the word of the apostrophe, for being shorter than its text."""
    source = lookup.ner(tmp_path / "source", ["O", "LOC"], {"i": "LOC", "'": "LOC", "me": "LOC"})
    settings = {"do_lower_case": True, "strip_accents": True}
    pipes = both("token-classification", with_tokenizer_settings(source, tmp_path / "m", **settings))
    for strategy, want in (("simple", "i ' me"), ("first", "i'me"), ("average", "i'me"), ("max", "i'me")):
        assert [each["word"] for each in pipes.ours("I'm\u0301e", aggregation_strategy=strategy)] == [want]
        compare(pipes, ["I'm\u0301e"], aggregation_strategy=strategy)


def test_a_token_that_takes_the_space_before_it(cased: Path, tmp_path: Path) -> None:
    """Its word is the token's name and not its text."""
    mask = {"content": "[MASK]", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    added = {"103": mask | {"special": True}}
    pipes = both("token-classification", with_tokenizer_settings(cased, tmp_path / "m", added_tokens_decoder=added))
    assert [each["word"] for each in pipes.ours("a [MASK]b", ignore_labels=[])] == ["a", "[MASK]", "b"]
    for strategy in STRATEGIES:
        compare(pipes, ["a [MASK]b", " [MASK] [MASK]"], aggregation_strategy=strategy, ignore_labels=[])


def without_subwords(tokens: Tokenizer) -> Tokenizer:
    """A tokenizer of whole words with the ids of ``tokens``; nothing marks what goes on a word."""
    whole = Tokenizer(models.WordLevel(tokens.get_vocab(), unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.add_special_tokens([AddedToken("[UNK]", special=True)])
    return whole


def test_a_tokeniser_that_marks_no_subwords(cased: Path, tmp_path: Path) -> None:
    directory = with_tokenizer_settings(cased, tmp_path / "m", tokenizer_class="PreTrainedTokenizerFast")
    path = str(directory / "tokenizer.json")
    without_subwords(Tokenizer.from_file(path)).save(path)
    pipes = both("token-classification", directory)
    for strategy in ("none", "simple"):
        assert compare(pipes, ["New York and xyzxyz", "Paris"], aggregation_strategy=strategy, ignore_labels=[])
    what = "this tokeniser does not mark those that go on a word"
    raises_one_sentence(InputError, what, lambda: pipes.ours("a", aggregation_strategy="first"))


NINE_PIECES = "Donaudampfschifffahrt"
MIXED = ["O", "B-PER", "I-PER", "LOC"]
TOKENS = {
    "Don": {"B-PER": 6},
    "##t": {"LOC": 9},
    "[UNK]": {"LOC": 7},
    "Paris": {"LOC": 6},
    "Max": {"B-PER": 6},
    "York": {"I-PER": 6},
    "東": {"LOC": 5, "O": 4},
}


@pytest.fixture(scope="module")
def mixed(lookup: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels with and without "B-" and "I-", on tokens chosen by hand; windows hold six tokens of a text."""
    directory: Path = lookup.ner(tmp_path_factory.mktemp("mixed") / "model", MIXED, TOKENS)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 8}))
    return directory


def found_in(pipe: Any, text: str, **options: Any) -> list[tuple[str, str, int, int]]:
    keys = ("entity_group", "word", "start", "end")
    return [tuple(each[key] for key in keys) for each in pipe(text, **options)]


def test_a_word_of_nine_pieces(mixed: Path, tmp_path: Path) -> None:
    """Its first piece is a person, its last and surest a place, and the seven between are nothing."""
    pipe = distilfast.pipeline("ner", with_tokenizer_settings(mixed, tmp_path / "m", model_max_length=64))
    assert len(pipe.tokenizer.encode(NINE_PIECES).ids) == 2 + 9
    (first,), (highest,) = (pipe(NINE_PIECES, aggregation_strategy=strategy) for strategy in ("first", "max"))
    whole = {"word": NINE_PIECES, "start": 0, "end": len(NINE_PIECES)}
    assert {**first, "score": 0} == {"entity_group": "PER", "score": 0, **whole}
    assert {**highest, "score": 0} == {"entity_group": "LOC", "score": 0, **whole}
    assert abs(first["score"] - np.exp(6) / (np.exp(6) + 3)) < 1e-5
    assert abs(highest["score"] - np.exp(9) / (np.exp(9) + 3)) < 1e-5
    assert pipe(NINE_PIECES, aggregation_strategy="average") == []
    assert found_in(pipe, NINE_PIECES, aggregation_strategy="simple") == [("PER", "Don", 0, 3), ("LOC", "##t", 20, 21)]


def test_unknown_words_are_given_as_they_are_written(mixed: Path) -> None:
    pipe = distilfast.pipeline("ner", mixed)
    for strategy in STRATEGIES[1:]:
        assert found_in(pipe, "a 😀 ☃☃ b", aggregation_strategy=strategy) == [("LOC", "😀 ☃☃", 2, 6)]
    assert [(each["word"], each["index"]) for each in pipe("a 😀 b ☃")] == [("😀", 2), ("☃", 4)]


def test_an_entity_at_the_edge_of_a_window(mixed: Path) -> None:
    """Six tokens to a window: Max is the last of the first, and of the second if one token is shared."""
    pipe = distilfast.pipeline("ner", mixed, aggregation_strategy="first")
    text = "a a a a a Max York a"
    assert found_in(pipe, text) == [("PER", "Max", 10, 13)]
    assert found_in(pipe, text, stride=0) == [("PER", "Max", 10, 13), ("PER", "York", 14, 18)]
    assert found_in(pipe, text, stride=1) == [("PER", "Max York", 10, 18)]


def test_labels_with_and_without_prefixes(mixed: Path) -> None:
    """Two of one type are one entity, unless the second is a beginning."""
    pipe = distilfast.pipeline("ner", mixed)
    want = [("LOC", "Paris Paris", 0, 11), ("PER", "Max", 12, 15), ("PER", "Max York", 16, 24)]
    for strategy in STRATEGIES[1:]:
        assert found_in(pipe, "Paris Paris Max Max York", aggregation_strategy=strategy) == want


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chosen_labels_on_odd_text(mixed: Path, strategy: str) -> None:
    """Windows that begin and end in words, between equal scores too: what transformers answers."""
    pipes = both("token-classification", mixed)
    texts = [*ODD, f"{NINE_PIECES} Max {NINE_PIECES} York", "Max " * 9, "Paris東東\u0301Paris 😀 Max\u0000York Don Don"]
    texts += [f"{'a ' * n}Max York York Paris {NINE_PIECES} 😀 a a a" for n in range(8)]
    for stride in (None,) if strategy == "none" else (None, 0, 1, 5):
        options = {"aggregation_strategy": strategy, "ignore_labels": [], "stride": stride}
        assert compare(pipes, texts, **options) > 20
        compare(pipes, texts[::3], **options | {"ignore_labels": ["O"]})
        words = [text.split() or ["a"] for text in texts]
        compare(pipes, words, is_split_into_words=True, **options)


def test_scores_are_those_of_the_logits(pipes: Both) -> None:
    """Softmax in float64; the score of an entity is the mean of those of its tokens."""
    text = "The quick brown fox jumps over Llanfairpwllgwyngyll in New York"
    window = pipes.ours.tokenizer.encode(text)
    logits = pipes.ours.engine.logits(PackedBatch.from_sequences([window.ids])).astype(np.float64)
    scores = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)[1:-1]
    found = pipes.ours(text, ignore_labels=[])
    assert len(found) == len(scores)
    assert np.abs(scores - [each["score"] for each in found]).max() < 1e-6
    ends = [end for _, end in window.offsets[1:-1]]
    for each in pipes.ours(text, ignore_labels=[], aggregation_strategy="simple"):
        part = [score for score, end in zip(scores, ends, strict=True) if each["start"] < end <= each["end"]]
        assert abs(np.mean(part) - each["score"]) < 1e-6


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
    assert pipe(("New", "York"), is_split_into_words=True) == words
    answers = pipe([["New", "York"], None, ["Paris"]], errors="return", is_split_into_words=True)
    assert answers[0] == words[0] and "Input 1" in str(answers[1]) and len(answers) == 3
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
        ([["a"], "b"], True, "Input 1 is not a list of words"),
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
