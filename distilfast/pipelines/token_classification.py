"""``token-classification``, also called ``ner``: a label for each token, or entities of several tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from distilfast.arguments import count, flag, one_of
from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.pipelines.base import Pipeline, Plan
from distilfast.pipelines.encoders import EncodingOptions, TextEncoder
from distilfast.tokenizer import Encoding, checked_words
from distilfast.types import Task

BY_WORD = ("first", "average", "max")
STRATEGIES = ("none", "simple", *BY_WORD)

Entity = dict[str, Any]


class Found(NamedTuple):
    """The entities of a window, [N] each: label, score, and the tokens of the window where they begin and end.

    ``words``: the tokens where the words of each begin; under "none" and "simple" there are none.
    """

    labels: list[int]
    scores: list[float]
    firsts: list[int]
    lasts: list[int]
    words: list[list[int]]


class Words(NamedTuple):
    """Words of several windows, [W] each: first token, label, score, and whether a window begins with it."""

    firsts: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    begins: np.ndarray


@dataclass(frozen=True)
class Labels:
    """The model's labels, [C] each: the name of the entity type, whether "B-" is before it, a number for each type."""

    names: list[str]
    types: list[str]
    begins: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, names: Sequence[str]) -> Labels:
        """A label without "B-" or "I-" is a type by itself, and continues."""
        types = [name.split("-", 1)[-1] for name in names]
        tags = [name[2:] if name.startswith(("B-", "I-")) else name for name in names]
        known = {tag: number for number, tag in enumerate(dict.fromkeys(tags))}
        begins = np.array([name.startswith("B-") for name in names])
        return cls(list(names), types, begins, np.array([known[tag] for tag in tags]))


