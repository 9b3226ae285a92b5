"""The benchmark kit judges others: what it says of known numbers has to be right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure, report, rows, tables, timing, workloads
from benchmarks.engines import Contestant, contestants
from benchmarks.worker import Failure, Worker

ORIGIN = {
    "machine": {"processor": "P", "isa": "avx2", "cores": 2},
    "versions": {"python": "3"},
    "commit": "abc",
    "command": "python -m benchmarks.run",
    "when": "2026-01-01T00:00:00+00:00",
}


def latency_row(contestant: str, case: str, p50: float, ratio: float = 1.0) -> rows.Row:
    return {
        "what": "latency",
        "contestant": contestant,
        "precision": "fp32",
        "case": case,
        "threads": 2,
        "p50_ms": p50,
        "p90_ms": p50,
        "p99_ms": p50,
        "ratio_to_distilfast": {"fp32": {"median": ratio, "low": ratio, "high": ratio}},
        **ORIGIN,
    }


def test_percentiles():
    found = timing.percentiles([i / 1000 for i in range(1, 101)])
    assert found == pytest.approx({"p50_ms": 50.5, "p90_ms": 90.1, "p99_ms": 99.01})


def test_samples_are_taken_until_both_limits_are_met():
    calls: list[int] = []
    assert len(timing.samples(lambda: calls.append(1), seconds=0.0, least=5)) == len(calls) == 5


def test_the_ratios_interval_holds_the_truth():
    """Two contestants whose true medians differ by 1.5, in rounds with a common drift: 95 of 100 intervals hold it."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(40):
        drift = rng.uniform(1, 2, 12)
        ours, theirs = ([list(d * scale * rng.lognormal(0, 0.05, 8)) for d in drift] for scale in (1.0, 1.5))
        ratio, low, high = timing.ratio(theirs, ours, draws=300)
        assert low <= ratio <= high
        inside += low <= 1.5 <= high
    assert inside >= 34


def test_a_row_without_provenance_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, [latency_row("distilfast", "1x16", 1.0)])
    rows.append(path, [{"what": "latency", "machine": {}, "commit": "abc"}])
    with pytest.raises(ValueError, match=r"rows.jsonl:2 has no machine, versions, command, when; .*"):
        rows.read([path])


def test_rows_are_only_added(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    for case in ("1x16", "1x128"):
        rows.append(path, [latency_row("distilfast", case, 1.0)])
    assert [row["case"] for row in rows.read([path])] == ["1x16", "1x128"]


def test_provenance_is_complete():
    origin = rows.provenance()
    assert all(origin[name] for name in rows.PROVENANCE)
    assert json.loads(json.dumps(origin)) == origin


def test_pad():
    ids, mask = workloads.pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_tables():
    found = [latency_row("distilfast", "1x16", 2.0), latency_row("other", "1x16", 3.0, 1.5)]
    found.append(latency_row("other", "1x128", 9.0, 3.0))
    assert tables.latencies(found) == [
        ["median ms", "1x16", "1x128"],
        ["distilfast fp32", "2.00", "–"],
        ["other fp32", "3.00", "9.00"],
    ]
    assert tables.ratios(found)[1] == ["other fp32", "1.50 [1.50, 1.50]", "3.00 [3.00, 3.00]"]
    assert tables.markdown([["a", "b"], ["1|2", "3"]]) == "| a | b |\n| --- | ---: |\n| 1\\|2 | 3 |"


def test_the_readme_is_filled_from_rows(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    report.fill_readme(readme, [latency_row("distilfast", "1x16", 2.0)])
    text = readme.read_text()
    assert "| distilfast fp32 | 2.00 |" in text
    assert "`python -m benchmarks.run`" in text
    assert "old" not in text
    assert text.startswith("before") and text.endswith("after\n")


def test_the_page_escapes_what_it_shows():
    row = latency_row("<b>", "1x16", 2.0)
    assert "&lt;b&gt; fp32" in report.page([row], {})


def test_every_contestant_names_its_precision():
    everybody = contestants()
    assert {"distilfast fp32", "onnxruntime fp32", "openvino bf16", "ctranslate2 int8"} <= set(map(str, everybody))
    for contestant in everybody:
        reason = contestant.module.unavailable(contestant.precision)
        assert reason is None or reason.endswith(".")
        assert contestant.precision in measure.WRONG


@pytest.fixture
def tiny(tiny_checkpoint) -> Path:
    return tiny_checkpoint("distilbert", "feature-extraction")


@pytest.fixture
def worker(tiny, tmp_path):
    worker = Worker(Contestant("distilfast", "fp32"), tiny, 1, tmp_path)
    worker.answer()
    yield worker
    worker.close()


def test_a_worker_answers_and_takes_samples(worker, tiny):
    batches = workloads.Case(2, 5).batches(tiny)
    [output] = worker("outputs", batches)
    assert output.shape == (2, 5, 32)
    assert len(worker("samples", batches, 0.0, False)) == 2
    assert len(worker("memory_of_shapes", [(1, 3), (2, 4)], 1)) == 2
    assert min(worker("load", batches, 200.0, 0.1)) > 0


def test_a_failure_is_one_line_and_the_worker_lives_on(worker, tiny):
    with pytest.raises(Failure, match=r"^InputError: input_ids has 999; the model's table holds 0 to 255\.$"):
        worker("outputs", [(np.full((1, 3), 999), np.ones((1, 3), np.int64))])
    assert worker("outputs", workloads.Case(1, 2).batches(tiny))


def test_a_checkpoint_that_cannot_be_loaded_is_a_failure(tmp_path):
    worker = Worker(Contestant("distilfast", "fp32"), tmp_path, 1, tmp_path)
    with pytest.raises(Failure, match="^ConfigError: .*config.json does not exist"):
        worker.answer()
    worker.close()


def test_a_wrong_answer_is_called_wrong(worker, tiny, monkeypatch):
    run = type("Run", (), {"workers": [worker], "directory": tiny})()
    assert [row["verdict"] for row in measure.parity(run)] == ["right"]
    monkeypatch.setitem(measure.WRONG, "fp32", 1e-12)
    assert [row["verdict"] for row in measure.parity(run)] == ["wrong"]
