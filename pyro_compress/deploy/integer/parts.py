"""A network as the loops of an integer C program, before any range is known.

The loops are those of `deploy.c.plan`, rearranged to keep little in memory: a border of zeros is no copy but a check
inside the convolution or the pooling that reads it, and pooling behind a convolution is part of it, so that the map
between them never lies in memory. Batch norm on its own is a convolution of one weight per channel. A recurrent layer
has what its inputs add to its gates in it: neither these nor the gates ever become 8 bits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from pyro_compress.deploy.c.operations import is_border
from pyro_compress.deploy.c.plan import LoopPlan, is_layer, loop_plan
from pyro_compress.deploy.refusals import behind
from pyro_compress.graph.faces.c import LOWEST, Loop, Shape, Weights
from pyro_compress.types import Compressed

CLAMPS = ("relu", "clip")
"""Functions that are bounds of what a sum may become."""
KEEPING = ("max_pool", "amax", "amin", "moved", "pad", "resize", "copy")
"""Operations that choose among values and so keep their grid."""
TWO = ("add", "subtract", "multiply", "maximum", "minimum")
"""Operations on two values."""
SUMS = 8
"""Sums of a layer that are kept in registers: as many outputs are pooled there at most."""
RECURRENT = ("lstm", "gru")
NORMS = ("layer_norm", "group_norm")
SUPPORTED = (
    *TWO, "concat", "avg_pool", "mean", "sum", "prelu", "constant", *KEEPING, "embedding", *NORMS, "softmax",
    "log_softmax", "matmul", "attention", *RECURRENT,
)  # fmt: skip
"""Loops beside layers."""


@dataclass(frozen=True)
class Window:
    """Rows and columns that pooling looks at, and by how many it moves on."""

    kernel: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True)
class Part:
    """One loop nest.

    Attributes:
        loop: what it does; its inputs are indices of parts.
        base: the node whose value it has before its functions of single values run (-1: that of its input).
        final: the node whose value it has behind them.
        border: rows above and columns left of its input that are zeros, or nothing for pooling.
        pool: what the outputs of a convolution are pooled in.
        name: of the weights, or of those before it, for messages.
        given: of a recurrent layer, the linear layer of its inputs.
    """

    loop: Loop
    base: int
    final: int
    border: tuple[int, int] = (0, 0)
    pool: Window | None = None
    name: str = "the input"
    given: Loop | None = None


@dataclass(frozen=True)
class Parts:
    """The whole program, and the graph whose nodes its parts name."""

    parts: list[Part]
    network: Compressed


def parts_of(network: Compressed) -> Parts:
    """The loop nests in order; the last one's output is the network's.

    Raises:
        ValueError: an operation that integers do not know; it is named, with where it stands.
    """
    plan = loop_plan(network)
    parts = [_part(plan, index) for index in range(len(plan.loops))]
    for part in parts:
        if not (is_layer(part.loop) or part.loop.op in SUPPORTED):
            raise ValueError(
                f"operation {part.loop.op!r} behind {part.name} is not supported in integer C; leave it out of the "
                "network, or export without --integer"
            )
    _check_tables(parts, plan.network)
    return Parts(_without_unread(_pooled(_bordered(_apart(parts)))), plan.network)


def _check_tables(parts: list[Part], network: Compressed) -> None:
    """Refuse tables that something else than the network's tokens is looked up in."""
    for part in parts:
        if part.loop.op == "embedding" and (network.graph.kind == "float32" or part.loop.inputs != [-1]):
            raise ValueError(
                f"{part.name} looks up numbers that are computed, or lie in a row with others; integer C looks up "
                "whole inputs of tokens only: export without --integer"
            )


def _apart(parts: list[Part]) -> list[Part]:
    """Functions behind a recurrent layer run over a copy: it reads its own outputs."""
    found, places = list[Part](), {-1: -1}
    for index, part in enumerate(parts):
        loop = replace(part.loop, inputs=[places[i] for i in part.loop.inputs])
        after = loop.after if loop.op in RECURRENT else []
        final = part.base if after else part.final
        found.append(replace(part, loop=replace(loop, after=[] if after else loop.after), final=final))
        if after:
            copied = Loop("copy", [len(found) - 1], [loop.shape], loop.shape, after=after)
            found.append(replace(part, loop=copied, given=None))
        places[index] = len(found) - 1
    return found


