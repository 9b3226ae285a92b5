"""What the command line shows: rich tables of facts, answers and errors. No arithmetic beyond formatting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from distilfast.parity import Report


def console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """A console that takes every text literally: "[MASK]" is a token and no markup."""
    return Console(quiet=quiet, stderr=stderr, markup=False, highlight=False, emoji=False)


def facts(data: Mapping[str, Any]) -> Table:
    """A nested mapping as two columns, names and values."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for depth, name, value in _flat(data):
        table.add_row("  " * depth + name.removesuffix("_bytes").replace("_", " "), _spoken(name, value))
    return table


def _flat(data: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[int, str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            yield depth, str(name), ""
            yield from _flat(value, depth + 1)
        else:
            yield depth, str(name), value


def _spoken(name: str, value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_bytes"):
        return f"{value / 2**20:.1f} MiB"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def fill_mask(text: str, result: Sequence[Any]) -> Table:
    """``result``: the pipeline's list of candidates, or one such list for each mask of the text."""
    masks = result if result and isinstance(result[0], list) else [result]
    table = _table(text, "score", "token", "sequence")
    for i, candidates in enumerate(masks):
        if i:
            table.add_section()
        for row in candidates:
            table.add_row(f"{row['score']:.4f}", row["token_str"], row["sequence"])
    return table


def text_classification(text: str, result: Any) -> Table:
    """``result``: one dict of label and score, or a list of them."""
    table = _table(text, "score", "label")
    for row in result if isinstance(result, list) else [result]:
        table.add_row(f"{row['score']:.4f}", row["label"])
    return table


def embedding(text: str, vector: Sequence[float]) -> Table:
    """The first components of a text's mean-pooled, normalised vector."""
    table = _table(text, "width", "mean-pooled, normalised to length 1")
    shown = ", ".join(f"{x:+.4f}" for x in vector[:5])
    table.add_row(str(len(vector)), shown + (", …" if len(vector) > 5 else ""))
    return table


def parity(report: Report, *, layers_only: bool = False) -> Table:
    """Every intermediate, or only what each layer hands to the next, beside the reference.

    The last column is the relative error of the same model computed plainly, in numpy's float32.
    """
    table = _table(None, "intermediate", "max |Δ|", "‖Δ‖ / ‖ref‖", "cosine", "plain fp32")
    _align_right(table)
    for row in report.rows:
        inner = row["name"].startswith("layer.") and not row["name"].endswith(".output")
        if not (layers_only and inner):
            errors = (f"{row[name]:.1e}" for name in ("max_abs", "relative"))
            table.add_row(row["name"], *errors, f"{row['cosine']:.9f}", f"{row['naive']:.1e}")
    return table


def hits(query: str, found: Sequence[Mapping[str, Any]]) -> Table:
    """The sentences nearest to a query, best first."""
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = f"“{query}”", "left", "bold"
    for row in found:
        table.add_row(f"  {row['score']:.3f}", Text.assemble(row["sentence"], (f" {row['source']}", "dim italic")))
    return table


def latency(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row for each shape."""
    table = _table(None, "batch × tokens", "median ms", "runs")
    _align_right(table)
    for row in rows:
        table.add_row(f"1 × {row['tokens']}", f"{row['median_ms']:.2f}", str(row["runs"]))
    return table


def verdict(report: Report) -> Text:
    """PASS or FAIL, and what it was judged by."""
    word, style = ("PASS", "bold green") if report.passed else ("FAIL", "bold red")
    error = next(row["relative"] for row in report.rows if row["name"] == report.judged)
    return Text.assemble((word, style), f": {report.judged} is off by {error:.1e}, budget {report.budget:.1e}")


def _table(title: str | None, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _align_right(table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"
