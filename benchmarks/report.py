"""Tables and plots of result rows.

    python -m benchmarks.report [FILE ...] [--out DIRECTORY] [--readme README.md]

Reads JSON rows (all of benchmarks/results by default), refuses one that does not say where it comes from, and writes
PNG and SVG plots and a self-contained report.html. --readme puts the tables between the marks
<!-- results --> and <!-- end of results --> of a file.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rows, tables
from benchmarks.rows import Row

_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"
_README_SECTIONS = ("parity", "latency", "text", "cold_start", "memory", "task")
_CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}.wide{overflow-x:auto}img{max-width:100%}code{font-size:90%}"
)


def main() -> None:
    """Write what the arguments ask for."""
    arguments = _arguments()
    found = rows.read(arguments.files or sorted(rows.RESULTS.glob("*.jsonl")))
    if not found:
        raise SystemExit("error: there are no rows.")
    newest = latest_runs(found)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = write_plots(newest, arguments.out)
    (arguments.out / "report.html").write_text(page(newest, pictures), encoding="utf-8")
    print(f"{arguments.out / 'report.html'} and {len(pictures)} plots")
    if arguments.readme:
        fill_readme(arguments.readme, newest)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/report"))
    parser.add_argument("--readme", type=Path)
    return parser.parse_args()


def latest_runs(found: Sequence[Row]) -> list[Row]:
    """The newest rows of each kind of measurement, in the order of their files."""
    newest = {row["what"]: max(each["when"] for each in found if each["what"] == row["what"]) for row in found}
    return [row for row in found if row["when"] == newest[row["what"]]]


def write_plots(found: Sequence[Row], out: Path) -> dict[str, bytes]:
    """PNG and SVG of every plot that there are rows for; returns the PNGs."""
    from benchmarks.plots import PLOTS

    pictures = {}
    for name, plot in PLOTS.items():
        figure = plot(found)
        if figure is None:
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=140)
        figure.savefig(out / f"{name}.svg")
        pictures[name] = buffer.getvalue()
        (out / f"{name}.png").write_bytes(pictures[name])
    return pictures


def origins(found: Sequence[Row]) -> list[str]:
    """Machine, commit and command of each run among the rows, a line each."""
    lines = []
    for row in found:
        machine = row["machine"]
        line = (
            f"{machine['processor']}, {machine['isa']}, {machine['cores']} cores; commit {row['commit']}, "
            f"{row['when'][:10]}: `{row['command']}`"
        )
        if line not in lines:
            lines.append(line)
    return lines


def versions(found: Sequence[Row]) -> str:
    """Of every package in the rows."""
    everything = {name: number for row in found for name, number in row["versions"].items()}
    return ", ".join(f"{name} {number}" for name, number in everything.items())


def fill_readme(path: Path, found: Sequence[Row]) -> None:
    """Replace what stands between the marks; raises SystemExit where they are missing."""
    text = path.read_text(encoding="utf-8")
    if _BEGIN not in text or _END not in text:
        raise SystemExit(f"error: {path} lacks the marks {_BEGIN} and {_END}.")
    wanted = [row for row in found if row["what"] in _README_SECTIONS]
    parts = [
        "\n\n".join([f"**{title}**", tables.markdown(table(some)), *(f"<sub>{line}</sub>" for line in origins(some))])
        for title, table, some in tables.chosen(wanted)
    ]
    before, after = text.partition(_BEGIN)[0], text.partition(_END)[2]
    parts.append(f"<sub>{versions(found)}</sub>")
    path.write_text(f"{before}{_BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{_END}{after}", encoding="utf-8")


def page(found: Sequence[Row], pictures: dict[str, bytes]) -> str:
    """One HTML file with everything in it."""
    parts = [f"<p><small>{html.escape(line.replace('`', ''))}</small></p>" for line in origins(found)]
    parts.append(f"<p><small>{html.escape(versions(found))}</small></p>")
    for name, picture in pictures.items():
        alternative = html.escape(name.replace("_", " "))
        parts.append(f'<img alt="{alternative}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">')
    for title, cells in tables.sections(found):
        parts.append(f"<h2>{html.escape(title)}</h2><div class=wide>{_table(cells)}</div>")
    head = f"<!doctype html><meta charset=utf-8><title>distilfast: results</title><style>{_CSS}</style>"
    return f"{head}<h1>Results</h1>{''.join(parts)}"


def _table(cells: tables.Cells) -> str:
    def line(tag: str, words: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(word)}</{tag}>" for word in words) + "</tr>"

    return "<table>" + line("th", cells[0]) + "".join(line("td", words) for words in cells[1:]) + "</table>"


if __name__ == "__main__":
    main()