class TokenClassificationPipeline(Pipeline):
    """``pipe(texts, aggregation_strategy="none", ignore_labels=["O"], stride=None, is_split_into_words=False)``.

    A text gives a list of ``{"entity", "score", "index", "word", "start", "end"}``, one for each token whose label is
    not in ``ignore_labels``. With another ``aggregation_strategy`` it gives ``{"entity_group", "score", "word",
    "start", "end"}``, one for each entity whose type is not: neighbours of one type, where a label with "B-" begins
    another entity. "simple" joins tokens, each by its own label; the others join words, whose label is that of the
    "first" token, that of the token with the highest score ("max"), or the highest of the "average" scores of its
    tokens. The score of an entity is the mean of those of its parts. A list of texts gives a list of lists.

    A text too long for the tokeniser or the model is cut; with ``stride`` it is read whole, in windows of which two
    neighbours have so many tokens in common, and of entities that overlap the longest is kept, or the one with the
    highest score. That needs a strategy other than "none".

    ``is_split_into_words``: a text is a list of words, and ``start`` and ``end`` count in the words joined by
    ``delimiter`` (" "); one list of words gives a list of one. See ``Pipeline`` for iterators, ``batch_size``,
    ``errors`` and ``return_truncation``.
    """

    task: ClassVar[str] = "token-classification"
    engine_task: ClassVar[Task] = "token-classification"
    _how_to_cut = "a lower stride"
    _how_to_read_all = "stride=0 beside an aggregation_strategy reads all of it, in windows, and "
    _elsewhere = Pipeline._elsewhere | {
        "offset_mapping": "the tokeniser's own offsets are used",
        "grouped_entities": 'aggregation_strategy="simple" groups entities',
        "ignore_subwords": 'aggregation_strategy="first" joins the tokens of a word',
    }

    def __init__(self, engine: Engine, defaults: dict[str, Any] | None = None) -> None:
        """See ``Pipeline``."""
        super().__init__(engine, defaults)
        self._labels = Labels.of(list(engine.config.id2label.values()))
        self._tokens = _by_id(self.tokenizer.vocab)
        self._token_sizes = np.array([len(token) for token in self._tokens])

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """As the reference does: one list of words is a list of one text."""
        split = (self._defaults | options).get("is_split_into_words", False)
        if split is True and isinstance(inputs, (list, tuple)) and _is_one_text(inputs):
            inputs = [inputs]
        return super().__call__(inputs, **options)

    def _plan(
        self,
        *,
        aggregation_strategy: str | None = None,
        ignore_labels: Sequence[str] | None = None,
        stride: int | None = None,
        is_split_into_words: bool = False,
        delimiter: str | None = None,
    ) -> Plan:
        strategy = self._strategy(aggregation_strategy)
        split = flag("is_split_into_words", is_split_into_words)
        joint = _delimiter(delimiter, split)
        ignored = _ignored(ignore_labels)
        options = self._windows(stride, strategy)

        def compute(windows: Sequence[Encoding], batch: PackedBatch) -> Iterator[Found]:
            return self._found(windows, batch, strategy, ignored)

        def combine(item: str | list[str], windows: Sequence[Encoding], found: Sequence[Found]) -> list[Entity]:
            text = item if isinstance(item, str) else joint.join(item)
            starts = None if isinstance(item, str) else _starts(item, len(joint))
            entities = [
                entity
                for window, each in zip(windows, found, strict=True)
                for entity in self._entities(text, starts, window, each, strategy)
            ]
            return entities if len(windows) == 1 else _without_overlaps(entities)

        return Plan(TextEncoder(self.tokenizer, options, is_split_into_words=split), compute, combine)

    def _strategy(self, given: Any) -> str:
        """One of ``STRATEGIES``; raises InputError, also for words where tokens do not say what goes on one."""
        if given is None:
            return "none"
        strategy = one_of("aggregation_strategy", given.lower() if isinstance(given, str) else given, STRATEGIES)
        if strategy in BY_WORD and not self.tokenizer.subword_prefix:
            raise InputError(
                f"aggregation_strategy {strategy!r} joins the tokens of words, and this tokeniser does not mark those "
                'that go on a word; "simple" joins tokens of one label.'
            )
        return strategy

    def _windows(self, stride: Any, strategy: str) -> EncodingOptions:
        if stride is None:
            return self._encoding_options(truncation=True)
        if strategy == "none":
            count("stride", stride, least=0)
            raise InputError('stride needs an aggregation_strategy other than "none", for entities that overlap.')
        return self._encoding_options(stride=stride)

    def _item(self, i: int, given: Any, plan: Plan) -> Any:
        if isinstance(plan.encode, TextEncoder) and plan.encode.is_split_into_words:
            return checked_words(i, given)
        return super()._item(i, given, plan)

    # ---- from logits to entities: arrays over all windows of a forward

    def _found(
        self, windows: Sequence[Encoding], batch: PackedBatch, strategy: str, ignored: frozenset[str]
    ) -> Iterator[Found]:
        scores = _softmax(self.engine.logits(batch))
        special = np.concatenate([np.array(window.special_mask, bool) for window in windows])
        tokens = np.flatnonzero(~special)  # of the batch
        window_of = np.repeat(np.arange(len(windows)), np.diff(batch.cu_seqlens))[tokens]
        begins = np.diff(window_of, prepend=-1) > 0
        by_word = strategy in BY_WORD
        starts = begins | ~self._continues(windows, batch, tokens) if by_word else np.ones(len(tokens), bool)
        words = _words(scores[tokens], starts, begins, strategy)
        groups = np.arange(len(words.firsts)) if strategy == "none" else self._groups(words)
        names = self._labels.names if strategy == "none" else self._labels.types
        kept = ~np.array([name in ignored for name in names])[words.labels[groups]]
        found = _kept_entities(words, groups, kept, tokens - batch.cu_seqlens[window_of], by_word)
        return _split(found, window_of[words.firsts[groups[kept]]], len(windows))

    def _continues(self, windows: Sequence[Encoding], batch: PackedBatch, tokens: np.ndarray) -> np.ndarray:
        """Whether each of ``tokens`` goes on a word, as the reference tells: "##" makes it longer than its text."""
        offsets = np.concatenate([np.array(window.offsets).reshape(-1, 2) for window in windows])[tokens]
        ids = batch.input_ids[tokens]
        longer: np.ndarray = self._token_sizes[ids] != offsets[:, 1] - offsets[:, 0]
        return longer & (ids != (-1 if self.tokenizer.unk_id is None else self.tokenizer.unk_id))

    def _groups(self, words: Words) -> np.ndarray:
        """The word that each entity begins with."""
        numbers = self._labels.numbers[words.labels]
        changes = np.diff(numbers, prepend=-1) != 0
        return np.flatnonzero(words.begins | changes | self._labels.begins[words.labels])

    # ---- from entities to dicts

    def _entities(
        self, text: str, starts: list[int] | None, window: Encoding, found: Found, strategy: str
    ) -> list[Entity]:
        """``starts``: where the words of a text that came split begin in ``text``."""
        if not found.labels:
            return []
        offsets = window.offsets if starts is None else _in_text(window, starts)
        tokens = [self._tokens[number] for number in window.ids]
        unknown = self.tokenizer.unk_id
        if unknown in window.ids:
            tokens = [
                text[start:end] if number == unknown else token
                for number, token, (start, end) in zip(window.ids, tokens, offsets, strict=True)
            ]
        if strategy == "none":
            return self._labelled(tokens, offsets, found)
        return self._grouped(tokens, offsets, found, by_word=strategy in BY_WORD)

    def _labelled(self, tokens: list[str], offsets: list[tuple[int, int]], found: Found) -> list[Entity]:
        names = self._labels.names
        return [
            {
                "entity": names[label],
                "score": score,
                "index": place,
                "word": tokens[place],
                "start": offsets[place][0],
                "end": offsets[place][1],
            }
            for label, score, place in zip(found.labels, found.scores, found.firsts, strict=True)
        ]

    def _grouped(
        self, tokens: list[str], offsets: list[tuple[int, int]], found: Found, *, by_word: bool
    ) -> list[Entity]:
        types, join = self._labels.types, self.tokenizer.join
        if by_word:
            parts_of_each = [
                [join(tokens[a:b]) for a, b in pairwise([*words, last + 1])]
                for words, last in zip(found.words, found.lasts, strict=True)
            ]
        else:
            parts_of_each = [tokens[first : last + 1] for first, last in zip(found.firsts, found.lasts, strict=True)]
        return [
            {
                "entity_group": types[label],
                "score": score,
                "word": join(parts),
                "start": offsets[first][0],
                "end": offsets[last][1],
            }
            for label, score, first, last, parts in zip(*found[:4], parts_of_each, strict=True)
        ]


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in the precision of the logits: whoever compares labels finds the same ties."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    total: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return total


