"""Result rows as pictures: latency by length, ratios as a heat map, the roofline, latency against load."""

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

OURS = "distilfast"
_STYLE = {"font.size": 10, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}
_DASHES = {"fp32": "-", "bf16": "--", "int8": ":"}
_MARKS = {"fp32": "o", "bf16": "s", "int8": "^"}


def latency_by_length(rows: Sequence[Row]) -> Figure | None:
    """Median ms of one sequence over its length, both axes logarithmic."""
    single = [row for row in rows if row["what"] == "latency" and row["case"].startswith("1x")]
    if len({row["case"] for row in single}) < 2:
        return None
    figure, axes = _axes(single)
    _lines(axes, single, lambda row: int(row["case"].partition("x")[2]), lambda row: row["p50_ms"])
    axes.set(xscale="log", yscale="log", xlabel="tokens of one sequence", ylabel="median latency, ms")
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
    return _finish(figure, axes)


def ratio_map(rows: Sequence[Row], precision: str = "fp32") -> Figure | None:
    """Each contestant's median over ours in ``precision``, as a map with the numbers in it."""
    others = [
        row
        for row in rows
        if row["what"] == "latency" and row["contestant"] != OURS and precision in row["ratio_to_distilfast"]
    ]
    if not others:
        return None
    names, cases = (
        [*dict.fromkeys(values)] for values in ([_who(row) for row in others], [row["case"] for row in others])
    )
    values = np.full((len(names), len(cases)), np.nan)
    for row in others:
        values[names.index(_who(row)), cases.index(row["case"])] = row["ratio_to_distilfast"][precision]["median"]
    with plt.rc_context(_STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(2.8 + 0.8 * len(cases), 1.6 + 0.42 * len(names)), layout="constrained")
    limit = max(1.0, np.nanmax(np.abs(np.log2(values))))
    picture = axes.imshow(np.log2(values), cmap="RdYlGn", vmin=-limit, vmax=limit, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if abs(np.log2(value)) > 0.75 * limit else "black"
        axes.text(j, i, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(cases)), cases, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"median latency over that of distilfast {precision} (above 1: slower)", loc="left", fontsize=10)
    bar = figure.colorbar(picture, ax=axes, fraction=0.04)
    ticks = np.arange(-int(limit), int(limit) + 1)
    bar.set_ticks(ticks, labels=[f"{2.0**tick:g}" for tick in ticks])
    return figure


def roofline(rows: Sequence[Row]) -> Figure | None:
    """What the linears of each batch reach of the machine's peak, over the operations done for a byte of weights."""
    roofs = [row for row in rows if row["what"] == "roof" and "giga_operations" in row]
    ours = [row for row in rows if row["what"] == "latency" and row["contestant"] == OURS and row.get("linear_flops")]
    if not roofs or not ours:
        return None
    peak = roofs[-1]["giga_operations"]["fp32_fma"]
    memory = roofs[-1]["read_gb_by_mib"]["340"]
    figure, axes = _axes(ours)
    intensity = np.geomspace(1, 4096, 200)
    axes.plot(
        intensity,
        np.minimum(peak, intensity * memory),
        color="black",
        label=f"roof: {peak:.0f} GFLOP/s, {memory:.0f} GB/s",
    )
    for i, row in enumerate(ours):
        x, y = row["linear_flops"] / row["linear_bytes"], row["linear_flops"] / row["p50_ms"] * 1e-6
        label = None if i else "distilfast, the whole forward's time"
        axes.plot(x, y, _MARKS.get(row["precision"], "o"), color="C0", label=label)
        axes.annotate(row["case"], (x, y), textcoords="offset points", xytext=(6, -12), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="operations for a byte of weights", ylabel="GFLOP/s of the linears")
    return _finish(figure, axes)


PLOTS: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
    "latency_by_length": latency_by_length,
    "ratio_map": ratio_map,
    "roofline": roofline,
    "latency_against_load": latency_against_load,
}


def _who(row: Row) -> str:
    return f"{row['contestant']} {row['precision']}"


def _axes(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    return figure, axes


def _lines(axes: Axes, rows: Sequence[Row], x: Callable[[Row], Any], y: Callable[[Row], float]) -> None:
    """A line for each contestant: a colour for the library, a dash for the precision; ours thick."""
    names = [*dict.fromkeys(row["contestant"] for row in rows)]
    for who in dict.fromkeys(_who(row) for row in rows):
        some = sorted((row for row in rows if _who(row) == who), key=x)
        first = some[0]
        axes.plot(
            [x(row) for row in some],
            [y(row) for row in some],
            _DASHES.get(first["precision"], "-"),
            marker=_MARKS.get(first["precision"], "o"),
            markersize=4,
            color=f"C{names.index(first['contestant'])}",
            linewidth=2.6 if first["contestant"] == OURS else 1.3,
            label=who,
        )


def _finish(figure: Figure, axes: Axes) -> Figure:
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log" and not isinstance(axis.get_major_locator(), FixedLocator):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return figure
