"""``python -m tests.fuzz.run TARGET [--seconds N] [--corpus DIRECTORY]``: fuzz one target with atheris.

Coverage of distilfast's Python guides it. Ends with status 0, or with libFuzzer's at the first input that crashes,
hangs for ten seconds or takes 2 GB; that input is written to ``--artifacts``, and ``--input FILE`` runs it alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--corpus", type=Path, help="where new inputs are kept; by default nowhere")
    parser.add_argument("--artifacts", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--input", type=Path, help="run this input alone")
    given = parser.parse_args()
    os.environ["DISTILFAST_CACHE"] = "off"
    with atheris.instrument_imports(include=["distilfast"]):
        from tests.fuzz import targets
    if given.target not in targets.TARGETS:
        parser.error(f"there is no target {given.target}; there are {', '.join(targets.TARGETS)}")
    with tempfile.TemporaryDirectory() as scratch:
        target = targets.guarded(targets.TARGETS[given.target](Path(scratch)))
        given.artifacts.mkdir(parents=True, exist_ok=True)
        options = [
            f"-artifact_prefix={given.artifacts}/",
            f"-max_total_time={given.seconds}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]
        if given.corpus:
            given.corpus.mkdir(parents=True, exist_ok=True)
        inputs = [str(path) for path in (given.input or given.corpus,) if path]
        atheris.Setup([sys.argv[0], *options, *inputs], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
