"""Changes after which a network is still a valid one: what passes the gate is what reaches the rest of the program."""

import random
from collections.abc import Callable
from typing import Any

from fuzzing.networks import POINTWISE, arguments
from pyro_compress.pcn import gate, meta
from pyro_compress.types import Graph, Node

Document = dict[str, Any]
WORDS = (
    "weight", "class", "import", "a", "x_1", "0", "init", "float32", "main", "None", "True", "input", "b.0", "int",
    "if", "output", "n1", "run", "W" * 60, "lambda", "static", "node", "_", "__", "self", "data", "params.w",
)  # fmt: skip
TEXTS = (
    "", "digits", "mnist", "a\tb", "=1+1", "</script><b>", '"quoted"', "*/ int x;", "{0}%s", "größe", "漢字",
    "/etc/passwd",
    "\\", "'", "x" * 3000, "//", "#define A", "\u00a0", "`ls`", "$(ls)", "nan", "None", "\u202e", "\u2028", "🙂",
)  # fmt: skip


def keep(document: Document, chance: random.Random, times: int) -> None:
    """Change a valid document so often, in place; what makes it invalid is undone."""
    for _ in range(times):
        before = _copied(document)
        chance.choice(CHANGES)(document, chance)
        try:
            passed(document)
        except (ValueError, KeyError, IndexError, TypeError):
            document.clear()
            document |= before


def passed(document: Document) -> tuple[Graph, gate.Plan]:
    """The graph, and what the gate says of it.

    Raises:
        ValueError: it does not pass.
    """
    told = document["graph"]
    graph = gate.built(told["nodes"], told["input"], told.get("kind", "float32"), told.get("inputs", []))
    shapes = {name: tuple(shape) for name, shape, _ in document["tensors"]}
    if len(shapes) < len(document["tensors"]):
        raise ValueError("a tensor twice")
    plan = gate.check(graph, shapes, gate.limited(64))
    meta.check_meta(document["meta"], graph.input_shape, plan.output)
    return graph, plan


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _renamed(document: Document, chance: random.Random) -> None:
    """One tensor under another name."""
    tensor = chance.choice(document["tensors"])
    old, new = tensor[0], ".".join(chance.choice(WORDS) for _ in range(chance.randint(1, 3)))
    if new in [name for name, *_ in document["tensors"]]:
        return
    tensor[0] = new
    for node in document["graph"]["nodes"]:
        node[2] = {role: new if name == old else name for role, name in node[2].items()}


def _rewired(document: Document, chance: random.Random) -> None:
    """A node reads another value."""
    nodes = document["graph"]["nodes"]
    index = chance.randrange(len(nodes))
    if inputs := nodes[index][1]:
        inputs[chance.randrange(len(inputs))] = chance.randint(0, index)


def _inserted(document: Document, chance: random.Random) -> None:
    """One more function of single values on the way."""
    nodes = document["graph"]["nodes"]
    at = chance.randrange(len(nodes))
    for node in nodes[at:]:
        node[1][:] = [i + (i > at) for i in node[1]]
    op, told = chance.choice(POINTWISE)
    nodes.insert(at, [op, [at], {}, dict(told)])
    if at + 1 < len(nodes):
        nodes[at + 1][1][:] = [at + 1 if i == at else i for i in nodes[at + 1][1]]


def _unread(document: Document, chance: random.Random) -> None:
    """A node whose value nobody reads."""
    nodes = document["graph"]["nodes"]
    at = chance.randrange(len(nodes))
    for node in nodes[at:]:
        node[1][:] = [i + (i > at) for i in node[1]]
    nodes.insert(at, _copied(nodes[chance.randrange(at)]) if at else ["tanh", [0], {}, {}])


def _swapped(document: Document, chance: random.Random) -> None:
    """Two neighbours in another order."""
    nodes = document["graph"]["nodes"]
    if len(nodes) < 3:
        return
    at = chance.randrange(len(nodes) - 2)
    if at + 1 in nodes[at + 1][1]:
        return
    nodes[at], nodes[at + 1] = nodes[at + 1], nodes[at]
    other = {at + 1: at + 2, at + 2: at + 1}
    for node in nodes[at:]:
        node[1][:] = [other.get(i, i) for i in node[1]]


def _attributes(document: Document, chance: random.Random) -> None:
    """An operation's attributes anew, within their range."""
    graph, plan = passed(document)
    index = chance.randrange(1, len(graph.nodes))
    node: Node = graph.nodes[index]
    told = document["graph"]["nodes"][index - 1][3]
    shape = plan.shapes[node.inputs[0]]
    fresh = arguments(node.op, shape, chance)[1]
    for name in chance.sample(sorted(fresh), min(len(fresh), chance.randint(1, 2))):
        told[name] = fresh[name]


