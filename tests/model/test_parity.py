"""The fp32 budget in full size: the engine's error is at most twice that of the reference's naive fp32.

Both are measured against transformers in float64, ‖out − truth‖ / ‖truth‖ over every token of a ragged batch of real
text, for each head on the native instruction set and for one head on each other. ``pytest -s`` prints the figures; a
JUnit file has them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from comparison import Padded, Values, naive_outputs, pad, split, transformers_model, transformers_outputs
from isas import SLOW, isas_with

from distilfast import Engine, Tokenizer, pipeline
from distilfast.heads import TASKS
from distilfast.parity import NAIVE_FACTOR, relative_error
from distilfast.synthetic import write_checkpoint

MINILM_SHAPE = {
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
}
MINILM_TOLERANCE = 1e-5  # stated by the project
LONGEST = 150  # tokens; the reference pads every text to the longest
Sentences = Callable[..., list[str]]


class Case(NamedTuple):
    """A checkpoint, its batch, the truth, and the errors of the reference's naive fp32."""

    name: str
    directory: Path
    batch: Padded
    truth: dict[str, np.ndarray]
    naive: dict[str, float]


def measured(*parts: tuple[Values, np.ndarray]) -> dict[str, np.ndarray]:
    """The last hidden state and all of the head's outputs, each flat, of (outputs, ``Padded.keep``) without padding."""
    flat: dict[str, list[np.ndarray]] = {}
    for outputs, keep in parts:
        states = outputs["hidden_states"]
        for name, value in ({"last_hidden_state": states[-1]} | outputs).items():
            if name != "hidden_states":
                flat.setdefault(name, []).append(split(name, value, keep)[0])
    joined = {name: np.concatenate(each) for name, each in flat.items()}
    last = joined.pop("last_hidden_state")
    return {"last hidden state": last} | ({"head": np.concatenate(list(joined.values()))} if joined else {})


def of_similar_length(batch: Padded) -> list[Padded]:
    """The last text, which is much longer, and the others apart: transformers computes padding too."""
    if batch.ids.ndim > 2:
        return [batch]
    longest = int(batch.mask[:-1].sum(axis=1).max())
    parts = (slice(None, -1), longest), (slice(-1, None), None)
    return [Padded(*(a if a is None else a[rows, :columns] for a in batch)) for rows, columns in parts]


def errors(got: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: relative_error(got[name], values) for name, values in truth.items()}


def make_case(name: str, directory: Path, task: str, batch: Padded) -> Case:
    model = transformers_model(directory, task).double()
    parts = of_similar_length(batch)
    truth = measured(*((transformers_outputs(model, part, output_hidden_states=True), part.keep) for part in parts))
    naive = measured((naive_outputs(directory, batch, output_hidden_states=True), batch.keep))
    assert all(values.dtype == np.float64 for values in truth.values())
    return Case(name, directory, batch, truth, errors(naive, truth))


def real_batch(directory: Path, texts: list[Any], types: bool = False) -> Padded:
    encodings = Tokenizer.from_directory(directory).encode_batch(texts, truncation=True, max_length=LONGEST)
    assert len({len(encoding.ids) for encoding in encodings}) > 2, "the batch is not ragged"
    batch = pad([encoding.ids for encoding in encodings])
    return batch._replace(types=pad([encoding.type_ids for encoding in encodings]).ids) if types else batch


