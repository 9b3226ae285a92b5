"""``evaluate`` and its command: arguments, output, exit status and imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import distilfast.evaluation
from distilfast import Engine
from distilfast.cli import app
from distilfast.errors import BackendError, InputError
from distilfast.evaluation import DATASETS, Result, evaluate
from distilfast.evaluation.sequences import TOKENS, Ids, head_outputs, subset

Make = Callable[..., Path]


def command(*args: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100", "NO_COLOR": "1"}
    program = [sys.executable, "-c", "from distilfast.cli import main; main()", "evaluate", *map(str, args)]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_result_names_data_model_and_precision(glue_data: Path, glue_checkpoint: Make) -> None:
    directory = glue_checkpoint("sst2")
    result = evaluate(directory, "sst2", glue_data, threads=1)
    assert isinstance(result, Result)
    assert (result.dataset, result.model, result.precision) == ("sst2", str(directory), "fp32")
    assert "1 thread" in result.detail
    assert "predictions" not in result.to_dict()


def test_an_engine_that_is_loaded_already(glue_data: Path, glue_checkpoint: Make) -> None:
    engine = Engine.from_pretrained(glue_checkpoint("rte"), backend="reference", precision="fp64")
    assert evaluate(engine, "rte", glue_data).precision == "fp64"
    with pytest.raises(InputError, match="loaded for text-classification; squad needs question-answering"):
        evaluate(engine, "squad", glue_data)


def test_progress_reaches_its_end(glue_data: Path, glue_checkpoint: Make) -> None:
    steps: list[tuple[int, int]] = []
    evaluate(glue_checkpoint("qqp"), "qqp", glue_data, progress=lambda *step: steps.append(step))
    assert steps[-1] == (24, 24)


@pytest.mark.parametrize(
    ("dataset", "path", "options", "sentence"),
    [
        ("nonsense", None, {}, "dataset 'nonsense' is not known; there are cola, sst2"),
        ("ner", None, {}, "ner needs the path of its data"),
        ("sst2", "/absent/glue", {}, "/absent/glue does not exist"),
        ("sst2", ".", {"limit": 0}, "limit is 0; a positive integer is needed"),
    ],
)
def test_bad_arguments_are_errors(dataset: str, path: str | None, options: dict[str, int], sentence: str) -> None:
    """Reported before the model is loaded."""
    with pytest.raises(InputError, match=sentence):
        evaluate("/absent/model", dataset, path, **options)


def test_an_unknown_precision_is_an_error(glue_data: Path, glue_checkpoint: Make) -> None:
    with pytest.raises(BackendError):
        evaluate(glue_checkpoint("sst2"), "sst2", glue_data, precision="fp7")


@pytest.mark.parametrize("limit", [1, 2, 7, 9, 10, 11, None])
def test_a_subset_is_evenly_spaced(limit: int | None) -> None:
    chosen = subset(range(10), limit)
    assert len(set(chosen)) == len(chosen) == min(limit or 10, 10)
    assert chosen[0] == 0 and chosen == sorted(chosen)
    assert max(np.diff(chosen), default=0) - min(np.diff(chosen), default=0) <= 1


def test_the_answers_do_not_depend_on_the_batches(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.from_pretrained(tiny_checkpoint("distilbert", "token-classification"))
    rng = np.random.default_rng(0)
    sequences = [Ids(ids := rng.integers(0, 256, n).tolist(), [0] * len(ids)) for n in rng.integers(1, 64, 50)]
    assert sum(len(each.ids) for each in sequences) < TOKENS
    together = head_outputs(engine, sequences)
    monkeypatch.setattr("distilfast.evaluation.sequences.TOKENS", 30)
    for rows, one, each in zip(together, head_outputs(engine, sequences), sequences, strict=True):
        assert rows.shape == (len(each.ids), 9)
        np.testing.assert_array_equal(rows, one)


def test_the_command_shows_a_table(glue_data: Path, glue_checkpoint: Make) -> None:
    done = command("mnli", glue_checkpoint("mnli", ["0", "1", "2"]), glue_data, "--limit", 6, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert {"accuracy", "matched", "mismatched", "12", "notes"} <= set(done.stdout.split())
    assert done.stderr == ""  # the progress bar is shown on a terminal only


def test_the_command_prints_one_json_object(glue_data: Path, glue_checkpoint: Make) -> None:
    directory = glue_checkpoint("cola")
    done = command("cola", directory, glue_data, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(evaluate(directory, "cola", glue_data).to_dict()))


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense", "/absent/model", "."],
        ["sst2", "/absent/model", "/absent/data"],
        ["sst2", "/absent/model", "."],
    ],
)
def test_an_error_is_one_line_and_status_2(args: list[str]) -> None:
    done = CliRunner().invoke(app, ["evaluate", *args])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    payload = CliRunner().invoke(app, ["evaluate", *args, "--json"])
    assert payload.exit_code == 2
    assert json.loads(payload.stdout) == {"error": done.stderr.removeprefix("error: ").strip()}


def test_help_names_every_data_set() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in DATASETS)


def test_the_command_line_imports_only_what_it_uses() -> None:
    program = "import sys, distilfast.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = set(done.stdout.split())
    assert "distilfast.cli.evaluate" in modules
    assert not {"numpy", "tokenizers", "distilfast.evaluation.tasks", "datasets"} & modules


def test_a_name_that_is_not_public() -> None:
    with pytest.raises(AttributeError, match=r"module 'distilfast.evaluation' has no attribute 'nonsense'"):
        distilfast.evaluation.nonsense  # noqa: B018
