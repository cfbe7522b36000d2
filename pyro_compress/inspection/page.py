"""The parts of a self-contained HTML page: tiles, sections, tables, bars, pictures, players.

A page loads nothing: style, pictures and its one script are part of it, and its policy lets a browser fetch and run
nothing else. Every text is escaped here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from pyro_compress.inspection.page_style import CSS, SCRIPT

STAGE_REM = 24.0
"""Most height of an animation."""
NAMED = 0.12
"""Share of a bar that has room for its name."""


@dataclass(frozen=True)
class Picture:
    """A picture, what to see in it, and its kind as browsers name it."""

    title: str
    reading: str
    content: str | bytes
    kind: str = "image/svg+xml"


@dataclass(frozen=True)
class Animation:
    """A picture that changes.

    Attributes:
        title: its heading.
        reading: what to see in it.
        strip: PNG of all frames, one below the other.
        labels: one per frame.
        aspect: width of a frame over its height.
    """

    title: str
    reading: str
    strip: bytes
    labels: tuple[str, ...]
    aspect: float


def document(title: str, lead: str, sections: Iterable[str]) -> str:
    """The page."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f'<main><p class="lead">{escape(lead)}</p><h1>{escape(title)}</h1>{"".join(sections)}</main>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A heading and what stands under it (HTML)."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Tiles of one figure each: (what it is, the figure)."""
    cells = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in pairs)
    return f'<div class="facts">{cells}</div>'


def note(text: str) -> str:
    """A paragraph in a softer colour."""
    return f'<p class="note">{escape(text)}</p>'


def split(factors: Iterable[tuple[str, float]]) -> str:
    """A bar of up to three named factors, each as wide as its logarithm; what makes nothing smaller has no part."""
    logs = [(name, factor, math.log(factor) if factor > 1 else 0.0) for name, factor in factors]
    whole, parts = sum(log for _, _, log in logs), ""
    for place, (name, factor, log) in enumerate(logs):
        if log:
            text = f"{escape(name)} ÷{escape(times(factor))}" if log >= NAMED * whole else ""
            parts += f'<span class="c{place}" style="width:{100 * log / whole:.2f}%">{text}</span>'
    return f'<div class="split">{parts}</div>'


def times(factor: float) -> str:
    """A factor with three digits."""
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.3g}"


def table(rows: Iterable[Sequence[str]], chips: int = 0) -> str:
    """Lines of cells, the first one the header; a cell in `**` is bold. It scrolls inside itself.

    Args:
        rows: the lines.
        chips: so many of the last lines begin with the colours of `split`.
    """
    head, *body = rows
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = ""
    for place, row in enumerate(body, chips - len(body)):
        chip = f'<span class="chip c{place}"></span>' if place >= 0 and chips else ""
        lines += (
            "<tr>" + "".join(f"<td>{chip if i == 0 else ''}{_cell(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        )
    kind = ' class="steps"' if chips else ""
    return f'<div class="scroll"><table{kind}><tr>{heads}</tr>{lines}</table></div>'


def _cell(text: str) -> str:
    bold = text.startswith("**") and text.endswith("**")
    return f"<b>{escape(text[2:-2])}</b>" if bold else escape(text)


def gallery(pictures: Iterable[Picture | Animation]) -> str:
    """Pictures in columns, each with its title and reading."""
    return f'<div class="gallery">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture | Animation) -> str:
    shown = _player(picture) if isinstance(picture, Animation) else _image(picture)
    return f"<figure><h3>{escape(picture.title)}</h3>{shown}<figcaption>{escape(picture.reading)}</figcaption></figure>"


def _image(picture: Picture) -> str:
    content = picture.content.encode() if isinstance(picture.content, str) else picture.content
    return f'<img alt="{escape(picture.title)}" src="data:{picture.kind};base64,{base64.b64encode(content).decode()}">'


def _player(animation: Animation) -> str:
    """Frames, a button and a slider; without a script the last frame alone."""
    last = len(animation.labels) - 1
    size = f"width:min(100%,{STAGE_REM * animation.aspect:.2f}rem);aspect-ratio:{animation.aspect:.6f}"
    strip = base64.b64encode(animation.strip).decode()
    labels = escape(json.dumps(animation.labels), quote=True)
    return (
        f'<div class="player" data-labels="{labels}"><div class="stage" style="{size}">'
        f'<img alt="{escape(animation.title)}" style="top:{-100 * last}%" src="data:image/png;base64,{strip}"></div>'
        f"<output>{escape(animation.labels[last])}</output>"
        '<div class="controls" hidden><button type="button">Play</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" aria-label="frame"></div></div>'
    )
