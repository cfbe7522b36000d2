"""Nodes of ONNX: what a rule is given to place them, and the placements that several operations share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_compress.pcn.file import dense
from pyro_compress.types import Compressed, Quantized

if TYPE_CHECKING:
    import onnx

SMALL = 256
"""Tensors of fewer values stay float32: two more nodes would cost more bytes than they save."""


@dataclass
class Builder:
    """Nodes and constants so far.

    Attributes:
        network: what is exported.
        integers: whether quantised weights are stored as integers.
        nodes: in execution order.
        constants: initializers.
        prepared: those already placed, by tensor name.
    """

    network: Compressed
    integers: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    prepared: set[str] = field(default_factory=set)

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node with one output."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, values: np.ndarray, name: str) -> str:
        """Append an initializer."""
        from onnx import numpy_helper

        if name not in self.prepared:
            self.prepared.add(name)
            self.constants.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def tensor(self, name: str) -> str:
        """One of the network's tensors; as integers where that is smaller."""
        tensor = self.network.tensors[name]
        if name in self.prepared:
            return name
        codes = tensor.codes if isinstance(tensor, Quantized) and tensor.codes.size >= SMALL else None
        kind = None if codes is None or not self.integers else _integer_type(codes)
        if kind is None or codes is None or not isinstance(tensor, Quantized):
            return self.constant(dense(tensor), name)
        self.prepared.add(name)
        stored = self.constant(codes.astype(kind), f"{name}.codes")
        step = self.constant(np.array(tensor.step, np.float32), f"{name}.step")
        self.node("Cast", [stored], f"{name}.float", to=1)  # TensorProto.FLOAT
        return self.node("Mul", [f"{name}.float", step], name)

    def by_channel(self, placement: Placement, role: str) -> str:
        """One of the network's vectors, in the shape in which it meets a value."""
        values = dense(self.network.tensors[placement.parameters[role]]).reshape(
            -1, *[1] * (len(placement.shapes[0]) - 1)
        )
        return self.constant(values, f"{placement.output}.{role}")


def _integer_type(codes: np.ndarray) -> type | None:
    for kind in (np.int8, np.int16):
        if np.iinfo(kind).min <= codes.min() <= codes.max() <= np.iinfo(kind).max:
            return kind
    return None


@dataclass(frozen=True)
class Placement:
    """One operation to place: names of its inputs and output, parameters by role, shapes of one example per input."""

    inputs: list[str]
    output: str
    parameters: dict[str, str]
    attributes: dict[str, Any]
    shapes: list[tuple[int, ...]]


Place = Callable[[Builder, Placement], object]


def plain(op: str, **attributes: Any) -> Place:
    """An operation that ONNX has as it is."""
    return lambda builder, placement: builder.node(op, placement.inputs, placement.output, **attributes)


def over_axis(op: str) -> Place:
    """One along an axis."""
    return lambda builder, placement: builder.node(
        op, placement.inputs, placement.output, axis=placement.attributes["axis"]
    )
