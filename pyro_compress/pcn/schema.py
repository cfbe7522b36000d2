"""What a file may say of every operation: `OPERATIONS` has a row for each, with its rule of shapes.

A row tells how many values an operation reads, which tensors belong to it by role, and which attributes it has, each
with its type and range. Nothing else passes. An operation is supported by files where it has a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyro_compress.pcn import shapes
from pyro_compress.pcn.names import shortened
from pyro_compress.types import Node

MAX_RANK = 7
"""Dimensions of a value or a tensor, the batch not counted."""
MAX_SIZE = 1 << 31
MAX_NUMBER = 3.4028234663852886e38
"""Largest float32."""
MAX_INPUTS = 1024
"""Values that one operation reads."""


class Kind(NamedTuple):
    """A type of attribute: whether a value is one, and what to call it."""

    allows: Callable[[Any], bool]
    told: str


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether a JSON value is a whole number in range; true and false are none."""
    return type(value) is int and least <= value < MAX_SIZE


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that float32 can hold; true, infinity and NaN are none."""
    return type(value) in (int, float) and -MAX_NUMBER <= value <= MAX_NUMBER


def _list(of: Callable[[Any], bool], least: int = 1, most: int = MAX_RANK) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(of, value))


NUMBER = Kind(is_number, "a finite number")
EPSILON = Kind(lambda value: is_number(value) and value >= 0, "a number that is not negative")
NUMBER_OR_NONE = Kind(lambda value: value is None or is_number(value), "a finite number or null")
BOOL = Kind(lambda value: isinstance(value, bool), "true or false")
INDEX = Kind(is_whole, "a whole number")
COUNT = Kind(lambda value: is_whole(value, 1), "a positive whole number")
AXES = Kind(_list(lambda value: is_whole(value, 1)), "a list of axes, counted from 1")
SIZES = Kind(_list(lambda value: is_whole(value, 1)), "a list of positive whole numbers")
SHAPE = Kind(_list(lambda value: is_whole(value, 1), 0), "a list of positive whole numbers")
BORDERS = Kind(_list(is_whole), "a list of whole numbers")
BORDER = Kind(_list(is_whole, 0, 2 * MAX_RANK), "a list of whole numbers, two per dimension")
PADDING = Kind(_list(_list(is_whole), 2, 2), "two lists of whole numbers")
MODE = Kind(
    lambda value: value in ("constant", "reflect", "replicate", "circular"), "constant, reflect, replicate or circular"
)


@dataclass(frozen=True)
class Operation:
    """What belongs to an operation.

    Attributes:
        shape: its rule of shapes.
        inputs: fewest and most values that it reads.
        roles: of the tensors that it must have; `may` of those that it may have.
        attributes: those that it must have; `options` those that it may have.
    """

    shape: shapes.Rule
    inputs: tuple[int, int] = (1, 1)
    roles: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    attributes: Mapping[str, Kind] = field(default_factory=dict)
    options: Mapping[str, Kind] = field(default_factory=dict)


def _conv(rank: int) -> Operation:
    attributes = {"stride": SIZES, "padding": PADDING, "dilation": SIZES}
    return Operation(shapes.conv(rank), (1, 1), ("weight",), ("bias",), attributes, {"groups": COUNT})


def _pool(rule: shapes.Rule, **more: Kind) -> Operation:
    return Operation(rule, attributes={"kernel": SIZES, "stride": SIZES}, options={"padding": BORDERS} | more)


def _single(price: int = 1, **attributes: Kind) -> Operation:
    """A function of single values."""
    return Operation(shapes.same(price), attributes=attributes)


_TWO = Operation(shapes.two, (2, 2))
_NORM = ("weight", "bias")
_REDUCED = Operation(shapes.reduced, attributes={"axes": AXES}, options={"keepdim": BOOL})
_OVER_AXIS = Operation(shapes.over_axis, attributes={"axis": COUNT})

OPERATIONS: dict[str, Operation] = {
    "linear": Operation(shapes.linear, roles=("weight",), may=("bias",)),
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "conv3d": _conv(3),
    "relu": _single(),
    "tanh": _single(16),
    "sigmoid": _single(16),
    "silu": _single(16),
    "hardswish": _single(4),
    "hardsigmoid": _single(4),
    "gelu": _single(128, tanh=BOOL),
    "leaky_relu": _single(slope=NUMBER),
    "elu": _single(16, alpha=NUMBER, scale=NUMBER),
    "softplus": _single(32),
    "mish": _single(32),
    "sin": _single(16),
    "scale": Operation(shapes.same(2), attributes={"factor": NUMBER}, options={"offset": NUMBER}),
    "clip": Operation(shapes.clip, attributes={"low": NUMBER, "high": NUMBER}),
    "prelu": Operation(shapes.prelu, roles=("weight",)),
    "reshape": Operation(shapes.reshape, attributes={"shape": SHAPE}),
    "max_pool": _pool(shapes.pool, after=BORDERS),
    "avg_pool": _pool(shapes.mean_pool),
    "batch_norm": Operation(
        shapes.batch_norm, roles=("running_mean", "running_var"), may=_NORM, attributes={"eps": EPSILON}
    ),
    "layer_norm": Operation(shapes.layer_norm, may=_NORM, attributes={"eps": EPSILON}),
    "group_norm": Operation(shapes.group_norm, may=_NORM, attributes={"groups": COUNT, "eps": EPSILON}),
    "add": _TWO,
    "subtract": _TWO,
    "multiply": _TWO,
    "divide": _TWO,
    "mixture": Operation(shapes.mixture, (1, MAX_INPUTS)),
    "pad": Operation(shapes.pad, attributes={"sizes": BORDER, "mode": MODE}),
    "mean": _REDUCED,
    "sum": _REDUCED,
    "amax": _REDUCED,
    "permute": Operation(shapes.permute, attributes={"axes": AXES}),
    "select": Operation(shapes.select, attributes={"axis": COUNT, "index": INDEX}),
    "slice": Operation(
        shapes.slice_, attributes={"axis": COUNT, "start": INDEX, "stop": COUNT}, options={"step": COUNT}
    ),
    "concat": Operation(shapes.concat, (1, MAX_INPUTS), attributes={"axis": COUNT}),
    "constant": Operation(shapes.constant, roles=("value",), attributes={"shape": SHAPE}),
    "softmax": _OVER_AXIS,
    "log_softmax": _OVER_AXIS,
    "matmul": Operation(shapes.matmul, (2, 2)),
    "attention": Operation(shapes.attention, (3, 3), attributes={"causal": BOOL, "scale": NUMBER_OR_NONE}),
}
"""Operation -> what it has. Its numpy function stands in `operations.RUN`."""


def check_node(node: Node) -> Operation:
    """The row of a node's operation, if the node has what the row asks for and nothing else.

    Raises:
        ValueError: an unknown operation, another number of inputs, a tensor or an attribute that is missing, unknown or
            of another kind.
    """
    if (row := OPERATIONS.get(node.op)) is None:
        raise ValueError(f"unknown operation {shortened(node.op)}; known: {', '.join(OPERATIONS)}")
    fewest, most = row.inputs
    if not fewest <= len(node.inputs) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise ValueError(f"it reads {len(node.inputs)} values, not {wanted}")
    _check_keys("tensor", node.parameters, row.roles, row.may)
    _check_keys("attribute", node.attributes, row.attributes, row.options)
    for name, value in node.attributes.items():
        kind = row.attributes.get(name) or row.options[name]
        if not kind.allows(value):
            raise ValueError(f"its {name} is {shortened(value)}, not {kind.told}")
    return row


def _check_keys(what: str, given: Mapping[str, Any], must: Any, may: Any) -> None:
    if missing := [name for name in must if name not in given]:
        raise ValueError(f"its {what} {missing[0]} is missing")
    if other := [name for name in given if name not in must and name not in may]:
        raise ValueError(f"no such operation has the {what} {shortened(other[0])}")
