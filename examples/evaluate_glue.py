"""What a precision costs on a GLUE task: the official metric in each, and how many answers change.

    python examples/evaluate_glue.py                                   # SST-2, fetched through `datasets`
    python examples/evaluate_glue.py mnli GLUE --model my-mnli --precisions fp32 int8
    python examples/evaluate_glue.py sst2 dev.tsv --limit 200

Prints a line for each precision, the first being what the others are compared with:

    sst2 fp32  accuracy 91.06 %  872 examples
    sst2 int8  accuracy 90.94 %  872 examples, 5 answers differ from fp32
"""

from __future__ import annotations

import argparse

from distilfast.evaluation import Result, evaluate

MODEL = "distilbert-base-uncased-finetuned-sst-2-english"


def line(result: Result, first: Result) -> str:
    metrics = "  ".join(f"{name} {value:.2f} %" for name, value in result.metrics.items())
    shown = f"{result.dataset} {result.precision}  {metrics}  {result.counts['examples']} examples"
    if result is first:
        return shown
    differ = sum(ours != theirs for ours, theirs in zip(result.predictions, first.predictions, strict=True))
    return f"{shown}, {differ} answers differ from {first.precision}"


def main(arguments: list[str] | None = None) -> None:
    """Print the metrics of a model in several precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="sst2", help="cola, sst2, mrpc, qqp, stsb, mnli, qnli or rte")
    parser.add_argument("data", nargs="?", help="GLUE's folder, the task's, or a file; else `datasets` fetches it")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--limit", type=int, help="at most so many examples, evenly spaced")
    parser.add_argument("--model", default=MODEL, help="a hub id or a directory")
    given = parser.parse_args(arguments)

    first: Result | None = None
    for precision in given.precisions:
        result = evaluate(given.model, given.task, given.data, precision=precision, limit=given.limit)
        first = first or result
        print(line(result, first), flush=True)


if __name__ == "__main__":
    main()
