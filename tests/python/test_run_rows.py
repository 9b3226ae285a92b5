"""`distilfast run` over rows: every format in and out, bad rows, and a run that was killed and goes on."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import distilfast
from distilfast.cli import app

Make = Callable[..., Path]

TEXTS = ["a film", "What is this ?", "", 'he said "no", twice', "Zürich 東京"]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Make) -> str:
    return str(tiny_checkpoint("distilbert", "text-classification"))


@pytest.fixture(scope="module")
def pipe(model: str) -> Any:
    return distilfast.pipeline("text-classification", model)


def run(*args: object, **options: Any) -> Any:
    return CliRunner().invoke(app, ["run", *map(str, args)], **options)


def written(path: Path, texts: list[str]) -> Path:
    kind = path.suffix
    with path.open("w", encoding="utf-8", newline="") as file:
        if kind == ".txt":
            file.write("".join(f"{text}\n" for text in texts))
        elif kind == ".jsonl":
            file.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
        else:
            rows = csv.writer(file, delimiter="\t" if kind == ".tsv" else ",")
            rows.writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    return path


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def expected(pipe: Any, texts: list[str]) -> list[Any]:
    return [{"row": row, "answer": pipe([text])[0]} for row, text in enumerate(texts, 1)]


@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl"])
def test_every_format_that_is_read(model: str, pipe: Any, tmp_path: Path, kind: str) -> None:
    done = run(
        "text-classification", model, "-i", written(tmp_path / f"in.{kind}", TEXTS), "--output", tmp_path / "o.jsonl"
    )
    assert (done.exit_code, done.output) == (0, "")
    assert lines(tmp_path / "o.jsonl") == expected(pipe, TEXTS)


def test_parquet(model: str, pipe: Any, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": range(5), "review": TEXTS}), tmp_path / "in.parquet")
    done = run("text-classification", model, "-i", tmp_path / "in.parquet", "--column", "review")
    assert [json.loads(line) for line in done.output.splitlines()] == expected(pipe, TEXTS)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    done = run("text-classification", model, "-i", tmp_path / "broken.parquet")
    assert done.exit_code == 2 and "cannot be read" in done.output


def test_parquet_without_pyarrow(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = run("text-classification", model, "-i", tmp_path / "in.parquet")
    assert done.exit_code == 2 and "pip install pyarrow" in done.output


def test_standard_input_and_output(model: str, pipe: Any) -> None:
    done = run("text-classification", model, "-", input="\n".join(TEXTS))
    assert done.exit_code == 0
    assert [json.loads(line) for line in done.output.splitlines()] == expected(pipe, TEXTS)
    shown = run("sentiment-analysis", model, "-", "--to", "text", input="a film\n").output.split("\t")
    assert shown[1].strip() == pipe(["a film"])[0]["label"] and len(shown[0]) == 6


def test_csv_has_one_line_a_row(model: str, pipe: Any, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    assert run("text-classification", model, "-i", written(tmp_path / "i.jsonl", TEXTS), "--output", out).exit_code == 0
    header, *rows = csv.reader(out.open(encoding="utf-8"))
    assert header == ["row", "answer", "score", "error"]
    assert rows == [
        [str(row["row"]), row["answer"]["label"], str(row["answer"]["score"]), ""] for row in expected(pipe, TEXTS)
    ]


def test_pairs_and_other_names_of_columns(model: str, pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("premise,hypothesis\na film,a match\nb,c\n")
    columns = ("--column", "premise", "--column", "text_pair=hypothesis")
    done = run("text-classification", model, "-i", tmp_path / "in.csv", *columns)
    want = pipe([{"text": "a film", "text_pair": "a match"}, {"text": "b", "text_pair": "c"}])
    assert [json.loads(line)["answer"] for line in done.output.splitlines()] == want


def test_vectors_and_options(tiny_checkpoint: Make) -> None:
    directory = tiny_checkpoint("distilbert", "feature-extraction")
    done = run("feature-extraction", directory, "-", input="a film\nb\n")
    vectors = distilfast.pipeline("feature-extraction", directory).embed(["a film", "b"])
    assert [json.loads(line)["answer"] for line in done.output.splitlines()] == vectors.tolist()
    masked = tiny_checkpoint("distilbert", "fill-mask")
    done = run("fill-mask", masked, "-", "--top-k", 2, input="a [MASK]\n")
    assert json.loads(done.output)["answer"] == distilfast.pipeline("fill-mask", masked)("a [MASK]", top_k=2)


BAD = {
    "csv": (b'text\na film\n"b","c"\nb\n', "The row has 2 columns; the header has 1."),
    "jsonl": (b'{"text": "a film"}\n{"text": \n{"text": "b"}\n', "The row is not readable JSON."),
    "txt": (b"a film\n\xff\xfe\nb\n", "The row is not text in UTF-8."),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row(model: str, pipe: Any, tmp_path: Path, kind: str) -> None:
    """Skipped: it has a line that says why. Else the run stops, and keeps what it has."""
    content, why = BAD[kind]
    (tmp_path / f"in.{kind}").write_bytes(content)
    out = tmp_path / "out.jsonl"
    done = run("text-classification", model, "-i", tmp_path / f"in.{kind}", "--output", out, "--on-error", "skip")
    assert done.exit_code == 0 and "1 of 3 rows have no answer" in done.output
    first, third = expected(pipe, ["a film", "", "b"])[::2]
    assert lines(out) == [first, {"row": 2, "error": why}, third]
    done = run("text-classification", model, "-i", tmp_path / f"in.{kind}", "--output", out, "--overwrite")
    assert done.exit_code == 2 and f"error: Row 2 has no answer: {why[0].lower()}{why[1:]}\n" == done.output
    assert lines(out) == [first]


def test_a_text_that_is_too_long(model: str, tmp_path: Path) -> None:
    """It is called by the number of its row."""
    path = written(tmp_path / "in.txt", ["a", "a " * 100])
    done = run("text-classification", model, "-i", path)
    assert done.exit_code == 2 and "Row 2 has no answer: text 2 has" in done.output
    assert run("text-classification", model, "-i", path, "-o", "truncation=true").exit_code == 0


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("kept", [0, 1, 3, 5])
@pytest.mark.parametrize("torn", ["", '{"row": 9, "ans', "9,tor"])
def test_a_run_goes_on(model: str, tmp_path: Path, kind: str, kept: int, torn: str) -> None:
    """After whole rows and part of another, as a killed process leaves it."""
    source, out, whole = written(tmp_path / "in.txt", TEXTS), tmp_path / f"out.{kind}", tmp_path / f"whole.{kind}"
    assert run("text-classification", model, "-i", source, "--output", whole).exit_code == 0
    head = whole.read_text(encoding="utf-8").splitlines(keepends=True)[: kept + (kind == "csv")]
    out.write_text("".join(head) + torn, encoding="utf-8")
    assert run("text-classification", model, "-i", source, "--output", out, "--resume").exit_code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_killed_run_loses_nothing(model: str, tmp_path: Path) -> None:
    """Killed once it has written something, then resumed: every row once, in order."""
    source, out = written(tmp_path / "in.txt", [f"text {i}" for i in range(20_000)]), tmp_path / "out.jsonl"
    main = [sys.executable, "-c", "from distilfast.cli import main; main()"]
    command = [*main, "run", "text-classification", model, "-i", str(source), "--output", str(out)]
    with subprocess.Popen(command) as process:
        while process.poll() is None and (not out.exists() or out.stat().st_size == 0):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = out.stat().st_size
    assert before > 0 and len(out.read_bytes().splitlines()) < 20_000
    assert subprocess.run([*command, "--resume"], check=False).returncode == 0
    assert [each["row"] for each in lines(out)] == list(range(1, 20_001))


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("a", "-i", "x.txt"), "TEXT and --input are given"),
        ((), "There is no text"),
        (("a", "--output", "x"), "--output is for rows"),
        (("-i", "x.doc"), "The format of x.doc is not known"),
        (("-", "--format", "xml"), "--format 'xml' is not known"),
        (("-", "--to", "xml"), "--to 'xml' is not known"),
        (("-", "--on-error", "x"), "--on-error 'x' is not known"),
        (("-", "--resume"), "--resume needs --output"),
        (("-", "--column", "x"), "Lines of text have no columns"),
        (
            ("-", "--format", "csv", "--column", "y=x"),
            "names no field of text-classification; there are text, text_pair",
        ),
        (("-i", "absent.txt"), "absent.txt cannot be read: No such file or directory"),
        (("-", "-o", "x"), "--option 'x' is not NAME=VALUE"),
        (("-", "-o", "x=1"), "x is not an option of text-classification"),
        (("-", "--format", "parquet"), "Parquet cannot be read from standard input"),
    ],
)
def test_misuse(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], what: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("text-classification", model, *args, input="a\n")
    assert done.exit_code == 2 and what in done.output and "Traceback" not in done.output


def test_an_output_that_exists_is_kept(model: str, tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text("mine\n")
    for extra, what in (((), "exists; --resume goes on"), (("--resume",), "does not end with a row")):
        done = run("text-classification", model, "-", "--output", tmp_path / "o.jsonl", *extra, input="a\n")
        assert done.exit_code == 2 and what in done.output
    assert (tmp_path / "o.jsonl").read_text() == "mine\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk(model: str) -> None:
    done = run("text-classification", model, "-", "--output", "/dev/full", "--to", "jsonl", "--overwrite", input="a\n")
    assert done.exit_code == 2
    assert done.output == "error: /dev/full cannot be written: No space left on device.\n"


def test_an_interrupted_run_keeps_its_rows(model: str, tmp_path: Path) -> None:
    """Ctrl-C ends with the status of SIGINT and no traceback; the run can go on."""
    source, out = written(tmp_path / "in.txt", [f"text {i}" for i in range(50_000)]), tmp_path / "out.jsonl"
    main = [sys.executable, "-c", "from distilfast.cli import main; main()"]
    command = [*main, "run", "text-classification", model, "-i", str(source), "--output", str(out)]
    heed = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a shell's background jobs ignore it, and so would this
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while process.poll() is None and (not out.exists() or out.stat().st_size == 0):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
    assert process.returncode == 130 and "Traceback" not in errors
    kept = [each["row"] for each in lines(out)]
    assert kept == list(range(1, len(kept) + 1)) and 0 < len(kept) < 50_000


def test_one_file_and_no_directory(model: str, tmp_path: Path) -> None:
    """Of two options the last would count."""
    (tmp_path / "in.txt").write_text("a\n")
    twice = run("text-classification", model, "-i", tmp_path / "in.txt", "--input", tmp_path / "in.txt")
    assert twice.exit_code == 2 and "It is given more than once." in " ".join(twice.output.split())
    done = run("text-classification", model, "-i", tmp_path)
    assert done.exit_code == 2 and done.output == f"error: {tmp_path} is a directory; --input takes a file.\n"


def test_a_column_that_is_missing(model: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,b\n1,2\n")
    done = run("text-classification", model, "-i", tmp_path / "in.csv")
    assert done.exit_code == 2 and "has no column 'text'; it has a, b; --column says" in done.output
    (tmp_path / "in.csv").write_text("")
    assert run("text-classification", model, "-i", tmp_path / "in.csv").output == ""
