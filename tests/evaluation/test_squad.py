"""Question answering: windows as in transformers, the span search against an exhaustive one, answers by character."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilfast import Engine
from distilfast.errors import InputError
from distilfast.evaluation import evaluate, squad
from distilfast.evaluation.sequences import no_progress

Make = Callable[..., Path]


@pytest.fixture
def engine(tiny_checkpoint: Make) -> Engine:
    return Engine.from_pretrained(tiny_checkpoint("bert", "question-answering", seed=2))


def exhaustive(starts: np.ndarray, ends: np.ndarray, inside: range, longest: int) -> float | None:
    """The best score of all spans, tried one by one."""
    scores = [starts[i] + ends[j] for i in inside for j in inside if i <= j < i + longest]
    return max(scores) if scores else None


@pytest.mark.parametrize("seed", range(40))
def test_span_search_against_an_exhaustive_one(seed: int) -> None:
    """Over all starts and ends the exhaustive score; over the best 20 the span that the loops of utils_qa.py find."""
    rng = np.random.default_rng(seed)
    length = int(rng.integers(3, 120))
    inside = range(int(rng.integers(1, length)), length - 1)
    starts, ends = rng.normal(size=(2, length)).astype(np.float32)
    everything = squad.best_span(starts, ends, inside, best=length)
    wanted = exhaustive(starts, ends, inside, squad.ANSWER)
    assert (everything is None) == (wanted is None)
    if everything is not None:
        score, first, last = everything
        assert score == pytest.approx(wanted)
        assert score == pytest.approx(starts[first] + ends[last])
        assert first in inside and last in inside and first <= last < first + squad.ANSWER
    tried = squad.best_span(starts, ends, inside)
    loops = utils_qa([(starts, ends, [(i, i) if i in inside else None for i in range(length)])])
    assert (tried[1:] if tried else None) == loops


def utils_qa(features: list[tuple[np.ndarray, np.ndarray, list[Any]]]) -> tuple[int, int] | None:
    """postprocess_qa_predictions of transformers' examples in plain loops; the offsets of the best span."""
    found = []
    for starts, ends, offsets in features:
        for i in np.argsort(starts)[-1 : -squad.BEST - 1 : -1].tolist():
            for j in np.argsort(ends)[-1 : -squad.BEST - 1 : -1].tolist():
                if offsets[i] is None or offsets[j] is None or j < i or j - i + 1 > squad.ANSWER:
                    continue
                found.append((float(starts[i] + ends[j]), (offsets[i][0], offsets[j][1])))
    return max(found, key=lambda each: each[0])[1] if found else None


def test_a_span_is_at_most_the_longest_answer() -> None:
    starts, ends = np.zeros(50, np.float32), np.zeros(50, np.float32)
    starts[5] = ends[5 + squad.ANSWER] = 10
    score, first, last = squad.best_span(starts, ends, range(1, 49))
    assert score == 10.0 and last - first < squad.ANSWER
    ends[5 + squad.ANSWER - 1] = 9
    assert squad.best_span(starts, ends, range(1, 49)) == (19.0, 5, 5 + squad.ANSWER - 1)


def test_no_span_where_the_best_scores_are_outside() -> None:
    starts = np.arange(50, 0, -1).astype(np.float32)
    assert squad.best_span(starts, starts, range(30, 50)) is None


