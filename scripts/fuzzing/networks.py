"""Valid networks to begin with: four that hold operations of every kind, and others that a grammar makes up.

A network is a document as JSON has it: {"graph": {"input": shape, "nodes": [[operation, inputs, {role: tensor},
{attribute: value}], ...]}, "tensors": [[name, shape, quantised], ...], "meta": {...}}.
"""

import math
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from pyro_compress.graph.operations import row as rows
from pyro_compress.graph.operations.row import Operation, in_rows
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.pcn import gate
from pyro_compress.types import Node

FLOATS = {"dtype": {"kind": "float32"}}
ONE = {"stride": [1, 1], "padding": [[0, 0], [0, 0]], "dilation": [1, 1]}
CUBE = {"stride": [1] * 3, "padding": [[0] * 3, [1] * 3], "dilation": [1] * 3, "groups": 1}
FLAT = ["reshape", [-1], {}, {"shape": [64]}]
HEAD = ["linear", [-1], {"weight": "head.weight", "bias": "head.bias"}, {}]
POINTWISE = [
    ("relu", {}), ("tanh", {}), ("sigmoid", {}), ("silu", {}), ("hardswish", {}), ("hardsigmoid", {}), ("softplus", {}),
    ("gelu", {"tanh": False}), ("leaky_relu", {"slope": 0.1}), ("elu", {"alpha": 1.0, "scale": 1.0}), ("mish", {}),
    ("sin", {}), ("scale", {"factor": 2.0, "offset": 0.5}), ("clip", {"low": 0.0, "high": 6.0}),
]  # fmt: skip
CONV = ["conv2d", [0], {"weight": "c.weight", "bias": "c.bias"}, ONE | {"padding": [[1, 1], [1, 1]], "groups": 1}]
NORM = ("weight", "bias", "running_mean", "running_var")
SHAPES = {"c.weight": [4, 1, 3, 3], "c.bias": [4], "head.bias": [10]}
NETWORKS: list[tuple[list[Any], dict[str, list[int]]]] = [
    ([FLAT, *[[op, [-1], {}, told] for op, told in POINTWISE], HEAD], {"head.weight": [10, 64], "head.bias": [10]}),
    (
        [
            CONV, ["batch_norm", [-1], {role: f"b.{role}" for role in NORM}, {"eps": 1e-5}],
            ["prelu", [-1], {"weight": "p.weight"}, {}], ["group_norm", [-1], {}, {"groups": 2, "eps": 1e-5}],
            ["pad", [-1], {}, {"sizes": [1, 1, 1, 1], "mode": "reflect"}],
            ["max_pool", [-1], {}, {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1]}],
            ["avg_pool", [-1], {}, {"kernel": [2, 2], "stride": [1, 1], "padding": [0, 0]}],
            ["slice", [-1], {}, {"axis": 2, "start": 0, "stop": 4, "step": 1}],
            ["amax", [-1], {}, {"axes": [3], "keepdim": True}],
            ["mean", [-1], {}, {"axes": [2, 3]}], ["softmax", [-1], {}, {"axis": 1}], HEAD,
        ],
        SHAPES | {f"b.{role}": [4] for role in NORM} | {"p.weight": [4], "head.weight": [10, 4]},
    ),
    (
        [
            ["reshape", [0], {}, {"shape": [8, 8]}],
            ["layer_norm", [1], {"weight": "n.weight", "bias": "n.bias"}, {"eps": 1e-5}],
            ["linear", [2], {"weight": "q.weight"}, {}], ["attention", [3, 2, 2], {}, {"causal": False, "scale": None}],
            ["permute", [4], {}, {"axes": [2, 1]}], ["matmul", [4, 5], {}, {}],
            ["constant", [0], {"value": "v"}, {"shape": [8, 8]}],
            ["add", [6, 7], {}, {}], ["subtract", [8, 7], {}, {}], ["multiply", [9, 8], {}, {}],
            ["sigmoid", [10], {}, {}],
            ["divide", [10, 11], {}, {}], ["concat", [12, 7], {}, {"axis": 1}],
            ["select", [13], {}, {"axis": 1, "index": 15}],
            ["linear", [14], {"weight": "head.weight", "bias": "head.bias"}, {}],
            ["log_softmax", [15], {}, {"axis": 1}],
            ["mixture", [15, 16], {}, {}],
        ],
        {"n.weight": [8], "n.bias": [8], "q.weight": [8, 8], "v": [1, 8, 8], "head.weight": [10, 8], "head.bias": [10]},
    ),
    (
        [
            ["upsample", [0], {}, {"factors": [2, 1]}], ["resize", [-1], {}, {"sizes": [4, 16], "corners": False}],
            ["roll", [-1], {}, {"shifts": [1, 3], "axes": [2, 3]}], ["flip", [-1], {}, {"axes": [3]}],
            ["reshape", [-1], {}, {"shape": [1, 4, 4, 4]}],
            ["conv3d", [-1], {"weight": "d.weight", "bias": "d.bias"}, CUBE],
            ["relu", [-1], {}, {}], ["amax", [-1], {}, {"axes": [2, 3, 4], "keepdim": True}],
            ["expand", [-1], {}, {"axes": [4], "sizes": [5]}], ["reshape", [-1], {}, {"shape": [10]}], HEAD,
        ],
        {"d.weight": [2, 1, 2, 2, 2], "d.bias": [2], "head.weight": [10, 10], "head.bias": [10]},
    ),
]  # fmt: skip
CALLS: list[list[Any]] = [
    ["cumsum.default", 1], ["relu.default"], ["mul.Tensor", "tensor"], ["maximum.default", {"value": 0}],
    ["add.Tensor", "tensor"],
    ["masked_fill.Scalar", {"literal": [True], "kind": "bool", "shape": [1]}, {"number": "-inf"}],
    ["roll.default", [1], [1]], ["slice.Tensor", 1, 0, 9223372036854775807], ["view.default", [{"batch": 1}, -1]],
    ["topk.default", 1, 1], ["softmax.int", -1], ["permute.default", [0, 2, 1, 3]], ["hardtanh.default", -1, 1],
    ["where.self", {"value": 0}, {"value": 0}], ["gather.default", 1, "tensor"], ["flip.default", [1]],
]  # fmt: skip
"""Operations of torch with their arguments behind the value that they read."""
META = {"prior": "horseshoe", "data": "digits", "seed": 0, "parameters_total": 700, "criterion": "snr", "limit": 100}
MOST = 1 << 12
"""Values of a made-up operation's output."""

