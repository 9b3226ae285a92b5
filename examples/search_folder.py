"""Search a folder of text by meaning.

    python examples/search_folder.py "How is a checkpoint loaded?" --folder .

Every .txt, .md and .rst file below the folder is cut into paragraphs, and each paragraph becomes a vector. The nearest
to the query are printed, best first, with the cosine of the angle between the vectors, the file and the line:

    0.612  docs/loading.md:12  A checkpoint is a hub id or a local directory …
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import distilfast

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SUFFIXES = {".txt", ".md", ".rst"}


def paragraphs(folder: Path) -> Iterator[tuple[str, str]]:
    """("file:line", text) of every paragraph of some words; hidden folders are left out."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix not in SUFFIXES or not path.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        lines: list[str] = []
        for number, line in enumerate([*path.read_text("utf-8", "replace").splitlines(), ""], 1):
            if line.strip():
                lines.append(line.strip())
            elif lines:
                text = " ".join(lines)
                if len(text.split()) > 3:
                    yield f"{inside}:{number - len(lines)}", text
                lines = []


def main(arguments: list[str] | None = None) -> None:
    """Print the paragraphs of a folder that are nearest to a query."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", nargs="?", default="How is a checkpoint loaded?")
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--model", default=MODEL, help="a hub id or a directory")
    given = parser.parse_args(arguments)

    found = list(paragraphs(given.folder))
    if not found:
        sys.exit(f"error: there is no text ({', '.join(sorted(SUFFIXES))}) below {given.folder.resolve()}.")
    pipe = distilfast.pipeline("feature-extraction", given.model)
    vectors = pipe.embed([text for _, text in found], normalize=True, stride=0)  # the whole of long ones
    scores = vectors @ pipe.embed(given.query, normalize=True)[0]
    for i in np.argsort(-scores)[: given.top]:
        where, text = found[i]
        print(f"{scores[i]:.3f}  {where}  {text[:160]}{' …' if len(text) > 160 else ''}")


if __name__ == "__main__":
    main()
