"""The picture of a comparison: the error of every intermediate, in the order of computation. Needs matplotlib."""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import Any

from distilfast.errors import InputError
from distilfast.parity.comparison import Report

KINDS = (".png", ".svg")
_OURS, _NAIVE, _TORCH, _BUDGET, _WRONG = "#0b5fa5", "#c4c4c4", "#e08214", "#c0392b", "#c0392b"
_MANY = 14  # groups on the axis whose full names fit
_FLOOR = 1e-12  # where an error of zero is drawn on the logarithmic axis


def check(path: Path) -> None:
    """Raises InputError where ``path`` is not a picture's name, or matplotlib is not installed: before the work."""
    if path.suffix.lower() not in KINDS:
        raise InputError(f"{path} is neither a .png nor a .svg file.")
    check_matplotlib()


def check_matplotlib() -> None:
    """Raises InputError where matplotlib is not installed."""
    try:
        import_module("matplotlib")
    except ImportError:
        raise InputError("Plots need matplotlib, which `pip install 'distilfast[bench]'` brings.") from None


def save(report: Report, path: Path) -> None:
    """Draw into ``path``, .png or .svg; raises InputError where it cannot be written."""
    try:
        path.write_bytes(_drawn(report, path.suffix.lower().removeprefix(".")))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}.") from None


def svg(report: Report) -> str:
    """The <svg> element alone, to stand inside a page."""
    text = _drawn(report, "svg").decode()
    return text[text.index("<svg") :]


def _drawn(report: Report, kind: str) -> bytes:
    matplotlib = import_module("matplotlib")
    figure = import_module("matplotlib.figure").Figure(figsize=(11.0, 5.2), dpi=150, layout="constrained")
    buffer = io.BytesIO()
    # No date and no random names: the same report makes the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "distilfast", "font.size": 9.5, "svg.fonttype": "path"}):
        _draw(report, figure.add_subplot())
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _draw(report: Report, axes: Any) -> None:
    rows = report.rows_
    x = range(len(rows))
    axes.plot(x, [_shown(row.budget) for row in rows], color=_BUDGET, linestyle="--", linewidth=1.3, label="budget")
    axes.plot(x, [_shown(row.naive) for row in rows], color=_NAIVE, linewidth=4.5, label=_literal(report.yardstick))
    if all(row.torch is not None for row in rows):
        torch = [_shown(row.torch or 0.0) for row in rows]
        axes.plot(x, torch, color=_TORCH, linewidth=1.2, linestyle=":", label=f"transformers {report.precision}")
    axes.plot(
        x, [_shown(row.relative) for row in rows], color=_OURS, linewidth=1.6, marker="o", markersize=3.2,
        label=_literal(f"distilfast, {report.detail}"),
    )  # fmt: skip
    axes.plot(
        x, [_shown(row.step) for row in rows], color=_OURS, linewidth=0, marker="_", markersize=6, alpha=0.65,
        label="this step alone",
    )  # fmt: skip
    wrong = [(i, _shown(row.relative)) for i, row in enumerate(rows) if not row.passed]
    if wrong:
        axes.plot(*zip(*wrong, strict=True), color=_WRONG, linewidth=0, marker="X", markersize=8, label="wrong")
        axes.axvline(wrong[0][0], color=_WRONG, linewidth=0.8)
        axes.set_title(f"first wrong: {report.first_wrong}", loc="right", color=_WRONG, fontweight="bold")
    _label(report, axes)


def _label(report: Report, axes: Any) -> None:
    axes.set_yscale("log")
    axes.set_ylabel("relative error, ‖Δ‖ / ‖truth‖")
    axes.set_xlabel("intermediates in the order of computation, by layer")
    truth = "the reference" if report.against == "reference" else "transformers"
    axes.set_title(
        f"{'PASS' if report.passed else 'FAIL'}: {report.task}, {report.precision}, "
        f"{report.tokens} tokens, against {truth} in float64",
        loc="left",
    )
    groups = _groups([row.name for row in report.rows_])
    for i, (_, begin, end) in enumerate(groups):
        if i % 2:
            axes.axvspan(begin - 0.5, end - 0.5, color="#000000", alpha=0.045, linewidth=0)
    names = [name if len(groups) <= _MANY else name.removeprefix("layer ") for name, _, _ in groups]
    axes.set_xticks([(begin + end - 1) / 2 for _, begin, end in groups], names)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(report.rows_) - 0.4)
    axes.grid(axis="y", which="major", alpha=0.3)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(loc="outside lower center", ncols=5, frameon=False)


def _groups(names: list[str]) -> list[tuple[str, int, int]]:
    """(label, first row, one past the last) for the embeddings, each layer and the head."""
    groups: list[tuple[str, int, int]] = []
    for i, name in enumerate(names):
        parts = name.split(".")
        said = f"layer {parts[1]}" if parts[0] == "layer" else parts[0]
        begin = groups.pop()[1] if groups and groups[-1][0] == said else i
        groups.append((said, begin, i + 1))
    return groups


def _literal(text: str) -> str:
    """With dollar signs escaped, which begin a formula."""
    return text.replace("$", r"\$")


def _shown(value: float) -> float:
    return max(value, _FLOOR)
