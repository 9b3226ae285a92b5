"""``python -m tests.fuzz.run TARGET… [--seconds N] [--corpus DIRECTORY]``: fuzz targets with atheris, one by one.

Coverage of distilfast's Python guides it. Ends with status 0, or with libFuzzer's at the first input that crashes,
hangs for ten seconds or takes 2 GB; that input is written to ``--artifacts``, and ``--input FILE`` runs it alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import atheris


def main() -> None:
    given = _arguments()
    os.environ["DISTILFAST_CACHE"] = "off"
    with atheris.instrument_imports(include=["distilfast"]):  # once for all targets: it takes longer than a short run
        from tests.fuzz import targets
    for name in given.targets:
        if name not in targets.TARGETS:
            raise SystemExit(f"error: there is no target {name}; there are {', '.join(targets.TARGETS)}")
    for name in given.targets:
        child = os.fork()  # libFuzzer ends its process
        if child == 0:
            _fuzz(name, targets, given)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0:
            raise SystemExit(f"error: the target {name} ended with status {status}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--seconds", type=int, default=10, help="for each target")
    parser.add_argument("--corpus", type=Path, help="where new inputs are kept, a folder for each target")
    parser.add_argument("--artifacts", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--input", type=Path, help="run this input alone")
    return parser.parse_args()


def _fuzz(name: str, targets: ModuleType, given: argparse.Namespace) -> None:
    """Does not return."""
    with tempfile.TemporaryDirectory() as scratch:
        target = targets.guarded(targets.TARGETS[name](Path(scratch)))
        given.artifacts.mkdir(parents=True, exist_ok=True)
        options = [
            f"-artifact_prefix={given.artifacts}/",
            f"-max_total_time={given.seconds}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]
        corpus = given.corpus and given.corpus / name
        if corpus:
            corpus.mkdir(parents=True, exist_ok=True)
        inputs = [str(path) for path in (given.input or corpus,) if path]
        atheris.Setup([sys.argv[0], *options, *inputs], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