def _part(plan: LoopPlan, index: int) -> Part:
    loop = plan.loops[index]
    after = {id(node) for node in loop.after}
    nodes = [node for node, value in sorted(plan.value.items()) if value == index]
    if not nodes and is_layer(loop):  # whose outputs are moved before anybody reads them
        nodes = [loop.node, *(i for i, node in enumerate(plan.network.graph.nodes) if id(node) in after)]
    place = next((i for i, node in enumerate(nodes) if id(plan.network.graph.nodes[node]) in after), len(nodes))
    before = nodes[:place] or [-1]
    name = behind(plan.network.graph, max(nodes, default=loop.node))
    part = Part(_as_layer(loop), before[-1], nodes[-1] if nodes else before[-1], name=name)
    if loop.op not in RECURRENT:
        return part
    given = plan.loops[loop.inputs[0]]
    shapes: list[Shape] = [(loop.shape[0], 1, given.weights.codes.shape[1])] if given.weights else []
    return replace(part, loop=replace(loop, inputs=list(given.inputs), shapes=shapes), given=given)


def _as_layer(loop: Loop) -> Loop:
    """Batch norm on its own as a convolution of one weight per channel."""
    if loop.op != "affine" or loop.weights is None:
        return loop
    scale = np.broadcast_to(loop.weights.scale, loop.shape[:1]).astype(np.float32)
    weights = Weights(scale.reshape(-1, 1, 1, 1), np.ones(1), loop.weights.bias, groups=len(scale))
    return replace(loop, op="conv2d", weights=weights)


def _bordered(parts: list[Part]) -> list[Part]:
    """Borders of what nobody but convolutions and pooling reads are checks of theirs."""
    found = list(parts)
    for index, part in enumerate(parts):
        if not part.loop.inputs or part.loop.inputs[0] < 0:
            continue
        pad = parts[part.loop.inputs[0]].loop
        takes = part.loop.op in ("max_pool", "avg_pool") or (is_layer(part.loop) and part.loop.op != "linear")
        fill = LOWEST if part.loop.op == "max_pool" else 0.0
        if not takes or pad.op != "pad" or pad.after or not is_border(pad) or pad.attributes["fill"] != fill:
            continue
        top, left = (places.index(0) for places in pad.attributes["sources"])
        loop = replace(part.loop, inputs=list(pad.inputs), shapes=list(pad.shapes))
        found[index] = replace(part, loop=loop, border=(top, left))
    return found


def _pooled(parts: list[Part]) -> list[Part]:
    """Max pooling of windows that do not overlap is part of the convolution before it, if nobody else reads that."""
    readers = Counter(i for part in parts for i in part.loop.inputs)
    found = list(parts)
    for index, part in enumerate(parts):
        loop, source = part.loop, part.loop.inputs[0]
        if loop.op != "max_pool" or source < 0 or readers[source] != 1 or part.border != (0, 0):
            continue
        before, window = found[source], window_of(loop)
        fits = all(size <= step for size, step in zip(window.kernel, window.stride, strict=True))
        fits &= window.kernel[0] * window.kernel[1] <= SUMS
        whole = loop.shapes[0] == before.loop.shape
        if not (is_layer(before.loop) and before.loop.op != "linear" and fits and whole):
            continue
        if before.pool or any(node.op not in CLAMPS for node in before.loop.after):
            continue
        joined = replace(before.loop, shape=loop.shape, after=[*before.loop.after, *loop.after])
        joined.attributes = before.loop.attributes | {"map": before.loop.shape}
        found[index] = replace(part, loop=joined, border=before.border, pool=window, name=before.name)
    return found


def window_of(loop: Loop) -> Window:
    """The windows of a pooling."""
    kernel, stride = loop.attributes["kernel"], loop.attributes["stride"]
    return Window((kernel[0], kernel[1]), (stride[0], stride[1]))


def _without_unread(parts: list[Part]) -> list[Part]:
    """Only what leads to the output, numbered anew."""
    kept = {len(parts) - 1}
    for index in reversed(range(len(parts))):
        if index in kept:
            kept.update(i for i in parts[index].loop.inputs if i >= 0)
    places = {old: new for new, old in enumerate(sorted(kept))} | {-1: -1}
    return [
        replace(parts[old], loop=replace(parts[old].loop, inputs=[places[i] for i in parts[old].loop.inputs]))
        for old in sorted(kept)
    ]
