"""``question-answering`` against stored answers of transformers 4.57.1, by hand, and against plain loops."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence

import distilfast
from distilfast import InputError, PackedBatch
from distilfast.pipelines import encoders
from tests.golden import make_question_answering as golden

Make = Callable[..., Path]
Lookup = Callable[..., Any]

PARIS = {"Paris": (6, 6)}
PERSON = {"Angela": (6, 1), "Me": (4, 1), "##rk": (1, 3), "##el": (1, 6), ".": (2, 2)}
NOTHING = {"start": 0, "end": 0, "answer": ""}


@pytest.fixture(scope="module")
def lookup(data_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Lookup:
    """``lookup(tokens)``: a pipeline whose model gives a token the logits (start, end) wanted, (0, 0) to all others."""
    path = data_directory.parent / "cases" / "lookup_checkpoint.py"
    spec = importlib.util.spec_from_file_location("lookup_checkpoint", path)
    if spec is None or spec.loader is None or not path.exists():
        pytest.skip("the folder shared/cases beside the project is absent")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[str, Any] = {}

    def pipe(tokens: dict[str, Any]) -> Any:
        key = json.dumps(tokens)
        if key not in made:
            directory = module.qa(tmp_path_factory.mktemp("lookup"), tokens)
            made[key] = distilfast.pipeline("question-answering", directory)
        return made[key]

    return pipe


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Make) -> Any:
    """BERT, whose windows have token types, with 64 positions and a vocabulary of characters."""
    return distilfast.pipeline("question-answering", tiny_checkpoint("bert", "question-answering", seed=2))


def listed(answer: Any) -> list[dict[str, Any]]:
    return answer if isinstance(answer, list) else [answer]


def lookup_cases(data_directory: Path) -> list[dict[str, Any]]:
    cases = json.loads((data_directory.parent / "cases" / "lookup_cases.json").read_text(encoding="utf-8"))["cases"]
    return [case for case in cases if case["task"] == "qa"]


def test_lookup_cases(lookup: Lookup, data_directory: Path) -> None:
    """Written by transformers. In two of them spans are equal, and its choice among these depends on the processor."""
    cases = lookup_cases(data_directory)
    assert len(cases) >= 9
    for case in cases:
        pipe, context = lookup(case["tokens"]), case["context"]
        got = pipe(question=case["question"], context=context, sum_scores=True, **case["options"])
        assert type(got) is type(case["answer"])
        for answer, want in zip(listed(got), listed(case["answer"]), strict=True):
            assert list(answer) == ["score", "start", "end", "answer"]
            assert [type(value) for value in answer.values()] == [float, int, int, str]
            assert answer["score"] == pytest.approx(want["score"], abs=2e-6)
            assert answer["answer"] == context[answer["start"] : answer["end"]]
            if case["case"] != "Q4" or len(context) < 100:
                assert {**answer, "score": 0} == {**want, "score": 0}


@pytest.fixture(scope="module")
def seeded(data_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return distilfast.pipeline("question-answering", golden.checkpoint(tmp_path_factory.mktemp("golden")))


@pytest.mark.parametrize("call", golden.CALLS)
def test_answers_of_transformers(seeded: Any, call: str) -> None:
    """With ``sum_scores``, the reference's rule; without it no text scores more, and the texts are distinct."""
    questions, options = golden.questions(), golden.CALLS[call]
    wanted = json.loads(golden.ANSWERS.read_text())[call]
    assert list(wanted) == list(questions) and len(wanted) == 119
    answers = seeded(list(questions.values()), sum_scores=True, **options)
    best = seeded(list(questions.values()), **options)
    for got, single, want, item in zip(answers, best, wanted.values(), questions.values(), strict=True):
        assert [(each["start"], each["end"]) for each in listed(got)] == [(start, end) for _, start, end in want]
        np.testing.assert_allclose([each["score"] for each in listed(got)], [score for score, _, _ in want], rtol=1e-4)
        assert all(
            each["answer"] == item["context"][each["start"] : each["end"]] for each in listed(got) + listed(single)
        )
        assert listed(single)[0]["score"] <= listed(got)[0]["score"]
        texts = [each["answer"].lower() for each in listed(single)]
        assert len(set(texts)) == len(texts) <= options.get("top_k", 1)


