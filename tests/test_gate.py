"""The gate for networks from outside: what passes runs, what does not is refused in one line before it takes room."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyro_compress.graph.operations import row as rows
from pyro_compress.graph.operations.sequences import GATES
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.graph.rules.table import run_node
from pyro_compress.pcn import names, schema
from pyro_compress.types import Node


def test_names_of_torch_are_those_of_torch() -> None:
    assert {name for name in dir(nn.Module()) if not name.startswith("__")} <= names.OF_MODULES


class Chance(random.Random):
    """Random nodes: rows of the schema, filled with what may fit and may not."""

    def shape(self, rank: int | None = None) -> tuple[int, ...]:
        return tuple(self.randint(1, 5) for _ in range(self.randint(0, 4) if rank is None else rank))

    def sizes(self, rank: int, least: int = 1, most: int = 3) -> list[int]:
        return [self.randint(least, most) for _ in range(rank)]

    def value(self, kind: rows.Kind, rank: int) -> Any:
        some = max(rank + self.choice((-1, -1, -1, 0)), 1)
        return {
            rows.NUMBER: lambda: self.choice((-1.5, 0, 0.5, 2)),
            rows.EPSILON: lambda: self.choice((1e-5, 0.1)),
            rows.NUMBER_OR_NONE: lambda: self.choice((None, 0.5)),
            rows.BOOL: lambda: self.random() < 0.5,
            rows.INDEX: lambda: self.randint(0, 3),
            rows.COUNT: lambda: self.randint(1, 4),
            rows.AXES: lambda: self.sample(range(1, rank + 2), self.randint(1, rank + 1)),
            rows.SIZES: lambda: self.sizes(some),
            rows.SHAPE: lambda: self.sizes(self.randint(0, 3)),
            rows.BORDERS: lambda: self.sizes(some, 0, 2),
            rows.BORDER: lambda: self.sizes(2 * self.randint(1, rank + 1), 0, 2),
            rows.PADDING: lambda: [self.sizes(some, 0, 2), self.sizes(some, 0, 2)],
            rows.MODE: lambda: self.choice(("constant", "reflect", "replicate", "circular")),
        }[kind]()

    def tensor(self, op: str, x: tuple[int, ...], a: dict[str, Any]) -> tuple[int, ...]:
        if op.startswith("conv_transpose"):
            groups = a.get("groups", 1)
            return ((*x, 1)[0], self.randint(1, 2), *self.sizes(int(op[-2])))
        if op.startswith("conv"):
            rank = int(op[4])
            groups = a.get("groups", 1)
            return (groups * self.randint(1, 2), max((*x, 1)[0] // groups, 1), *self.sizes(rank))
        if op == "linear_transpose":
            return ((*x, 1)[-1] if len(x) else 1, self.randint(1, 4))
        if op == "linear":
            return (self.randint(1, 4), (*x, 1)[-1] if len(x) else 1)
        if op == "constant":
            return self.choice((tuple(a["shape"]), (1, *a["shape"]), (4,)))
        return ((*x, 1)[0 if len(x) < 2 else self.choice((0, 0, -2))],)

    def node(self, op: str) -> tuple[Node, list[tuple[int, ...]], dict[str, tuple[int, ...]]]:
        row = OPERATIONS[op]
        rank = int(op[-2]) + 1 if op.startswith("conv") and self.random() < 0.9 else None
        rank = 2 if op in GATES else rank
        first = self.shape(rank)
        number = self.randint(row.inputs[0], min(row.inputs[1], 3))
        inputs = [first, *(self.choice((first, first, self.shape(len(first)))) for _ in range(number - 1))]
        if op == "matmul" and len(first) > 1 and self.random() < 0.8:
            inputs[1] = (*inputs[1][:-2], first[-1], self.randint(1, 3))
        kinds = dict(row.attributes) | {k: v for k, v in row.options.items() if self.random() < 0.5}
        attributes = {name: self.value(kind, len(first)) for name, kind in kinds.items()}
        if op == "reshape" and self.random() < 0.7:
            attributes["shape"] = self.choice(([int(np.prod(first))], list(reversed(first))))
        if op == "expand" and self.random() < 0.7:
            axes = [axis for axis, size in enumerate(first, 1) if size == 1] or [1]
            attributes = {"axes": axes, "sizes": self.sizes(len(axes))}
        if op == "permute" and self.random() < 0.8:
            attributes["axes"] = self.sample(range(1, len(first) + 1), len(first)) or [1]
        if op.startswith("conv_transpose"):
            n = int(op[-2])
            plain = {"stride": [1] * n, "padding": [0] * n, "dilation": [1] * n, "extra": [0] * n}
            attributes |= {name: value for name, value in plain.items() if self.random() < 0.6}
        roles = [*row.roles, *(role for role in row.may if self.random() < 0.5)]
        tensors = {role: self.tensor(op, first, attributes) for role in roles}
        if op in GATES:
            units, rows_ = self.randint(1, 3), GATES[op]
            shapes = {"weight_ih": (rows_ * units, first[1]), "weight_hh": (rows_ * units, units)}
            tensors = {role: shapes.get(role, (rows_ * units,)) for role in tensors}
        elif op == "embedding":
            tensors = {"weight": (self.randint(1, 5), self.randint(1, 3))}
        elif op == "linear_transpose":
            tensors |= {"bias": tensors["weight"][1:]} if "bias" in tensors else {}
        elif op.startswith("conv_transpose"):
            filters = tensors["weight"][1] * attributes.get("groups", 1)
            tensors |= {"bias": (filters,)} if "bias" in tensors else {}
        elif op.startswith(("conv", "linear")):
            tensors |= {"bias": tensors["weight"][:1]} if "bias" in tensors else {}
        node = Node(op, tuple(range(number)), {role: role for role in roles}, attributes)
        return node, inputs, tensors


@pytest.mark.parametrize("op", [op for op, row in OPERATIONS.items() if op != "aten" and not row.regroups])
def test_what_passes_runs_in_torch_and_numpy(op: str) -> None:
    """300 random nodes of every operation: where the rule of shapes agrees, both run and give that shape."""
    chance, passed = Chance(op), 0
    for _ in range(300):
        node, inputs, tensors = chance.node(op)
        try:
            row = schema.check_node(node)
            made = row.shape(inputs, tensors, node.attributes)
        except ValueError:
            continue
        passed += 1
        whole = "float32" not in OPERATIONS[op].takes
        most = tensors["weight"][0] if whole else 0
        x = [torch.randint(0, most, (2, *shape)) if whole else torch.rand(2, *shape) for shape in inputs]
        p = {role: torch.rand(shape) for role, shape in tensors.items()}
        with torch.no_grad():
            wanted = run_node(node, x, p)
        got = OPERATIONS[op].run(*(one.numpy() for one in x), {k: v.numpy() for k, v in p.items()}, node.attributes)
        assert tuple(wanted.shape[1:]) == got.shape[1:] == made.shape, node
        assert np.allclose(got, wanted.numpy(), 1e-4, 1e-4, equal_nan=True), node
    assert passed >= 20


def test_logarithms_of_large_values_keep_their_digits() -> None:
    """A large number plus the logarithm is that number: the largest is taken off first, as torch does."""
    for values in ([3e38, 3e38], [1e7, 1e7 + 1], [-3e38, 0.0]):
        x = np.array([values], np.float32)
        wanted = torch.from_numpy(x).log_softmax(1).numpy()
        np.testing.assert_allclose(OPERATIONS["log_softmax"].run(x, {}, {"axis": 1}), wanted, rtol=1e-6)
        np.testing.assert_allclose(OPERATIONS["mixture"].run(x, x, {}, {}), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (1, True),
        (-(1 << 53), True),
        ((1 << 53) + 1, False),
        (10**30, False),
        (3e38, True),
        (1e39, False),
        (True, False),
    ],
)
def test_whole_numbers_where_any_are_meant(value: float, fits: bool) -> None:
    assert rows.is_number(value) == fits


@pytest.mark.parametrize(
    ("value", "fits"), [(0.0, True), (1e-45, False), (-1e-38, False), (1.2e-38, True), (3e38, True)]
)
def test_numbers_that_processors_take_for_zero_are_no_attributes(value: float, fits: bool) -> None:
    """0 to such a power is 1 where it is flushed to 0, and 0 where it is not."""
    assert rows.NUMBER.allows(value) == rows.NUMBER_OR_NONE.allows(value) == fits
    assert rows.EPSILON.allows(abs(value)) == fits
