"""Every metric against an independent one: scikit-learn, scipy, seqeval, the official scripts, or by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from distilfast.errors import InputError
from distilfast.evaluation import metrics

CASES = [(2, 0), (3, 1), (17, 2), (100, 3), (1000, 4)]


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize(("size", "seed"), CASES)
def test_classification_metrics_are_those_of_scikit_learn(size: int, seed: int) -> None:
    truth = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    for share in (0.0, 0.1, 0.5, 1.0):
        wanted, got = rng.integers(0, 2, size), (rng.random(size) < share).astype(int)
        assert metrics.accuracy(got, wanted) == pytest.approx(truth.accuracy_score(wanted, got))
        assert metrics.f1(got, wanted) == pytest.approx(truth.f1_score(wanted, got, zero_division=0))
        assert metrics.matthews(got, wanted) == pytest.approx(truth.matthews_corrcoef(wanted, got), abs=1e-12)


def test_f1_by_hand() -> None:
    """Three predicted positives, two of them true, of four: p = 2/3, r = 1/2, 2pr / (p + r) = 4/7."""
    assert metrics.f1([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0]) == pytest.approx(4 / 7)
    assert metrics.f1(["a", "b"], ["a", "a"], positive="a") == pytest.approx(2 / 3)


def test_matthews_by_hand() -> None:
    """TP 6, TN 3, FP 1, FN 2: (6·3 − 1·2) / √(7·8·4·5)."""
    got = [1] * 7 + [0] * 5
    wanted = [1] * 6 + [0] + [0] * 3 + [1] * 2
    assert metrics.matthews(got, wanted) == pytest.approx(16 / math.sqrt(7 * 8 * 4 * 5))


@pytest.mark.parametrize(("size", "seed"), CASES)
@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(size: int, seed: int, ties: bool) -> None:
    truth = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    got, wanted = rng.normal(size=size), rng.normal(size=size)
    if ties and size > 3:
        got, wanted = np.round(got), np.round(2 * wanted) / 2
    assert metrics.pearson(got, wanted) == pytest.approx(truth.pearsonr(got, wanted)[0])
    assert metrics.spearman(got, wanted) == pytest.approx(truth.spearmanr(got, wanted)[0])


def test_pearson_keeps_small_differences_of_large_values() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert metrics.pearson(1e7 + x, x) == pytest.approx(1.0)


def test_a_constant_has_no_correlation() -> None:
    assert metrics.pearson([2.5] * 4, [1, 2, 3, 4]) == 0.0
    assert metrics.spearman([1, 2, 3, 4], [0.1] * 4) == 0.0
    assert metrics.matthews([1, 1, 1], [0, 1, 0]) == 0.0


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews", "pearson", "spearman"])
def test_predictions_and_labels_of_different_length_are_an_error(metric: str) -> None:
    for got, wanted in (([1], [1, 0]), ([], [])):
        with pytest.raises(InputError, match="as many are needed"):
            getattr(metrics, metric)(got, wanted)


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("O O", []),
        ("B-PER I-PER O", [("PER", 0, 2)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # IOB1
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),  # IOB1: B only between adjacent entities of a type
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),  # another type begins another entity
        ("O I-ORG", [("ORG", 1, 2)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)]),
        ("B I O B", [("_", 0, 2), ("_", 3, 4)]),
        ("", []),
    ],
)
def test_entities_by_hand(tags: str, wanted: list[metrics.Entity]) -> None:
    assert metrics.entities(tags.split()) == wanted


def conlleval(tags: Sequence[str]) -> set[metrics.Entity]:
    """The rules of startOfChunk and endOfChunk in conlleval.txt, one by one."""
    found, begun = set(), None
    before = ("O", "")
    for i, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        last, last_kind = before
        ends = last in "BI" and (mark in "BO" or (last_kind != kind))
        starts = mark == "B" or (mark == "I" and (last == "O" or last_kind != kind))
        if ends and begun is not None:
            found.add((last_kind, begun, i))
            begun = None
        if starts:
            begun = i
        before = (mark, kind)
    return found


def tag_sequences(seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    tags = ["O", "O", *(f"{mark}-{kind}" for mark in "BI" for kind in ("PER", "LOC"))]
    return [list(rng.choice(tags, length)) for length in rng.integers(1, 12, 200)]


def test_entities_of_random_tags_are_those_of_conlleval() -> None:
    for tags in tag_sequences(0):
        assert set(metrics.entities(tags)) == conlleval(tags)


def test_entity_scores_are_those_of_seqeval() -> None:
    truth = pytest.importorskip("seqeval.metrics")
    wanted = tag_sequences(1)
    rng = np.random.default_rng(2)
    got = [[tag if rng.random() < 0.8 else "I-PER" for tag in tags] for tags in wanted]
    mine = metrics.entity_scores(got, wanted)
    for name in ("precision", "recall", "f1"):
        assert mine[name] == pytest.approx(getattr(truth, f"{name}_score")(wanted, got))


def test_entity_scores_by_hand() -> None:
    """Two predicted entities, one of them true, of three: p = 1/2, r = 1/3, F1 = 2/5."""
    wanted = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG"]]
    got = [["B-PER", "I-PER", "O", "O"], ["B-LOC"]]
    assert metrics.entity_scores(got, wanted) == pytest.approx({"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5})
    assert metrics.entity_scores([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    with pytest.raises(InputError, match="Sentence 0 has 1 predictions and 2 labels"):
        metrics.entity_scores([["O"]], [["O", "O"]])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The  Quick, Brown fox!", "quick brown fox"),
        ("An apple a day", "apple day"),
        ("theatre another", "theatre another"),
        ("U.S.A.", "usa"),
        ("the-end", "theend"),  # punctuation is removed before articles
        ("“quoted”", "“quoted”"),  # only ASCII punctuation is removed
        ("\ta\n", ""),
    ],
)
def test_squad_normalisation(text: str, wanted: str) -> None:
    assert metrics.squad_normalized(text) == wanted


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("the Denver Broncos", ["Denver Broncos", "Broncos"], 1.0, 1.0),
        ("Broncos of Denver", ["Denver Broncos"], 0.0, 0.8),  # p = 2/3, r = 1
        ("in 1905", ["1905", "in the year 1905"], 0.0, 0.8),  # the best of the answers: p = 1, r = 2/3
        ("x x y", ["x"], 0.0, 0.5),  # a word counts as often as it is in both
        ("Paris", ["London"], 0.0, 0.0),
        ("", [""], 1.0, 1.0),
        ("something", [""], 0.0, 0.0),
    ],
)
def test_squad_scores_by_hand(prediction: str, answers: list[str], exact: float, f1: float) -> None:
    assert metrics.squad_exact(prediction, answers) == exact
    assert metrics.squad_f1(prediction, answers) == pytest.approx(f1)


def test_nan_is_not_a_score() -> None:
    assert metrics.percent({"accuracy": 0.5}) == {"accuracy": 50.0}
    with pytest.raises(InputError, match="metric pearson is nan"):
        metrics.percent({"pearson": math.nan})
