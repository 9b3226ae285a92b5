"""Parquet to Parquet by row groups: each row once, however often the job is killed, with the pipeline's own answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distilfast import pipeline
from distilfast.cli import app
from distilfast.errors import InputError
from distilfast.integrations.parquet_job import (
    MANIFEST,
    Output,
    Part,
    Work,
    answer_part,
    facts,
    model_digest,
    parts,
)

Make = Callable[..., Path]
PARTS = [Part("in.parquet", i, 10 * i, 10, f"in-{i:05}.parquet") for i in range(3)]


class Killed(BaseException):
    """As SIGKILL: nothing of ours runs after it."""


def write(output: Output, part: Part, text: str, error: BaseException | None = None) -> None:
    with output.writing(part) as path:
        path.write_text(text)
        if error is not None:
            raise error


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_is_missing_is_what_has_no_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output(tmp_path / "out", {"task": "a"})
    write(output, PARTS[1], "one")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # as if there had been no time to remove it
        with pytest.raises(Killed):
            write(output, PARTS[0], "hal", Killed())
    again = Output(tmp_path / "out", {"task": "a"})
    assert again.missing(PARTS) == [PARTS[0], PARTS[2]]
    assert any(name.startswith(".in-00000.parquet.") for name in files(tmp_path / "out"))
    for part in again.missing(PARTS):
        write(again, part, "again")
    assert again.missing(PARTS) == []
    again.finish()
    found = files(tmp_path / "out")
    assert json.loads(found.pop(MANIFEST)) == {"task": "a"}
    assert found == {"in-00000.parquet": "again", "in-00001.parquet": "one", "in-00002.parquet": "again"}


def test_a_part_that_two_do_is_there_once(tmp_path: Path) -> None:
    output = Output(tmp_path, {})
    with output.writing(PARTS[0]) as slow:
        slow.write_text("the same")
        write(output, PARTS[0], "the same")
    assert sorted(files(tmp_path)) == [MANIFEST, "in-00000.parquet"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    output = Output(tmp_path, {})
    with pytest.raises(OSError, match="full"):
        write(output, PARTS[0], "a", OSError("full"))
    assert list(files(tmp_path)) == [MANIFEST]


def test_the_folder_of_another_job_is_refused(tmp_path: Path) -> None:
    known = {"task": "a", "model": "m", "options": {"top_k": 3}}
    Output(tmp_path / "out", known)
    Output(tmp_path / "out", known)
    with pytest.raises(InputError, match=r"another job, with other model, options\.$"):
        Output(tmp_path / "out", known | {"model": "n", "options": {}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="neither empty nor the output of a job"):
        Output(tmp_path / "mine", known)
    assert files(tmp_path / "mine") == {"letter.txt": "dear"}
    (tmp_path / "out" / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="_job.json"):
        Output(tmp_path / "out", known)


def test_every_fact_counts_but_threads() -> None:
    work = Work.of("text-classification", "m", ["review"], engine={"precision": "int8", "threads": 1})
    first = facts(work, [{"name": "a"}], "digest")
    assert facts(replace(work, engine={"precision": "int8", "threads": 2}), [{"name": "a"}], "digest") == first
    others = [
        facts(replace(work, engine={"precision": "fp32", "threads": 1}), [{"name": "a"}], "digest"),
        facts(replace(work, options={"top_k": 2}), [{"name": "a"}], "digest"),
        facts(replace(work, columns={"text": "body"}), [{"name": "a"}], "digest"),
        facts(replace(work, keep=("id",)), [{"name": "a"}], "digest"),
        facts(work, [{"name": "b"}], "digest"),
        facts(work, [{"name": "a"}], "other"),
    ]
    assert all(other != first for other in others)


def test_a_model_is_known_by_its_files(tiny_checkpoint: Make) -> None:
    one, other = (tiny_checkpoint("distilbert", "text-classification", seed=seed) for seed in (1, 2))
    assert model_digest(one) == model_digest(one) != model_digest(other)


@pytest.mark.parametrize(
    ("task", "columns", "sentence"),
    [
        ("fill-mask", [], "Rows of Parquet cannot be mapped by 'fill-mask'; there are text-classification,"),
        ("text-classification", ["query=a"], "column 'query=a' names no field of text-classification; there are text,"),
    ],
)
def test_what_cannot_be_asked(task: str, columns: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Work.of(task, "m", columns)
    with pytest.raises(InputError, match="Vectors have no options"):
        Work.of("feature-extraction", "m", [], options={"normalize": True})


def test_the_command_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "distilfast.integrations.ray_data", raising=False)
    done = CliRunner().invoke(app, ["map", "text-classification", "m", "in.parquet", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.stderr == "error: distilfast map needs ray: pip install 'distilfast[ray]'.\n"
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- with pyarrow

TEXTS = ["a film", "What is this ?", "", None, 'he said "no"', "b c d", "long " * 90]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    (tmp_path / "in" / "more").mkdir(parents=True)
    table = pyarrow.table({"id": range(7), "review": TEXTS})
    parquet.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=3)
    parquet.write_table(table.slice(0, 2), tmp_path / "in" / "more" / "b.parquet")
    (tmp_path / "in" / "_job.parquet").write_text("hidden")
    return tmp_path / "in"


def answered(folder: Path, out: Path, work: Work) -> Any:
    """The whole output as a table, made part by part."""
    from pyarrow import dataset

    found, _ = parts(folder, work)
    pipe = pipeline(work.task, work.model, **work.engine, **work.options)
    output = Output(out, {})
    for part in reversed(found):  # in any order
        with output.writing(part) as path:
            answer_part(pipe, work, part, path)
    return dataset.dataset(out, format="parquet").to_table()


def test_parts_are_the_row_groups(folder: Path) -> None:
    found, described = parts(folder, Work.of("text-classification", "m", ["review"]))
    assert [(part.name, part.first, part.rows) for part in found] == [
        ("a-00000.parquet", 0, 3),
        ("a-00001.parquet", 3, 3),
        ("a-00002.parquet", 6, 1),
        ("more/b-00000.parquet", 0, 2),
    ]
    assert [(each["name"], each["rows"]) for each in described] == [("a.parquet", 7), ("more/b.parquet", 2)]
    (single, *_), _ = parts(folder / "a.parquet", Work.of("text-classification", "m", ["review"]))
    assert single == found[0]


def test_another_content_is_another_input(folder: Path, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    work = Work.of("text-classification", "m", ["review"])
    _, before = parts(folder, work)
    texts = [text and text.replace("long", "lung") for text in TEXTS]  # a file of the same size
    parquet.write_table(pyarrow.table({"id": range(7), "review": texts}), folder / "a.parquet", row_group_size=3)
    _, after = parts(folder, work)
    assert after[0]["bytes"] == before[0]["bytes"]
    assert after != before


@pytest.mark.parametrize("options", [{}, {"top_k": None}])
def test_answers_are_those_of_the_pipeline(
    folder: Path, tmp_path: Path, tiny_checkpoint: Make, options: dict[str, Any]
) -> None:
    model = str(tiny_checkpoint("distilbert", "text-classification", num_labels=3))
    work = Work.of("text-classification", model, ["review"], options=options, engine={"precision": "int8"})
    table = answered(folder, tmp_path / "out", work)
    assert table.column_names == ["id", "review", "answer", "error"]
    pipe = pipeline("text-classification", model, precision="int8", **options)
    rows = [row for row in table.to_pylist() if row["error"] is None]
    assert [row["answer"] for row in rows] == pipe([row["review"] for row in rows])
    errors = [(row["id"], row["answer"], row["error"]) for row in table.to_pylist() if row["error"] is not None]
    assert errors == [
        (3, None, 'Input 3 is neither a string nor {"text": …, "text_pair": …}.'),
        (6, None, errors[1][2]),
    ]
    assert "tokens and the model 64 positions" in errors[1][2]
    assert sorted(table.column("id").to_pylist()) == sorted([*range(7), 0, 1])


def test_vectors_have_one_type_and_columns_are_chosen(folder: Path, tmp_path: Path, tiny_checkpoint: Make) -> None:
    import numpy as np

    model = str(tiny_checkpoint("distilbert", "feature-extraction"))
    table = answered(folder, tmp_path / "out", Work.of("feature-extraction", model, ["review"], keep=("id",)))
    assert table.column_names == ["id", "vector", "error"]
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[32]"
    rows = {row["id"]: row["vector"] for row in table.to_pylist()}
    assert rows.pop(3) is None
    expected = pipeline("feature-extraction", model).embed([TEXTS[i] for i in rows])
    assert np.array_equal(np.array(list(rows.values()), np.float32), expected)


@pytest.mark.parametrize("strategy", ["none", "simple"])
def test_entities_have_one_type_where_there_are_none(
    folder: Path, tmp_path: Path, tiny_checkpoint: Make, strategy: str
) -> None:
    model = str(tiny_checkpoint("distilbert", "token-classification", num_labels=2))
    options = {"aggregation_strategy": strategy, "ignore_labels": ["LABEL_0", "LABEL_1"]}
    table = answered(folder, tmp_path / "out", Work.of("token-classification", model, ["review"], options=options))
    first = "entity" if strategy == "none" else "entity_group"
    assert str(table.schema.field("answer").type).startswith(f"list<element: struct<{first}: string, score: double")
    assert table.column("answer").to_pylist()[0] == []
    everything = Work.of("token-classification", model, ["review"], options=options | {"ignore_labels": []})
    rows = answered(folder, tmp_path / "all", everything)
    assert rows.schema == table.schema
    assert rows.column("answer").to_pylist()[0] == pipeline(
        "token-classification", model, aggregation_strategy=strategy, ignore_labels=[]
    )(TEXTS[0])


def test_a_question_has_two_columns(tmp_path: Path, tiny_checkpoint: Make) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"q": ["a ?", "b"], "text": ["a b c", "b c"]}), tmp_path / "in.parquet")
    model = str(tiny_checkpoint("distilbert", "question-answering"))
    work = Work.of("question-answering", model, ["q", "context=text"])
    pipe = pipeline("question-answering", model)
    expected = [pipe(question="a ?", context="a b c"), pipe(question="b", context="b c")]
    assert answered(tmp_path / "in.parquet", tmp_path / "out", work).column("answer").to_pylist() == expected


def test_what_an_input_lacks_is_said_before_anything_is_done(folder: Path) -> None:
    def refused(path: Path, *columns: str, **options: Any) -> str:
        with pytest.raises(InputError) as error:
            parts(path, Work.of("text-classification", "m", columns, **options))
        return str(error.value)

    assert refused(folder) == "The input has no column 'text'; it has id, review."
    assert refused(folder, "review", keep=("name",)) == "The input has no column 'name'; it has id, review."
    assert refused(folder / "nowhere", "review") == f"{folder / 'nowhere'} does not exist."
    (folder / "broken.parquet").write_bytes(b"PAR1 no")
    assert refused(folder, "review").startswith(f"{folder / 'broken.parquet'} cannot be read: ")
    (folder / "empty").mkdir()
    assert refused(folder / "empty") == f"{folder / 'empty'} has no file that ends in .parquet."


def test_a_column_of_the_output_is_in_no_input(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a"], "answer": ["b"]}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match="The input has a column 'answer', as the output does"):
        parts(tmp_path / "in.parquet", Work.of("text-classification", "m", []))
    found, _ = parts(tmp_path / "in.parquet", Work.of("text-classification", "m", [], keep=("text",)))
    assert len(found) == 1


def test_an_input_that_changes_under_the_job(folder: Path, tmp_path: Path, tiny_checkpoint: Make) -> None:
    model = str(tiny_checkpoint("distilbert", "text-classification"))
    work = Work.of("text-classification", model, ["review"])
    found, _ = parts(folder, work)
    with pytest.raises(InputError, match=r"a\.parquet has changed since the job began\."):
        answer_part(pipeline(work.task, model), work, replace(found[0], rows=4), tmp_path / "part")
