"""All checks and measurements on a GPU, in one command of under eight minutes that needs no network.

``make gpu-check`` runs it: the kernels' and the backend's tests on the device in every type, the proof in full size
layer by layer, the roofs, the latency grid beside transformers and torch.compile. Each step has a time limit, and none
begins that could not end in time. Rows go to ``--out``; the exit status is 1 where a step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks import rows
from distilfast import parity
from distilfast.backends import cuda
from distilfast.backends import triton as backend
from distilfast.errors import DistilfastError
from distilfast.synthetic import write_checkpoint

SECONDS = 470
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
TESTS = ("tests/kernels/test_triton_operations.py", "tests/model/test_triton_backend.py", "tests/cuda")
BACKENDS = {"triton": backend.PRECISIONS, "cuda": cuda.PRECISIONS}
FLAT = "memory_stays_flat"
OURS = ",".join(f"distilfast {name} {precision}" for name, every in BACKENDS.items() for precision in every)
PEERS = "transformers sdpa fp16,transformers sdpa bf16,transformers sdpa fp32"
# What cuda has and leaves off, beside what it does.
OPTIONS = ",".join(
    f"distilfast {each}"
    for each in ("cuda bf16", "cuda persistent bf16", "cuda clusters bf16", "cuda fp32", "cuda clusters fp32")
)
OPTIONS_CASES = "1x16,1x512,8x128,32x128,256x128"
# torch.compile tunes each shape anew, half a minute each: those that the goals name.
COMPILED_CASES = "1x16,1x128,32x128,256x128,256x128 ragged"


@dataclass(frozen=True)
class Step:
    """A command, and the seconds it may take."""

    name: str
    words: tuple[str, ...]
    limit: float


def python(*words: str) -> tuple[str, ...]:
    """A command of this interpreter."""
    return sys.executable, *words


def steps(out: Path, model: Path) -> list[Step]:
    """In the order of what matters most, after correctness."""
    bench = python("-m", "benchmarks.run", "--device", "cuda", "--model", str(model), "--out", str(out))
    spread = ("-n", "6") if importlib.util.find_spec("xdist") else ()
    return [
        Step("tests on the device", python(*PYTEST, "-k", f"not host and not {FLAT}", *spread, *TESTS), 170),
        # Alone: it checks the memory in use on the whole device.
        Step("10,000 shapes", python(*PYTEST, "-k", f"device and {FLAT}", "tests/cuda"), 40),
        *sanitizers(),
        Step(
            "latency, beside transformers",
            (*bench, "--only", "roof", "latency", "latency_cold_l2", "--contestants", f"{OURS},{PEERS}"),
            150,
        ),
        Step(
            "latency, cuda's options",
            (*bench, "--only", "latency", "--cases", OPTIONS_CASES, "--contestants", OPTIONS),
            60,
        ),
        Step(
            "latency, beside torch.compile",
            (
                *(*bench, "--only", "latency", "--cases", COMPILED_CASES),
                *("--contestants", "distilfast triton bf16,distilfast cuda bf16,torch_compile bf16"),
            ),
            200,
        ),
    ]


def sanitizers() -> list[Step]:
    """CUDA's own checkers over the tests of two operations, where they are installed; a run under them is slow."""
    tool = shutil.which("compute-sanitizer")
    some = ("tests/cuda/test_cuda_add_layer_norm.py", "tests/cuda/test_cuda_attention.py", "-k", "device", "-x")
    checks = ("memcheck", "racecheck") if tool else ()
    return [
        Step(check, (str(tool), "--tool", check, "--error-exitcode", "9", *python(*PYTEST, *some)), 40)
        for check in checks
    ]


def main() -> None:
    """Run the steps, print the result of each, and end with those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=rows.RESULTS / f"{date.today()}-gpu.jsonl", help="result rows")
    arguments = parser.parse_args()
    if reason := backend.unavailable() or ("the kernels are interpreted." if backend.is_interpreted() else None):
        parser.exit(1, f"error: nothing was checked: {reason}\n")
    end = time.monotonic() + SECONDS
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        model = write_checkpoint(Path(scratch) / "synthetic", task="feature-extraction")
        first, *others = steps(arguments.out, model)
        for name, passed in (
            (first.name, _run(first, end)),
            ("parity in full size", _parity(model, arguments.out)),
            *((step.name, _run(step, end)) for step in others),
        ):
            if not passed:
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else f"all steps passed; rows: {arguments.out}")
    sys.exit(bool(failed))


def _run(step: Step, end: float) -> bool:
    left = min(step.limit, end - time.monotonic())
    begin = time.monotonic()
    print(f"· {step.name} (at most {left:.0f} s)", flush=True)
    if left < 10:
        print(f"  left out: {max(left, 0):.0f} s are left")
        return False
    try:
        environment = {**os.environ, "TRITON_INTERPRET": "0"}
        status = subprocess.run(step.words, env=environment, timeout=left).returncode
    except subprocess.TimeoutExpired:
        print(f"  stopped after {left:.0f} s")
        return False
    verdict = "passed" if status == 0 else f"failed with status {status}"
    print(f"  {verdict} in {time.monotonic() - begin:.0f} s", flush=True)
    return status == 0


def _parity(model: Path, out: Path) -> bool:
    """Every intermediate of a full-size model in each precision, compared with float64."""
    passed = True
    for name, precision in ((name, precision) for name, every in BACKENDS.items() for precision in every):
        try:
            report = parity.compare(model, backend=name, precision=precision)
        except DistilfastError as error:
            print(f"· parity {name} {precision}: {error}", flush=True)
            passed = False
            continue
        print(f"· parity {name} {precision}: {'PASS' if report.passed else 'FAIL'}: {report.sentence}", flush=True)
        passed = passed and report.passed
        facts = {"what": "layers", "device": "cuda", **report.to_dict(), "model": "synthetic"}
        rows.append(out, [{**facts, **rows.provenance("cuda")}])
    return passed


if __name__ == "__main__":
    main()
