"""One backend in one precision, every intermediate against float64; a process, so that a lost device ends nothing else.

    python -m benchmarks.gpu_parity cuda bf16 --model MODEL --out ROWS

Appends a row; the exit status is 1 where a budget is not kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import rows
from distilfast import parity
from distilfast.errors import DistilfastError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backend")
    parser.add_argument("precision")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = "cpu" if arguments.backend == "cpu" else "cuda"
    try:
        report = parity.compare(arguments.model, backend=arguments.backend, precision=arguments.precision)
    except DistilfastError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"  {'PASS' if report.passed else 'FAIL'}: {report.sentence}", flush=True)
    facts = {"what": "layers", "device": device, **report.to_dict(), "model": "synthetic"}
    rows.append(arguments.out, [{**facts, **rows.provenance(device)}])
    sys.exit(not report.passed)


if __name__ == "__main__":
    main()
