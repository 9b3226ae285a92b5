"""The report as one HTML page that needs nothing else: picture, tables, machine, versions and command."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distilfast import __version__
from distilfast.cli import chart
from distilfast.errors import InputError
from distilfast.evaluation.quality import Quality
from distilfast.machine import processor
from distilfast.parity.comparison import Report
from distilfast.parity.tally import Row

_STYLE = """
:root { --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --good: #1a7f37; --bad: #c0392b; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 2rem auto; max-width: 72rem;
       padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.verdict { font-size: 1.05rem; margin: .5rem 0 1rem; } p.verdict b { padding: .1rem .5rem; border-radius: .25rem;
       color: #fff; } .pass { background: var(--good); } .fail { background: var(--bad); }
.wide { overflow-x: auto; } svg { width: 100%; height: auto; } p.note { color: var(--soft); max-width: 60rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .2rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { text-align: right; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr.wrong td { background: #fbe9e7; } td.verdict { white-space: normal; min-width: 11rem; }
"""
_LIBRARIES = ("numpy", "tokenizers", "safetensors", "torch", "transformers", "matplotlib")
_MEASURES = (
    "Δ is the engine’s value less the true one, ‖Δ‖ / ‖truth‖ its size end to end. The naive error is that of the "
    "same model computed plainly in the same precision; the budget is derived from it, with a sampling slack that "
    "shrinks with the number of texts. “Transformers” is the error of transformers itself in that precision, where it "
    "was compared with; no verdict depends on it. “Step” computes the one operation in float64 from the engine’s own "
    "inputs; “share” is the error of the worst column of that step relative to its budget, and must not exceed 1. "
    "“ulp” is how far from the truth, in float32 numbers, half and 99 % of the values are at most."
)


def check() -> None:
    """Raises InputError where a page cannot be made: before the work."""
    chart.check_matplotlib()


def save(path: Path, report: Report, quality: Quality | None, texts_in_file: int | None = None) -> None:
    """Write the page; raises InputError where it cannot be written."""
    try:
        path.write_text(page(report, quality, texts_in_file), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}.") from None


def page(report: Report, quality: Quality | None = None, texts_in_file: int | None = None) -> str:
    """The whole document."""
    title = f"Parity of {escape(report.model)}"
    sections = [
        f"<h1>{title}</h1>",
        _verdict(report.passed, report.sentence),
        *([] if quality is None else [_verdict(quality.passed, quality.sentence)]),
        f'<div class="wide">{chart.svg(report)}</div>',
        "<h2>What was compared</h2>",
        _facts(facts(report, texts_in_file)),
        "<h2>The answers</h2>",
        _facts(_agreement(report)),
        *([] if quality is None else ["<h2>Quality on labelled texts</h2>", _facts(_quality(quality))]),
        "<h2>Every intermediate</h2>",
        _rows(report),
        f'<p class="note">{_MEASURES}</p>',
        "<h2>Distances in units of the last place of float32, share of all numbers</h2>",
        _ulps(report),
    ]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(sections)
    return f'<!doctype html>\n<html lang="en"><head>{viewport}{head}</head>\n<body>\n{body}\n</body></html>\n'


def facts(report: Report, texts_in_file: int | None = None) -> dict[str, str]:
    """What, where and with what."""
    ours = report.texts - report.given
    given = f"{report.given} given" + (f" of {texts_in_file} in the file" if texts_in_file else "")
    return {
        "model": report.model,
        "task": report.task,
        "engine": report.detail,
        "precision": report.precision,
        "against": f"{report.against} in float64",
        "naive": report.yardstick,
        "budget": report.derivation,
        "texts": f"{report.texts} ({given}, {ours} of distilfast’s own), {report.tokens} tokens",
        "processor": processor(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "versions": ", ".join(_versions()),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _versions() -> Iterable[str]:
    yield f"distilfast {__version__}"
    yield f"python {platform.python_version()}"
    for name in _LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _verdict(passed: bool, sentence: str) -> str:
    word = "PASS" if passed else "FAIL"
    return f'<p class="verdict"><b class="{word.lower()}">{word}</b> {escape(sentence)}</p>'


def _agreement(report: Report) -> dict[str, str]:
    agreement = report.agreement
    return {
        "compared": agreement.compared,
        "questions": str(agreement.questions),
        "same best answer": f"{100 * agreement.top1:.2f} %",
        "rank correlation": f"lowest {agreement.correlation:.9f}, mean {agreement.mean_correlation:.9f}",
        "largest difference": f"{agreement.max_difference:.1e}",
    }


def _quality(quality: Quality) -> dict[str, str]:
    return {
        "metric": quality.metric,
        quality.engine: f"{quality.engine_points:.2f}",
        quality.baseline: f"{quality.baseline_points:.2f}",
        "cost": f"{quality.cost:.2f} points, budget {quality.budget:.2f}",
        **({} if quality.exact_match is None else {"exact match": "{:.2f}, and {:.2f}".format(*quality.exact_match)}),
        "answers": f"{quality.count}, {quality.changed} changed, {quality.lost} lost, {quality.won} won",
    }


def _rows(report: Report) -> str:
    heads = ["intermediate", "max |Δ|", "‖Δ‖ / ‖truth‖", report.yardstick, "budget", "lowest cosine", "step", "share",
             "ulp 50 %", "ulp 99 %", "verdict"]  # fmt: skip
    if report.rows_[0].torch is not None:
        heads.insert(4, f"transformers {report.precision}")
    return _table(heads, [_cells(row) for row in report.rows_], [not row.passed for row in report.rows_])


def _cells(row: Row) -> list[str]:
    measured = (row.max_abs, row.relative, row.naive, row.torch, row.budget)
    errors = [f"{value:.1e}" for value in measured if value is not None]
    median, most = row.ulp_quantile(0.5), row.ulp_quantile(0.99)
    tail = [f"{row.cosine:.9f}", f"{row.step:.1e}", f"{row.share:.3g}", _distance(median), _distance(most)]
    verdict = "pass" if row.passed else "FAIL" if row.share <= 1.0 else f"FAIL: {row.complaint}"
    return [row.name, *errors, *tail, verdict]


def _distance(ulps: int) -> str:
    return str(ulps) if ulps < 10_000 else f"{ulps:.0e}"


def _ulps(report: Report) -> str:
    used = max((i for row in report.rows_ for i, count in enumerate(row.ulps) if count), default=0) + 1
    heads = ["intermediate", *(_bucket(i) for i in range(used))]
    rows = [[row.name, *(_share(count, sum(row.ulps)) for count in row.ulps[:used])] for row in report.rows_]
    return _table(heads, rows)


def _bucket(i: int) -> str:
    return str(i) if i < 2 else f"{2 ** (i - 1)}+"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.3g} %" if count else ""


def _facts(rows: dict[str, str]) -> str:
    cells = "\n".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f'<table class="facts">{cells}</table>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]], wrong: Sequence[bool] = ()) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in row[:-1])
        cells += f'<td class="verdict">{escape(str(row[-1]))}</td>' if wrong else f"<td>{escape(str(row[-1]))}</td>"
        lines.append(f'<tr class="wrong">{cells}</tr>' if wrong and wrong[i] else f"<tr>{cells}</tr>")
    return f'<div class="wide"><table><tr>{top}</tr>\n' + "\n".join(lines) + "</table></div>"