@pytest.fixture(scope="module")
def cases(full_checkpoint: Callable[[str], Path], sentences: Sentences) -> Callable[[str], Case]:
    """``cases(task)``: DistilBERT-base-cased in full size with this head, made once for all instruction sets.

    Heads with few outputs for each text get more texts, so that the ratio of two errors is a good estimate.
    """

    @cache
    def make(task: str) -> Case:
        directory = full_checkpoint(task)
        if task == "multiple-choice":  # one output for each question and choice
            questions, choices = sentences(10, (3, 9), seed=1), sentences(40, (1, 4), seed=2)
            pairs = [(questions[i // 4], choice) for i, choice in enumerate(choices)]
            flat = real_batch(directory, pairs)
            return make_case(task, directory, task, Padded(*(a.reshape(10, 4, -1) for a in flat[:2])))
        texts = [*sentences(5, (1, 9), seed=3), *sentences(4, (12, 40), seed=4), *sentences(1, (100, 300), seed=5)]
        return make_case(task, directory, task, real_batch(directory, texts))

    return make


@pytest.fixture
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """The case of one task."""
    return cases(request.param)


@pytest.fixture(scope="module")
def bert_case(
    tmp_path_factory: pytest.TempPathFactory, data_directory: Path, question_pairs: list[tuple[str, str]]
) -> Case:
    """BERT with a pooler and token types, in the shape of MiniLM, on questions with their contexts."""
    directory = tmp_path_factory.mktemp("bert")
    write_checkpoint(
        directory, task="feature-extraction", config=MINILM_SHAPE, vocabulary=data_directory / "vocab-cased"
    )
    pairs = [(question, context[: 40 * i]) for i, (question, context) in enumerate(question_pairs[::100], 1)]
    return make_case("bert 6x384", directory, "feature-extraction", real_batch(directory, pairs, types=True))


@pytest.fixture(scope="module")
def figures() -> Iterator[list[str]]:
    """The lines of a table that is printed after the module's tests."""
    lines: list[str] = []
    yield lines
    print("", *lines, sep="\n")


def assert_within_budget(case: Case, engine: Engine, isa: str, figures: list[str], record: Any) -> None:
    outputs = engine(*case.batch, output_hidden_states=True).to_dict()
    for name, error in errors(measured((outputs, case.batch.keep)), case.truth).items():
        ratio = error / case.naive[name]
        figures.append(f"{case.name:20} {isa:8} {name:18} {error:.2e} / {case.naive[name]:.2e} = {ratio:.2f}")
        record(f"{name}, engine error / naive fp32 error", round(ratio, 3))
        assert ratio <= NAIVE_FACTOR, figures[-1]


@pytest.mark.parametrize(("isa", "case"), isas_with(TASKS, elsewhere=["fill-mask"]), indirect=True)
def test_every_head(
    case: Case, forced_engine: Callable[..., Engine], isa: str, figures: list[str], record_property: Any
) -> None:
    assert_within_budget(case, forced_engine(case.directory), isa, figures, record_property)


def test_bert(
    bert_case: Case, forced_engine: Callable[..., Engine], isa: str, figures: list[str], record_property: Any
) -> None:
    assert_within_budget(bert_case, forced_engine(bert_case.directory), isa, figures, record_property)


@pytest.fixture(scope="module")
def minilm_embeddings(minilm: Path, sentences: Sentences) -> tuple[list[str], np.ndarray]:
    """200 real sentences and their embeddings by transformers: the mean over tokens, normalised."""
    texts = sentences(200, (3, 24), seed=6)
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoded = transformers.AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = transformers_model(minilm, "feature-extraction")(**encoded).last_hidden_state
        mask = encoded["attention_mask"][..., None]
        means = (states * mask).sum(1) / mask.sum(1)
        return texts, torch.nn.functional.normalize(means).numpy()


def test_minilm_embeddings(
    minilm: Path, minilm_embeddings: tuple[list[str], np.ndarray], isa: str, record_property: Any
) -> None:
    """Trained weights from a text to its vector: tokeniser, encoder, pooling and normalisation together."""
    texts, wanted = (each[:: 5 if isa in SLOW else 1] for each in minilm_embeddings)
    pipe = pipeline("feature-extraction", minilm)
    assert pipe.engine.info()["isa"] == isa
    difference = float(np.abs(pipe.embed(texts) - wanted).max())
    record_property("largest difference", difference)
    print(f"\nMiniLM, {isa}: largest difference of an embedding {difference:.1e}")
    assert difference <= MINILM_TOLERANCE
