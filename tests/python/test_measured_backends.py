"""`auto` by measured rows: the table made of them, the choice and its reason. All rows here are invented."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import backends as table_maker
from distilfast import Engine, PackedBatch, backends
from distilfast.backends import measured
from distilfast.backends.buckets import BucketBackend
from distilfast.batch import bucket_for

ORIGIN = {"commit": "abc", "command": "python -m benchmarks.run", "when": "2026-01-01T00:00:00+00:00"}


def latency(backend, case, p50, precision="bf16", architecture="sm_90", **facts):
    machine = {"gpu": "A GPU", "gpu_architecture": architecture}
    what = {"what": "latency", "contestant": f"distilfast {backend}", "case": case, "precision": precision}
    return {**what, "p50_ms": p50, "machine": machine, **ORIGIN, **facts}


def both(case, cuda, triton, **facts):
    return [latency("cuda", case, cuda, **facts), latency("triton", case, triton, **facts)]


def test_rows_become_a_table():
    table = table_maker.make(
        [
            *both("1x8", 1.0, 2.0),
            *both("1x16", 4.0, 2.0),  # the same bucket: the geometric means are 2 and 2
            *both("32x128", 9.0, 3.0),
            *both("1x16", 1.0, 3.0, precision="fp16"),
            *both("1x16", 1.0, 3.0, architecture="sm_80"),
            latency("cuda", "1x16", 0.5, precision="int8"),  # no other backend has it
            latency("cuda", "1x64", 1.0),  # run by only one of the two
            *both("clinc150 x32", 1.0, 2.0),  # not of one bucket
            {**latency("cuda", "1x16", 1.0), "contestant": "torch_compile"},
            {**latency("cuda", "1x16", 1.0), "machine": {"gpu": "A GPU"}},
        ]
    )
    assert [(row.architecture, row.precision, row.tokens, row.cuda_ms, row.triton_ms) for row in table] == [
        ("sm_80", "bf16", 16, 1.0, 3.0),
        ("sm_90", "bf16", 16, 2.0, 2.0),
        ("sm_90", "bf16", 4096, 9.0, 3.0),
        ("sm_90", "fp16", 16, 1.0, 3.0),
        ("sm_90", "int8", 16, 0.5, None),
    ]
    assert {(row.gpu, row.commit, row.command, row.when) for row in table} == {("A GPU", *ORIGIN.values())}
    assert measured.winners(table, "sm_90", "bf16") == {16: "cuda", 4096: "triton"}
    assert measured.winners(table, "sm_90", "fp32") == {}


def test_a_newer_run_replaces_an_older_one_as_a_whole():
    newer = {"when": "2026-02-01T00:00:00+00:00", "commit": "def"}
    old, new = both("1x16", 1.0, 2.0), both("1x16", 5.0, 4.0, **newer)
    (row,) = table_maker.make([*new, *old])
    assert (row.cuda_ms, row.triton_ms, row.commit) == (5.0, 4.0, "def")
    assert table_maker.make([*old, new[0]]) == []


def test_the_command_writes_what_the_package_reads(tmp_path, monkeypatch, capsys):
    rows, table = tmp_path / "rows.jsonl", tmp_path / "measured.json"
    made = [{**row, "versions": {"python": "3"}} for row in both("1x16", 1.0, 2.0)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    monkeypatch.setattr(table_maker, "TABLE", table)
    monkeypatch.setattr("sys.argv", ["backends", str(rows)])
    table_maker.main()
    assert "1 rows of 1 precisions" in capsys.readouterr().out
    assert measured.read(table) == table_maker.make(made)


def test_the_table_of_the_package_can_be_read():
    for row in measured.read():
        assert row.tokens == bucket_for(row.tokens) and row.commit and row.command and row.when


@pytest.mark.parametrize(("tokens", "bucket"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (4096, 4096)])
def test_buckets(tokens, bucket):
    assert bucket_for(tokens) == bucket


class FakeModule:
    """The part of a backend's module that choosing needs."""

    def __init__(self, precisions, reason=None):
        self.PRECISIONS, self.reason = precisions, reason

    def unavailable(self):
        return self.reason


@pytest.fixture
def machine(monkeypatch):
    """``machine(rows, architecture, **reasons)``: a table, a GPU, and why a backend is unavailable."""

    def make(rows, architecture="sm_90", **reasons):
        fakes = {
            "cpu": FakeModule(("fp32", "bf16")),
            "cuda": FakeModule(("fp32", "bf16", "int8"), reasons.get("cuda")),
            "triton": FakeModule(("fp32", "bf16"), reasons.get("triton")),
        }
        monkeypatch.delenv("DISTILFAST_BACKEND", raising=False)
        monkeypatch.setattr(backends, "module", fakes.__getitem__)
        monkeypatch.setattr(measured, "read", lambda: table_maker.make(rows))
        monkeypatch.setattr(measured, "architecture", lambda: architecture)

    return make