def test_spans_of_two_windows_by_loops(tiny: Any) -> None:
    """The windows written down by hand, the best score of each text by trying all spans, words between spaces."""
    tokenizer, question = tiny.tokenizer, "who is it"
    asked = tokenizer.encode(question, add_special_tokens=False).ids
    rng = np.random.default_rng(0)
    for _ in range(5):
        context = "".join(rng.choice(list("abcde  "), 150)).strip()
        for align, impossible, longest in ((True, False, 15), (False, True, 4), (False, False, 1)):
            want = by_loops(tiny, asked, context, align, longest)
            if impossible:
                want[""] = null_score(tiny, asked, context)
            best = sorted([*want.items()] + [("", 0.0)] * (not impossible), key=lambda each: -each[1])[:6]
            got = tiny(
                question=question,
                context=context,
                top_k=400,  # more than a window has spans: all are considered
                max_seq_len=40,
                doc_stride=11,
                align_to_words=align,
                handle_impossible_answer=impossible,
                max_answer_len=longest,
            )[:6]
            assert [each["answer"] for each in got] == [text for text, _ in best]
            np.testing.assert_allclose([each["score"] for each in got], [score for _, score in best], rtol=1e-4)
            assert all(context[each["start"] : each["end"]] == each["answer"] for each in got)


def windows_of(pipe: Any, asked: list[int], context: str) -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
    """Probabilities of start and end at the places of [CLS] and the context, and those places in ``context``."""
    cls, sep = pipe.tokenizer.cls_id, pipe.tokenizer.sep_id
    places = [i for i, character in enumerate(context) if character != " "]
    ids = pipe.tokenizer.encode(context, add_special_tokens=False).ids
    assert len(ids) == len(places)
    room = 40 - len(asked) - 3
    for first in range(0, max(len(ids) - room, 0) + room - 11, room - 11):
        part = ids[first : first + room]
        sequence = [cls, *asked, sep, *part, sep]
        types = [0] * (len(asked) + 2) + [1] * (len(part) + 1)
        logits = pipe.engine.logits(PackedBatch.from_sequences([sequence], [types])).astype(np.float64)
        kept = np.exp(logits[[0, *range(len(asked) + 2, len(asked) + 2 + len(part))]])
        starts, ends = (kept / kept.sum(axis=0)).T
        yield starts, ends, places[first : first + room]


