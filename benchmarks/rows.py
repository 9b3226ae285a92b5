"""Result rows: one JSON object for each measurement, with its provenance; files are only ever appended to."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.engines import no_gpu
from distilfast import machine

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
PROVENANCE = ("machine", "versions", "commit", "command", "when")
_PACKAGES = (
    *("distilfast", "numpy", "tokenizers", "torch", "torchao", "zentorch", "triton", "transformers"),
    *("onnxruntime", "openvino", "nncf", "ctranslate2"),
)


def default_file(origin: Row) -> Path:
    """A new file of the results, named by day, processor, instruction set and commit; ``origin``: ``provenance``."""
    facts = origin["machine"]
    words = f"{facts.get('gpu') or facts['processor']} {facts['isa']}".lower().replace("(r)", "").replace("(tm)", "")
    return RESULTS / f"{origin['when'][:10]}-{'-'.join(re.findall('[a-z0-9]+', words))}-{origin['commit']}.jsonl"


def provenance(device: str = "cpu") -> Row:
    """Machine, versions, commit and command of this process; the same for all rows of one run."""
    return {
        "machine": machine_facts() | (gpu_facts() if device == "cuda" else {}),
        "versions": {"python": machine.info()["python"], **_versions()},
        "commit": commit(),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def machine_facts() -> Row:
    """Processor, what of its instruction sets matters here, cores and memory."""
    facts = machine.info()
    return {
        "processor": facts["processor"],
        "flags": [flag for flag in processor_flags() if flag.startswith(("avx", "amx", "fma"))],
        "isa": facts.get("isa"),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def gpu_facts() -> Row:
    """The GPU that torch runs on, its memory and its CUDA version; nothing where torch finds none."""
    if no_gpu():
        return {}
    import torch

    facts = torch.cuda.get_device_properties()
    return {
        "gpu": facts.name,
        "gpu_architecture": f"sm_{facts.major}{facts.minor}",
        "gpu_memory_gib": round(facts.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def commit() -> str:
    """The checkout's commit, followed by "+" where the tree has uncommitted changes.

    For a copy of the tree without its history GIT_COMMIT in the environment names it; "" where nothing does.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()

    if given := os.environ.get("GIT_COMMIT"):
        return given
    if shutil.which("git") is None:
        return ""
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows at the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read(paths: Iterable[Path]) -> list[Row]:
    """All rows of the files; raises ValueError for one without its provenance."""
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            if lacking := [name for name in PROVENANCE if not row.get(name)]:
                raise ValueError(f"{path}:{number} has no {', '.join(lacking)}; a row must say where it comes from.")
            rows.append(row)
    return rows


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor_flags() -> list[str]:
    """What /proc/cpuinfo says of the first core; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
