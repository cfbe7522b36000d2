"""The pages of the documentation, and what stands in their fences."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def named(page: Path) -> str:
    """As a reader would say it: `docs/how-to/install.md`."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str | None = None) -> list[str]:
    """What stands in fences of that language; `""`: of none."""
    fences = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    return [
        re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        for indent, found, text in fences.findall(page.read_text(encoding="utf-8"))
        if language in (None, found)
    ]