def _words(scores: np.ndarray, starts: np.ndarray, begins: np.ndarray, strategy: str) -> Words:
    """From the scores of tokens [T, C], and where words and windows begin, to words."""
    firsts = np.flatnonzero(starts)
    if not len(firsts):
        return Words(firsts, firsts, np.empty(0, scores.dtype), firsts > 0)
    if strategy == "average":
        sizes = np.diff(firsts, append=len(scores)).astype(scores.dtype)
        rows = np.add.reduceat(scores, firsts, axis=0) / sizes[:, None]
    elif strategy == "max":
        rows = scores[_highest_of_each(scores.max(axis=1), firsts)]
    else:
        rows = scores[firsts]
    labels = rows.argmax(axis=1)
    return Words(firsts, labels, rows[np.arange(len(rows)), labels], begins[firsts])


def _highest_of_each(values: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """The place of the highest value of each segment, the first of equal ones."""
    sizes = np.diff(firsts, append=len(values))
    is_highest = values == np.repeat(np.maximum.reduceat(values, firsts), sizes)
    places: np.ndarray = np.minimum.reduceat(np.where(is_highest, np.arange(len(values)), len(values)), firsts)
    return np.minimum(places, len(values) - 1)  # where all are NaN


def _kept_entities(words: Words, groups: np.ndarray, kept: np.ndarray, places: np.ndarray, by_word: bool) -> Found:
    """The kept entities of all windows; ``groups`` are the words that entities begin with.

    ``places``: where each token stands in its window.
    """
    sizes = np.diff(groups, append=len(words.firsts))
    scores = np.add.reduceat(words.scores, groups) / sizes.astype(words.scores.dtype)
    begins, ends = groups[kept], (groups + sizes)[kept]
    bounds = np.append(words.firsts, len(places))
    starts = places[words.firsts].tolist()
    return Found(
        words.labels[begins].tolist(),
        scores[kept].tolist(),
        places[bounds[begins]].tolist(),
        places[bounds[ends] - 1].tolist(),
        [starts[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)] if by_word else [],
    )


def _split(found: Found, window_of: np.ndarray, windows: int) -> Iterator[Found]:
    """Those of each window, from those of all and the window of each."""
    bounds = np.searchsorted(window_of, np.arange(windows + 1)).tolist()
    for a, b in pairwise(bounds):
        yield Found(found.labels[a:b], found.scores[a:b], found.firsts[a:b], found.lasts[a:b], found.words[a:b])


def _without_overlaps(entities: list[Entity]) -> list[Entity]:
    """In order of their places; of those that overlap the longest, or the one with the highest score."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda each: each["start"]):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif _weight(entity) > _weight(kept[-1]):
            kept[-1] = entity
    return kept


def _weight(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _starts(words: Sequence[str], gap: int) -> list[int]:
    """Where each word begins in all of them joined, with ``gap`` characters in between."""
    return [0, *accumulate(len(word) + gap for word in words[:-1])] if words else []


def _in_text(window: Encoding, starts: list[int]) -> list[tuple[int, int]]:
    """The offsets of tokens in a text of which ``starts`` are the words; those of special tokens as they are."""
    shifts = (0 if word is None else starts[word] for word in window.words)
    return [(a + shift, b + shift) for (a, b), shift in zip(window.offsets, shifts, strict=True)]


def _by_id(vocabulary: dict[str, int]) -> list[str]:
    """The tokens in the order of their ids, "" for an id that has none."""
    tokens = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        tokens[number] = token
    return tokens


def _is_one_text(inputs: Sequence[Any]) -> bool:
    """Whether ``inputs`` are the words of one text and not several texts."""
    return bool(inputs) and not any(isinstance(each, (list, tuple)) for each in inputs)


def _ignored(given: Any) -> frozenset[str]:
    if given is None:
        return frozenset(("O",))
    if isinstance(given, (str, bytes, dict)) or not isinstance(given, Iterable):
        raise InputError(f"ignore_labels is {given!r}; a list of labels is needed.")
    labels = list(given)
    for label in labels:
        if not isinstance(label, str):
            raise InputError(f"ignore_labels has {label!r}; strings are needed.")
    return frozenset(labels)


def _delimiter(given: Any, split: bool) -> str:
    if given is None:
        return " "
    if not split:
        raise InputError("delimiter is for texts that are lists of words; pass is_split_into_words=True.")
    if not isinstance(given, str):
        raise InputError(f"delimiter is {given!r}; a string is needed.")
    return given
