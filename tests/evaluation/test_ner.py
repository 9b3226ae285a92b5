"""Named entities: the two column layouts, a label for each word, sentences longer than the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distilfast import Engine
from distilfast.errors import InputError
from distilfast.evaluation import evaluate, metrics, ner
from distilfast.evaluation.sequences import no_progress

Make = Callable[..., Path]

SENTENCES = [
    ["Paris", "is", "in", "France", "."],
    ["\u200d", "O'Neill", "@user", "x", "\ufe0f"],  # two words that the tokeniser drops
    ["a"],
    ["long-" * 4, *["word"] * 30, "last"],  # 162 tokens of single characters, in a model of 64 positions
    ["w" * 100, "after"],  # a word that is too long by itself
]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Make, balanced: Make) -> Make:
    """``checkpoint(model_type)``: a tiny one that gives the words of SENTENCES many different tags."""

    def make(model_type: str) -> Path:
        words = [word for sentence in SENTENCES[:4] for word in sentence]
        return balanced(tiny_checkpoint(model_type, "token-classification", seed=5), words)

    return make


@pytest.fixture(scope="module")
def engine(checkpoint: Make) -> Engine:
    return Engine.from_pretrained(checkpoint("distilbert"))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("a\tO\nb c\tB-x\n\t\nd\tI-creative-work\n", [(("a", "b c"), ("O", "B-x")), (("d",), ("I-creative-work",))]),
        ("-DOCSTART- -X- O O\n\na NN B-NP I-PER\nb O\n\n\n", [(("a", "b"), ("I-PER", "O"))]),
        ("a O\r\n\r\nb O \r\n", [(("a",), ("O",)), (("b",), ("O",))]),
        ("a\u2028b\tO\n", [(("a\u2028b",), ("O",))]),
    ],
)
def test_columns(tmp_path: Path, content: str, wanted: list[tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
    (tmp_path / "x.conll").write_bytes(content.encode())
    assert ner.read(tmp_path / "x.conll") == [ner.Sentence(*each) for each in wanted]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a O\nb\n", "x.conll:2 has one column"),
        ("a PER\n", "x.conll:1 has the tag 'PER'; O, B-type or I-type is needed"),
        ("\n\n", "holds no sentence"),
    ],
)
def test_an_unusable_file_is_an_error(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "x.conll").write_text(content)
    with pytest.raises(InputError, match=sentence):
        ner.read(tmp_path / "x.conll")


@pytest.mark.parametrize(
    ("file", "sentences", "words", "entities", "types"),
    [
        ("wnut17/emerging.test.annotated", 1287, 23394, 1079, 6),  # 1,287 and 1,079: Derczynski et al., W17-4418
        ("wnut17/wnut17train.conll", 3394, 62730, 1975, 6),
        ("wikigold/wikigold.conll.txt", 1696, 39007, 3558, 4),
    ],
)
def test_the_shared_data(
    data_directory: Path, file: str, sentences: int, words: int, entities: int, types: int
) -> None:
    read = ner.read(data_directory / file)
    found = [entity for sentence in read for entity in metrics.entities(sentence.tags)]
    assert (len(read), sum(len(sentence.words) for sentence in read), len(found)) == (sentences, words, entities)
    assert len({kind for kind, _, _ in found}) == types


def transformers_tags(directory: Path, words: list[str], names: dict[int, str]) -> dict[int, str]:
    """The tag of each word's first sub-token, by word_ids, of a sentence that fits the model."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForTokenClassification.from_pretrained(directory).eval()
    encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.inference_mode():
        best = model(**encoded).logits[0].argmax(dim=1).tolist()
    tags: dict[int, str] = {}
    for word, choice in zip(encoded.word_ids(), best, strict=True):
        if word is not None:
            tags.setdefault(word, names[choice])
    return tags


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_a_word_has_the_label_of_its_first_token(checkpoint: Make, model_type: str) -> None:
    directory = checkpoint(model_type)
    engine = Engine.from_pretrained(directory)
    labelled = ner.label(engine, SENTENCES[:3], no_progress)
    for words, tags in zip(SENTENCES[:3], labelled, strict=True):
        wanted = transformers_tags(directory, words, engine.config.id2label)
        assert tags == [wanted.get(i, "O") for i in range(len(words))]
    assert len({tag for tags in labelled for tag in tags}) > 3  # otherwise a constant answer would pass