Shape = tuple[int, ...]
Proposal = tuple[dict[str, list[int]], dict[str, Any]]
"""Role -> shape of its tensor, and attributes."""


def listed(number: int) -> dict[str, Any]:
    """One of the listed networks, to be changed in place."""
    nodes, shapes = deepcopy(NETWORKS[number])
    told = [
        [op, [index if i < 0 else i for i in inputs], parameters, attributes]
        for index, (op, inputs, parameters, attributes) in enumerate(nodes)
    ]
    tensors = [[name, shape, int(len(shape) > 1)] for name, shape in shapes.items()]
    return {"graph": {"input": [1, 8, 8], "nodes": told}, "tensors": tensors, "meta": dict(META)}


def made_up(chance: random.Random) -> dict[str, Any]:
    """A network of random operations that fit each other, for images of digits more often than not."""
    first = (1, 8, 8) if chance.random() < 0.7 else tuple(chance.randint(1, 6) for _ in range(chance.randint(1, 5)))
    shapes: list[Any] = [first]
    nodes, tensors = list[list[Any]](), list[list[Any]]()
    kind: dict[str, Any] = {}
    if chance.random() < 0.1:  # words instead of an image
        rows, features = chance.randint(1, 9), chance.randint(1, 4)
        nodes, tensors = [["embedding", [0], {"weight": "table"}, {}]], [["table", [rows, features], 1]]
        kind = {"operations": 5, "kind": "int64"}
        first = first[:3]
        shapes = [(*first, features), (*first, features)]  # nothing else reads numbers of words
    elif chance.random() < 0.1:
        kind, first, nodes, tensors, shapes = several_inputs(chance)
    for _ in range(chance.randint(0, 9)):
        op = chance.choice(list(OPERATIONS))
        if op in WANTED and (wanted := WANTED[op](shapes[-1], chance)) is not None:
            nodes, shapes = [*nodes, ["reshape", [len(nodes)], {}, {"shape": wanted}]], [*shapes, tuple(wanted)]
        if (found := proposed(op, shapes, len(nodes), chance)) is not None:
            node, more, shape = found
            nodes, tensors, shapes = [*nodes, node], tensors + more, [*shapes, shape]
    size = math.prod(shapes[-1])
    if len(shapes[-1]) != 1 or chance.random() < 0.3:
        nodes.append(["reshape", [len(nodes)], {}, {"shape": [size]}])
    if len(shapes[-1]) < 1:
        size = 1
    outputs = 10 if chance.random() < 0.8 else chance.randint(1, 12)
    nodes.append(["linear", [len(nodes)], {"weight": "head.weight", "bias": "head.bias"}, {}])
    tensors += [["head.weight", [outputs, size], 1], ["head.bias", [outputs], 0]]
    graph = kind | {"input": list(first), "nodes": nodes}
    return {"graph": graph, "tensors": tensors, "meta": dict(META)}