CROSSING = [*both("1x16", 1.0, 2.0), *both("1x128", 3.0, 2.0)]


@pytest.mark.parametrize(
    ("rows", "facts", "precision", "names", "why"),
    [
        ([], {}, "bf16", ("cpu",), "no measured rows for any GPU"),
        (CROSSING, {"architecture": None}, "bf16", ("cpu",), "there is no GPU that can be used"),
        (CROSSING, {"architecture": "sm_80"}, "bf16", ("cpu",), "no measured rows for sm_80 bf16"),
        (CROSSING, {}, "fp32", ("cpu",), "no measured rows for sm_90 fp32"),
        (CROSSING, {}, "bf16", ("cuda", "triton"), "the faster one by measured rows for sm_90 bf16"),
        (CROSSING[:2], {}, "bf16", ("cuda",), "the faster one by measured rows for sm_90 bf16"),
        (CROSSING[2:], {}, "bf16", ("triton",), "the faster one by measured rows for sm_90 bf16"),
        (
            *(CROSSING, {"triton": "No."}, "bf16", ("cuda",)),
            "measured rows for sm_90 bf16, and no other GPU backend is available",
        ),
        (
            *([latency("cuda", "1x16", 1.0, precision="int8")], {"cuda": "No."}, "int8", ("cpu",)),
            "no GPU backend that has int8 is available",
        ),
    ],
)
def test_auto_chooses_what_was_measured(machine, rows, facts, precision, names, why):
    machine(rows, **facts)
    choice = backends.choose("auto", precision)
    assert (choice.names, choice.why) == (names, why)
    assert (len(choice.winners) > 0) == (why.startswith("the faster one"))


def test_an_explicit_backend_is_not_overruled(machine):
    machine(CROSSING)
    assert backends.choose("triton", "bf16") == backends.Choice(("triton",), "requested")


class FakeBackend:
    """Answers with its name."""

    def __init__(self, name):
        self.name, self.detail, self.loaded = name, f"{name} on A GPU", None

    def load(self, weights, head, precision):
        self.loaded = (weights, head, precision)

    def forward(self, batch, rows, hidden, trace=None, columns=None, names=None):
        return self.name, trace

    def forward_on_device(self, batch, rows, hidden, stream=None):
        return self.name, stream

    def forward_from_device(self, batch, rows, hidden, stream=None):
        return self.name, stream

    def info(self):
        return {"packed_bytes": 3, "scratch_bytes": 4}


def test_each_batch_goes_to_the_winner_of_its_bucket():
    inner = {name: FakeBackend(name) for name in ("cuda", "triton")}
    both_loaded = BucketBackend(inner, {16: "cuda", 64: "cuda", 256: "triton"})
    both_loaded.load("weights", "head", "bf16")
    assert {backend.loaded for backend in inner.values()} == {("weights", "head", "bf16")}
    for tokens, name in ((1, "cuda"), (64, "cuda"), (65, "cuda"), (128, "cuda"), (129, "triton"), (5000, "triton")):
        batch = PackedBatch.from_sequences([np.zeros(tokens, np.int32)])
        assert both_loaded.forward(batch, None, True, {}) == (name, {})
        assert both_loaded.forward_on_device(batch, None, True, 7) == (name, 7)
    assert both_loaded.forward_from_device(None, None, True, 7) == ("cuda", 7)
    assert both_loaded.name == "cuda and triton"
    assert both_loaded.detail == ("cuda on A GPU; triton on A GPU; by tokens: cuda at 16, cuda at 64, triton at 256")
    payload = both_loaded.info()
    assert (payload["packed_bytes"], payload["scratch_bytes"]) == (6, 8)
    assert payload["buckets"] == {16: "cuda", 64: "cuda", 256: "triton"}


def test_info_gives_the_reason_for_the_cpu(tiny_checkpoint, monkeypatch):
    monkeypatch.delenv("DISTILFAST_BACKEND", raising=False)
    monkeypatch.setattr(measured, "read", list)
    info = Engine.from_pretrained(tiny_checkpoint("distilbert", "token-classification")).info()
    assert (info["backend"], info["backend_why"]) == ("cpu", "no measured rows for any GPU")