@pytest.mark.parametrize(("length", "overlap"), [(64, 16), (40, 30), (384, 128), (512, 128)])
def test_windows_are_those_of_transformers(
    data_directory: Path,
    question_pairs: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    overlap: int,
) -> None:
    transformers = pytest.importorskip("transformers")
    from distilfast.tokenizer import Tokenizer

    theirs = transformers.AutoTokenizer.from_pretrained(data_directory / "vocab-cased")
    ours = Tokenizer.from_directory(data_directory / "vocab-cased")
    monkeypatch.setattr(squad, "OVERLAP", overlap)
    for question, context in question_pairs[::60]:
        asked = ours.encode(question, add_special_tokens=False).ids
        if len(asked) > length // 3:
            continue  # which is truncated here, and not in transformers
        wanted = theirs(
            question,
            context,
            truncation="only_second",
            max_length=length,
            stride=min(overlap, (length - len(asked) - 3) // 2),
            return_overflowing_tokens=True,
        )["input_ids"]
        (got,) = squad.readings(ours, [squad.Question.of(question, context, [])], length)
        assert [window.ids.ids for window in got.windows] == wanted


@pytest.mark.parametrize("tokens", [0, 1, 19, 20, 21, 29, 30, 31, 100])
def test_windows_contain_every_token(engine: Engine, tokens: int) -> None:
    """30 tokens with a question of 7 leave 20 for the context, and adjacent windows share 10."""
    context = "a" * tokens
    question = squad.Question.of("q q q q q q q", " ".join(context), [])
    (reading,) = squad.readings(engine.tokenizer, [question], 30)
    covered: set[int] = set()
    for window in reading.windows:
        inside = slice(window.begin, window.begin + len(window.offsets))
        assert window.ids.ids[inside] == [engine.tokenizer.token_to_id("a")] * len(window.offsets)
        assert window.ids.type_ids == [0] * 9 + [1] * (len(window.offsets) + 1)
        assert len(window.ids.ids) == len(window.ids.type_ids) <= 30
        covered |= set(window.offsets[:, 0].tolist())
    assert covered == {2 * i for i in range(tokens)}
    firsts = [window.offsets[0, 0] for window in reading.windows[1:]]
    assert firsts == [2 * 10 * i for i in range(1, len(reading.windows))]


def answers_of_transformers(directory: Path, questions: list[tuple[str, str]]) -> list[str]:
    """Tokenised with overflow, one window at a time, the best span by plain loops."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(directory).eval()
    answers = []
    for question, context in questions:
        room = 64 - len(tokenizer(question, add_special_tokens=False)["input_ids"]) - 3
        encoded = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=64,
            stride=room // 2,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        features = []
        for i, ids in enumerate(encoded["input_ids"]):
            with torch.inference_mode():
                extra = {"token_type_ids": torch.tensor([encoded["token_type_ids"][i]])}
                outputs = model(torch.tensor([ids]), **(extra if model.config.model_type == "bert" else {}))
            offsets = [
                offset if sequence == 1 else None
                for offset, sequence in zip(encoded["offset_mapping"][i], encoded.sequence_ids(i), strict=True)
            ]
            features.append((outputs.start_logits[0].numpy(), outputs.end_logits[0].numpy(), offsets))
        span = utils_qa(features)
        answers.append(context[slice(*span)] if span else "")
    return answers


QUESTIONS = [
    ("Who?", "In 1905 Einstein published four papers, each of which changed physics, and went home."),
    ("When was it?", "It rained. " * 12),
    ("What's äö?", "Ünïcödé, “quotes” — and dashes; a\u2028line. "),
    ("Short", "x"),
]


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
def test_answers_are_those_of_transformers(tiny_checkpoint: Make, squad_file: Make, model_type: str) -> None:
    directory = tiny_checkpoint(model_type, "question-answering", seed=2)
    path = squad_file(*((context, question, [context[:4]]) for question, context in QUESTIONS))
    result = evaluate(directory, "squad", path)
    assert list(result.predictions) == answers_of_transformers(directory, QUESTIONS)
    assert all(text in context for text, (_, context) in zip(result.predictions, QUESTIONS, strict=True))
    assert result.counts["questions"] == 4
    assert result.counts["windows"] > 4


class Planted:
    """An engine that scores the start and the end of ``word`` in each window, and everything else 0."""

    def __init__(self, engine: Engine, word: str) -> None:
        self._engine, self._word = engine, engine.tokenizer.encode(word, add_special_tokens=False).ids
        self.config, self.head, self.tokenizer = engine.config, engine.head, engine.tokenizer

    def logits(self, batch: Any) -> np.ndarray:
        logits = np.zeros((batch.num_tokens, 2), np.float32)
        ids = batch.input_ids.tolist()
        for i in range(len(ids) - len(self._word) + 1):
            if ids[i : i + len(self._word)] == self._word:
                logits[i, 0] = logits[i + len(self._word) - 1, 1] = 10.0
        return logits


def test_an_answer_in_a_later_window_only(engine: Engine) -> None:
    """It is at the context's end, far beyond the first 64 tokens, and is returned in its exact characters."""
    context = "Nothing is here. " * 6 + "Not in the first: Zürich-97!"
    question = squad.Question("Where?", context, ("Zürich-97",), True)
    (text,), windows = squad.answer(Planted(engine, "Zürich-97"), [question], no_progress)
    assert windows > 2
    assert text == "Zürich-97"


def test_no_answer_where_none_is_allowed_and_best(engine: Engine, squad_file: Make) -> None:
    """A planted answer scores 20; the [CLS] token scores 0 like all else, and 2 with ``with_null``."""
    questions = [squad.Question("Who?", "It was Ada.", ("Ada",), True), squad.Question("Why?", "No.", ("",), False)]
    planted = Planted(engine, "Ada")
    assert squad.answer(planted, questions, no_progress)[0][0] == "Ada"
    planted.logits = with_null(planted.logits)
    assert squad.answer(planted, questions, no_progress, may_be_none=True)[0] == ["Ada", ""]
    assert squad.answer(planted, questions, no_progress)[0][1] != ""
    result = evaluate(engine, "squad", squad_file(("It was Ada.", "Who?", ["Ada"]), ("No.", "Why?", [])))
    assert set(result.metrics) == {"exact_match", "f1"}


def with_null(logits_of: Callable[..., Any]) -> Callable[..., Any]:
    def change(batch: Any) -> Any:
        logits = logits_of(batch)
        logits[batch.first_rows] = 1.0
        return logits

    return change


def test_the_right_answers_score_100(data_directory: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    path = data_directory / "squad-xquad-en" / "xquad.en.json"
    questions = squad.read(path)
    assert len(questions) == 1190
    assert len({question.context for question in questions}) == 240
    monkeypatch.setattr(squad, "answer", lambda engine, asked, *_, **__: ([q.answers[0] for q in asked], 1))
    assert evaluate(engine, "squad", path, limit=50).metrics == {"exact_match": 100.0, "f1": 100.0}


def test_real_paragraphs(data_directory: Path, tiny_checkpoint: Make) -> None:
    vocabulary = data_directory / "vocab-cased"
    config = {"vocab_size": 28996, "max_position_embeddings": 512}
    directory = tiny_checkpoint("distilbert", "question-answering", config=config, vocabulary=vocabulary)
    result = evaluate(directory, "squad", data_directory / "squad-xquad-en" / "xquad.en.json", limit=20)
    questions = squad.read(data_directory / "squad-xquad-en" / "xquad.en.json")
    assert result.counts["questions"] == 20 <= result.counts["windows"]
    for i, text in enumerate(result.predictions):
        assert text and text in questions[i * 1190 // 20].context


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON in SQuAD's format"),
        ('{"data": [{"paragraphs": [{"context": "x"}]}]}', "is not JSON in SQuAD's format"),
        ('{"data": []}', "holds no question"),
    ],
)
def test_an_unusable_file_is_an_error(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=sentence):
        squad.read(tmp_path / "x.json")


def test_the_written_file_is_read_back(squad_file: Make) -> None:
    path = squad_file(("a context", "a question", ["a", "context"]))
    assert squad.read(path) == [squad.Question("a question", "a context", ("context",), True)]  # "a" is an article
    assert json.loads(path.read_text())["version"] == "1.1"