def _widened(document: Document, chance: random.Random) -> None:
    """Every size that equals one of a tensor's, changed with it."""
    _, shape, _ = chance.choice(document["tensors"])
    if not shape:
        return
    old, new = chance.choice(shape), chance.choice((1, 2, 3, 5, 16, 31))
    for _, other, _ in document["tensors"]:
        other[:] = [new if n == old else n for n in other]
    if chance.random() < 0.3:
        document["graph"]["input"][:] = [new if n == old else n for n in document["graph"]["input"]]


def _shared(document: Document, chance: random.Random) -> None:
    """Two roles of one tensor."""
    nodes = [node for node in document["graph"]["nodes"] if node[2]]
    one, other = chance.choice(nodes), chance.choice(nodes)
    one[2][chance.choice(sorted(one[2]))] = other[2][chance.choice(sorted(other[2]))]


def _spare(document: Document, chance: random.Random) -> None:
    """A tensor that no node names."""
    shape = [chance.randint(0, 4) for _ in range(chance.randint(0, 7))]
    document["tensors"].insert(chance.randint(0, len(document["tensors"])), ["spare.0", shape, chance.randint(0, 1)])


def _quantised(document: Document, chance: random.Random) -> None:
    tensor = chance.choice(document["tensors"])
    tensor[2] = 1 - int(bool(tensor[2]))


def _tensor_order(document: Document, chance: random.Random) -> None:
    chance.shuffle(document["tensors"])


def _noted(document: Document, chance: random.Random) -> None:
    """An entry of the metadata, of its kind."""
    name = chance.choice((*VALUES, *TEXTS))
    document["meta"][name] = VALUES.get(name, lambda chance: chance.choice((*TEXTS, 1, None, [1], {"a": []})))(chance)


def _text(chance: random.Random) -> str:
    return chance.choice(TEXTS)


def _texts(chance: random.Random) -> list[str]:
    return [chance.choice(TEXTS) for _ in range(chance.choice((0, 1, 2, 10, 10)))]


def _whole(chance: random.Random) -> int:
    return chance.choice((0, 1, 2, 8, 100, (1 << 31) - 1))


def _count(chance: random.Random) -> int:
    return 1 + _whole(chance) // 2


def _positive(chance: random.Random) -> float:
    return chance.choice((1, 0.5, 255, 255.0, 1e-38, 3e38, 1e-20))


SEVERAL = (
    "a=classification:6+b=multi-label:3+c=regression:1", "a=regression:10", "b=classification:2+c=classification:8",
    "a=regression:9+b=classification:1", "a=classification:5+b=regression:6", "b=regression:1+a=regression:9",
)  # fmt: skip
"""Spellings of several outputs, of which some are none of a network with ten values, or no spelling."""
VALUES: dict[str, Callable[[random.Random], Any]] = {
    "prior": _text, "data": _text, "criterion": _text, "augment": _text, "teacher": _text, "test_data": _text,
    "finetune_augment": _text, "seed": lambda chance: chance.choice((0, -1, (1 << 64) - 1)),
    "validation": lambda chance: chance.choice((None, 0.1, 1e-300, 0.999999)), "parameters_total": _count,
    "task": lambda chance: chance.choice(("classification", "regression", "multi-label", *SEVERAL)),
    "noise": lambda chance: chance.choice((None, _positive(chance))), "target": _texts, "classes": _texts,
    "image_size": lambda chance: chance.choice((0, 8)), "series": lambda chance: chance.random() < 0.5, "limit": _whole,
    "scale": _positive, "dropout": lambda chance: chance.choice((0, 0.5, -3e38)), "members": _count,
    "draw_seed": lambda chance: chance.choice((0, -1)), "finetune_epochs": _whole,
    "rate": lambda chance: chance.choice((0, -1, 3e38)),
    "targets": lambda chance: [
        {"name": _text(chance), "mean": chance.choice((0, -3e38)), "std": _positive(chance)} for _ in range(10)
    ],
    "columns": lambda chance: [
        {"name": _text(chance), "mean": 0.5, "std": _positive(chance)} if chance.random() < 0.5
        else {"name": _text(chance), "categories": _texts(chance)} for _ in range(chance.randint(0, 3))
    ],
}  # fmt: skip
CHANGES: tuple[Callable[[Document, random.Random], None], ...] = (
    _renamed, _rewired, _inserted, _unread, _swapped, _attributes, _attributes, _widened, _shared, _spare, _quantised,
    _tensor_order, _noted, _noted, _noted,
)  # fmt: skip
