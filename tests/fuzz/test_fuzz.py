"""Half a minute of each target; ``make fuzz`` runs them for longer and keeps what it finds."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = ("config", "checkpoint", "safetensors", "tokenizer", "arguments", "batch", "command_line")
SECONDS = 30
"""Of each target."""


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed (pip install atheris)"
)
def test_only_our_own_errors(tmp_path: Path) -> None:
    """Every target has run inputs, and none has ended with anything but an error of ours."""
    root = Path(__file__).resolve().parents[2]
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.run",
        *TARGETS,
        "--seconds",
        str(SECONDS),
        "--artifacts",
        str(tmp_path),
    ]
    limit = 20 * SECONDS * len(TARGETS)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    executed = [int(count) for count in re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)]
    assert len(executed) == len(TARGETS) and min(executed) > 0
