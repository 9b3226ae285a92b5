"""Ten seconds of each target; ``make fuzz`` runs them for longer and keeps what it finds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = ("config", "checkpoint", "safetensors", "tokenizer", "arguments", "batch", "command_line")
SECONDS = 10


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed (pip install atheris)"
)
@pytest.mark.parametrize("target", TARGETS)
def test_only_our_own_errors(target: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.fuzz.run", target, "--seconds", str(SECONDS), "--artifacts", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20 * SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "stat::number_of_executed_units" in done.stderr
