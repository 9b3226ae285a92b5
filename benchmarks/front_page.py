"""What the README shows of the result rows: one plot and one table of four columns, both of one run.

The run is the newest in which all of ``CONTESTANTS`` were interleaved, since only then are their times comparable. The
SVG is written here and not by matplotlib: it has real text, follows the reader's light or dark colours, is legible on a
phone, and is the same, byte for byte, whoever writes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import tables
from benchmarks.rows import Row

PLOT = "docs/assets/latency.svg"
CONTESTANTS = {
    "distilfast fp32": "distilfast",
    "openvino fp32": "OpenVINO",
    "onnxruntime fp32": "ONNX Runtime",
    "transformers sdpa fp32": "transformers",
    "distilfast int8": "distilfast",
    "openvino int8": "OpenVINO",
    "onnxruntime int8": "ONNX Runtime",
    "ctranslate2 int8": "CTranslate2",
}
"""Contestant and precision, and the name in the plot."""

_PLOTTED = {"1x16": "16 tokens", "1x128": "128 tokens"}
_CASES = (*_PLOTTED, "8x128")

_LEFT, _PANEL, _GAP, _WIDTH = 132, 174, 14, 520
_BAR, _STEP = 15, 24
_STYLE = """
text{font:14px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#1f2933}
.card{fill:#fff;stroke:#d8dee4}.other{fill:#a3b1bf}.ours{fill:#0b7a75}
.strong{font-weight:600}.small{font-size:12.5px}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.card{fill:#14191f;stroke:#30363d}.other{fill:#5d6b79}.ours{fill:#2ec4b6}}
"""


def comparison(machines: Sequence[Sequence[Row]]) -> list[Row]:
    """The latency rows of the newest run that has all contestants and cases; raises SystemExit where there is none."""
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in (row for found in machines for row in found if row["what"] == "latency"):
        if _who(row) in CONTESTANTS and row["case"] in _CASES:
            runs.setdefault((row["when"], row["command"]), []).append(row)
    whole = [run for run in runs.values() if len(run) == len(CONTESTANTS) * len(_CASES)]
    if not whole:
        raise SystemExit(f"error: no run has all of {', '.join(CONTESTANTS)} in {', '.join(_CASES)}.")
    return max(whole, key=lambda run: run[0]["when"])


def markdown(run: Sequence[Row], origins: Sequence[str]) -> str:
    """The plot, the table and where they come from."""
    ordered = [row for name in CONTESTANTS for row in run if _who(row) == name]
    ordered.sort(key=lambda row: _CASES.index(row["case"]))
    alternative = f"Median latency of one text of {' and of '.join(_PLOTTED.values())}, in fp32 and int8"
    head, *lines = tables.latencies(ordered)
    named = [[f"{CONTESTANTS[line[0]]} {line[0].split()[-1]}", *line[1:]] for line in lines]
    table = tables.markdown([["median ms, texts × tokens", *(case.replace("x", " × ") for case in head[1:])], *named])
    return "\n\n".join(
        [f"![{alternative}; the table has the figures]({PLOT})", table, *map("<sub>{}</sub>".format, origins)]
    )


def plot(run: Sequence[Row]) -> str:
    """The SVG: a panel for each length and precision; panels of one length have one scale."""
    medians = {(_who(row), row["case"]): row["p50_ms"] for row in run}
    facts = run[0]["machine"]
    parts = [_text(16, 28, "Median latency of one text, ms; shorter is better", "strong")]
    y = 42
    for i, case in enumerate(_PLOTTED):
        parts.append(_text(_left(i), y + 16, _PLOTTED[case]))
    for precision in dict.fromkeys(row["precision"] for row in run):
        y += 12
        parts.append(_text(16, y + 4, precision, "strong"))
        y += 14
        for name in (name for name in CONTESTANTS if name.split()[-1] == precision):
            parts += _line(y, name, medians)
            y += _STEP
    where = f"{facts['processor']}, {facts['isa']}, {facts['cores']} cores; DistilBERT base; {run[0]['when'][:10]}"
    parts.append(_text(16, y + 16, where, "small"))
    height = y + 30
    frame = f'<rect class="card" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
    )
    title = "<title>Median latency of one text beside other engines</title>"
    return "\n".join([head, title, f"<style>{_STYLE}</style>", frame, *parts, "</svg>", ""])


def _line(y: int, name: str, medians: dict[tuple[str, str], float]) -> list[str]:
    kind = "ours" if name.startswith("distilfast") else "other"
    parts = [_text(16, y + 12, CONTESTANTS[name], "strong" if kind == "ours" else "")]
    for i, case in enumerate(_PLOTTED):
        longest = max(value for (_, other), value in medians.items() if other == case)
        value = medians[name, case]
        width = (_PANEL - 48) * value / longest  # the figure stands right of its bar
        parts.append(f'<rect class="{kind}" x="{_left(i)}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>')
        parts.append(_text(_left(i) + width + 6, y + 12, f"{value:.2f}", "strong" if kind == "ours" else ""))
    return parts


def _left(i: int) -> int:
    return _LEFT + i * (_PANEL + _GAP)


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{chosen}>{words}</text>'


def _who(row: Row) -> str:
    return f"{row['contestant']} {row['precision']}"
