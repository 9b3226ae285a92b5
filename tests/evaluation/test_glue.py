"""The eight GLUE tasks: files in their own layout, labels by name, answers equal to those of transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from glue_files import LABELS, NAMES, TEXTS, glue_rows, write_glue

from distilfast.errors import InputError
from distilfast.evaluation import evaluate, glue, metrics

Make = Callable[..., Path]

METRICS = {
    "cola": {"matthews"},
    "sst2": {"accuracy"},
    "mrpc": {"accuracy", "f1"},
    "qqp": {"accuracy", "f1"},
    "stsb": {"pearson", "spearman"},
    "mnli": {"accuracy_matched", "accuracy_mismatched"},
    "qnli": {"accuracy"},
    "rte": {"accuracy"},
}
ONE_TEXT = ("cola", "sst2")
HUB_COLUMNS = {
    "mnli": ("premise", "hypothesis"),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    **dict.fromkeys(ONE_TEXT, ("sentence",)),
}


def expected(task: str) -> tuple[list[Any], list[float]]:
    """The contents of the file of ``task``: texts, and labels as numbers in GLUE's order."""
    names = {"mnli": ("entailment", "neutral", "contradiction")}.get(task, ("entailment", "not_entailment"))
    rows = glue_rows(task)
    texts = [a if task in ONE_TEXT else (a, b) for a, b, _ in rows]
    return texts, [names.index(y) if isinstance(y, str) else y for _, _, y in rows]


@pytest.mark.parametrize("task", METRICS)
def test_a_file_is_read_without_csv_rules(glue_data: Path, task: str) -> None:
    """Quotes are text, only a line feed ends a line, and malformed lines are counted."""
    texts, labels = expected(task)
    for examples in glue.read(task, glue_data).values():
        assert examples.texts == texts
        assert examples.labels == labels
        assert examples.skipped == 3
    folder = glue_data / glue.TASKS[task].folder
    assert glue.read(task, folder) == glue.read(task, glue_data)
    file = folder / glue.TASKS[task].parts[0].file
    assert list(glue.read(task, file)) == [""]


def test_lines_may_end_with_crlf(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\r\na film\t1\r\n")
    assert glue.read("sst2", tmp_path)[""] == glue.Examples(["a film"], [1])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("index\tsentence\n0\tno label here\n", "has no column label; a labelled file in GLUE's layout"),
        ("sentence\tlabel\nx\t7\n", "holds no usable line for SST-2"),
        ("", "has no column sentence, label"),
    ],
)
def test_an_unusable_file_is_an_error(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "dev.tsv").write_text(content)
    with pytest.raises(InputError, match=sentence):
        glue.read("sst2", tmp_path)


def test_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\n\xff\xfe\t1\n")
    with pytest.raises(InputError, match="is not readable text"):
        glue.read("sst2", tmp_path)


def test_a_folder_without_the_task(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no dev_matched.tsv or dev_mismatched.tsv, nor does a folder MNLI"):
        glue.read("mnli", tmp_path)


def logits_of_transformers(directory: Path, texts: list[Any]) -> np.ndarray:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    firsts, *seconds = zip(*[(text,) if isinstance(text, str) else text for text in texts], strict=True)
    pairs = [list(firsts), *map(list, seconds)]
    with torch.inference_mode():
        return model(**tokenizer(*pairs, truncation=True, padding=True, return_tensors="pt")).logits.numpy()


@pytest.mark.parametrize("model_type", ["distilbert", "bert"])
@pytest.mark.parametrize("task", METRICS)
def test_answers_and_metrics_are_those_of_transformers(
    glue_data: Path, glue_checkpoint: Make, task: str, model_type: str
) -> None:
    directory = glue_checkpoint(task, model_type=model_type)
    texts, labels = expected(task)
    logits = logits_of_transformers(directory, texts)
    result = evaluate(directory, task, glue_data)
    parts = 2 if task == "mnli" else 1
    if task == "stsb":
        np.testing.assert_allclose(result.predictions, logits[:, 0], rtol=1e-5, atol=1e-6)
        truth = {"pearson": metrics.pearson(logits[:, 0], labels), "spearman": metrics.spearman(logits[:, 0], labels)}
        for name, value in truth.items():
            assert result.metrics[name] == pytest.approx(100 * value, rel=1e-4)
    else:
        names = [name.lower().replace("-", "_") for name in NAMES[task]]
        order = {"mnli": ("entailment", "neutral", "contradiction"), "qnli": ("entailment", "not_entailment")}
        wanted = [order.get(task, tuple(names)).index(names[i]) for i in logits.argmax(axis=1)]
        assert list(result.predictions) == wanted * parts
        assert len(set(wanted)) == len(names)  # otherwise a constant answer would pass
        for name, value in result.metrics.items():
            metric = getattr(metrics, name.partition("_")[0])
            assert value == pytest.approx(100 * metric(wanted, labels))
    assert set(result.metrics) == METRICS[task]
    assert result.counts == {"examples": 24 * parts, "skipped": 3 * parts}
    assert result.notes == ()
    json.dumps(result.to_dict())


def test_labels_without_names_are_matched_by_number_and_reported(glue_data: Path, glue_checkpoint: Make) -> None:
    by_name = evaluate(glue_checkpoint("mnli", LABELS["mnli"]), "mnli", glue_data)
    for names in ([f"LABEL_{i}" for i in range(3)], ["0", "1", "2"]):
        by_number = evaluate(glue_checkpoint("mnli", names), "mnli", glue_data)
        assert by_number.predictions == by_name.predictions
        assert by_number.notes == (
            "The model does not name its labels; they were taken by number: "
            "0 is entailment, 1 is neutral, 2 is contradiction.",
        )


@pytest.mark.parametrize(
    ("task", "labels"),
    [("mnli", ["yes", "maybe", "no"]), ("sst2", ["LABEL_0", "LABEL_1", "LABEL_2"]), ("rte", LABELS["mnli"])],
)
def test_labels_of_another_task_are_an_error(
    glue_data: Path, glue_checkpoint: Make, task: str, labels: list[str]
) -> None:
    with pytest.raises(InputError, match="id2label in its config.json must name them so"):
        evaluate(glue_checkpoint(task, labels), task, glue_data)


def test_a_score_needs_a_model_with_one_label(glue_data: Path, glue_checkpoint: Make) -> None:
    with pytest.raises(InputError, match="needs a model with one label; this one has 2"):
        evaluate(glue_checkpoint("stsb", ["low", "high"]), "stsb", glue_data)


def test_a_limit_takes_evenly_spaced_lines(tmp_path: Path, glue_checkpoint: Make) -> None:
    write_glue(tmp_path, "sst2", [(f"text {i}", "", int(i >= 10)) for i in range(20)], malformed=False)
    all_of_them = evaluate(glue_checkpoint("sst2"), "sst2", tmp_path).predictions
    limited = evaluate(glue_checkpoint("sst2"), "SST-2", tmp_path, limit=4)
    assert limited.predictions == tuple(all_of_them[i] for i in (0, 5, 10, 15))
    assert limited.counts["examples"] == 4


def test_without_data_and_without_datasets(monkeypatch: pytest.MonkeyPatch, glue_checkpoint: Make) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="No local data was named for rte and the package datasets is not installed"):
        evaluate(glue_checkpoint("rte"), "rte")


