"""The command `distilfast parity`: its arguments, its output and its exit status."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from distilfast.cli import app, html_report, rich_tables
from distilfast.parity import compare
from distilfast.parity.sample_texts import TEXTS

Make = Callable[..., Path]


def invoke(*args: object) -> Any:
    return CliRunner().invoke(app, ["parity", *map(str, args)])


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Make) -> Path:
    return tiny_checkpoint("distilbert", "text-classification", num_labels=3)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "labelled.tsv"
    path.write_text("".join(f"{text}\t{i % 3}\n" for i, text in enumerate(TEXTS[:9])), encoding="utf-8")
    return path


def test_a_pass_is_printed_with_status_0(checkpoint: Path) -> None:
    done = invoke(checkpoint)
    assert done.exit_code == 0, done.output
    assert "PASS: layer.1.output is off by" in done.output
    assert "the same best answer for 100.00 % of 24 questions" in done.output.replace("\n", " ")


def test_json_has_every_row_and_every_field(checkpoint: Path) -> None:
    payload = json.loads(invoke(checkpoint, "--json").output)
    assert payload["passed"] is True and payload["first_wrong"] is None
    assert [row["name"] for row in payload["rows"]][:2] == ["embed", "layer.0.qkv"]
    row = payload["rows"][1]
    assert {"max_abs", "relative", "naive", "budget", "cosine", "step", "share", "where", "ulps", "passed"} <= set(row)
    assert sum(row["ulps"]) == payload["tokens"] * 3 * 32
    assert {"top1", "correlation", "max_difference"} <= set(payload["agreement"])


def test_the_table_fits_eighty_columns(checkpoint: Path) -> None:
    console = rich_tables.console()
    console.width = 80
    with console.capture() as shown:
        console.print(rich_tables.parity(compare(checkpoint)))
    lines = shown.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("layer.1.attention_norm ") for line in lines), "a name is folded"


def test_a_file_of_texts_and_pairs(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("One text.\nA question?\tIts context.\n" * 3, encoding="utf-8")
    payload = json.loads(invoke(checkpoint, "--text", path, "--limit", 5, "--json").output)
    assert (payload["given"], payload["texts"]) == (5, len(TEXTS))


@pytest.mark.parametrize("as_column", [True, False])
def test_labels_of_a_column_or_a_file(checkpoint: Path, labelled: Path, tmp_path: Path, as_column: bool) -> None:
    if as_column:
        done = invoke(checkpoint, "--text", labelled, "--labels", 2)
    else:
        lines = [line.split("\t") for line in labelled.read_text(encoding="utf-8").splitlines()]
        (tmp_path / "texts").write_text("\n".join(line[0] for line in lines), encoding="utf-8")
        (tmp_path / "labels").write_text("\n".join(line[1] for line in lines), encoding="utf-8")
        done = invoke(checkpoint, "--text", tmp_path / "texts", "--labels", tmp_path / "labels")
    assert done.exit_code == 0, done.output
    assert "PASS: fp32 costs 0.00 points of accuracy on your data" in done.output.replace("\n", " ")


def test_lost_quality_is_status_1(checkpoint: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where every intermediate keeps its budget."""
    monkeypatch.setattr("distilfast.evaluation.quality.Quality.passed", False)
    done = invoke(checkpoint, "--text", labelled, "--labels", 2)
    assert done.exit_code == 1
    assert "PASS: layer.1.output" in done.output and "FAIL: fp32 costs" in done.output
    payload = json.loads(invoke(checkpoint, "--text", labelled, "--labels", 2, "--json").output)
    assert payload["first_wrong"] is None and payload["passed"] is payload["quality"]["passed"] is False
    assert payload["quality"]["count"] == 9


def test_a_file_in_squads_format(tiny_checkpoint: Make, tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    entry = {"question": "Who?", "answers": [{"text": "Ada"}]}
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "It was Ada.", "qas": [entry]}]}]}))
    checkpoint = tiny_checkpoint("distilbert", "question-answering")
    done = invoke(checkpoint, "--text", path, "--baseline", "transformers")
    assert done.exit_code == 0, done.output
    assert "PASS: fp32 costs 0.00 points of F1 on your data" in done.output.replace("\n", " ")
    done = invoke(checkpoint, "--text", path, "--labels", 2)
    assert done.exit_code == 2 and "holds its own answers; leave out --labels" in done.output.replace("\n", " ")


def test_invariance_is_a_mode(checkpoint: Path) -> None:
    done = invoke(checkpoint, "--invariance", "--json")
    assert done.exit_code == 0
    payload = json.loads(done.output)
    assert payload["passed"] is True and payload["batches"] == 50 and payload["threads"] == [1, 2]
    assert "PASS: " in invoke(checkpoint, "--invariance").output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--against", "onnx"], "against 'onnx' is not known"),
        (["--labels", "2"], "name their file with --text"),
        (["--baseline", "fp32"], "it needs --labels"),
        (["--invariance", "--html", "x.html"], "--invariance compares the engine with itself"),
        (["--limit", "0"], "--limit is 0"),
        (["--text", "/absent/texts"], "/absent/texts cannot be read"),
        (["--plot", "x.jpeg"], "neither a .png nor a .svg"),
        (["--precision", "fp4"], "fp4"),
    ],
)
def test_an_error_is_one_line_and_status_2(checkpoint: Path, args: list[str], message: str) -> None:
    done = invoke(checkpoint, *args)
    assert done.exit_code == 2
    assert done.output.startswith("error: ") and done.output.count("\n") == 1
    assert message in done.output
    payload = json.loads(invoke(checkpoint, *args, "--json").output)
    assert message in payload["error"]


@pytest.mark.parametrize("option", ["--plot", "--html"])
def test_without_matplotlib_a_plot_is_an_error(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path, option: str
) -> None:
    """Reported before the work begins."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("distilfast.parity.compare", None)
    done = invoke(checkpoint, option, tmp_path / "x.svg")
    assert done.exit_code == 2
    assert done.output == "error: Plots need matplotlib, which `pip install 'distilfast[bench]'` brings.\n"


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_plot(checkpoint: Path, tmp_path: Path, kind: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{kind}"
    assert invoke(checkpoint, "--plot", path).exit_code == 0
    assert path.read_bytes().startswith(magic)
    again = tmp_path / f"again.{kind}"
    assert invoke(checkpoint, "--plot", again).exit_code == 0
    if kind == "svg":
        ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert path.read_bytes() == again.read_bytes(), "the same report makes the same plot"


class Page(HTMLParser):
    """Checks that every tag is closed and that nothing is loaded from elsewhere."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert "src" not in dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_self_contained(checkpoint: Path, labelled: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    done = invoke(checkpoint, "--text", labelled, "--labels", 2, "--html", path)
    assert done.exit_code == 0, done.output
    text = path.read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    assert not parsed.open
    assert {"svg", "table", "style"} <= set(parsed.tags) and "script" not in parsed.tags
    for words in ("layer.1.ffn_out", "processor", "versions", "command", "numpy", "points of accuracy"):
        assert words in text
    assert not re.search(r'(href|src)="https?:', text)


def test_a_page_escapes_its_inputs(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["distilfast", "parity", "<img src=x>"])
    report = replace(compare(checkpoint), model="<script>alert(1)</script>&", detail="<b>$_^$ a_b")
    parsed, text = Page(), html_report.page(report)
    parsed.feed(text)
    assert "script" not in parsed.tags and "img" not in parsed.tags and "b" in parsed.tags
    assert "&lt;script&gt;" in text and "&lt;img src=x&gt;" in text
