"""`make gpu-check` where there is no GPU: its steps name what exists, each ends in time, and none ends the others."""

import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import gpu_check, rows, workloads
from benchmarks.engines import contestants
from benchmarks.engines import distilfast as ours
from benchmarks.gpu_check import Plan, Step, python, run_all
from distilfast import PackedBatch

ROOT = Path(__file__).resolve().parents[2]


def words_after(step: Step, option: str) -> list[str]:
    return step.words[step.words.index(option) + 1].split(",") if option in step.words else []


def test_the_steps_name_contestants_and_cases_that_exist(tmp_path):
    steps = [step for command in gpu_check.SECONDS for step in Plan(tmp_path, tmp_path).steps(command)]
    known = {str(each) for each in contestants("cuda")}
    cases = {case.name for case in workloads.grid("cuda")}
    for step in steps:
        assert set(words_after(step, "--contestants")) <= known
        assert set(words_after(step, "--cases")) <= cases
        assert all((ROOT / word).exists() for word in step.words if word.startswith("tests/"))
    assert len({step.name for step in steps}) == len(steps)


def test_the_tests_on_the_device_are_all_of_them_and_build_nothing():
    """A test of the simulated device would compile it, once in each worker."""
    command = [sys.executable, *gpu_check.PYTEST, "--collect-only", "-m", "gpu", "tests/cuda"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    tests = [line for line in found if "::" in line]
    assert len(tests) > 100
    assert [line for line in tests if "device" not in line.partition("[")[2]] == []
    assert any("test_results_reach_the_host_complete" in line for line in tests)


def test_a_step_that_fails_or_hangs_ends_with_its_children_and_the_next_one_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpu_check, "LEAST", 0.0)
    child, after = tmp_path / "child", tmp_path / "after"
    hangs = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(child)!r}).write_text(str(child.pid))
time.sleep(600)
"""
    steps = [
        Step("fails", python("-c", "raise SystemExit(3)"), 30),
        Step("hangs", python("-c", hangs), 2),
        Step("runs", python("-c", f"open({str(after)!r}, 'w')"), 30),
    ]
    assert run_all(steps, 60) == ["fails", "hangs"]
    assert after.exists()
    assert not is_running(int(child.read_text()))
    printed = capfd.readouterr().out
    assert "failed with status 3" in printed
    assert "stopped after 2 s" in printed


def is_running(process: int) -> bool:
    """A process that has ended may stay in the table until its new parent looks."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_step_begins_that_could_not_end(capfd):
    assert run_all([Step("late", python("-c", "print('ran')"), 60)], gpu_check.LEAST - 1) == ["late"]
    assert "late: left out, 4 s are left" in capfd.readouterr().out


def test_the_rehearsal_of_the_checks(tmp_path):
    """Of one command; that of the other one takes two minutes: python -m benchmarks.gpu_check measure --rehearse."""
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "check", "--rehearse", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "GIT_COMMIT": "0" * 12})
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["what"] for row in rows.read([out])] == ["layers", "layers"]


def test_without_a_commit_nothing_begins(monkeypatch):
    """Rows without one are refused when they are read, after the minutes on the GPU."""
    monkeypatch.delenv("GIT_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert rows.commit() == ""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--rehearse"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: there is no git repository here, and rows need a commit: name it with COMMIT=.\n"


def test_the_address_of_a_batch_stays_its_own():
    """Ids are freed after each question: "256x128 ragged" would otherwise find the batch of "256x128"."""
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def forward_on_device(batch: PackedBatch, *, hidden: bool) -> tuple[object, None]:
        return torch.from_numpy(np.stack([batch.input_ids, batch.positions], axis=1).astype(np.float32)), None

    forward = ours._on_device(SimpleNamespace(forward_on_device=forward_on_device), repeats=False)
    ids = torch.arange(1, 16).view(3, 5)
    mask = (torch.arange(5) < torch.tensor([[5], [3], [2]])).long()
    wanted = torch.stack([ids * mask, torch.arange(5) * mask], dim=-1).float()
    for _ in range(2):
        assert torch.equal(forward(ids, mask), wanted)
        assert torch.equal(forward(ids, None)[..., 0], ids.float())
    kept = [weakref.ref(ids), weakref.ref(mask)]
    del ids, mask
    assert None not in [reference() for reference in kept]


def test_a_replay_is_of_the_input_that_is_asked_for():
    """Each change of the input is a whole call, which stages it."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    calls: list[str] = []

    def forward_on_device(batch: PackedBatch, *, hidden: bool) -> tuple[object, None]:
        calls.append(f"forward of {batch.num_tokens}")
        return torch.from_numpy(batch.input_ids.astype(np.float32)[:, None]), None

    backend = SimpleNamespace(repeat=lambda: calls.append("repeat"))
    forward = ours._on_device(SimpleNamespace(forward_on_device=forward_on_device, _backend=backend), repeats=True)
    one, other = torch.arange(1, 7).view(2, 3), torch.arange(1, 5).view(1, 4)
    for ids in (one, one, other, other, one):
        assert torch.equal(forward(ids, None)[..., 0], ids.float())
    assert calls == ["forward of 6", "repeat", "forward of 4", "repeat", "forward of 6"]
