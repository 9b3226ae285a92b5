"""Result rows as tables: for the terminal (rich) and for a README (Markdown)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.rows import Row

Cells = list[list[str]]  # the first row is the header


def _who(row: Row) -> str:
    return f"{row['contestant']} {row['precision']}"


def _order(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _pivot(
    rows: Sequence[Row], column: str, cell: Callable[[Row], str], head: str, label: Callable[[Row], str] = _who
) -> Cells:
    """A line for each contestant, a column for each value of ``column``."""
    columns, lines = _order([row[column] for row in rows]), _order([label(row) for row in rows])
    cells = {(label(row), row[column]): cell(row) for row in rows}
    return [[head, *map(str, columns)], *([line, *(cells.get((line, c), "–") for c in columns)] for line in lines)]


def latencies(rows: Sequence[Row]) -> Cells:
    """Median ms by case."""
    return _pivot(rows, "case", lambda row: f"{row['p50_ms']:.2f}", "median ms")


def tails(rows: Sequence[Row]) -> Cells:
    """p50 / p99 ms by case."""
    return _pivot(rows, "case", lambda row: f"{row['p50_ms']:.1f} / {row['p99_ms']:.1f}", "p50 / p99 ms")


def yardstick(row: Row) -> str:
    """Which of ours a contestant is compared with: the one of its precision, else fp32; on a GPU our first backend."""
    ours = list(row["ratio_to_distilfast"])
    like = [name for name in ours if name.split()[-1] == row["precision"]]
    return (like or [name for name in ours if name.split()[-1] == "fp32"] or ours or [""])[0]


def pairing(row: Row) -> str:
    """ "openvino bf16 / bf16": a contestant and which of ours."""
    return f"{_who(row)} / {yardstick(row)}"


def ratios(rows: Sequence[Row]) -> Cells:
    """Median over that of distilfast in the same precision (see ``yardstick``), with its 95 % interval, by case."""

    def cell(row: Row) -> str:
        found = row["ratio_to_distilfast"].get(yardstick(row))
        return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]" if found else "–"

    others = [row for row in rows if row["contestant"].split()[0] != "distilfast"]
    return _pivot(others, "case", cell, "contestant / distilfast [95 %]", pairing)


def shares_of_roof(rows: Sequence[Row]) -> Cells:
    """What the linears take at the machine's measured peaks, as a share of the median, by case."""
    some = [row for row in rows if "share_of_roof" in row]
    return _pivot(some, "case", lambda row: f"{row['share_of_roof']:.0%}", "share of the roof") if some else []


def states(rows: Sequence[Row]) -> Cells:
    """The ping between two cores during each case, its peaks, and the rounds left out for another state."""
    lines = {row["case"]: _state_line(row) for row in rows if "state" in row}
    head = ["case", "ping, ns", "peaks, G op/s", "reading, GB/s", "rounds left out"]
    return [head, *([case, *line] for case, line in lines.items())] if lines else []


def _state_line(row: Row) -> list[str]:
    state = row["state"]
    peaks = ", ".join(f"{unit} {peak:.0f}" for unit, peak in state["giga_operations"].items())
    reading = ", ".join(f"{speed:.0f}" for speed in state["read_gb_by_mib"].values())
    return [f"{state['ping_ns']:.0f} ({state['kind']})", peaks, reading, str(row["rounds_of_another_state"])]


def parity(rows: Sequence[Row]) -> Cells:
    """Relative error and verdict."""
    lines = [[_who(row), f"{row['relative_error']:.1e}", row["verdict"]] for row in rows]
    return [["last hidden state against float64", "relative error", "for its precision"], *lines]


def cold_start(rows: Sequence[Row]) -> Cells:
    """Seconds from process start to first answer, by what was in place."""
    rows = [{"case": "prepared", **row} for row in rows]  # older rows know no other case
    return _pivot(rows, "case", lambda row: f"{row['seconds']:.2f}", "process start to first answer, s")


def memory(rows: Sequence[Row]) -> Cells:
    """Peak, and how far the resident size went on growing after the first hundred shapes."""
    lines = []
    for row in rows:
        first, *_, last = row["resident_mib"]
        lines.append(
            [
                _who(row),
                f"{row['peak_mib']:.0f}",
                f"{first:.0f}",
                f"{last:.0f}",
                f"{last / first - 1:+.1%}",
                f"{row['shapes']}",
            ]
        )
    return [["resident MiB", "peak", "after 100 shapes", "at the end", "growth", "shapes"], *lines]


def load(rows: Sequence[Row]) -> Cells:
    """p50 / p99 ms by arrival rate."""
    return _pivot(rows, "rate", lambda row: f"{row['p50_ms']:.0f} / {row['p99_ms']:.0f}", "p50 / p99 ms at requests/s")


def roofs(rows: Sequence[Row]) -> Cells:
    """Peaks of the machine, and how fast it reads or copies."""
    lines = []
    for row in rows:
        if "reason" in row:
            lines.append([row["reason"], "–"])
            continue
        lines += [[f"{unit} peak, G op/s", f"{value:.0f}"] for unit, value in row["giga_operations"].items()]
        sizes = sorted(row.get("read_gb_by_mib", {}).items(), key=lambda item: int(item[0]))
        lines += [[f"reading {size} MiB, GB/s", f"{value:.0f}"] for size, value in sizes]
        lines += [["copying, read and written, GB/s", f"{row['copy_gb']:.0f}"]] if "copy_gb" in row else []
        lines += [["ping between two cores, ns", f"{row['ping_ns']:.0f}"]] if "ping_ns" in row else []
    threads = f", {rows[0]['threads']} threads" if rows and "threads" in rows[0] else ""
    return [[f"roofs{threads}", ""], *lines]