def test_first_tokens_of_real_text_are_those_of_word_ids(data_directory: Path, tiny_checkpoint: Make) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary = data_directory / "vocab-cased"
    directory = tiny_checkpoint(
        "distilbert", "token-classification", config={"vocab_size": 28996}, vocabulary=vocabulary
    )
    engine = Engine.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for sentence in ner.read(data_directory / "wnut17" / "emerging.test.annotated")[::25]:
        (tokens,) = ner._tokens(engine.tokenizer, [sentence.words])
        (window,) = ner.split(engine.tokenizer, tokens, 512)
        wanted = tokenizer(list(sentence.words), is_split_into_words=True)
        word_ids = wanted.word_ids()
        assert window.ids == wanted["input_ids"]
        assert window.first_tokens == [word_ids.index(word) for word in window.words]
        assert set(window.words) == set(word_ids) - {None}


@pytest.mark.parametrize("length", [3, 4, 7, 64])
def test_windows_contain_every_word_once(engine: Engine, length: int) -> None:
    for words in ner._tokens(engine.tokenizer, SENTENCES):
        windows = list(ner.split(engine.tokenizer, words, length))
        assert [word for window in windows for word in window.words] == [i for i, ids in enumerate(words) if ids]
        for window in windows:
            assert 3 <= len(window.ids) <= length
            assert (window.ids[0], window.ids[-1]) == (engine.tokenizer.cls_id, engine.tokenizer.sep_id)
            for word, place in zip(window.words, window.first_tokens, strict=True):
                ids = words[word][: length - 2]
                assert window.ids[place : place + len(ids)] == ids


def test_a_long_sentence_is_labelled_to_its_end(engine: Engine) -> None:
    """Its second window is labelled as the same words in a sentence of their own."""
    words = SENTENCES[3]
    (tokens,) = ner._tokens(engine.tokenizer, [words])
    second = list(ner.split(engine.tokenizer, tokens, 64))[1]
    (tags,) = ner.label(engine, [words], no_progress)
    (alone,) = ner.label(engine, [[words[i] for i in second.words]], no_progress)
    assert [tags[i] for i in second.words] == alone


def test_a_sentence_without_any_token(engine: Engine) -> None:
    assert ner.label(engine, [["\u200d"], ["a"]], no_progress)[0] == ["O"]


def test_evaluate(tmp_path: Path, engine: Engine) -> None:
    """The model's own answers score 100; a type that it lacks counts as missed, and a note says so."""
    tags = ner.label(engine, SENTENCES, no_progress)
    lines = ["\n".join(f"{w} {t}" for w, t in zip(*each, strict=True)) for each in zip(SENTENCES, tags, strict=True)]
    path = tmp_path / "own.conll"
    path.write_text("\n\n".join(lines), encoding="utf-8")
    result = evaluate(engine, "ner", path)
    assert result.metrics == {"precision": 100.0, "recall": 100.0, "f1": 100.0}
    assert result.predictions == tuple(map(tuple, tags))
    assert result.counts["words"] == sum(map(len, SENTENCES))
    path.write_text("\n\n".join([*lines, "x B-god"]), encoding="utf-8")
    more = evaluate(engine, "ner", path)
    assert more.notes == ("The model has no label for god; all of these count as missed.",)
    assert more.metrics["recall"] < 100.0
    assert evaluate(engine, "ner", path, limit=2).counts["sentences"] == 2


def test_no_type_in_common_is_an_error(tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "x.conll").write_text("a B-god\n")
    with pytest.raises(InputError, match="the entity types god, none of which is a label of the model: O, B-PER"):
        evaluate(engine, "ner", tmp_path / "x.conll")


def test_wikigold_with_a_model_of_its_types(data_directory: Path, engine: Engine) -> None:
    result = evaluate(engine, "ner", data_directory / "wikigold" / "wikigold.conll.txt", limit=40)
    assert result.counts["sentences"] == 40
    assert all(0 <= value <= 100 and np.isfinite(value) for value in result.metrics.values())
    assert result.notes == ()
