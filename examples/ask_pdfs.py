"""Ask a question of the text of PDF files. Needs the package pypdf (pip install pypdf), which reads it.

    python examples/ask_pdfs.py "Who signed the contract?" contract.pdf annex.pdf

Each page is read whole, in windows that overlap where it is long. The best answers are printed, with their scores, the
file, the page and the words around them:

    0.91  Ada Lovelace  (contract.pdf, page 3: … signed on 4 May by Ada Lovelace, who …)

Without files, all PDFs of the current folder are asked. A page that is a picture of text has none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import distilfast

MODEL = "distilbert-base-cased-distilled-squad"


def pages(files: list[Path]) -> Iterator[tuple[Path, int, str]]:
    """(file, number, text) of every page with text."""
    try:
        from pypdf import PdfReader
    except ImportError:
        sys.exit("error: this example needs pypdf: pip install pypdf")
    for file in files:
        for number, page in enumerate(PdfReader(file).pages, 1):
            if text := " ".join(page.extract_text().split()):
                yield file, number, text


def main(arguments: list[str] | None = None) -> None:
    """Print the best answers to a question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="What is it about?")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--model", default=MODEL, help="a hub id or a directory")
    given = parser.parse_args(arguments)

    found = list(pages(given.files or sorted(Path().glob("*.pdf"))))
    if not found:
        sys.exit("error: there is no text to ask; name PDF files that have some.")
    pipe = distilfast.pipeline("question-answering", given.model)
    asked = ({"question": given.question, "context": text} for _, _, text in found)
    answers = zip(pipe(asked), found, strict=True)
    for answer, (file, number, text) in sorted(answers, key=lambda pair: -pair[0]["score"])[: given.top]:
        around = text[max(answer["start"] - 40, 0) : answer["end"] + 40]
        print(f"{answer['score']:.2f}  {answer['answer']}  ({file.name}, page {number}: … {around} …)")


if __name__ == "__main__":
    main()