def by_loops(pipe: Any, asked: list[int], context: str, align: bool, longest: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for starts, ends, places in windows_of(pipe, asked, context):
        for i, first in enumerate(places):
            for j in range(i, min(i + longest, len(places))):
                start, end = first, places[j] + 1
                while align and start - 1 in places:
                    start -= 1
                while align and end in places:
                    end += 1
                text = context[start:end]
                found[text] = max(found.get(text, 0.0), starts[i + 1] * ends[j + 1])
    return found


def null_score(pipe: Any, asked: list[int], context: str) -> float:
    return min(starts[0] * ends[0] for starts, ends, _ in windows_of(pipe, asked, context))


def probability(logit: float, others: float, count: int) -> float:
    return math.exp(logit) / (math.exp(logit) + count * math.exp(others))


def test_a_score_by_hand(lookup: Lookup) -> None:
    """Eight tokens of the context and [CLS] share each probability; the question, whose words score too, does not."""
    starts = math.exp(6) + math.exp(4) + 2 * math.exp(1) + math.exp(2) + 4
    ends = math.exp(6) + math.exp(3) + 2 * math.exp(1) + math.exp(2) + 4
    answer = lookup(PERSON)(question="Is it Angela Merkel.", context="Angela Merkel was the chancellor.")
    assert answer["score"] == pytest.approx(math.exp(6) ** 2 / (starts * ends), rel=1e-5)
    assert {**answer, "score": 0} == {"score": 0, "start": 0, "end": 13, "answer": "Angela Merkel"}


def test_a_token_of_the_question_is_no_answer(lookup: Lookup) -> None:
    """[CLS] takes part in the softmax, in the question too, as in the reference."""
    pipe = lookup({**PARIS, "[CLS]": (9, 9)})
    share = math.exp(6) / (math.exp(6) + 2 * math.exp(9) + 1)
    answer = pipe(question="[CLS] Paris", context="to Paris")
    assert answer == {"score": pytest.approx(share**2, rel=1e-5), "start": 3, "end": 8, "answer": "Paris"}


@pytest.mark.parametrize(
    ("context", "start"),
    [
        ("Paris", 0),
        ("😀 Paris 😀", 2),
        ("👩‍👩‍👧 🇫🇷 Paris", 9),
        ("Cafe\u0301 in Paris", 9),
        ("我住在Paris。", 3),
        ("한국 Paris", 3),
        ("  \n\tParis\n", 4),
        ("«Paris»", 1),
        ("x\x00y Paris", 4),
    ],
)
@pytest.mark.parametrize("align", [True, False])
def test_places_are_characters_of_the_context(lookup: Lookup, context: str, start: int, align: bool) -> None:
    answer = lookup(PARIS)(question="Où? 😀", context=context, align_to_words=align)
    assert {**answer, "score": 0} == {"score": 0, "start": start, "end": start + 5, "answer": "Paris"}


@pytest.mark.parametrize(
    ("tokens", "context", "whole", "pieces"),
    [
        ({"##rk": (6, 6)}, "It is Merkel.", "Merkel", "rk"),
        ({"##\u0301": (6, 6)}, "A Cafe\u0301 here", "Cafe\u0301", "\u0301"),
        ({"York": (6, 6)}, "in New-York now", "York", "York"),
        ({"京": (6, 6)}, "東京に住む", "京", "京"),
        ({"##rk": (6, 0), "Tokyo": (0, 6)}, "Merkel in Tokyo", "Merkel in Tokyo", "rkel in Tokyo"),
        ({"Paris": (6, 0), "##rk": (0, 6)}, "Paris and Merkel", "Paris and Merkel", "Paris and Merk"),
    ],
)
def test_alignment_to_words(lookup: Lookup, tokens: Any, context: str, whole: str, pieces: str) -> None:
    pipe = lookup(tokens)
    for align, text in ((True, whole), (False, pieces)):
        answer = pipe(question="Who?", context=context, align_to_words=align)
        assert answer["answer"] == text == context[answer["start"] : answer["end"]]


def test_a_question_is_cut(lookup: Lookup) -> None:
    """64 tokens of it leave 384 - 67 for the context; what is cut off is in no window and can be no answer."""
    pipe = lookup(PARIS)
    question, context = "who " * 70 + "Paris Paris", "word " * 317 + "Paris"
    wrapped = pipe(question=question, context=context, return_truncation=True)
    assert wrapped["tokens_dropped"] == 72 - 64
    assert wrapped["answer"]["start"] == 317 * 5
    # Windows begin at tokens 0 and 317 - 128; the second has 129, the last of them Paris.
    assert wrapped["answer"]["score"] == pytest.approx(probability(6, 0, 129) ** 2, rel=1e-4)
    for length, dropped in ((1, 71), (64, 8), (71, 1), (72, 0), (100, 0)):
        inputs = [{"question": question, "context": "Paris"}, {"question": "who", "context": context}]
        long, short = pipe(inputs, max_question_len=length, return_truncation=True)
        assert (long["tokens_dropped"], short["tokens_dropped"]) == (dropped, 0)
        assert long["answer"]["answer"] == short["answer"]["answer"] == "Paris"


def test_the_first_cut_of_a_question_warns(lookup: Lookup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders.TruncationWarning, "given", False)
    with pytest.warns(encoders.TruncationWarning, match="Input 0 is cut by 6 tokens; a higher max_question_len keeps"):
        lookup(PARIS)(question="who " * 70, context="Paris")


def test_an_answer_across_the_edge_of_a_window(lookup: Lookup) -> None:
    """A window holds 10 tokens of the context, and the first ends within the answer."""
    pipe = lookup({"New": (6, 0), "York": (0, 6)})
    context = "word " * 9 + "New York" + " word" * 8
    options = {"question": "Where?", "context": context, "max_seq_len": 15, "max_answer_len": 5}
    whole = pipe(doc_stride=1, **options)
    assert (whole["start"], whole["answer"]) == (45, "New York")
    assert whole["score"] == pytest.approx(probability(6, 0, 10) ** 2, rel=1e-5)
    assert "New York" not in [each["answer"] for each in pipe(doc_stride=0, top_k=20, **options)]


def test_the_same_answer_in_two_windows(lookup: Lookup) -> None:
    """Ten tokens and then five of the context; the answer is in the two that they share."""
    pipe = lookup(PARIS)
    options = {
        "question": "Where?",
        "context": "word " * 9 + "Paris word word word",
        "max_seq_len": 15,
        "doc_stride": 2,
    }
    long, short = probability(6, 0, 10), probability(6, 0, 5)
    best, added = pipe(**options), pipe(sum_scores=True, **options)
    assert best["score"] == pytest.approx(short**2, rel=1e-5)
    assert added["score"] == pytest.approx(short**2 + long**2, rel=1e-5) and added["score"] > 1
    for answer in (best, added):
        assert {**answer, "score": 0} == {"score": 0, "start": 45, "end": 50, "answer": "Paris"}


def test_the_same_answer_in_two_places(lookup: Lookup) -> None:
    """The place of the better one, whichever comes first; capitals make no other answer."""
    pipe = lookup({"the": (5, 5), "The": (6, 6)})
    context = "see the dog and The cat"
    starts = math.exp(6) + math.exp(5) + 5
    first, second = (math.exp(5) / starts) ** 2, (math.exp(6) / starts) ** 2
    best, crossing, *_ = pipe(question="?", context=context, top_k=3)
    assert {**best, "score": 0} == {"score": 0, "start": 16, "end": 19, "answer": "The"}
    assert best["score"] == pytest.approx(second, rel=1e-5)
    assert crossing["answer"] == "the dog and The"
    added = pipe(question="?", context=context, sum_scores=True)
    assert added["score"] == pytest.approx(first + second, rel=1e-5)


def test_of_equal_spans_the_first(lookup: Lookup) -> None:
    answers = lookup({})(question="?", context="a b c", top_k=4)
    assert [each["answer"] for each in answers] == ["a", "a b", "a b c", "b"]
    assert [each["score"] for each in answers] == [pytest.approx(1 / 16)] * 4


def test_no_answer(lookup: Lookup) -> None:
    """[CLS] has 5 where Paris has 2; the window in which it is least likely counts."""
    pipe = lookup({"Paris": (2, 2), "[CLS]": (5, 5)})
    others = math.exp(2) + 2
    null = math.exp(5) / (math.exp(5) + others)
    paris = math.exp(2) / (math.exp(5) + others)
    item = {"question": "Where?", "context": "Paris is nice"}
    assert pipe(item)["answer"] == "Paris"
    first, second = pipe(item, handle_impossible_answer=True, top_k=2)
    assert first == {"score": pytest.approx(null**2, rel=1e-5), **NOTHING}
    assert second["score"] == pytest.approx(paris**2, rel=1e-5)
    two = pipe(question="Where?", context="word " * 12, max_seq_len=15, doc_stride=0, handle_impossible_answer=True)
    assert two == {"score": pytest.approx(probability(5, 0, 10) ** 2, rel=1e-5), **NOTHING}


def test_answers_of_one_token(lookup: Lookup) -> None:
    pipe = lookup(PERSON)
    options = {"question": "Who?", "context": "Angela Merkel was.", "top_k": 8, "align_to_words": False}
    texts = [each["answer"] for each in pipe(max_answer_len=1, **options)]
    assert sorted(texts[:6]) == sorted(["Angela", "Me", "rk", "el", "was", "."]) and texts[6:] == [""]
    longest = max(len(each["answer"].split()) for each in pipe(max_answer_len=2, **{**options, "top_k": 50}))
    assert longest == 2


def test_more_answers_than_there_are(lookup: Lookup) -> None:
    """All spans of the context, then the empty one; where that is an answer anyway, it is there once."""
    pipe = lookup(PARIS)
    for align in (True, False):
        answers = pipe(question="Where?", context="Paris is", top_k=50, align_to_words=align)
        assert [each["answer"] for each in answers] == ["Paris", "Paris is", "is", ""] or [
            each["answer"] for each in answers
        ] == ["Paris", "is", "Paris is", ""]
        assert answers[-1] == {"score": 0.0, **NOTHING}
    possible = pipe(question="Where?", context="Paris is", top_k=50, handle_impossible_answer=True)
    assert [each["answer"] for each in possible].count("") == 1
    assert possible[-1]["score"] == pytest.approx((1 / (math.exp(6) + 2)) ** 2, rel=1e-5)


@pytest.mark.parametrize("context", [" ", "\n\t", "\x00"])
def test_a_context_without_a_token(lookup: Lookup, context: str) -> None:
    for options in ({}, {"top_k": 3}, {"sum_scores": True}, {"align_to_words": False, "sum_scores": True}):
        assert lookup(PARIS)(question="Where?", context=context, **options) == {"score": 0.0, **NOTHING}
    possible = lookup(PARIS)(question="Where?", context=context, handle_impossible_answer=True)
    assert possible == {"score": 1.0, **NOTHING}


def test_a_default_stride_is_at_most_half_of_the_room(tiny: Any) -> None:
    """64 positions and a question of 57 tokens leave 4, of which 2 are shared; the reference stops there."""
    encode = tiny._checked_plan().encode
    for asked, shared in ((57, 2), (60, 0), (1, 30)):
        first, second, *_ = encode([("a" + " a" * (asked - 1), "b " * 100)])[0]
        room = len(first.part(1))
        assert (room, len(first.ids)) == (64 - 3 - asked, 64)
        assert second.offsets[second.part(1).start] == (2 * (room - shared), 2 * (room - shared) + 1)
    assert [tiny._checked_plan(max_seq_len=30, doc_stride=0).encode.overlap(room) for room in (1, 9)] == [0, 0]


def test_how_much_a_window_holds(lookup: Lookup) -> None:
    """384 tokens, 128 of the context in common; the tokeniser's limit is 512."""
    item = ("Where?", "word " * 500)
    windows = lookup(PARIS)._checked_plan().encode([item])[0]
    assert [len(window.ids) for window in windows] == [384, 254]
    (whole,) = lookup(PARIS)._checked_plan(max_seq_len=512).encode([item])[0]
    assert len(whole.ids) == 505


ITEM = {"question": "Where?", "context": "It is in Paris now"}
OTHER = {"question": "What?", "context": "Tokyo or Paris?"}


def test_ways_to_call(lookup: Lookup) -> None:
    pipe = lookup(PARIS)
    one, two = pipe(ITEM), pipe(OTHER)
    assert one["start"] == 9 and two["start"] == 9 and one["score"] != two["score"]
    assert pipe(**ITEM) == one == pipe([ITEM])
    assert pipe([ITEM, OTHER]) == [one, two] == pipe((ITEM, OTHER))
    questions = [ITEM["question"], OTHER["question"]]
    assert pipe(question=questions, context=[ITEM["context"], OTHER["context"]]) == [one, two]
    assert pipe(question=questions, context=ITEM["context"]) == [one, one]
    assert pipe(question=questions[:1], context=ITEM["context"]) == one
    assert pipe([]) == [] == pipe(question=[], context="x")
    stream = pipe(iter([ITEM, OTHER]), top_k=2)
    assert isinstance(stream, Iterator)
    assert list(stream) == [pipe(ITEM, top_k=2), pipe(OTHER, top_k=2)]
    assert pipe([ITEM, OTHER] * 70, batch_size=9) == [one, two] * 70
    assert distilfast.pipeline("question-answering", pipe.engine, top_k=2)(ITEM) == pipe(ITEM, top_k=2)


BAD = [
    {"question": "Where?"},
    {**ITEM, "id": 5},
    ("Where?", "There"),
    {"question": None, "context": "x"},
    {"question": "Where?", "context": ["x"]},
    {"question": "", "context": "x"},
    {"question": "Where?", "context": ""},
    {"question": "Where?", "context": "\ud83d"},
]
SENTENCES = [
    'Input 1 is not {"question": …, "context": …}',
    'Input 1 is not {"question": …, "context": …}',
    'Input 1 is not {"question": …, "context": …}',
    "Input 1 has a question of type NoneType; a string is needed",
    "Input 1 has a context of type list; a string is needed",
    "Input 1 has an empty question",
    "Input 1 has an empty context",
    "Input 1 holds half of a surrogate pair",
]


@pytest.mark.parametrize(("item", "what"), list(zip(BAD, SENTENCES, strict=True)))
def test_bad_items(lookup: Lookup, item: Any, what: str) -> None:
    pipe = lookup(PARIS)
    raises_one_sentence(InputError, what, lambda: pipe([ITEM, item]))
    good, bad, last = pipe([ITEM, item, OTHER], errors="return")
    assert (good, last) == (pipe(ITEM), pipe(OTHER))
    assert isinstance(bad, InputError) and what in str(bad)


@pytest.mark.filterwarnings("ignore:Input 0 is cut")
def test_questions_that_leave_no_room(tiny: Any) -> None:
    """Of 64 positions; the others are answered."""
    items = [{"question": "a " * asked, "context": "b c"} for asked in (60, 61, 64, 100, 50)]
    for options, bad, what in (
        ({}, (1, 2, 3), "max_seq_len is 64, which leaves no room for the context"),
        ({"doc_stride": 8}, (0, 1, 2, 3), ""),
        ({"max_question_len": 50, "doc_stride": 10}, (), ""),
    ):
        answers = tiny(items, errors="return", **options)
        assert [i for i, each in enumerate(answers) if isinstance(each, InputError)] == list(bad)
        for i in bad:
            assert f"Text {i} cannot be encoded: " in str(answers[i]) and what in str(answers[i])
    room = "Text 0 cannot be encoded: doc_stride is 8; a window has room for 1 tokens of the context"
    raises_one_sentence(InputError, room, lambda: tiny(items[0], doc_stride=8))
    raises_one_sentence(InputError, "a lower max_question_len", lambda: tiny(items[1]))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"top_k": 0}, "top_k is 0; a positive integer is needed"),
        ({"top_k": 1.0}, "top_k is 1.0"),
        ({"max_answer_len": 0}, "max_answer_len is 0"),
        ({"max_answer_len": "15"}, "max_answer_len is '15'"),
        ({"max_question_len": 0}, "max_question_len is 0"),
        ({"max_question_len": None}, "max_question_len is None"),
        ({"max_seq_len": 0}, "max_seq_len is 0"),
        ({"max_seq_len": 3}, "max_seq_len is 3; the special tokens alone need 3"),
        ({"max_seq_len": 65}, "max_seq_len is 65; the model has 64 positions"),
        ({"doc_stride": -1}, "doc_stride is -1; an integer of 0 or more is needed"),
        ({"doc_stride": 61}, "doc_stride is 61; a window has room for 61 tokens of the context"),
        ({"doc_stride": 40, "max_seq_len": 43}, "doc_stride is 40; a window has room for 40 tokens of the context"),
        ({"align_to_words": 1}, "align_to_words is 1; True or False is needed"),
        ({"handle_impossible_answer": "no"}, "handle_impossible_answer is 'no'"),
        ({"sum_scores": None}, "sum_scores is None"),
        ({"topk": 3}, "topk is not an option of question-answering; top_k says how many answers are given"),
        ({"padding": True}, "padding is not an option of question-answering; nothing is padded"),
        ({"truncation": True}, "truncation is not an option of question-answering"),
        ({"errors": "skip"}, "errors 'skip' is not known"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options(tiny: Any, options: dict[str, Any], what: str) -> None:
    raises_one_sentence(InputError, what, lambda: tiny(question="a", context="b", **options))
    raises_one_sentence(InputError, what, lambda: distilfast.pipeline("question-answering", tiny.engine, **options))


@pytest.mark.parametrize(
    ("inputs", "named", "what"),
    [
        (None, {}, 'The input is of type NoneType; {"question": …, "context": …} or a list of these is needed'),
        ("Where?", {}, "The input is of type str"),
        (b"Where?", {}, "The input is of type bytes"),
        (5, {}, "The input is of type int"),
        (ITEM, {"question": "Where?"}, "There are inputs beside question and context"),
        (None, {"question": "Where?"}, "question is of type str and context of type NoneType"),
        (None, {"context": "Where?"}, "question is of type NoneType and context of type str"),
        (None, {"question": "Where?", "context": ["a"]}, "question is of type str and context of type list"),
        (None, {"question": ["a", "b"], "context": ["a"]}, "There are 2 questions and 1 contexts"),
        (None, {"question": iter(["a"]), "context": "a"}, "question is of type list_iterator"),
        (None, {"question": ["a", 5], "context": "a"}, "Input 1 has a question of type int"),
    ],
)
def test_bad_calls(tiny: Any, inputs: Any, named: dict[str, Any], what: str) -> None:
    raises_one_sentence(InputError, what, lambda: tiny(inputs, **named))


def test_the_engine_has_another_head(tiny_checkpoint: Make) -> None:
    engine = distilfast.Engine.from_pretrained(tiny_checkpoint("distilbert", "fill-mask"))
    raises_one_sentence(
        InputError, "not for question-answering", lambda: distilfast.pipeline("question-answering", engine)
    )
