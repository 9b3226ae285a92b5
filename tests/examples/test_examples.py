"""Each example runs as it stands and prints the answer that is known beforehand; all of them in this process."""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from distilfast.evaluation import Result
from distilfast.serving import Curve

EXAMPLES = Path(__file__).parents[2] / "examples"
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NAMES = {"Ada": "B-PER", "Love": "I-PER", "##lace": "I-PER", "Paris": "B-LOC"}


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example(name: str) -> ModuleType:
    return loaded(EXAMPLES / f"{name}.py")


@pytest.fixture(scope="module")
def lookup(data_directory: Path) -> ModuleType:
    """Writes checkpoints whose answers depend on the token alone."""
    path = data_directory.parent / "cases" / "lookup_checkpoint.py"
    if not path.exists():
        pytest.skip("the folder shared/cases beside the project is absent")
    return loaded(path)


@pytest.fixture
def measured_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward is taken to last no time, so that nothing is refused on a slow machine, and nothing is measured."""
    monkeypatch.setattr("distilfast.serving.batcher.curve_of", lambda pipe: (Curve((1, 512), (1e-6, 2e-6)), "given"))


def test_every_example_is_described_short_and_tested() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    examples = [path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert len(examples) == 6
    for path in examples:
        assert f"({path.name})" in listed and (f'"{path.stem}"' in tests or f'"{path.name}"' in tests)
        if path.suffix == ".py":
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
            assert f"python examples/{path.name}" in (example(path.stem).__doc__ or "")


def test_search(minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "zoo.md").write_text("# Zoo\n\nThe lion eats\nraw meat at noon.\n\nTickets are sold at the gate.\n")
    (tmp_path / "deep" / "law.txt").write_text("The court dismissed the appeal.")
    (tmp_path / ".hidden" / "food.txt").write_text("What do big cats have for lunch? Meat.")
    query = "What do big cats have for lunch?"
    run = example("search_folder").main
    run([query, "--folder", str(tmp_path), "--model", str(minilm), "--top", "2"])
    first, second = capsys.readouterr().out.splitlines()
    score, where, text = first.split("  ")
    assert (where, text) == ("zoo.md:3", "The lion eats raw meat at noon.")
    assert float(score) > float(second.split("  ")[0])
    with pytest.raises(SystemExit, match="there is no text"):
        run([query, "--folder", str(tmp_path / ".hidden" / "none"), "--model", str(minilm)])


def test_intents(minilm: Path, capsys: pytest.CaptureFixture[str], measured_before: None) -> None:
    service = example("intent_service")
    asyncio.run(service.main(["--model", str(minilm), "--deadline-ms", "60000"]))
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"] for answer in answers] == service.UTTERANCES
    assert [answer["intent"] for answer in answers] == ["card_delivery", "lost_card", "exchange_rate", None]


def test_intents_of_a_client_and_too_late(minilm: Path, measured_before: None) -> None:
    """A client of the port, by lines; and a deadline that nothing can be answered within."""
    intents = {"weather": ["Will it rain tomorrow?"], "music": ["Play a song."]}

    async def asked(service: Any, *lines: str) -> list[Any]:
        async with await asyncio.start_server(service.converse, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write("".join(f"{line}\n" for line in lines).encode())
            answers = [json.loads(await reader.readline()) for _ in lines]
            writer.close()
        return answers

    service = example("intent_service").Service(str(minilm), intents, 60.0, 0.3)
    rain, song = asyncio.run(asked(service, "is rain expected?", "sing something"))
    assert (rain["intent"], song["intent"]) == ("weather", "music")
    service.batcher.deadline = 1e-9
    (late,) = asyncio.run(asked(service, "is rain expected?"))
    assert "intent" not in late and late["error"]
    service.batcher.close()


def test_entities(lookup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = lookup.ner(tmp_path / "ner", LABELS, NAMES)
    rows = [
        ["1", "Ada Lovelace lived in Paris, Paris."],
        ["2", "Nobody, nowhere."],
        ["3", "word " * 600 + "Paris", "a cell too many"],  # longer than the model reads at once
        ["4"],
    ]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "note"], *rows])
    run = example("entities_csv").main
    run([str(tmp_path / "in.csv"), "--column", "note", "--output", str(tmp_path / "out.csv"), "--model", str(model)])
    found = list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    shown = [(row["id"], row["PER"], row["LOC"]) for row in found]
    assert shown == [("1", "Ada Lovelace", "Paris"), ("2", "", ""), ("3", "", "Paris"), ("4", "", "")]
    assert [bool(row["error"]) for row in found] == [False, False, False, True]
    run(["--model", str(model)])
    sample = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sample[0]["PER"] == "Ada Lovelace" and sample[0]["text"].startswith("Ada Lovelace met")
    with pytest.raises(SystemExit, match="there are id, note"):
        run([str(tmp_path / "in.csv"), "--model", str(model)])


def pdf(path: Path, pages: list[str]) -> Path:
    """A PDF with a line of text on each page, written by hand."""
    kids = " ".join(f"{3 + 2 * i} 0 R" for i in range(len(pages)))
    font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>"]
    for i, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {4 + 2 * i} 0 R "
            f"/Resources << /Font << /F1 {font} >> >> >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    body, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    path.write_text(f"{body}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}")
    return path


def test_questions_to_pdfs(lookup: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pypdf", reason="the package pypdf is not installed (pip install pypdf)")
    model = str(lookup.qa(tmp_path / "qa", {"Paris": (9, 9), "Rome": (4, 4)}))
    long = pdf(tmp_path / "a.pdf", ["Nothing is here.", "She went to Paris in May."])
    short = pdf(tmp_path / "b.pdf", ["He saw Rome."])
    run = example("ask_pdfs").main
    run(["Where?", str(short), str(long), "--model", model, "--top", "2"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("  ")[1:] == ["Paris", "(a.pdf, page 2: … She went to Paris in May. …)"]
    assert second.split("  ")[1] == "Rome" and first[:4] > second[:4]
    with pytest.raises(SystemExit, match="there is no text"):
        run(["Where?", str(pdf(tmp_path / "empty.pdf", [""])), "--model", model])


def test_glue(tiny_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head's bias decides: everything is labelled 1, as three quarters of the data are."""
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("distilbert", "text-classification"), model)
    decide(model, [0.0, 50.0])
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\n" + "".join(f"text {i}\t{int(i % 4 > 0)}\n" for i in range(20)))
    module = example("evaluate_glue")
    module.main(["sst2", str(tmp_path / "dev.tsv"), "--model", str(model)])
    assert capsys.readouterr().out.splitlines() == [
        "sst2 fp32  accuracy 75.00 %  20 examples",
        "sst2 int8  accuracy 75.00 %  20 examples, 0 answers differ from fp32",
    ]
    first, other = (
        Result({"accuracy": 50.0}, {"examples": 3}, (), predictions, "rte", "m", precision)
        for predictions, precision in (((0, 1, 1), "fp32"), ((1, 1, 0), "bf16"))
    )
    assert module.line(other, first) == "rte bf16  accuracy 50.00 %  3 examples, 2 answers differ from fp32"


def decide(model: Path, bias: list[float]) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["classifier.bias"] = np.array(bias, np.float32)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def test_the_notebook(
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its cells in order, with other settings: what is drawn are the report's own numbers; no outputs are committed."""
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    notebook = json.loads((EXAMPLES / "parity_report.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    space: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), space)
        if "MODEL" in space and "report" not in space:
            space["MODEL"] = str(tiny_checkpoint("distilbert", "text-classification"))
        if "axes" in space and len(space["axes"].lines) == 3:
            drawn = {line.get_label(): list(line.get_ydata()) for line in space["axes"].lines}
    report = json.loads((tmp_path / "report.json").read_text())
    assert "PASS: " in capsys.readouterr().out and report["passed"]
    assert drawn == {key: [row[key] for row in report["rows"]] for key in ("budget", "naive", "relative")}
    bars = [bar.get_width() for bar in space["axes"].patches]
    assert bars[::-1] == sorted((row["share"] for row in report["rows"]), reverse=True)[:10]
    sys.modules["matplotlib.pyplot"].close("all")
