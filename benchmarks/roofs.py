"""The machine's own limits, measured by roofs.cpp, and what share of them an operation reaches."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def measure(threads: int) -> dict[str, Any]:
    """``giga_operations`` a second by unit and ``read_gb_by_mib``: gigabytes a second by MiB read; or ``reason``."""
    source = Path(__file__).with_name("roofs.cpp")
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "roofs"
        compiler = [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-march=native", "-pthread"]
        try:
            subprocess.run([*compiler, str(source), "-o", str(program)], check=True, capture_output=True, text=True)
            printed = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            return {"threads": threads, "reason": f"The program that measures them could not be run: {error}."}
    found: dict[str, Any] = json.loads(printed)
    return found
