"""What the command line shows: rich tables of facts, answers and errors. No arithmetic beyond formatting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from distilfast.cli.matters import Matter
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
        table.add_row("  " * depth + _label(name), _spoken(name, value))
    return table


def _label(name: str) -> str:
    """Words apart, but for a proper name such as avx512_bf16."""
    is_proper = any(character.isdigit() for character in name)
    return name if is_proper else name.removesuffix("_bytes").replace("_", " ")


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


_STATES = {"good": ("✓", "green"), "advice": ("!", "yellow"), "absent": ("·", "dim"), "broken": ("✗", "bold red")}


def matters(found: Mapping[str, Matter]) -> Table:
    """What `doctor` found, and below each matter what to do about it."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, matter in found.items():
        sign, style = _STATES[matter.state]
        table.add_row(Text(sign, style=style), name, Text(matter.found))
        for advice in matter.advice:
            table.add_row("", Text("→", style=style, justify="right"), Text(advice))
    return table


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
    """The first components of a text's vector."""
    table = _table(text, "width", "vector, as the checkpoint pools it")
    shown = ", ".join(f"{x:+.4f}" for x in vector[:5])
    table.add_row(str(len(vector)), shown + (", …" if len(vector) > 5 else ""))
    return table


def zero_shot(text: str, result: Mapping[str, Any]) -> Table:
    """``result``: the labels and their scores, best first."""
    pairs = zip(result["labels"], result["scores"], strict=True)
    return text_classification(text, [{"label": label, "score": score} for label, score in pairs])


def any_answer(text: str, result: Any) -> Table:
    """A dict or a list of dicts: a column for each key."""
    rows = result if isinstance(result, list) else [result]
    if not rows or not isinstance(rows[0], dict):
        return _table(text, "nothing found") if not rows else _plain(text, rows)
    table = _table(text, *(_label(key) for key in rows[0]))
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def _plain(text: str, values: Sequence[Any]) -> Table:
    table = _table(text, "answer")
    for value in values:
        table.add_row(str(value))
    return table


ANSWERS: dict[str, Callable[[str, Any], Table]] = {
    "fill-mask": fill_mask,
    "text-classification": text_classification,
    "zero-shot-classification": zero_shot,
}
"""How the answers of a task are shown; of every other by ``any_answer``."""


def _large(value: float) -> str:
    """3e5 for 311,000: as narrow as the small ones."""
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


# Column of a parity table: its head, and how its values are written. A report shows those that its rows hold.
_MEASURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "max_abs": ("max |Δ|", "{:.1e}".format),
    "relative": ("‖Δ‖/‖t‖", "{:.1e}".format),
    "naive": ("naive", "{:.1e}".format),
    "torch": ("torch", "{:.1e}".format),
    "budget": ("budget", "{:.1e}".format),
    "cosine": ("1−cos", lambda cosine: f"{max(0.0, 1.0 - cosine):.0e}"),
    "share": ("step", lambda share: f"{share:.2f}" if share < 10 else _large(share)),
    "ulp99": ("ulp", lambda distance: str(distance) if distance < 10_000 else _large(distance)),
    "passed": ("", lambda passed: "✓" if passed else "✗"),
}


def parity(report: Report, *, layers_only: bool = False) -> Table:
    """Every intermediate, or only the output of each layer, beside the truth t.

    ``naive`` is the relative error of the same model computed plainly, ``torch`` that of transformers in the same
    precision; ``step`` the error of the worst column of this operation alone, relative to its budget; ``ulp`` what 99 %
    of the numbers are within.
    """
    shown = {name: _MEASURES[name] for name in _MEASURES if report.rows[0].get(name) is not None}
    if "torch" in shown:
        del shown["max_abs"]  # both do not fit 80 columns; JSON and the page have it
    table = _table(None, "intermediate", *(head for head, _ in shown.values()))
    table.padding, table.show_edge = (0, 1, 0, 0), False
    _align_right(table)
    for row in report.rows:
        inner = row["name"].startswith("layer.") and not row["name"].endswith(".output")
        if not (layers_only and inner):
            style = None if row.get("passed", True) else "bold red"
            table.add_row(row["name"], *(write(row[name]) for name, (_, write) in shown.items()), style=style)
    return table


def answers(agreement: Mapping[str, Any]) -> Text:
    """How well the answers agree, in a line."""
    same, order = agreement["top1"], agreement["correlation"]
    shown = "the same best answer for " + ("-" if same is None else f"{100 * same:.2f} %")
    shown += f" of {agreement['questions']} questions ({agreement['compared']})"
    shown += f", rank correlation at least {'-' if order is None else f'{order:.6f}'}"
    return Text(f"answers: {shown}, largest difference {agreement['max_difference']:.1e}")


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
    """PASS or FAIL, and what it was judged by; for a failure, the first wrong intermediate."""
    wrong = next((row for row in report.rows if not row.get("passed", True)), None)
    if wrong is not None:
        return judgement(False, f"the first wrong intermediate is {wrong['name']}: {wrong['complaint']}")
    error = next(row["relative"] for row in report.rows if row["name"] == report.judged)
    return judgement(report.passed, f"{report.judged} is off by {error:.1e}, budget {report.budget:.1e}")


def judgement(passed: bool, sentence: str) -> Text:
    """PASS or FAIL, and why."""
    word, style = ("PASS", "bold green") if passed else ("FAIL", "bold red")
    return Text.assemble((word, style), f": {sentence}")


def _table(title: str | None, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _align_right(table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"
