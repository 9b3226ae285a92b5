"""Result rows as pictures: latency by length and against load, ratios as a heat map, the roofline and its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from benchmarks.rows import Row
from benchmarks.tables import pairing, yardstick

_STYLE = {"font.size": 10, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}
_DASHES = {"fp32": "-", "bf16x3": (0, (6, 1, 1, 1)), "bf16": "--", "fp16": "-.", "int8": ":"}
_MARKS = {"fp32": "o", "bf16x3": "P", "bf16": "s", "fp16": "D", "int8": "^"}


def latency_by_length(rows: Sequence[Row]) -> Figure | None:
    """Median ms of one sequence over its length, both axes logarithmic."""
    single = [row for row in rows if row["what"] == "latency" and row["case"].startswith("1x")]
    if len({row["case"] for row in single}) < 2:
        return None
    figure, axes = _axes(single)
    _lines(axes, single, lambda row: int(row["case"].partition("x")[2]), lambda row: row["p50_ms"])
    axes.set(xscale="log", yscale="log", xlabel="tokens of one sequence", ylabel="median latency, ms")
    axes.set_title("One sequence, the encoder alone", loc="left")
    lengths = sorted({int(row["case"].partition("x")[2]) for row in single})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    return _finish(figure, axes)


def latency_against_load(rows: Sequence[Row]) -> Figure | None:
    """p99 ms, waiting included, over the rate of arrival."""
    loads = [row for row in rows if row["what"] == "load"]
    if len({row["rate"] for row in loads}) < 2:
        return None
    figure, axes = _axes(loads)
    _lines(axes, loads, lambda row: row["rate"], lambda row: row["p99_ms"])
    axes.set(yscale="log", xlabel="requests arriving in a second", ylabel="p99 latency with waiting, ms")
    axes.set_title("Single requests; a line ends where its server is overloaded", loc="left")
    return _finish(figure, axes)


def ratio_map(rows: Sequence[Row]) -> Figure | None:
    """Each contestant's median over ours in the same precision, as a map with the numbers in it."""
    others = [row for row in rows if row["what"] == "latency" and not _is_ours(row) and row["ratio_to_distilfast"]]
    if not others:
        return None
    names, cases = (
        [*dict.fromkeys(values)] for values in ([pairing(row) for row in others], [row["case"] for row in others])
    )
    values = np.full((len(names), len(cases)), np.nan)
    for row in others:
        ratio = row["ratio_to_distilfast"][yardstick(row)]["median"]
        values[names.index(pairing(row)), cases.index(row["case"])] = ratio
    with plt.rc_context(_STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(2.8 + 0.8 * len(cases), 1.6 + 0.42 * len(names)), layout="constrained")
    limit = max(1.0, np.nanmax(np.abs(np.log2(values))))
    picture = axes.imshow(np.log2(values), cmap="RdYlGn", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if abs(np.log2(value)) > 0.75 * limit else "black"
        axes.text(j, i, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(cases)), cases, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("Median latency of a contestant / of distilfast", loc="left")
    bar = figure.colorbar(picture, ax=axes, fraction=0.04)
    ticks = np.arange(-int(limit), int(limit) + 1)
    bar.set_label("above 1: slower than distilfast", fontsize=9)
    bar.set_ticks(ticks, labels=[f"{2.0**tick:g}" for tick in ticks])
    return figure


def roofline(rows: Sequence[Row]) -> Figure | None:
    """What the linears of each batch reach of the machine's peaks, over the operations done for a byte of weights."""
    roofs = [row for row in rows if row["what"] == "roof" and "giga_operations" in row]
    ours = [row for row in rows if row["what"] == "latency" and _is_ours(row) and row.get("linear_flops")]
    if not roofs or not ours:
        return None
    memory = roofs[-1].get("copy_gb") or roofs[-1]["read_gb_by_mib"]["340"]
    figure, axes = _axes(ours)
    points = [(row["linear_flops"] / row["linear_bytes"], row["linear_flops"] / row["p50_ms"] * 1e-6) for row in ours]
    _roofs(axes, roofs[-1]["giga_operations"], memory, max(x for x, _ in points) * 2)
    for i, who in enumerate(dict.fromkeys(map(_who, ours))):
        mine = [point for row, point in zip(ours, points, strict=True) if _who(row) == who]
        mark = _MARKS.get(who.split()[-1], "o")
        axes.plot(*zip(*mine, strict=True), mark, color=f"C{i}", label=who)
    _name_cases(axes, [row for row in ours if _who(row) == _who(ours[0])])
    axes.set(xscale="log", yscale="log", xlabel="operations for a byte of weights", ylabel="G operations/s")
    axes.set_title("Operations of the linears in the time of the whole forward", loc="left")
    return _finish(figure, axes)


def share_of_roof(rows: Sequence[Row]) -> Figure | None:
    """How much of the forward the linears would take at the machine's peaks: a picture for each precision, by case."""
    some = [row for row in rows if row["what"] == "latency" and "share_of_roof" in row]
    cases = [*dict.fromkeys(row["case"] for row in some)]
    if len(cases) < 2:
        return None
    precisions = [*dict.fromkeys(row["precision"] for row in some)]
    with plt.rc_context(_STYLE):
        size = (1.5 + max(4.0, 0.5 * len(cases)) * len(precisions), 4.8)
        figure, pictures = plt.subplots(
            1, len(precisions), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
    libraries = [*dict.fromkeys(row["contestant"] for row in some)]
    for precision, axes in zip(precisions, pictures[0], strict=True):
        mine = [row for row in some if row["precision"] == precision]
        _lines(axes, mine, lambda row: cases.index(row["case"]), lambda row: 100 * row["share_of_roof"], libraries)
        axes.set_xticks(range(len(cases)), cases, rotation=45, ha="right")
        axes.set_title(precision, loc="left")
    pictures[0, 0].set(ylim=(0, 100), ylabel="linears at the machine's peaks / forward, %")
    figure.suptitle("Share of the roof", x=0.01, ha="left")
    handles = {
        label: line for axes in pictures[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _name_cases(axes: Axes, rows: Sequence[Row]) -> None:
    """Under the points of one contestant; the others have theirs in the same order. As many tokens, one name."""
    for flops in dict.fromkeys(row["linear_flops"] for row in rows):
        same = [row for row in rows if row["linear_flops"] == flops]
        place = flops / same[0]["linear_bytes"], min(flops / row["p50_ms"] * 1e-6 for row in same)
        name = ",\n".join(row["case"] for row in same)
        axes.annotate(name, place, textcoords="offset points", xytext=(0, -7), ha="center", va="top", fontsize=8)


def _roofs(axes: Axes, peaks: dict[str, float], memory: float, right: float) -> None:
    """The memory's slope up to each unit's peak, which is named on its line."""
    intensity = np.geomspace(1, right, 400)
    axes.plot(intensity, np.minimum(max(peaks.values()), intensity * memory), color="black", linewidth=1.3)
    axes.annotate(f"{memory:.0f} GB/s", (1.2, 1.2 * memory), textcoords="offset points", xytext=(8, -6), fontsize=8)
    for unit, peak in peaks.items():
        axes.plot([peak / memory, right], [peak, peak], color="black", linewidth=1.0)
        name = f"{unit.replace('_', ' ')} {peak:,.0f}"
        axes.annotate(name, (right, peak), textcoords="offset points", xytext=(4, 0), va="center", fontsize=8)
    axes.set_xlim(1, right)


PLOTS: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
    "latency_by_length": latency_by_length,
    "ratio_map": ratio_map,
    "roofline": roofline,
    "share_of_roof": share_of_roof,
    "latency_against_load": latency_against_load,
}


def _who(row: Row) -> str:
    return f"{row['contestant']} {row['precision']}"


def _is_ours(row: Row) -> bool:
    return row["contestant"].split()[0] == "distilfast"


def _axes(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    return figure, axes


def _lines(
    axes: Axes,
    rows: Sequence[Row],
    x: Callable[[Row], Any],
    y: Callable[[Row], float],
    names: Sequence[str] | None = None,
) -> None:
    """A line for each contestant: a colour for the library, a dash for the precision; ours thick.

    ``names``: the contestants in the order of their colours, by default those of ``rows``.
    """
    names = names or [*dict.fromkeys(row["contestant"] for row in rows)]
    for who in dict.fromkeys(_who(row) for row in rows):
        some = sorted((row for row in rows if _who(row) == who), key=x)
        first = some[0]
        axes.plot(
            [x(row) for row in some],
            [y(row) for row in some],
            linestyle=_DASHES.get(first["precision"], "-"),
            marker=_MARKS.get(first["precision"], "o"),
            markersize=4,
            color=f"C{names.index(first['contestant'])}",
            linewidth=2.6 if _is_ours(first) else 1.3,
            label=who,
        )


def _finish(figure: Figure, axes: Axes) -> Figure:
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log" and not isinstance(axis.get_major_locator(), FixedLocator):
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 2000 * low else (1,)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return figure
