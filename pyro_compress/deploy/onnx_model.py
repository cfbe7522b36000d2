"""A compressed network as an ONNX model, built node by node from our own graph.

The graph has some thirty operations, all with a counterpart in ONNX, so the model is written directly rather than
traced: no further dependency, clean names, the same bytes every time, and room for two things a tracer cannot know.
Quantised weights are stored as the integers they are, with a `Cast` and a `Mul` that every runtime folds into constants
when it loads the model: a quarter of the bytes, the same float32 arithmetic. And images are cropped to what is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_compress.deploy.crop import cropped
from pyro_compress.deploy.refusals import reason, standing
from pyro_compress.graph.faces.onnx import Builder, Place, Placement
from pyro_compress.graph.rules.table import RULES
from pyro_compress.inputs import Input
from pyro_compress.pcn.file import shapes_of
from pyro_compress.pcn.gate import made
from pyro_compress.types import Compressed, Node

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 20, 9
"""ONNX 1.15 (2023): the oldest with every operation, read by ONNX Runtime 1.17 and newer."""


def build(network: Compressed, card: Mapping[str, Any], integers: bool = True, crop: bool = True) -> onnx.ModelProto:
    """The network as a checked ONNX model with a free batch dimension.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`; becomes the model's metadata and names its input. An input of type
            `uint8` is divided by its scale inside the model.
        integers: store quantised weights as integers.
        crop: read only the part of the input that matters, where that pays.

    Raises:
        ValueError: an operation without a counterpart, or a model that ONNX's own checker refuses.
    """
    from onnx import TensorProto, helper

    entry, shape = card["input"], network.graph.input_shape
    builder = Builder(cropped(network) if crop else network, integers)
    first = entry["name"]
    if entry["dtype"] == "uint8":
        builder.node("Cast", [first], "raw.float", to=TensorProto.FLOAT)
        first = builder.node(
            "Div", ["raw.float", builder.constant(np.array(entry["scale"], np.float32), "raw.scale")], "scaled"
        )
    if inputs := network.graph.inputs:
        first = _row(builder, inputs, first)
    outputs = _place_all(builder, first, card["output"])
    parts = _parts(builder, card)
    kinds = {"uint8": TensorProto.UINT8, "int64": TensorProto.INT64}
    kind = kinds.get(entry["dtype"], TensorProto.FLOAT)
    taken = [
        helper.make_tensor_value_info(one.name, getattr(TensorProto, TYPES[one.kind]), ["batch", *one.shape])
        for one in inputs
    ]
    graph = helper.make_graph(
        builder.nodes,
        "pyro_compress",
        taken or [helper.make_tensor_value_info(entry["name"], kind, ["batch", *shape])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sizes])
            for name, sizes in {card["output"]: outputs, **parts}.items()
        ],
        builder.constants,
    )
    model = helper.make_model(
        graph, producer_name="pyro-compress", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    return checked(model, card)


TYPES = {"float32": "FLOAT", "int64": "INT64", "bool": "BOOL"}
"""Type of an input -> what ONNX calls it."""


def _row(builder: Builder, inputs: Sequence[Input], name: str) -> str:
    """Several inputs as the row that our graph cuts up again; returns its name."""
    from onnx import TensorProto

    parts = []
    for one in inputs:
        plain = one.name
        if one.kind != "float32":
            plain = builder.node("Cast", [one.name], f"{one.name}.number", to=TensorProto.FLOAT)
        flat = builder.constant(np.array([-1, one.size], np.int64), f"{one.name}.flat")
        parts.append(builder.node("Reshape", [plain, flat], f"{one.name}.row"))
    return builder.node("Concat", parts, f"{name}.row", axis=1)


def _parts(builder: Builder, card: Mapping[str, Any]) -> dict[str, tuple[int]]:
    """Several outputs, each under its name beside the row that they lie in; name -> shape."""
    found, start = dict[str, tuple[int]](), 0
    for one in card.get("outputs", ()):
        ends = [(f"{one['name']}.{what}", value) for what, value in (("from", start), ("to", start + one["size"]))]
        bounds = [builder.constant(np.array([value], np.int64), name) for name, value in ends]
        axis = builder.constant(np.array([1], np.int64), f"{one['name']}.axis")
        builder.node("Slice", [card["output"], *bounds, axis], one["name"])
        found[one["name"]], start = (one["size"],), start + one["size"]
    return found


def checked(model: onnx.ModelProto, card: Mapping[str, Any]) -> onnx.ModelProto:
    """The model with its card, as ONNX's own checker lets it pass.

    Raises:
        ValueError: the checker refuses it.
    """
    import onnx

    describe(model, card)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"ONNX's checker refuses the model: {reason(error)}; export to .pt2 (torch)") from error
    return model


def describe(model: onnx.ModelProto, card: Mapping[str, Any]) -> None:
    """Write the card into the model's metadata, one JSON value per key."""
    from onnx import helper

    helper.set_model_props(model, {key: json.dumps(value) for key, value in card.items()})


def _place_all(builder: Builder, first: str, output: str) -> tuple[int, ...]:
    """Place every operation; returns the shape of one output."""
    graph, tensors = builder.network.graph, shapes_of(builder.network)
    names, shapes = [first], [graph.input_shape]
    taken = {name.partition(".")[0] for name in tensors}
    for index, node in enumerate(graph.nodes[1:], 1):
        if (place := _placement(node.op)) is None:
            raise ValueError(
                f"operation {standing(graph, index)} has no counterpart in ONNX; leave it out of the network, or "
                "export to .pt2 (torch)"
            )
        name = output if index == len(graph.nodes) - 1 else _free(f"{node.op}_{index}", taken)
        read = [shapes[i] for i in node.inputs]
        placement = Placement([names[i] for i in node.inputs], name, node.parameters, node.attributes, read)
        place(builder, placement)
        names.append(name)
        shapes.append(_cropped(node) if node.op == "crop" else made(node, read, tensors).shape)
    return shapes[-1]


def _placement(op: str) -> Place | None:
    """How an operation is placed; the window of the input that `cropped` takes is one of exports alone."""
    if op == "crop":
        return _crop
    return RULES[op].onnx if op in RULES else None


def _crop(builder: Builder, placement: Placement) -> None:
    starts, ends = placement.attributes["starts"], placement.attributes["ends"]
    lists = {"starts": starts, "ends": ends, "axes": range(1, len(starts) + 1)}
    names = [builder.constant(np.array(v, np.int64), f"{placement.output}.{name}") for name, v in lists.items()]
    builder.node("Slice", [*placement.inputs, *names], placement.output)


def _free(name: str, taken: Set[str]) -> str:
    """A name that no layer of the network has."""
    while name in taken:
        name += "_"
    return name


def _cropped(node: Node) -> tuple[int, ...]:
    corners = zip(node.attributes["starts"], node.attributes["ends"], strict=True)
    return tuple(end - start for start, end in corners)