def scaling(rows: Sequence[Row]) -> Cells:
    """Median ms and the speed-up over one thread, by the threads of the engine."""
    return _by_threads([row for row in rows if "p50_ms" in row], "p50_ms", "ms (speed-up)")


def scaling_predicted(rows: Sequence[Row]) -> Cells:
    """The same as benchmarks/scaling.py predicts it."""
    return _by_threads([row for row in rows if "predicted_ms" in row], "predicted_ms", "ms (speed-up), predicted")


def _by_threads(rows: Sequence[Row], figure: str, head: str) -> Cells:
    def cell(row: Row) -> str:
        return f"{row[figure]:.1f} ({row['speed_up']:.1f})"

    return _pivot(rows, "threads", cell, head, lambda row: f"{row['case']} {row['precision']}")


def absent(rows: Sequence[Row]) -> Cells:
    """The contestants that did not take part, and why."""
    return [["absent", "case", "reason"], *([_who(row), row.get("case", "all"), row["reason"]] for row in rows)]


def tasks(rows: Sequence[Row]) -> Cells:
    """Metrics in percent, by model, data set and precision."""
    lines = []
    for row in rows:
        counts = ", ".join(f"{count} {name}" for name, count in row["counts"].items())
        what = [Path(row["model"]).parent.name if Path(row["model"]).name == "model" else Path(row["model"]).name]
        lines += [
            [*what, row["dataset"], name, row["precision"], f"{value:.2f}", counts]
            for name, value in row["metrics"].items()
        ]
    return [["model", "data", "metric", "precision", "%", "of"], *lines]


def pipelines(rows: Sequence[Row]) -> Cells:
    """Inputs a second, how many times as many ours answers in the same precision, and its share outside the model."""
    ours = {
        (row["task"], row["precision"]): row["per_second"]
        for row in rows
        if row["contestant"] == "distilfast" and "per_second" in row
    }
    lines = []
    for row in rows:
        speed, mine = row.get("per_second"), ours.get((row["task"], row["precision"]))
        lines.append(
            [
                f"{row['task']}: {_who(row)}",
                f"{speed:,.0f}" if speed else row.get("error", "–"),
                f"{mine / speed:.2f}" if speed and mine else "–",
                f"{row['outside_forward']:.1%}" if "outside_forward" in row else "–",
                str(row.get("batch_size") or "–"),
            ]
        )
    return [["pipeline", "inputs/s", "distilfast's / its", "outside the model", "batch"], *lines]


SECTIONS: tuple[tuple[str, str, Callable[[Sequence[Row]], Cells]], ...] = (
    ("roof", "The machine", roofs),
    ("parity", "Right answers first", parity),
    ("latency", "Latency of the encoder", latencies),
    ("latency", "Against distilfast (above 1: slower than distilfast)", ratios),
    ("latency", "Time of the linears at the machine's peaks / time of the forward", shares_of_roof),
    ("latency", "The machine meanwhile", states),
    ("latency_cold_l2", "Latency of the encoder with a cold L2", latencies),
    ("latency_cold_l2", "Against distilfast with a cold L2", ratios),
    ("text", "From strings, the tokeniser included", tails),
    ("pipeline", "Whole pipelines, from strings to answers", pipelines),
    ("cold_start", "Cold start", cold_start),
    ("memory", "Memory", memory),
    ("neighbour", "Beside a busy process on every core", tails),
    ("load", "Under load", load),
    ("scaling", "By the threads of an engine", scaling),
    ("scaling", "By the threads of an engine, predicted", scaling_predicted),
    ("task", "Quality by precision", tasks),
    ("absent", "Absent", absent),
)


def chosen(rows: Sequence[Row]) -> list[tuple[str, Callable[[Sequence[Row]], Cells], list[Row]]]:
    """(title, table, its rows) of everything that there are rows for; the GPU's are apart."""
    found = [
        (title + heading, table, [row for row in some if row["what"] == what])
        for heading, some in by_device(rows).items()
        for what, title, table in SECTIONS
    ]
    return [(title, table, some) for title, table, some in found if some and table(some)]


def by_device(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each device under what is added to a heading, nothing for the CPU."""
    headings = {"cpu": "", "cuda": " (GPU)"}
    return {
        heading: [row for row in rows if row.get("device", "cpu") == device] for device, heading in headings.items()
    }


def sections(rows: Sequence[Row]) -> list[tuple[str, Cells]]:
    """(title, cells) of everything that there are rows for."""
    return [(title, table(some)) for title, table, some in chosen(rows)]


def show(rows: Sequence[Row], console: Console) -> None:
    """To the terminal; a table wider than it is cut into several."""
    for title, cells in sections(rows):
        for part in _fit(cells, console.width):
            table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
            for i, name in enumerate(part[0]):
                figures = i > 0 and any(character.isdigit() for line in part[1:] for character in line[i][:1])
                table.add_column(name, justify="right" if figures else "left", no_wrap=figures)
            for line in part[1:]:
                table.add_row(*line)
            console.print(table)


def markdown(cells: Cells) -> str:
    """A GitHub table."""
    head, *lines = (["".join(c if c != "|" else "\\|" for c in cell) for cell in line] for line in cells)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def _fit(cells: Cells, width: int) -> list[Cells]:
    """Columns in groups that fit the width, the first column in each."""
    sizes = [max(len(line[i]) for line in cells) + 2 for i in range(len(cells[0]))]
    if len(sizes) <= 3:
        return [cells]
    groups: list[list[int]] = [[]]
    for i in range(1, len(sizes)):
        if groups[-1] and sizes[0] + sum(sizes[j] for j in [*groups[-1], i]) > width:
            groups.append([])
        groups[-1].append(i)
    return [[[line[j] for j in [0, *group]] for line in cells] for group in groups]