def several_inputs(chance: random.Random) -> tuple[dict[str, Any], Shape, list[Any], list[Any], list[Any]]:
    """Numbers, words and answers in one row, cut up and put together again: what is no number may not be read on."""
    numbers, words, answers = (chance.randint(1, 6) for _ in range(3))
    rows, features = chance.randint(1, 9), chance.randint(1, 4)
    size = answers + numbers + words
    nodes = [
        ["slice", [0], {}, {"axis": 1, "start": 0, "stop": answers}],
        ["truth", [1], {}, {}],
        ["aten", [2], {}, {"call": "_to_copy.default", "arguments": [{"value": 0}], "keywords": FLOATS}],
        ["slice", [0], {}, {"axis": 1, "start": answers, "stop": answers + numbers}],
        ["slice", [0], {}, {"axis": 1, "start": answers + numbers, "stop": size}],
        ["whole", [5], {}, {}],
        ["embedding", [6], {"weight": "table"}, {}],
        ["reshape", [7], {}, {"shape": [words * features]}],
        ["concat", [3, 4, 8], {}, {"axis": 1}],
    ]
    known = [["answers", [answers], "bool"], ["numbers", [numbers], "float32"], ["words", [words], "int64"]]
    shapes: list[Any] = [
        (size,), (answers,), None, (answers,), (numbers,), (words,), None, (words, features), (words * features,),
        (answers + numbers + words * features,),
    ]  # fmt: skip
    kind = {"operations": 6, "kind": "float32", "inputs": known}
    return kind, (size,), nodes, [["table", [rows, features], 1]], shapes


def proposed(op: str, shapes: list[Any], number: int, chance: random.Random) -> Any:
    """A node of an operation behind values of these shapes, its tensors, its output's shape; None where none fits."""
    row = OPERATIONS[op]
    for _ in range(4):
        inputs = [
            _near_end([i for i, known in enumerate(shapes) if known is not None], chance)
            for _ in range(max(row.inputs[0], min(row.inputs[1], chance.choice((1, 2, 3)))))
        ]
        roles, attributes = arguments(op, shapes[inputs[0]], chance)
        names = {role: f"n{number}.{role}" for role in roles}
        node = Node(op, tuple(inputs), names, attributes)
        try:
            read = [in_rows(shapes[i]) for i in inputs]
            flow, *_ = gate.flowing(node, read, {names[r]: tuple(s) for r, s in roles.items()})
        except ValueError:
            continue
        if flow.rows != 1 or flow.kind != "float32":
            continue
        shape = flow.shape
        if 0 < math.prod(shape) <= MOST and len(shape) <= 8:
            more = [[names[role], size, int(len(size) > 1)] for role, size in roles.items()]
            return [op, inputs, names, attributes], more, shape
    return None


def _near_end(readable: list[int], chance: random.Random) -> int:
    return readable[-1] if chance.random() < 0.7 else readable[chance.randrange(len(readable))]


