"""Names of people, places and organisations in a column of a CSV file.

    python examples/entities_csv.py letters.csv --column text --output entities.csv

The output has the columns of the input and one more for each kind of entity that the model knows, with the names found,
separated by "; ". Rows are read and written one after the other, so the file may be larger than the memory; a row that
cannot be answered has the reason in the column `error`. Without a file a few sentences are read:

    text,LOC,MISC,ORG,PER,error
    Ada Lovelace met Charles Babbage in London.,London,,,Ada Lovelace; Charles Babbage,
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from contextlib import nullcontext
from itertools import tee
from pathlib import Path
from typing import Any

import distilfast
from distilfast.errors import InputError

MODEL = "elastic/distilbert-base-cased-finetuned-conll03-english"
SAMPLE = """text
Ada Lovelace met Charles Babbage in London.
The Red Cross was founded in Geneva by Henry Dunant.
"""


def kinds_of(pipe: Any) -> list[str]:
    """The kinds of entities that a model knows: PER of B-PER and I-PER."""
    labels = pipe.engine.config.id2label.values()
    return sorted({label.split("-", 1)[-1] for label in labels if label != "O"})


def cells(text: str, found: list[dict[str, Any]] | InputError, kinds: list[str]) -> dict[str, str]:
    """What a row gets: the names of each kind, each once, or why there are none."""
    if isinstance(found, InputError):
        return dict.fromkeys(kinds, "") | {"error": str(found)}
    names: dict[str, dict[str, None]] = {kind: {} for kind in kinds}
    for each in found:
        names[each["entity_group"]][text[each["start"] : each["end"]]] = None
    return {kind: "; ".join(words) for kind, words in names.items()} | {"error": ""}


def main(arguments: list[str] | None = None) -> None:
    """Write the rows of a CSV file with the entities of one column."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--column", default="text")
    parser.add_argument("--output", type=Path, help="a file; the default is standard output")
    parser.add_argument("--model", default=MODEL, help="a hub id or a directory")
    given = parser.parse_args(arguments)

    source = given.file.open(encoding="utf-8", newline="") if given.file else io.StringIO(SAMPLE)
    rows = csv.DictReader(source)
    if given.column not in (columns := list(rows.fieldnames or [])):
        sys.exit(f"error: there is no column {given.column!r}; there are {', '.join(columns)}.")
    pipe = distilfast.pipeline("ner", given.model)
    kinds, (ahead, rows_again) = kinds_of(pipe), tee(rows)
    answers = pipe.stream((row[given.column] for row in ahead), aggregation_strategy="simple", stride=0)
    output = given.output.open("w", encoding="utf-8", newline="") if given.output else nullcontext(sys.stdout)
    with source, output as target:
        writer = csv.DictWriter(target, [*columns, *kinds, "error"], extrasaction="ignore")
        writer.writeheader()
        for row, found in zip(rows_again, answers, strict=True):
            writer.writerow(row | cells(row[given.column], found, kinds))


if __name__ == "__main__":
    main()
