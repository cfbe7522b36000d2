"""One colour, marker and dash per method, in every figure and page; the colours of pages and layers.

A method keeps its look wherever it is drawn: by its own name, as a prior, and as a published point (hollow). Methods
that are not named here get the looks that are left, in the order in which a figure names them. Lines differ by dash and
marker as well as by colour, so that every figure reads in grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

INK, GREY, ACCENT, SECOND = "#1b2733", "#8794a1", "#d1543c", "#3b83a8"
LAYERS = ("#3b83a8", "#d1543c", "#6a9f4a", "#9a6ab0", "#c28a1e", "#71808f")

Dash = str | tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Look:
    """How the lines and points of one method are drawn.

    Attributes:
        colour: of line, marker and band.
        marker: as matplotlib calls it.
        dash: of the line.
        hollow: whether the marker is empty.
    """

    colour: str
    marker: str
    dash: Dash = "-"
    hollow: bool = False

    def point(self) -> dict[str, Any]:
        """Arguments of matplotlib for markers without a line."""
        face = "none" if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face, "linestyle": "", "markersize": 5}

    def line(self) -> dict[str, Any]:
        """Arguments of matplotlib for a line with markers."""
        return self.point() | {"linestyle": self.dash, "linewidth": 1.6}


METHODS = {
    "SGD": Look(INK, "o"),
    "Bayes by Backprop": Look("#2464ad", "s", "--"),
    "log-uniform": Look("#c8501e", "^"),
    "horseshoe": Look("#1f9488", "*", ":"),
    "normal-Jeffreys": Look("#b08a00", "P", (0, (5, 1, 1, 1, 1, 1))),
    "gaussian": Look("#7a8794", "X", "--"),
    "dropout 0.5": Look("#8e5ea8", "v", ":"),
    "dropout 0.6": Look("#b06fa0", "<", (0, (1, 2))),
    "dropout 0.75": Look("#6c5bb0", ">", (0, (4, 1, 1, 1))),
    "dropout 0.9": Look("#a98bc4", "8", (0, (2, 1))),
    "Han et al.": Look("#5b8c2a", "D", "-."),
    "gradual magnitude pruning": Look("#8a9a35", "p", (0, (8, 2))),
    "lottery ticket": Look("#3f9a5a", "h", (0, (6, 1, 2, 1))),
    "soft weight sharing": Look("#c2508a", "d", (0, (3, 3))),
    "entropy-penalised": Look("#8c6248", "H", (0, (1, 1, 4, 1))),
    "MIRACLE": Look("#3a9fd1", "X", (0, (10, 1, 1, 1))),
    "nncodec": Look("#8c6248", "s", "-."),
    "magnitude + xz": Look("#7a8794", "D", ":"),
    "int8 + zstd": Look("#7a8794", "v", "--"),
    "front": Look("#2464ad", "o"),
    "pyro-compress": Look("#c8501e", "o"),
    "log-uniform, fine-tuned": Look("#c8501e", "o"),
}
"""Method -> its look."""
SAME = {
    "none": "SGD",
    "magnitude": "SGD",
    "spike-and-slab": "Bayes by Backprop",
    "normal-jeffreys": "normal-Jeffreys",
    "Sparse VD": "log-uniform",
    "BC-GHS": "horseshoe",
    "BC-GNJ": "normal-Jeffreys",
    "Deep Compression": "Han et al.",
}
"""Other names of methods: of priors, and of the papers that had them first."""
_COLOURS = ("#2464ad", "#c8501e", "#1f9488", "#8e5ea8", "#b08a00", "#5b8c2a", "#c2508a", "#7a8794")
_MARKERS = (("o", "-"), ("s", "--"), ("D", "-."), ("v", ":"), ("P", (0, (5, 1, 1, 1))), ("h", (0, (2, 1))))
_FIRST = ("", "Adam", "faithful", "own recipe", "prune and retrain", "rewinding", "test")
"""Variants that are the method as it stands: they have its look, whatever stands beside them."""
_DASHES: tuple[Dash, ...] = ((0, (1, 1)), (0, (6, 2)), (0, (4, 1, 1, 1)), (0, (2, 3)))


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each of a figure's labels, `method` or `method (variant)`; no two are the same up to 48 new names.

    A variant has its method's colour and marker, hollow and with another dash where it is not the method as it stands.
    """
    found, strangers, variants = dict[str, Look](), dict[str, Look](), dict[str, int]()
    for label in dict.fromkeys(labels):
        method, _, variant = label.removesuffix(")").partition(" (")
        look = METHODS.get(SAME.get(method, method)) or strangers.setdefault(method, _stranger(len(strangers)))
        name = SAME.get(method, method)
        place = 0 if variant in _FIRST else variants.setdefault(name, 0) + 1
        if place:
            variants[name] = place
            look = replace(look, dash=_DASHES[(place - 1) % len(_DASHES)], hollow=True)
        found[label] = look
    return found


def layers(number: int) -> list[str]:
    """A colour for each of so many layers."""
    return [LAYERS[i % len(LAYERS)] for i in range(number)]


def _stranger(index: int) -> Look:
    marker, dash = _MARKERS[(index // len(_COLOURS) + index % len(_COLOURS)) % len(_MARKERS)]
    return Look(_COLOURS[index % len(_COLOURS)], marker, dash)
