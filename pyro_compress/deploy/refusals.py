"""What a format cannot do, for messages of one line: the operation, the module it stands behind, what to do instead."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyro_compress.types import Graph, Node

NAMED = 5
"""Operations and layers that a message names at most."""
SAID = 160
"""Characters that it repeats of what a tool chain says."""


def behind(graph: Graph, index: int) -> str:
    """The module whose weights an operation has, or the nearest one that its value comes from."""
    found = {index}
    while found:
        node = graph.nodes[place := max(found)]
        found = (found | set(node.inputs)) - {place}
        if names := [name for role, name in node.parameters.items() if "weight" in role or node.op == "aten"]:
            return names[-1].rpartition(".")[0] or names[-1]
    return "the input"


def called(node: Node) -> str:
    """What torch calls an operation that it runs itself, or our own name of another one."""
    return str(node.attributes["call"]).partition(".")[0] if node.op == "aten" else node.op


def kept_of(graph: Graph) -> str:
    """The operations that torch alone runs, and the modules behind which they stand: `cumsum, sort behind fc`."""
    found = dict[str, str]()
    for index, node in enumerate(graph.nodes):
        if node.op == "aten":
            found.setdefault(called(node), behind(graph, index))
    by_module = dict[str, list[str]]()
    for name in sorted(found)[:NAMED]:
        by_module.setdefault(found[name], []).append(name)
    told = " and ".join(f"{', '.join(names)} behind {module}" for module, names in by_module.items())
    return told + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")


def refuse_kept(graph: Graph, where: str) -> None:
    """Refuse a network that torch alone runs.

    Args:
        graph: the network.
        where: what cannot run it, for the message.

    Raises:
        ValueError: with the operations, and the modules that they stand behind.
    """
    if kept := kept_of(graph):
        raise ValueError(
            f"{where} has no {kept}, which torch alone runs here; export to .pt2 (torch), or keep the .pcn file"
        )


def standing(graph: Graph, index: int) -> str:
    """An operation and where it stands: `'cumsum' behind fc`."""
    return f"{called(graph.nodes[index])!r} behind {behind(graph, index)}"


def named_in(error: BaseException, graph: Graph) -> int | None:
    """The operation of the network that a tool chain names as torch does, anywhere in its chain of errors."""
    told: BaseException | None = error
    texts = list[str]()
    while told is not None and len(texts) < NAMED:
        texts.append(str(told))
        told = told.__cause__ or told.__context__
    for name in re.findall(r"\baten(?:::|\.)([a-z]\w*)", " ".join(reversed(texts))):
        for index, node in enumerate(graph.nodes):
            if called(node) in (name, name.strip("_")):
                return index
    return None


def reason(error: BaseException) -> str:
    """What a tool chain says, in one line without colours: of an error by itself its type."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    return text[:SAID] or type(error).__name__


def some(names: Sequence[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
