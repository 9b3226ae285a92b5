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
    newest = latest([rows.read([path]) for path in arguments.files or sorted(rows.RESULTS.glob("*.jsonl"))])
    if not newest:
        raise SystemExit("error: there are no rows.")
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


def latest(files: Sequence[Sequence[Row]]) -> list[Row]:
    """One report of several files: each kind of measurement from the file that has its newest rows.

    A file may hold several runs; of what was measured more than once the newest row counts, in its first place.
    """
    newest: dict[tuple[str, str], Sequence[Row]] = {}
    for some in sorted((some for some in files if some), key=lambda some: max(row["when"] for row in some)):
        newest |= dict.fromkeys(map(_kind, some), some)
    chosen = [row for some in files for row in some if newest[_kind(row)] is some]
    return list({_identity(row): row for row in sorted(chosen, key=lambda row: row["when"])}.values())


def _kind(row: Row) -> tuple[str, str]:
    return row["what"], row.get("device", "cpu")


def _identity(row: Row) -> tuple[object, ...]:
    """What identifies a measurement: a newer row of the same replaces it."""
    names = ("contestant", "precision", "case", "rate", "dataset", "model")
    return *_kind(row), *(row.get(name) for name in names)


def write_plots(found: Sequence[Row], out: Path) -> dict[str, bytes]:
    """PNG and SVG of every plot that there are rows for, the GPU's with "_gpu" in their names; returns the PNGs."""
    from benchmarks.plots import PLOTS

    pictures = {}
    for heading, some in tables.by_device(found).items():
        for name, plot in PLOTS.items():
            figure = plot(some)
            if figure is None:
                continue
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=140)
            path = out / f"{name}{'_gpu' if heading else ''}"
            figure.savefig(path.with_suffix(".svg"))
            pictures[path.name] = buffer.getvalue()
            path.with_suffix(".png").write_bytes(pictures[path.name])
    return pictures


def origins(found: Sequence[Row]) -> list[str]:
    """Machine, commit and command of each run among the rows, a line each."""
    lines = []
    for row in found:
        machine = row["machine"]
        gpu = f", {machine['gpu']}" if "gpu" in machine else ""
        line = (
            f"{machine['processor']}, {machine['isa']}, {machine['cores']} cores{gpu}; commit {row['commit']}, "
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
    """Replace the text between the marks; raises SystemExit where they are missing."""
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
