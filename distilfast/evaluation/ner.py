"""Named entities: CoNLL files, a label for each word, F1 of whole entities.

A word has the label of its first token, as run_ner.py of transformers trains and scores it. A sentence longer than the
model is read in windows one after the other, cut between words, so that no word goes unlabelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.evaluation import metrics
from distilfast.evaluation.result import Scores
from distilfast.evaluation.sequences import Ids, Progress, head_outputs, longest, subset
from distilfast.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sentence:
    """Words and their tags, as many."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Window:
    """Part of one sentence: ``ids`` with the special tokens, and where each labelled word's first token stands."""

    ids: list[int]
    words: list[int]
    first_tokens: list[int]


def evaluate(engine: Engine, path: Path, limit: int | None, progress: Progress) -> Scores:
    """Precision, recall and F1 of whole entities in a CoNLL file. Raises InputError."""
    sentences = subset(read(path), limit)
    notes = _check_types(engine, sentences, path)
    predictions = label(engine, [sentence.words for sentence in sentences], progress)
    tags = [sentence.tags for sentence in sentences]
    counts = {
        "sentences": len(sentences),
        "words": sum(map(len, tags)),
        "entities": sum(len(metrics.entities(each)) for each in tags),
    }
    scores = metrics.percent(metrics.entity_scores(predictions, tags))
    return Scores(scores, counts, notes, tuple(map(tuple, predictions)))


def read(path: Path) -> list[Sentence]:
    """The sentences of a CoNLL file: a word and its tag on a line, the first and the last of its columns.

    Tabs separate the columns where a line has one, else spaces; a line with nothing else in it ends a sentence, and
    so does -DOCSTART-. Raises InputError for a line with one column, for a tag that is no "O", "B-…" or "I-…", and
    for a file without a sentence.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable text: {error}.") from None
    sentences: list[list[tuple[str, str]]] = [[]]
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            sentences.append([])
        else:
            sentences[-1].append(_word(line, f"{path}:{number}"))
    found = [Sentence(*map(tuple, zip(*rows, strict=True))) for rows in sentences if rows]
    if not found:
        raise InputError(f"{path} holds no sentence.")
    return found


def _word(line: str, at: str) -> tuple[str, str]:
    columns = line.split("\t") if "\t" in line else line.rstrip(" ").split(" ")
    if len(columns) < 2:
        raise InputError(f"{at} has one column; a word and its tag are needed.")
    if columns[-1] != "O" and columns[-1].partition("-")[0] not in ("B", "I"):
        raise InputError(f"{at} has the tag {columns[-1]!r}; O, B-type or I-type is needed.")
    return columns[0], columns[-1]


def _check_types(engine: Engine, sentences: Sequence[Sentence], path: Path) -> tuple[str, ...]:
    """A note on types that the model does not know; raises InputError where it knows none of them."""
    there = _types(chain.from_iterable(sentence.tags for sentence in sentences))
    known = _types(engine.config.id2label.values())
    if there and not there & known:
        raise InputError(
            f"{path} has the entity types {', '.join(sorted(there))}, none of which is a label of the model: "
            f"{', '.join(engine.config.id2label.values())}."
        )
    unknown = sorted(there - known)
    return (f"The model has no label for {', '.join(unknown)}; all of these count as missed.",) if unknown else ()


def _types(tags: object) -> set[str]:
    return {kind for tag in tags if (kind := tag.partition("-")[2])}  # type: ignore[attr-defined]


def label(engine: Engine, sentences: Sequence[Sequence[str]], progress: Progress) -> list[list[str]]:
    """The model's tag of each word; "O" for one that has no token, as a lone control character."""
    windows = [
        (number, window)
        for number, words in enumerate(_tokens(engine.tokenizer, sentences))
        for window in split(engine.tokenizer, words, longest(engine))
    ]
    outputs = head_outputs(engine, [Ids(each.ids, [0] * len(each.ids)) for _, each in windows], progress)
    tags = [["O"] * len(words) for words in sentences]
    for (number, window), logits in zip(windows, outputs, strict=True):
        best = logits[window.first_tokens].argmax(axis=1)
        for word, choice in zip(window.words, best, strict=True):
            tags[number][word] = engine.config.id2label[int(choice)]
    return tags


def _tokens(tokenizer: Tokenizer, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """The ids of each word, tokenised alone, as ``is_split_into_words`` of transformers does."""
    distinct = sorted(set(chain.from_iterable(sentences)))
    encodings = tokenizer.encode_batch(distinct, add_special_tokens=False)
    ids = {word: encoding.ids for word, encoding in zip(distinct, encodings, strict=True)}
    return [[ids[word] for word in words] for words in sentences]


def split(tokenizer: Tokenizer, words: Sequence[list[int]], length: int) -> Iterator[Window]:
    """Windows of at most ``length`` tokens over the ids of each word; one word too long for a window loses its end.

    Nothing where no word has a token.
    """
    cls, sep = (tokenizer.cls_id or 0, tokenizer.sep_id or 0)
    window = Window([cls], [], [])
    for number, ids in enumerate(words):
        pieces = ids[: length - 2]
        if not pieces:
            continue
        if len(window.ids) + len(pieces) > length - 1:
            yield Window([*window.ids, sep], window.words, window.first_tokens)
            window = Window([cls], [], [])
        window.words.append(number)
        window.first_tokens.append(len(window.ids))
        window.ids.extend(pieces)
    if window.words:
        yield Window([*window.ids, sep], window.words, window.first_tokens)