@pytest.mark.parametrize("task", METRICS)
def test_the_hub_and_the_files_give_the_same_metrics(
    monkeypatch: pytest.MonkeyPatch, glue_data: Path, glue_checkpoint: Make, task: str
) -> None:
    """The hub's copy has other column names, and labels as numbers."""
    calls = []
    names = HUB_COLUMNS.get(task, ("sentence1", "sentence2"))
    texts, labels = expected(task)
    pairs = [(text,) if isinstance(text, str) else text for text in texts]
    split = dict(zip(names, map(list, zip(*pairs, strict=True)), strict=True)) | {"label": labels}

    def load_dataset(path: str, name: str, split: str) -> dict[str, list[Any]]:
        calls.append((path, name, split))
        return hub

    hub = split
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    directory = glue_checkpoint(task)
    assert evaluate(directory, task).metrics == evaluate(directory, task, glue_data).metrics
    parts = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
    assert calls == [("nyu-mll/glue", task, part) for part in parts]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """``hub(task, columns)``: a local folder, laid out as on the hub, that ``datasets`` finds under the hub's name."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)

    def write(task: str, columns: dict[str, list[Any]]) -> None:
        splits = [part.split for part in glue.TASKS[task].parts]
        files = "".join(f"  - split: {split}\n    path: {task}/{split}-*\n" for split in splits)
        folder = tmp_path / glue.HUB
        (folder / task).mkdir(parents=True)
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {task}\n  data_files:\n{files}---\n")
        names = glue.TASKS[task].labels
        kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("float32")
        texts = {name: datasets.Value("string") for name in columns if name not in ("label", "idx")}
        features = datasets.Features({**texts, "label": kind, "idx": datasets.Value("int32")})
        for split in splits:
            table = datasets.Dataset.from_dict(columns, features=features)
            table.to_parquet(str(folder / task / f"{split}-00000-of-00001.parquet"))

    return write


@pytest.mark.parametrize("task", METRICS)
def test_the_real_datasets_package_reads_the_hub_layout(hub: Callable[..., None], task: str) -> None:
    """Parquet with ClassLabel features and an ``idx``, as in ``nyu-mll/glue``; −1 means no label."""
    texts, labels = expected(task)
    pairs = [(text,) if isinstance(text, str) else text for text in texts]
    names = HUB_COLUMNS.get(task, ("sentence1", "sentence2"))
    columns: dict[str, list[Any]] = dict(zip(names, map(list, zip(*pairs, strict=True)), strict=True))
    hub(task, columns | {"label": [*labels[:-1], -1], "idx": list(range(len(labels)))})
    for examples in glue.read(task, None).values():
        assert examples.texts == texts[:-1]
        assert examples.labels == pytest.approx(labels[:-1])
        assert examples.skipped == 1


def test_a_split_without_labels(hub: Callable[..., None]) -> None:
    """As in GLUE's test splits."""
    hub("sst2", {"sentence": ["a", "b"], "label": [-1, -1], "idx": [0, 1]})
    with pytest.raises(InputError, match="sst2 has no labels in its split validation"):
        glue.read("sst2", None)


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, glue_checkpoint: Make) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub.\nmore lines")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(InputError, match=r"cannot be had through datasets: no route to the hub\.$"):
        evaluate(glue_checkpoint("rte"), "rte")


def test_the_texts_contain_the_difficult_cases() -> None:
    assert sum(text.count('"') for text in TEXTS) == 2  # one quote on each of two lines
    assert max(map(len, TEXTS)) > 64  # longer than the tiny model's positions
