"""The task metric of an engine and of its baseline on labelled texts, and when the difference is too large."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distilfast import Engine, PackedBatch, pipeline, reference
from distilfast.backends import cpu
from distilfast.errors import InputError
from distilfast.evaluation import evaluate, gate
from distilfast.evaluation.labels import read_labels, read_texts
from distilfast.evaluation.metrics import squad_normalized
from distilfast.parity.budgets import QUALITY_POINTS, Arithmetic, to_int8
from distilfast.parity.sample_texts import TEXTS

Make = Callable[..., Path]


def labelled(directory: Path, wrong: int = 0) -> tuple[list[str], list[str]]:
    """The sample texts with the labels that the fp32 pipeline gives them, the first few replaced by others."""
    labels = [answer["label"] for answer in pipeline("text-classification", directory)(list(TEXTS), truncation=True)]
    assert len(set(labels)) > 1, "all labels are the same"
    replaced = [next(name for name in sorted(set(labels)) if name != label) for label in labels[:wrong]]
    return list(TEXTS), replaced + labels[wrong:]


@pytest.fixture(scope="session")
def classifier(tiny_checkpoint: Make) -> Path:
    return tiny_checkpoint("distilbert", "text-classification", num_labels=3, seed=56)  # predicts two of the three


@pytest.mark.parametrize("baseline", [None, "fp32", "transformers"])
def test_fp32_costs_nothing(classifier: Path, baseline: str | None) -> None:
    if baseline == "transformers":
        pytest.importorskip("transformers")
    texts, labels = labelled(classifier, wrong=6)
    found = gate(classifier, texts, labels, baseline=baseline)
    assert found.engine_points == found.baseline_points == pytest.approx(75.0)
    assert (found.cost, found.changed, found.lost, found.won) == (0, 0, 0, 0)
    assert found.passed and found.count == 24
    assert found.baseline == (baseline or "reference")


def test_labels_may_be_names_or_numbers(classifier: Path) -> None:
    texts, labels = labelled(classifier)
    numbers = [label.removeprefix("LABEL_") for label in labels]
    assert gate(classifier, texts, labels).engine_points == gate(classifier, texts, numbers).engine_points == 100.0


def test_too_large_a_cost_fails(register: Callable[..., str], classifier: Path) -> None:
    """A constant answer is right on the texts that have its label."""

    def constant(tensors: dict[str, Any], x: np.ndarray) -> np.ndarray:
        y = reference.linear(x, tensors["head.1.weight"], tensors["head.1.bias"])
        y[:] = (9.0, 0.0, 0.0)
        return y

    texts, labels = labelled(classifier)
    register(steps={"head.1": constant})
    found = gate(classifier, texts, labels, backend="planted", precision="int8", baseline="reference")
    others = sum(label != "LABEL_0" for label in labels)
    assert (found.lost, found.won, found.changed) == (others, 0, others)
    assert found.cost == pytest.approx(100 * others / 24)
    assert not found.passed
    assert f"int8 on planted costs {found.cost:.2f} points of accuracy on your data" in found.sentence


def test_two_precisions_of_one_backend(register: Callable[..., str], classifier: Path) -> None:
    """The default baseline of a lower precision is fp32 on the same backend."""
    register(arithmetic=Arithmetic(to_int8, to_int8, linears_only=True))
    found = gate(classifier, *labelled(classifier), backend="planted", precision="int8")
    assert found.baseline == "fp32"
    assert found.changed == 0


def test_a_gain_is_not_a_cost(register: Callable[..., str], classifier: Path) -> None:
    def negated(tensors: dict[str, Any], x: np.ndarray) -> np.ndarray:
        return -reference.linear(x, tensors["head.1.weight"], tensors["head.1.bias"])

    texts, labels = labelled(classifier)
    register(steps={"head.1": negated})
    found = gate(classifier, texts, labels, backend="planted", precision="int8", baseline="reference")
    assert found.cost > QUALITY_POINTS and not found.passed
    worst = pipeline("text-classification", classifier)(texts, top_k=None, truncation=True)
    found = gate(
        classifier, texts, [each[-1]["label"] for each in worst],
        backend="planted", precision="int8", baseline="reference",
    )  # fmt: skip
    assert found.engine_points == 100.0 and found.cost < 0 and found.passed
    assert "wins" in found.sentence


def test_a_regression_is_scored_by_rank_correlation(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("distilbert", "text-classification", num_labels=1)
    engine = Engine.from_pretrained(directory)
    encodings = engine.tokenizer.encode_batch(TEXTS, truncation=True, max_length=64)
    scores = engine.logits(PackedBatch.from_sequences([encoding.ids for encoding in encodings]))[:, 0]
    found = gate(directory, TEXTS, [str(score) for score in scores])
    assert found.metric == "rank correlation"
    assert found.engine_points == pytest.approx(100.0)
    assert gate(directory, TEXTS, [str(-score) for score in scores]).engine_points == pytest.approx(-100.0)


@pytest.mark.parametrize("pooling", [None, "cls"])
def test_embeddings_are_scored_by_the_nearest_text(tiny_checkpoint: Make, tmp_path: Path, pooling: str | None) -> None:
    """Against a slow definition over the pipeline's own vectors."""
    directory = tiny_checkpoint("bert", "feature-extraction")
    if pooling:
        directory = shutil.copytree(directory, tmp_path / "pooled")
        kinds = enumerate(("Transformer", "Pooling"))
        modules = [{"path": "p" * i, "type": f"sentence_transformers.models.{kind}"} for i, kind in kinds]
        (directory / "modules.json").write_text(json.dumps(modules))
        (directory / "p").mkdir()
        (directory / "p" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    vectors = pipeline("feature-extraction", directory).embed(list(TEXTS))
    labels = [str(i % 3) for i in range(len(TEXTS))]
    right = 0
    for i, vector in enumerate(vectors):
        scores = [vector @ other if j != i else -2.0 for j, other in enumerate(vectors)]
        right += labels[i] == labels[int(np.argmax(scores))]
    found = gate(directory, TEXTS, labels)
    assert found.engine_points == pytest.approx(100 * right / len(TEXTS))


def test_masks_are_scored_by_the_likeliest_token(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("distilbert", "fill-mask")
    texts = [text for text in TEXTS if "[MASK]" in text]
    best = [answer[0]["token_str"] for answer in pipeline("fill-mask", directory)(texts)]
    tokens = pipeline("fill-mask", directory).tokenizer
    names = [tokens.id_to_token(answer[0]["token"]) for answer in pipeline("fill-mask", directory)(texts)]
    assert len(best) == len(texts) == 3
    assert gate(directory, texts, names).engine_points == 100.0
    with pytest.raises(InputError, match="Text 0 has 1 masks and 2 labels"):
        gate(directory, texts, [f"{name} x" for name in names])


def test_words_are_scored_at_their_first_token(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("bert", "token-classification")
    engine = Engine.from_pretrained(directory)
    texts = ["Ann met Bob", "in Paris"]
    labels = []
    for text in texts:
        encoding = engine.tokenizer.encode(text)
        logits = engine.logits(PackedBatch.from_sequences([encoding.ids], [encoding.type_ids]))
        starts = [0, *(i + 1 for i, character in enumerate(text) if character == " ")]
        first = [next(i for i, (a, b) in enumerate(encoding.offsets) if a == start and b > a) for start in starts]
        labels.append(" ".join(engine.config.id2label[int(logits[i].argmax())] for i in first))
    found = gate(directory, texts, labels)
    assert (found.count, found.engine_points) == (5, 100.0)
    with pytest.raises(InputError, match="Text 1 has 2 words and 3 labels"):
        gate(directory, texts, [labels[0], labels[1] + " O"])


QUESTIONS = [
    ("Who?", "In 1905 Einstein published four papers, each of which changed physics, and went home."),
    ("When was it?", "It rained. " * 12),  # far more than the 64 tokens of the tiny model
    ("Where?", "Snow fell on the 2nd of May."),
    ("Why?", "No."),
]


@pytest.fixture(scope="session")
def answering(tiny_checkpoint: Make) -> Path:
    return tiny_checkpoint("bert", "question-answering", seed=2)


@pytest.fixture
def answers(answering: Path, tmp_path: Path) -> list[str]:
    """The answers of ``distilfast evaluate`` to the same questions."""
    path = tmp_path / "questions.json"
    path.write_text(squad_json([(question, context, [context]) for question, context in QUESTIONS]), encoding="utf-8")
    return list(evaluate(answering, "squad", path).predictions)


def squad_json(rows: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    paragraphs = [
        {"context": context, "qas": [{"question": question, "answers": [{"text": text} for text in texts]}]}
        for question, context, texts in rows
    ]
    return json.dumps({"data": [{"paragraphs": paragraphs}]})


@pytest.mark.parametrize("baseline", [None, "transformers"])
def test_answers_are_scored_by_their_words(answering: Path, answers: list[str], baseline: str | None) -> None:
    """Half of the words of one label are wrong: F1 2/3 there, and no exact match."""
    if baseline == "transformers":
        pytest.importorskip("transformers")
    assert all(answers)
    found = gate(answering, QUESTIONS, answers, baseline=baseline)
    assert (found.metric, found.count, found.engine_points, found.exact_match) == ("F1", 4, 100.0, (100.0, 100.0))
    words = "".join(" zebra" for _ in squad_normalized(answers[0]).split())
    found = gate(answering, QUESTIONS, [answers[0] + words, *answers[1:]], baseline=baseline)
    assert found.engine_points == found.baseline_points == pytest.approx(100 * (3 + 2 / 3) / 4)
    assert found.exact_match == (75.0, 75.0)
    assert "exact match 75.00, and 75.00; 4 labels" in found.sentence
    assert found.passed and found.to_dict()["exact_match"] == [75.0, 75.0]


def test_one_of_several_answers_is_enough(answering: Path, answers: list[str], tmp_path: Path) -> None:
    """From a file in SQuAD's format, as the command reads it; if one is unanswerable, all may stay unanswered."""
    path = tmp_path / "data.json"
    rows = [(*each, ["zebra", answer]) for each, answer in zip(QUESTIONS, answers, strict=True)]
    path.write_text(squad_json(rows), encoding="utf-8")
    texts, labels = read_texts(path)
    assert texts == QUESTIONS and labels == [("zebra", answer) for answer in answers]
    assert gate(answering, texts, labels).engine_points == 100.0
    path.write_text(squad_json([*rows[:3], (*QUESTIONS[3], [])]), encoding="utf-8")
    found, wanted = gate(answering, *read_texts(path)), evaluate(answering, "squad", path).metrics
    assert found.engine_points == pytest.approx(wanted["f1"])
    assert found.exact_match is not None and found.exact_match[0] == pytest.approx(wanted["exact_match"])


def test_lost_answers_fail(register: Callable[..., str], answering: Path, answers: list[str]) -> None:
    """With constant logits; and a lost exact match fails even where F1 keeps the budget."""

    def flat(tensors: dict[str, Any], x: np.ndarray) -> np.ndarray:
        return np.zeros((len(x), 2), np.float32)

    register(steps={"head.0": flat})
    found = gate(answering, QUESTIONS, answers, backend="planted", precision="int8", baseline="reference")
    assert found.lost > 0 and not found.passed
    kept = replace(found, engine_points=found.baseline_points)
    assert kept.cost == 0 and not kept.passed
    assert replace(kept, exact_match=(100.0, 100.4)).passed


def test_choices_are_scored_by_the_best_one(tiny_checkpoint: Make) -> None:
    """Against the engine's logits for one question at a time; then with wrong labels for one of three."""
    directory = tiny_checkpoint("distilbert", "multiple-choice")
    engine = Engine.from_pretrained(directory)
    questions = {"He sat": ["down.", "the moon.", "on a chair."], "It rains": ["cats", "on Monday."], "One": ["only"]}
    texts = [(question, choice) for question, choices in questions.items() for choice in choices]
    labels: list[str] = []
    for question, choices in questions.items():
        encodings = engine.tokenizer.encode_batch([(question, choice) for choice in choices])
        scores = engine.logits(PackedBatch.from_sequences([encoding.ids for encoding in encodings]))[:, 0]
        labels += ["1" if i == scores.argmax() else "0" for i in range(len(choices))]
    found = gate(directory, texts, labels)
    assert (found.metric, found.count, found.engine_points, found.exact_match) == ("accuracy", 3, 100.0, None)
    reversed_labels = [*labels[:3], *labels[3:5][::-1], labels[5]]
    assert gate(directory, texts, reversed_labels).engine_points == pytest.approx(100 * 2 / 3)


def test_labels_that_do_not_match_the_task(classifier: Path, tiny_checkpoint: Make) -> None:
    with pytest.raises(InputError, match="'happy' of text 0 is none of the model's 3 labels"):
        gate(classifier, ["a"], ["happy"])
    with pytest.raises(InputError, match="2 labels for 1 texts"):
        gate(classifier, ["a"], ["0", "1"])
    with pytest.raises(InputError, match="labels are answers to questions, and the task is text-classification"):
        gate(classifier, ["a"], [("0", "1")])
    with pytest.raises(InputError, match="Text 0 is one text; question-answering needs a question and its context"):
        gate(tiny_checkpoint("bert", "question-answering"), ["a"], ["0"])
    choices = tiny_checkpoint("bert", "multiple-choice")
    with pytest.raises(InputError, match="Text 1 is one text; multiple-choice needs a question and a choice"):
        gate(choices, [("a", "b"), "c"], ["1", "1"])
    for marks in (["1", "1"], ["0", "0"], ["1", "x"]):
        with pytest.raises(InputError, match=f"The choices of text 0 are labelled {marks[0]} {marks[1]}; one 1 and"):
            gate(choices, [("a", "b"), ("a", "c")], marks)
    regression = tiny_checkpoint("distilbert", "text-classification", num_labels=1)
    with pytest.raises(InputError, match="'high' of text 0 is no number"):
        gate(regression, ["a"], ["high"])


def test_texts_and_labels_from_files(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text("one text\t3\na question\tits context\t4\r\nlast\t5\n", encoding="utf-8")
    assert read_texts(path, 2)[1] == ["3", "its context", "5"]
    assert read_texts(path, 2)[0] == ["one text", ("a question", "4"), "last"]
    path.write_text("0\tone text\n1\ta question\tits context\n", encoding="utf-8")
    assert read_texts(path, 1) == (["one text", ("a question", "its context")], ["0", "1"])
    path.write_text("pos\nneg\n", encoding="utf-8")
    assert read_labels(path, 2) == ["pos", "neg"]
    with pytest.raises(InputError, match="has 2 labels for 3 texts"):
        read_labels(path, 3)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a\n\nb\n", None, "line 2, is neither a text nor two"),
        ("a\tb\tc\n", None, "line 1, is neither a text nor two"),
        ("a\n", 2, r"line 1, has 1 column\(s\), and no column 2"),
        ("", None, "is empty"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, text: str, column: int | None, message: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_texts(path, column)
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(tmp_path / "absent.txt")


@pytest.mark.skipif(bool(cpu.unavailable()), reason="the extension is not built")
def test_trained_embeddings_on_real_requests(minilm: Path, data_directory: Path) -> None:
    """80 requests of BANKING77 in four intents: well above chance, and the same with transformers."""
    import csv

    with (data_directory / "banking77" / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:161][::2]
    found = gate(minilm, [row[0] for row in rows], [row[1] for row in rows], baseline="transformers")
    assert found.engine_points > 60.0
    assert found.passed
