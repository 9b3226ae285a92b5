"""Tables and plots of result rows.

    python -m benchmarks.report [FILE ...] [--out DIRECTORY]
    python -m benchmarks.report --publish

Reads JSON rows (all of benchmarks/results by default), refuses one that does not say where it comes from, and writes
PNG and SVG plots and a self-contained report.html. --publish writes what is committed instead, from all committed rows:
every table into benchmarks/RESULTS.md, and one plot and one table (benchmarks/front_page.py) for the README. Machines
are kept apart: no table has rows of two.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks import front_page, rows, tables
from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[1]
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"
_HEAD = """# Results

Generated from the rows in `benchmarks/results` by `python -m benchmarks.report --publish`; `benchmarks/README.md` says
how they were measured. Full-size DistilBERT (6 layers, hidden size 768) with seeded weights, unless a table names a
model. Every contestant has the same weights, ids and threads and a process of its own; those of one command are
interleaved, and a ratio is always of one command, where medians of one table may be of several. Each machine has its
own tables, and each table names the machine, commit and command of its rows. `1x16` is one sequence of 16 tokens;
`clinc150 x32` are 32 real requests of CLINC150.
"""
_CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}.wide{overflow-x:auto}img{max-width:100%}code{font-size:90%}"
)


def main() -> None:
    """Write what the arguments ask for."""
    arguments = _arguments()
    files = [rows.read([path]) for path in arguments.files or sorted(rows.RESULTS.glob("*.jsonl"))]
    machines = by_machine(latest(files))
    if not machines:
        raise SystemExit("error: there are no rows.")
    if arguments.publish:
        for path, text in published(machines).items():
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for i, found in enumerate(machines):
        pictures |= write_plots(found, arguments.out, f"_{i + 1}" if i else "")
    (arguments.out / "report.html").write_text(page(machines, pictures), encoding="utf-8")
    print(f"{arguments.out / 'report.html'} and {len(pictures)} plots")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/report"))
    parser.add_argument("--publish", action="store_true", help="write the committed tables and the README's plot")
    arguments = parser.parse_args()
    if arguments.publish and arguments.files:
        parser.error("--publish is of all committed rows; leave out FILE.")
    return arguments


def latest(files: Sequence[Sequence[Row]]) -> list[Row]:
    """One report of several files: each machine's kinds of measurement, from the file that has its newest rows.

    A file may hold several runs; of what was measured more than once the newest row counts, in its first place.
    """
    newest: dict[tuple[object, ...], Sequence[Row]] = {}
    for some in sorted((some for some in files if some), key=lambda some: max(row["when"] for row in some)):
        newest |= dict.fromkeys(map(_kind, some), some)
    chosen = [row for some in files for row in some if newest[_kind(row)] is some]
    return list({_identity(row): row for row in sorted(chosen, key=lambda row: row["when"])}.values())


def by_machine(found: Sequence[Row]) -> list[list[Row]]:
    """The rows of each machine, the one with the most rows first."""
    machines = [*dict.fromkeys(map(_machine, found))]
    return sorted(([row for row in found if _machine(row) == one] for one in machines), key=len, reverse=True)


def _machine(row: Row) -> tuple[object, ...]:
    """What identifies a machine; its ISA does not, which a newer version of distilfast may name otherwise."""
    facts = row["machine"]
    return facts["processor"], facts["cores"], *facts.get("flags", ()), facts.get("gpu")


def _kind(row: Row) -> tuple[object, ...]:
    return row["what"], row.get("device", "cpu"), _machine(row)


def _identity(row: Row) -> tuple[object, ...]:
    """What identifies a measurement: a newer row of the same replaces it."""
    names = ("contestant", "precision", "case", "rate", "dataset", "model")
    return *_kind(row), *(row.get(name) for name in names)


def write_plots(found: Sequence[Row], out: Path, suffix: str = "") -> dict[str, bytes]:
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
            path = out / f"{name}{'_gpu' if heading else ''}{suffix}"
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


def published(machines: Sequence[Sequence[Row]]) -> dict[Path, str]:
    """What is committed of the rows: the text of each file. Raises SystemExit where the README lacks its marks."""
    chosen = front_page.comparison(machines)
    readme = ROOT / "README.md"
    return {
        ROOT / "benchmarks" / "RESULTS.md": results(machines),
        ROOT / front_page.PLOT: front_page.plot(chosen),
        readme: filled(readme.read_text(encoding="utf-8"), front_page.markdown(chosen, origins(chosen))),
    }


def filled(text: str, part: str) -> str:
    """``text`` with ``part`` between its marks; raises SystemExit where they are missing."""
    if _BEGIN not in text or _END not in text:
        raise SystemExit(f"error: README.md lacks the marks {_BEGIN} and {_END}.")
    return f"{text.partition(_BEGIN)[0]}{_BEGIN}\n\n{part}\n\n{_END}{text.partition(_END)[2]}"


def results(machines: Sequence[Sequence[Row]]) -> str:
    """Every table of every machine as one Markdown file."""
    parts = [_HEAD.rstrip()]
    for i, found in enumerate(machines, 1):
        parts += [f"## Machine {i}: {_title(found)}", f"Instruction sets: {' '.join(_flags(found))}."]
        for title, table, some in tables.chosen(found):
            sources = [f"<sub>{line}</sub>" for line in origins(some)]
            parts += [f"### {title}", tables.markdown(table(some)), *sources]
        parts.append(f"<sub>{versions(found)}</sub>")
    return "\n\n".join(parts) + "\n"


def _title(found: Sequence[Row]) -> str:
    facts = max(found, key=lambda row: row["when"])["machine"]
    return ", ".join([facts["processor"], facts["isa"], f"{facts['cores']} cores", *filter(None, [facts.get("gpu")])])


def _flags(found: Sequence[Row]) -> list[str]:
    return found[0]["machine"].get("flags", [])


def page(machines: Sequence[Sequence[Row]], pictures: dict[str, bytes]) -> str:
    """One HTML file with everything in it."""
    parts = []
    for name, picture in pictures.items():
        alternative = html.escape(name.replace("_", " "))
        parts.append(f'<img alt="{alternative}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">')
    for found in machines:
        parts.append(f"<h2>{html.escape(_title(found))}</h2>")
        parts += [f"<p><small>{html.escape(line.replace('`', ''))}</small></p>" for line in origins(found)]
        parts.append(f"<p><small>{html.escape(versions(found))}</small></p>")
        for title, cells in tables.sections(found):
            parts.append(f"<h3>{html.escape(title)}</h3><div class=wide>{_table(cells)}</div>")
    head = f"<!doctype html><meta charset=utf-8><title>distilfast: results</title><style>{_CSS}</style>"
    return f"{head}<h1>Results</h1>{''.join(parts)}"


def _table(cells: tables.Cells) -> str:
    def line(tag: str, words: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(word)}</{tag}>" for word in words) + "</tr>"

    return "<table>" + line("th", cells[0]) + "".join(line("td", words) for words in cells[1:]) + "</table>"


if __name__ == "__main__":
    main()
