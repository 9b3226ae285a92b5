"""All checks and measurements on a GPU, in two commands that need no network: ``check`` in 4 minutes, ``measure`` in 9.

    python -m benchmarks.gpu_check check       bf16 layer by layer against float64, then the tests on the device
    python -m benchmarks.gpu_check measure     latency beside torch.compile and transformers, then everything else
    python -m benchmarks.gpu_check             both
    python -m benchmarks.gpu_check --rehearse  where there is no GPU: the same steps, the tests only collected, the
                                               engines on the CPU

``make gpu-check`` runs it. Each step is a process group with a time limit: it may fail, hang or lose the device, and
the next ones still run. None begins that could not end in time. Rows go to ``--out`` as they are measured; the exit
status is 1 where a step failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks import rows
from distilfast.backends import cuda
from distilfast.backends import triton as backend
from distilfast.synthetic import write_checkpoint

SECONDS = {"check": 240.0, "measure": 540.0}
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--nightly")
TRITON_TESTS = ("tests/kernels/test_triton_operations.py", "tests/model/test_triton_backend.py")
FLAT = "memory_stays_flat"
BACKENDS = {"triton": backend.PRECISIONS, "cuda": cuda.PRECISIONS}
OURS = ",".join(f"distilfast {name} {precision}" for name, every in BACKENDS.items() for precision in every)
PEERS = "transformers sdpa fp16,transformers sdpa bf16,transformers sdpa fp32"
# torch.compile tunes each shape anew, half a minute each: those that the goals name.
COMPILED = ",".join(
    (
        *(f"distilfast {each} bf16" for each in ("triton", "triton replay", "cuda")),
        "torch_compile bf16",
        "transformers sdpa bf16",
    )
)
COMPILED_CASES = "1x16,1x128,8x128,32x128,256x128,256x128 ragged"
COLD_CASES = "1x16,1x128,32x128"
# What cuda has and leaves off, beside what it does.
OPTIONS = ",".join(
    f"distilfast {each}"
    for each in ("cuda bf16", "cuda persistent bf16", "cuda clusters bf16", "cuda fp32", "cuda clusters fp32")
)
OPTIONS_CASES = "1x16,1x512,8x128,32x128,256x128"
LEAST = 5.0
"""Seconds below which no step begins."""


@dataclass(frozen=True)
class Step:
    """A command, and the seconds it may take."""

    name: str
    words: tuple[str, ...]
    limit: float


def python(*words: str) -> tuple[str, ...]:
    """A command of this interpreter."""
    return sys.executable, *words


@dataclass(frozen=True)
class Plan:
    """The steps of both commands, in the order of what matters most. ``rehearse``: for a machine without a GPU."""

    model: Path
    out: Path
    rehearse: bool = False

    def steps(self, command: str) -> list[Step]:
        """Of "check" or "measure"."""
        return self._check() if command == "check" else self._measure()

    def _check(self) -> list[Step]:
        return [
            *(self._parity(name, "bf16") for name in BACKENDS),
            self._tests("tests of cuda on the device", 90, "-m", "gpu", "-k", f"not {FLAT}", "tests/cuda"),
            self._tests("tests of triton on the device", 120, *TRITON_TESTS),
        ]

    def _measure(self) -> list[Step]:
        return [
            self._latency("latency, beside torch.compile", 300, COMPILED, COMPILED_CASES),
            self._latency("latency and roofs, beside transformers", 150, f"{OURS},{PEERS}", None, "roof", "latency"),
            self._latency("latency, cuda's options", 60, OPTIONS, OPTIONS_CASES),
            self._latency("latency, cold L2", 60, f"{OURS},{PEERS}", COLD_CASES, "latency_cold_l2"),
            *(self._parity(name, each) for name, every in BACKENDS.items() for each in every if each != "bf16"),
            # Alone: it checks the memory in use on the whole device.
            self._tests("10,000 shapes", 40, "-m", "gpu", "-k", FLAT, "tests/cuda"),
            *self._sanitizers(),
        ]

    def _parity(self, name: str, precision: str) -> Step:
        where = ("cpu", "fp32") if self.rehearse else (name, precision)
        words = python("-m", "benchmarks.gpu_parity", *where, "--model", str(self.model), "--out", str(self.out))
        return Step(f"parity, {name} {precision}", words, 45)

    def _tests(self, name: str, limit: float, *words: str) -> Step:
        return Step(name, python(*PYTEST, *(("--collect-only",) if self.rehearse else ()), *words), limit)

    def _latency(self, name: str, limit: float, contestants: str, cases: str | None, *only: str) -> Step:
        words = ["-m", "benchmarks.run", "--model", str(self.model), "--out", str(self.out)]
        if self.rehearse:
            words += ["--device", "cpu", "--only", "latency", "--contestants", "distilfast fp32", "--cases", "1x8"]
        else:
            words += ["--device", "cuda", "--only", *(only or ("latency",)), "--contestants", contestants]
            words += ["--cases", cases] if cases else []
        return Step(name, python(*words), limit)

    def _sanitizers(self) -> list[Step]:
        """CUDA's own checkers over the tests of two operations, where they are installed; a run under them is slow."""
        tool = shutil.which("compute-sanitizer")
        some = ("tests/cuda/test_cuda_add_layer_norm.py", "tests/cuda/test_cuda_attention.py", "-m", "gpu", "-x")
        return [
            Step(check, (str(tool), "--tool", check, "--error-exitcode", "9", *python(*PYTEST, *some)), 40)
            for check in (("memcheck", "racecheck") if tool and not self.rehearse else ())
        ]


