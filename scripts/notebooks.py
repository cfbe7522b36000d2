"""The tutorials as notebooks: docs/tutorials/notebooks, made from the pages that stand beside it.

    python scripts/notebooks.py [FOLDER]

Blocks of Python become cells, commands of a shell become lines that begin with `!`, files that a page shows are written
by a cell, and everything else is text. What a page shows of the output is left out: the notebook makes its own.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
BLOCK = re.compile(r"^(<!-- [^\n]* -->\n)?```(\w*)([^\n]*)\n(.*?)^```$\n?", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"""title=["']([^"']+)["']""")


def commands(block: str) -> str:
    """Lines of a shell without what they print, as a notebook has them."""
    lines = block.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return "\n".join(f"!{' '.join(line.split())}" for line in lines if line.strip())


def cell(kind: str, source: str) -> dict[str, Any]:
    """One cell."""
    more: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source.strip("\n").splitlines(keepends=True)} | more


def cells(page: str) -> list[dict[str, Any]]:
    """The cells of a page; links to other pages lead to the site's folders."""
    page = re.sub(r"\]\((?!http|#)(\.\./)?([^)]+)\)", lambda m: f"]({'../../' if m[1] else '../'}{m[2]})", page)
    found, end = [], 0
    for match in BLOCK.finditer(page):
        if text := page[end : match.start()].strip():
            found.append(cell("markdown", text))
        language, title, block, end = match[2], TITLE.search(match[3]), match[4], match.end()
        if title and language != "python":
            found.append(cell("code", f"%%writefile {title[1]}\n{block}"))
        elif language == "python":
            found.append(cell("code", f"%%writefile {title[1]}\n{block}" if title else block))
        elif language == "text":
            found.append(cell("markdown", f"```text\n{block}```"))
        elif lines := commands(block):
            found.append(cell("code", lines))
    if text := page[end:].strip():
        found.append(cell("markdown", text))
    return found


def notebook(page: str) -> str:
    """A page as the text of a notebook."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    numbered = [{"id": f"cell-{number}"} | one for number, one in enumerate(cells(page), 1)]
    document = {"cells": numbered, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=TUTORIALS / "notebooks")
    parser.add_argument("--smoke", action="store_true", help="say how many cells there are, and write nothing")
    options = parser.parse_args()
    if options.smoke:
        print(sum(len(cells(page.read_text())) for page in TUTORIALS.glob("*.md")), "cells")
        return
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted(TUTORIALS.glob("*.md")):
        (folder / f"{page.stem}.ipynb").write_text(notebook(page.read_text()))


if __name__ == "__main__":
    main()
