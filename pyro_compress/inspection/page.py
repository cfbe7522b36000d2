"""The parts of a self-contained HTML page: style, sections, tables, pictures.

A page loads nothing: style and pictures are part of it, and there is no script.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

CSS = """
:root { color-scheme: light; --ink: #1b2733; --soft: #5b6773; --line: #dde2e7; --accent: #2f6f8f; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 70rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: #fff; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .2rem 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
p.lead, figcaption, .note { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.facts div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.facts b { display: block; font-size: 1.3rem; line-height: 1.25; color: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; min-width: 60%; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.bar { display: inline-block; height: .7rem; background: var(--accent); border-radius: 2px; vertical-align: baseline; }
.bytes td:last-child { width: 45%; text-align: left; }
.gallery { columns: 2 26rem; column-gap: 2rem; }
figure { margin: 0 0 1.6rem; break-inside: avoid; }
figure h3 { font-size: 1rem; margin: 0 0 .3rem; }
figure img { width: 100%; max-width: 36rem; height: auto; display: block; }
figcaption { font-size: .9rem; margin-top: .3rem; }
dt { font-weight: 600; margin-top: .7rem; } dd { margin: 0; }
pre { background: #f4f6f8; padding: .8rem; border-radius: .5rem; overflow-x: auto; font-size: .85rem; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } pre { white-space: pre-wrap; }
  .gallery { columns: 2; } }
"""


@dataclass(frozen=True)
class Picture:
    """A picture, what to see in it, and its kind as browsers name it."""

    title: str
    reading: str
    content: str | bytes
    kind: str = "image/svg+xml"


def document(title: str, lead: str, sections: Iterable[str]) -> str:
    """The page."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f'<main><p class="lead">{escape(lead)}</p><h1>{escape(title)}</h1>{"".join(sections)}</main>'
        "</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A heading and what stands under it (HTML)."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Boxes of one figure each: (what it is, the figure)."""
    cells = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in pairs)
    return f'<div class="facts">{cells}</div>'


def note(text: str) -> str:
    """A paragraph in a softer colour."""
    return f'<p class="note">{escape(text)}</p>'


def table(rows: Iterable[Sequence[str]]) -> str:
    """Lines of cells, the first one the header; a cell in `**` is bold."""
    head, *body = rows
    lines = ["".join(f"<td>{_cell(cell)}</td>" for cell in row) for row in body]
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="scroll"><table><tr>{heads}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _cell(text: str) -> str:
    bold = text.startswith("**") and text.endswith("**")
    return f"<b>{escape(text[2:-2])}</b>" if bold else escape(text)


def gallery(pictures: Iterable[Picture]) -> str:
    """Pictures in columns, each with its title and reading."""
    return f'<div class="gallery">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture) -> str:
    content = picture.content.encode() if isinstance(picture.content, str) else picture.content
    data = base64.b64encode(content).decode()
    return (
        f'<figure><h3>{escape(picture.title)}</h3><img alt="{escape(picture.title)}" '
        f'src="data:{picture.kind};base64,{data}"><figcaption>{escape(picture.reading)}</figcaption></figure>'
    )
