"""`distilfast parity`: runs the comparison, and puts together what is shown; its arguments are in ``commands``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from distilfast import parity
from distilfast.cli import chart, html_report, rich_tables
from distilfast.errors import InputError
from distilfast.evaluation import Quality, gate
from distilfast.evaluation.labels import Label, holds_answers, read_labels, read_texts
from distilfast.tokenizer import Text

TRACED = 256
"""Texts of a file that are traced unless the caller says otherwise; the labels of all are used."""


@dataclass(frozen=True)
class Options:
    """The arguments of the command; ``engine`` holds those of ``Engine.from_pretrained``."""

    model: str
    engine: dict[str, Any]
    against: str = "reference"
    text: Path | None = None
    labels: str | None = None
    baseline: str | None = None
    limit: int = TRACED
    invariance: bool = False
    plot: Path | None = None
    html: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """``payload`` is for JSON; ``show`` prints for a reader; ``passed`` decides the exit status."""

    passed: bool
    payload: dict[str, Any]
    show: Callable[[Console], None]


def check(options: Options) -> Outcome:
    """One of the two modes; raises a DistilfastError, for wrong arguments before the long computation."""
    _check(options)
    column = int(options.labels) if options.labels and options.labels.isdigit() else None
    texts, labels = read_texts(options.text, column) if options.text else (None, None)
    if options.labels and column is None:
        labels = read_labels(Path(options.labels), len(texts or ()))
    traced = None if texts is None else texts[: options.limit]
    if options.invariance:
        return _invariance(options, traced)
    with rich_tables.console(stderr=True).status("computing every intermediate twice over …"):
        report = parity.compare(options.model, texts=traced, against=options.against, **options.engine)
        quality = None if texts is None or labels is None else _gate(options, texts, labels)
    if options.plot:
        chart.save(report, options.plot)
    if options.html:
        html_report.save(options.html, report, quality, None if texts is None else len(texts))
    return _outcome(report, quality)


def _check(options: Options) -> None:
    if options.invariance and (options.labels or options.plot or options.html or options.against != "reference"):
        raise InputError("--invariance compares the engine with itself; leave out --against, --labels, --plot, --html.")
    if options.labels and not options.text:
        raise InputError("--labels belong to texts; name their file with --text.")
    answers = options.text is not None and holds_answers(options.text)
    if options.labels and answers:
        raise InputError(f"{options.text} holds its own answers; leave out --labels.")
    if options.baseline and not (options.labels or answers):
        raise InputError("--baseline is what a task metric is compared with; it needs --labels.")
    if options.limit < 1:
        raise InputError(f"--limit is {options.limit}; a positive integer is needed.")
    if options.plot:
        chart.check(options.plot)
    if options.html:
        html_report.check()


def _invariance(options: Options, texts: Sequence[Text] | None) -> Outcome:
    with rich_tables.console(stderr=True).status("comparing bits …"):
        found = parity.check_invariance(options.model, texts=texts, **options.engine)
    return Outcome(
        found.passed, found.to_dict(), lambda out: out.print(rich_tables.judgement(found.passed, found.sentence))
    )


def _gate(options: Options, texts: Sequence[Text], labels: Sequence[Label]) -> Quality:
    """An fp32 engine is compared with what its intermediates are compared with, unless --baseline names another."""
    same = options.against if options.engine.get("precision") == "fp32" else None
    engines: dict[str, Any] = {"baseline": options.baseline or same, **options.engine}
    return gate(options.model, texts, labels, **engines)


def _outcome(report: parity.Report, quality: Quality | None) -> Outcome:
    payload = report.to_dict()
    if quality is not None:
        payload |= {"quality": quality.to_dict(), "passed": report.passed and quality.passed}

    def show(out: Console) -> None:
        out.print(rich_tables.parity(report))
        out.print(rich_tables.verdict(report))
        if "agreement" in payload:
            out.print(rich_tables.answers(payload["agreement"]))
        if quality is not None:
            out.print(rich_tables.judgement(quality.passed, quality.sentence))

    return Outcome(payload["passed"], payload, show)