def arguments(op: str, shape: Shape, chance: random.Random) -> Proposal:
    """Tensors and attributes that may fit an operation on a value of this shape."""
    row = OPERATIONS[op]
    made = ARGUMENTS[op](shape, chance) if op in ARGUMENTS else ({}, _by_kind(row, shape, chance))
    roles = {role: size for role, size in made[0].items() if role in row.roles or chance.random() < 0.7}
    return roles, {key: v for key, v in made[1].items() if key in row.attributes or chance.random() < 0.7}


def _by_kind(row: Operation, shape: Shape, chance: random.Random) -> dict[str, Any]:
    """Attributes of an operation that has no row in `ARGUMENTS`, each of its kind."""
    kinds = {**row.attributes, **row.options}
    return {name: BY_KIND[kind.name](shape, chance) for name, kind in kinds.items() if kind.name in BY_KIND}


def number(chance: random.Random) -> float:
    """A number such as people write, or one at an end of its range."""
    return chance.choice(
        (0.0, 1.0, -1.0, 0.5, 1e-5, -0.0, 1e-38, 1e-45, 3e38, -3e38, 1, 0, round(chance.gauss(0, 3), 3))
    )


def _divisor(size: int, chance: random.Random) -> int:
    return chance.choice([n for n in range(1, min(size, 64) + 1) if size % n == 0] or [1])


def _factors(size: int, chance: random.Random) -> list[int]:
    parts = list[int]()
    while size > 1 and len(parts) < 5:
        parts.append(_divisor(size, chance))
        size //= parts[-1]
    return [*parts, size]


def _of_rank(rank: int) -> Callable[[Shape, random.Random], list[int] | None]:
    """The last value with so many dimensions, where it has others."""

    def wanted(shape: Shape, chance: random.Random) -> list[int] | None:
        if len(shape) == rank:
            return None
        left, parts = math.prod(shape), list[int]()
        for _ in range(rank - 1):
            parts.append(_divisor(left, chance))
            left //= parts[-1]
        return [*parts, left]

    return wanted


def _with_a_one(shape: Shape, chance: random.Random) -> list[int] | None:
    """The last value with a dimension that can be repeated, where it has none."""
    at = chance.randint(0, len(shape))
    return None if 1 in shape or len(shape) > 5 else [*shape[:at], 1, *shape[at:]]


