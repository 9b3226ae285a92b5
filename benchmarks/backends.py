"""The table by which `auto` chooses a GPU backend, from result rows.

    python -m benchmarks.backends [FILE ...]

Reads latency rows (all of benchmarks/results by default) of the backends cuda and triton, and writes
distilfast/backends/measured.json. Of a case that was measured more than once the newest row counts; the cases of a
bucket count alike, and only those that every backend with the precision ran in one and the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import Row
from distilfast.backends import module
from distilfast.backends.measured import BACKENDS, TABLE, Measured
from distilfast.batch import bucket_for

_EQUAL_LENGTHS = re.compile(r"(\d+)x(\d+)")


def main() -> None:
    """Write the table and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files or sorted(rows.RESULTS.glob("*.jsonl"))
    table = make(rows.read(files))
    TABLE.write_text(json.dumps([asdict(row) for row in table], indent=1) + "\n", encoding="utf-8")
    print(f"{TABLE}: {len(table)} rows of {len({(row.architecture, row.precision) for row in table})} precisions")


def make(found: Iterable[Row]) -> list[Measured]:
    """A row for each architecture, precision and bucket that the backends were measured in."""
    pairs: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in sorted(filter(_is_ours, found), key=lambda row: row["when"]):
        case = (row["machine"]["gpu_architecture"], row["precision"], row["case"])
        pair = pairs.get(case, {})
        if any(_run(other) != _run(row) for other in pair.values()):
            pair = {}  # a newer run, which may be of other clocks and versions
        pairs[case] = {**pair, row["contestant"].split()[1]: row}
    buckets: dict[tuple[str, str, int], list[dict[str, Row]]] = defaultdict(list)
    for (architecture, precision, case), pair in pairs.items():
        if set(pair) == {name for name in BACKENDS if precision in module(name).PRECISIONS}:
            buckets[architecture, precision, bucket_for(_tokens(case))].append(pair)
    return [_measured(*bucket, some) for bucket, some in sorted(buckets.items())]


def _is_ours(row: Row) -> bool:
    ours = row["what"] == "latency" and row["contestant"] in {f"distilfast {name}" for name in BACKENDS}
    return ours and "gpu_architecture" in row["machine"] and _EQUAL_LENGTHS.fullmatch(row["case"]) is not None


def _run(row: Row) -> tuple[str, str, str]:
    return row["machine"]["gpu"], row["commit"], row["command"]


def _tokens(case: str) -> int:
    found = _EQUAL_LENGTHS.fullmatch(case)
    assert found is not None
    return int(found[1]) * int(found[2])


def _measured(architecture: str, precision: str, tokens: int, pairs: list[dict[str, Row]]) -> Measured:
    def mean(name: str) -> float | None:
        if name not in pairs[0]:
            return None
        return round(math.exp(sum(math.log(pair[name]["p50_ms"]) for pair in pairs) / len(pairs)), 6)

    newest = max((row for pair in pairs for row in pair.values()), key=lambda row: row["when"])
    origin = {name: newest[name] for name in ("commit", "command", "when")}
    return Measured(architecture, newest["machine"]["gpu"], precision, tokens, mean("cuda"), mean("triton"), **origin)


if __name__ == "__main__":
    main()