def main() -> None:
    """Run the steps, print the result of each, and end with those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    # argparse looks for the empty list, which no word gives, among the choices too.
    parser.add_argument("commands", nargs="*", choices=[[], *SECONDS], help="check, measure; by default both")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / f"{date.today()}-gpu.jsonl", help="result rows")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: every step, on the CPU")
    arguments = parser.parse_args()
    if not arguments.rehearse and (reason := _no_device()):
        parser.exit(1, f"error: nothing was checked: {reason}\n")
    if not rows.commit():
        parser.exit(1, "error: there is no git repository here, and rows need a commit: name it with COMMIT=.\n")
    os.environ["TRITON_INTERPRET"] = str(int(arguments.rehearse))  # of every step
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        size = {"n_layers": 1, "dim": 64, "hidden_dim": 128, "n_heads": 4} if arguments.rehearse else {}
        model = write_checkpoint(Path(scratch) / "synthetic", task="feature-extraction", config=size)
        plan = Plan(model, arguments.out.resolve(), arguments.rehearse)
        for command in arguments.commands or SECONDS:
            failed += run_all(plan.steps(command), SECONDS[command])
    print(f"failed: {', '.join(failed)}" if failed else f"all steps passed; rows: {arguments.out}")
    sys.exit(bool(failed))


def _no_device() -> str | None:
    return backend.unavailable() or ("the kernels are interpreted." if backend.is_interpreted() else None)


def run_all(steps: Sequence[Step], seconds: float) -> list[str]:
    """Runs one after the other, whatever happens to each; returns the names of those that failed."""
    end = time.monotonic() + seconds
    return [step.name for step in steps if not _run(step, end)]


def _run(step: Step, end: float) -> bool:
    left = min(step.limit, end - time.monotonic())
    if left < LEAST:
        print(f"· {step.name}: left out, {max(left, 0):.0f} s are left", flush=True)
        return False
    print(f"· {step.name} (at most {left:.0f} s)", flush=True)
    begin = time.monotonic()
    # A group of its own: what the step has started is ended with it.
    process = subprocess.Popen(step.words, start_new_session=True)
    try:
        status = process.wait(timeout=left)
    except subprocess.TimeoutExpired:
        print(f"  stopped after {left:.0f} s", flush=True)
        return False
    finally:
        _end(process)
    verdict = "passed" if status == 0 else f"failed with status {status}"
    print(f"  {verdict} in {time.monotonic() - begin:.0f} s", flush=True)
    return status == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main()