def _conv(rank: int) -> Callable[[Shape, random.Random], Proposal]:
    def made(shape: Shape, chance: random.Random) -> Proposal:
        channels = shape[0] if shape else 1
        groups, filters = _divisor(channels, chance), chance.randint(1, 3)
        groups = groups if chance.random() < 0.4 else 1
        kernel = [chance.randint(1, 3) for _ in range(rank)]
        sizes = {"weight": [filters * groups, channels // groups, *kernel], "bias": [filters * groups]}
        padding = [[chance.choice((0, 0, 1, 2)) for _ in range(rank)] for _ in range(2)]
        few = [[chance.choice((1, 1, 2)) for _ in range(rank)] for _ in range(2)]
        return sizes, {"stride": few[0], "padding": padding, "dilation": few[1], "groups": groups}

    return made


def _conv_transpose(rank: int) -> Callable[[Shape, random.Random], Proposal]:
    def made(shape: Shape, chance: random.Random) -> Proposal:
        channels = shape[0] if shape else 1
        groups = _divisor(channels, chance) if chance.random() < 0.3 else 1
        filters, kernel = chance.randint(1, 3), [chance.randint(1, 3) for _ in range(rank)]
        sizes = {"weight": [channels, filters, *kernel], "bias": [filters * groups]}
        told = {
            "stride": [chance.choice((1, 1, 2)) for _ in range(rank)],
            "padding": [0] * rank,
            "dilation": [1] * rank,
        }
        told |= {"extra": [chance.choice((0, 0, 1)) for _ in range(rank)]}
        return sizes, told | {"groups": groups}

    return made


def _recurrent(gates: int) -> Callable[[Shape, random.Random], Proposal]:
    def made(shape: Shape, chance: random.Random) -> Proposal:
        units, rows = chance.randint(1, 4), gates
        sizes = {"weight_ih": [rows * units, shape[-1] if shape else 1], "weight_hh": [rows * units, units]}
        sizes |= {"bias_ih": [rows * units], "bias_hh": [rows * units]}
        return sizes, {"reverse": chance.random() < 0.5}

    return made


def _pool(shape: Shape, chance: random.Random) -> Proposal:
    rank = max(1, len(shape) - 1)
    kernel = [chance.randint(1, 3) for _ in range(rank)]
    told = {"kernel": kernel, "stride": [chance.randint(1, 3) for _ in range(rank)]}
    return {}, told | {"padding": [chance.randint(0, k // 2) for k in kernel]}


def _per_channel(axis: int, **attributes: Callable[[Shape, random.Random], Any]) -> Callable[..., Proposal]:
    def made(shape: Shape, chance: random.Random) -> Proposal:
        sizes = {role: [shape[axis] if shape else 1] for role in NORM}
        return sizes, {name: value(shape, chance) for name, value in attributes.items()}

    return made


def _attributes(**values: Callable[[Shape, random.Random], Any]) -> Callable[..., Proposal]:
    return lambda shape, chance: ({}, {name: value(shape, chance) for name, value in values.items()})


def _eps(shape: Shape, chance: random.Random) -> float:
    return chance.choice((1e-5, 0.0, 1e-12, 1.0, 1e-45, 3e38))


def _axis(shape: Shape, chance: random.Random) -> int:
    return chance.randint(1, max(1, len(shape)))


def _axes(shape: Shape, chance: random.Random) -> list[int]:
    return chance.sample(range(1, len(shape) + 1), chance.randint(1, len(shape))) if shape else [1]


def _pad(shape: Shape, chance: random.Random) -> Proposal:
    number = chance.randint(0, min(3, len(shape)))
    mode = chance.choice(("constant", "reflect", "replicate", "circular"))
    return {}, {"sizes": [chance.choice((0, 1, 1, 2, 5)) for _ in range(2 * number)], "mode": mode}


def _slice(shape: Shape, chance: random.Random) -> Proposal:
    axis = _axis(shape, chance)
    size = shape[axis - 1] if shape else 1
    start = chance.randrange(size)
    return {}, {"axis": axis, "start": start, "stop": chance.randint(start + 1, size), "step": chance.randint(1, 3)}


def _select(shape: Shape, chance: random.Random) -> Proposal:
    axis = _axis(shape, chance)
    return {}, {"axis": axis, "index": chance.randrange(shape[axis - 1] if shape else 1)}


def _expand(shape: Shape, chance: random.Random) -> Proposal:
    ones = [axis for axis, size in enumerate(shape, 1) if size == 1] or [1]
    axes = chance.sample(ones, chance.randint(1, len(ones)))
    return {}, {"axes": axes, "sizes": [chance.randint(1, 4) for _ in axes]}


def _roll(shape: Shape, chance: random.Random) -> Proposal:
    axes = _axes(shape, chance)
    return {}, {"shifts": [chance.choice((0, 1, 2, 7, 1 << 30)) for _ in axes], "axes": axes}


def _upsample(shape: Shape, chance: random.Random) -> Proposal:
    return {}, {"factors": [chance.choice((1, 1, 2, 3)) for _ in shape[1:]]}


def _resize(shape: Shape, chance: random.Random) -> Proposal:
    sizes = [chance.choice((1, size, 2 * size, max(1, size // 2), chance.randint(1, 12))) for size in shape[1:]]
    return {}, {"sizes": sizes, "corners": chance.random() < 0.5}


def _constant(shape: Shape, chance: random.Random) -> Proposal:
    like = list(shape) if chance.random() < 0.6 else [chance.choice((1, n)) for n in shape]
    return {"value": chance.choice((like, [1, *like], [math.prod(like)]))}, {"shape": like}


def _call(shape: Shape, chance: random.Random) -> Proposal:
    """A call that torch runs as it is."""
    name, *rest = deepcopy(chance.choice(CALLS))
    tensor = {"tensor": "t0"} if chance.random() < 0.8 else {"tensor": "t0", "kind": "int64"}
    told = [{"value": 0}, *(tensor if one == "tensor" else one for one in rest)]
    attributes = {"call": name, "arguments": told} | ({"batch": 0} if "batch" in str(rest) else {})
    attributes |= {"part": 0} if name == "topk.default" else {}
    return ({"t0": list(shape)} if "tensor" in rest else {}), attributes


def _clip(shape: Shape, chance: random.Random) -> Proposal:
    low, high = sorted((number(chance), number(chance)))
    return {}, {"low": low, "high": high}


def _linear(shape: Shape, chance: random.Random) -> Proposal:
    out = chance.randint(1, 12)
    return {"weight": [out, shape[-1] if shape else 1], "bias": [out]}, {}


def _linear_transpose(shape: Shape, chance: random.Random) -> Proposal:
    out = chance.randint(1, 12)
    return {"weight": [shape[-1] if shape else 1, out], "bias": [out]}, {}


def _bool(shape: Shape, chance: random.Random) -> bool:
    return chance.random() < 0.5


def _number(shape: Shape, chance: random.Random) -> float:
    return number(chance)


BY_KIND: dict[str, Callable[[Shape, random.Random], Any]] = {
    rows.NUMBER.name: _number, rows.EPSILON.name: _eps, rows.NUMBER_OR_NONE.name: _number, rows.BOOL.name: _bool,
    rows.COUNT.name: _axis, rows.INDEX.name: lambda shape, chance: chance.randrange(4), rows.AXES.name: _axes,
    rows.SHAPE.name: lambda shape, chance: [max(1, n * chance.choice((1, 1, 2))) for n in shape],
}  # fmt: skip
_REDUCED = _attributes(axes=_axes, keepdim=_bool)
ARGUMENTS: dict[str, Callable[[Shape, random.Random], Proposal]] = {
    "linear": _linear, "linear_transpose": _linear_transpose,
    "conv1d": _conv(1), "conv2d": _conv(2), "conv3d": _conv(3),
    "gelu": _attributes(tanh=_bool), "leaky_relu": _attributes(slope=_number),
    "elu": _attributes(alpha=_number, scale=_number), "scale": _attributes(factor=_number, offset=_number),
    "clip": _clip, "prelu": lambda shape, chance: ({"weight": [chance.choice((1, shape[0] if shape else 1))]}, {}),
    "reshape": lambda shape, chance: ({}, {"shape": _factors(math.prod(shape), chance)}),
    "max_pool": _pool, "avg_pool": _pool, "batch_norm": _per_channel(0, eps=_eps),
    "layer_norm": lambda shape, chance: (
        {role: [shape[-1] if shape else 1] for role in NORM[:2]}, {"eps": _eps(shape, chance)}
    ),
    "group_norm": lambda shape, chance: (
        {role: [shape[0] if shape else 1] for role in NORM[:2]},
        {"groups": _divisor(shape[0] if shape else 1, chance), "eps": _eps(shape, chance)},
    ),
    **{f"conv_transpose{rank}d": _conv_transpose(rank) for rank in (1, 2, 3)},
    "lstm": _recurrent(4), "gru": _recurrent(3),
    "expand": _expand, "roll": _roll, "upsample": _upsample, "resize": _resize,
    "pad": _pad, "mean": _REDUCED, "sum": _REDUCED, "amax": _REDUCED,
    "permute": lambda shape, chance: ({}, {"axes": chance.sample(range(1, len(shape) + 1), len(shape))}),
    "select": _select, "slice": _slice, "concat": _attributes(axis=_axis), "constant": _constant, "aten": _call,
    "softmax": _attributes(axis=_axis), "log_softmax": _attributes(axis=_axis),
    "attention": _attributes(causal=_bool, scale=lambda shape, chance: chance.choice((None, 0.5, number(chance)))),
}  # fmt: skip
"""Operation -> what may belong to it; of those without a row the kinds say it."""
WANTED = {
    "conv1d": _of_rank(2), "conv2d": _of_rank(3), "conv3d": _of_rank(4), "expand": _with_a_one,
    "upsample": _of_rank(3), "resize": _of_rank(3), "lstm": _of_rank(2), "gru": _of_rank(2),
    **{f"conv_transpose{rank}d": _of_rank(rank + 1) for rank in (1, 2, 3)},
}  # fmt: skip
"""Operation -> the shape to which the last value is brought before, None where it fits as it is."""
