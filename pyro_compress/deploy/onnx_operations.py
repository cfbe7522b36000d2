"""Every operation of our graph as ONNX nodes; `OPERATIONS` has a function for each."""

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


def _integer_type(codes: np.ndarray) -> type | None:
    for kind in (np.int8, np.int16):
        if np.iinfo(kind).min <= codes.min() <= codes.max() <= np.iinfo(kind).max:
            return kind
    return None


@dataclass(frozen=True)
class Step:
    """One operation to place: names of its inputs and output, parameters by role, shapes of one example per input."""

    inputs: list[str]
    output: str
    parameters: dict[str, str]
    attributes: dict[str, Any]
    shapes: list[tuple[int, ...]]


Place = Callable[[Builder, Step], object]


def _plain(op: str) -> Place:
    return lambda builder, step: builder.node(op, step.inputs, step.output)


def _linear(builder: Builder, step: Step) -> None:
    weight = builder.tensor(step.parameters["weight"])
    bias = [builder.tensor(step.parameters["bias"])] if "bias" in step.parameters else []
    if len(step.shapes[0]) == 1:
        builder.node("Gemm", [*step.inputs, weight, *bias], step.output, transB=1)
        return
    turned = builder.node("Transpose", [weight], f"{step.output}.weight", perm=[1, 0])
    product = builder.node("MatMul", [*step.inputs, turned], f"{step.output}.product" if bias else step.output)
    if bias:
        builder.node("Add", [product, *bias], step.output)


def _conv(builder: Builder, step: Step) -> None:
    parameters = [builder.tensor(step.parameters[role]) for role in ("weight", "bias") if role in step.parameters]
    attributes = step.attributes
    before, after = attributes["padding"]
    builder.node(
        "Conv", [*step.inputs, *parameters], step.output, strides=attributes["stride"], pads=[*before, *after],
        dilations=attributes["dilation"], group=attributes.get("groups", 1),
    )  # fmt: skip


def _pool(op: str, **more: int) -> Place:
    def place(builder: Builder, step: Step) -> None:
        kernel, strides = step.attributes["kernel"], step.attributes["stride"]
        before = step.attributes.get("padding", [0] * len(kernel))
        pads = [*before, *step.attributes.get("after", before)]
        builder.node(op, step.inputs, step.output, kernel_shape=kernel, strides=strides, pads=pads, **more)

    return place


def _batch_norm(builder: Builder, step: Step) -> None:
    channels = dense(builder.network.tensors[step.parameters["running_mean"]]).shape
    absent = {"weight": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}
    tensors = [
        builder.tensor(step.parameters[role]) if role in step.parameters
        else builder.constant(absent[role], f"{step.output}.{role}")
        for role in ("weight", "bias", "running_mean", "running_var")
    ]  # fmt: skip
    builder.node("BatchNormalization", [*step.inputs, *tensors], step.output, epsilon=step.attributes["eps"])


def _reshape(builder: Builder, step: Step) -> None:
    shape = step.attributes["shape"]
    if len(shape) == 1:
        builder.node("Flatten", step.inputs, step.output, axis=1)
    else:
        target = builder.constant(np.array([0, *shape], np.int64), f"{step.output}.shape")
        builder.node("Reshape", [*step.inputs, target], step.output)


def _silu(builder: Builder, step: Step) -> None:
    gate = builder.node("Sigmoid", step.inputs, f"{step.output}.gate")
    builder.node("Mul", [*step.inputs, gate], step.output)


def _gelu(builder: Builder, step: Step) -> None:
    approximate = "tanh" if step.attributes["tanh"] else "none"
    builder.node("Gelu", step.inputs, step.output, approximate=approximate)


def _leaky_relu(builder: Builder, step: Step) -> None:
    builder.node("LeakyRelu", step.inputs, step.output, alpha=step.attributes["slope"])


def _elu(builder: Builder, step: Step) -> None:
    builder.node("Selu", step.inputs, step.output, alpha=step.attributes["alpha"], gamma=step.attributes["scale"])


def _prelu(builder: Builder, step: Step) -> None:
    builder.node("PRelu", [*step.inputs, _by_channel(builder, step, "weight")], step.output)


def _by_channel(builder: Builder, step: Step, role: str) -> str:
    """One of the network's vectors, in the shape in which it meets a value."""
    values = dense(builder.network.tensors[step.parameters[role]]).reshape(-1, *[1] * (len(step.shapes[0]) - 1))
    return builder.constant(values, f"{step.output}.{role}")


def _pad(builder: Builder, step: Step) -> None:
    sizes, rank = step.attributes["sizes"], len(step.shapes[0]) + 1
    pads = np.zeros((2, rank), np.int64)
    for place in range(len(sizes) // 2):  # torch names the last dimension first, (before, after) each
        pads[:, rank - 1 - place] = sizes[2 * place : 2 * place + 2]
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    amounts = builder.constant(pads.reshape(-1), f"{step.output}.pads")
    builder.node("Pad", [*step.inputs, amounts], step.output, mode=modes[step.attributes["mode"]])


def _mixture(builder: Builder, step: Step) -> None:
    axis = builder.constant(np.array([0], np.int64), f"{step.output}.axis")
    members = [
        builder.node(
            "Unsqueeze",
            [builder.node("LogSoftmax", [name], f"{step.output}.{number}", axis=1), axis],
            f"{step.output}.{number}.stacked",
        )
        for number, name in enumerate(step.inputs)
    ]
    stacked = builder.node("Concat", members, f"{step.output}.members", axis=0)
    total = builder.node("ReduceLogSumExp", [stacked, axis], f"{step.output}.sum", keepdims=0)
    number = builder.constant(np.array(np.log(len(members)), np.float32), f"{step.output}.number")
    builder.node("Sub", [total, number], step.output)


def _layer_norm(builder: Builder, step: Step) -> None:
    size = step.shapes[0][-1:]
    scale = (
        builder.tensor(step.parameters["weight"]) if "weight" in step.parameters
        else builder.constant(np.ones(size, np.float32), f"{step.output}.weight")
    )  # fmt: skip
    bias = [builder.tensor(step.parameters["bias"])] if "bias" in step.parameters else []
    builder.node("LayerNormalization", [*step.inputs, scale, *bias], step.output, epsilon=step.attributes["eps"])


def _group_norm(builder: Builder, step: Step) -> None:
    """Instance norm of groups; ONNX's own group norm has changed what its scale means from opset to opset."""
    out, groups, shape = step.output, step.attributes["groups"], step.shapes[0]
    rows = builder.constant(np.array([0, groups, -1], np.int64), f"{out}.rows")
    back = builder.constant(np.array([0, *shape], np.int64), f"{out}.shape")
    ones = builder.constant(np.ones(groups, np.float32), f"{out}.ones")
    zeros = builder.constant(np.zeros(groups, np.float32), f"{out}.zeros")
    found = builder.node("Reshape", [*step.inputs, rows], f"{out}.grouped")
    found = builder.node(
        "InstanceNormalization", [found, ones, zeros], f"{out}.normalized", epsilon=step.attributes["eps"]
    )
    left = [(role, op) for role, op in (("weight", "Mul"), ("bias", "Add")) if role in step.parameters]
    found = builder.node("Reshape", [found, back], f"{out}.whole" if left else out)
    for place, (role, op) in enumerate(left, 1):
        values = _by_channel(builder, step, role)
        found = builder.node(op, [found, values], out if place == len(left) else f"{out}.{op}")


def _scale(builder: Builder, step: Step) -> None:
    numbers = [(name, op) for name, op in (("factor", "Mul"), ("offset", "Add")) if name in step.attributes]
    found = step.inputs[0]
    for place, (name, op) in enumerate(numbers, 1):
        number = builder.constant(np.array(step.attributes[name], np.float32), f"{step.output}.{name}")
        found = builder.node(op, [found, number], step.output if place == len(numbers) else f"{step.output}.{op}")


def _clip(builder: Builder, step: Step) -> None:
    ends = [
        builder.constant(np.array(step.attributes[name], np.float32), f"{step.output}.{name}")
        for name in ("low", "high")
    ]
    builder.node("Clip", [*step.inputs, *ends], step.output)


def _reduced(op: str) -> Place:
    def place(builder: Builder, step: Step) -> None:
        axes = builder.constant(np.array(step.attributes["axes"], np.int64), f"{step.output}.axes")
        builder.node(op, [*step.inputs, axes], step.output, keepdims=int(step.attributes.get("keepdim", False)))

    return place


def _permute(builder: Builder, step: Step) -> None:
    builder.node("Transpose", step.inputs, step.output, perm=[0, *step.attributes["axes"]])


def _select(builder: Builder, step: Step) -> None:
    index = builder.constant(np.array(step.attributes["index"], np.int64), f"{step.output}.index")
    builder.node("Gather", [*step.inputs, index], step.output, axis=step.attributes["axis"])


def _slice(builder: Builder, step: Step) -> None:
    a = step.attributes
    numbers = {"starts": a["start"], "ends": a["stop"], "axes": a["axis"], "steps": a.get("step", 1)}
    names = [builder.constant(np.array([n], np.int64), f"{step.output}.{name}") for name, n in numbers.items()]
    builder.node("Slice", [*step.inputs, *names], step.output)


def _concat(builder: Builder, step: Step) -> None:
    builder.node("Concat", step.inputs, step.output, axis=step.attributes["axis"])


def _constant(builder: Builder, step: Step) -> None:
    """A tensor of one example, repeated for the batch, whose size only the input knows."""
    shape = step.attributes["shape"]
    value = dense(builder.network.tensors[step.parameters["value"]]).reshape(1, *shape)
    batch = builder.node("Shape", step.inputs, f"{step.output}.batch", start=0, end=1)
    rest = builder.constant(np.array(shape, np.int64), f"{step.output}.shape")
    whole = builder.node("Concat", [batch, rest], f"{step.output}.whole", axis=0)
    builder.node("Expand", [builder.constant(value, f"{step.output}.value"), whole], step.output)


def _over_axis(op: str) -> Place:
    return lambda builder, step: builder.node(op, step.inputs, step.output, axis=step.attributes["axis"])


def _attention(builder: Builder, step: Step) -> None:
    """softmax(q kᵀ · scale + mask) v, spelled out: ONNX has had the operation since opset 23 only."""
    q, k, v = step.inputs
    out, (*_, length, size), keys = step.output, step.shapes[0], step.shapes[1][-2]
    scale = step.attributes["scale"] if step.attributes["scale"] is not None else size**-0.5
    axes = [*range(len(step.shapes[1]) - 1), len(step.shapes[1]), len(step.shapes[1]) - 1]
    turned = builder.node("Transpose", [k], f"{out}.keys", perm=axes)
    scores = builder.node("MatMul", [q, turned], f"{out}.scores")
    factor = builder.constant(np.array(scale, np.float32), f"{out}.scale")
    scores = builder.node("Mul", [scores, factor], f"{out}.scaled")
    if step.attributes["causal"]:
        mask = np.where(np.tri(length, keys, dtype=bool), 0, np.finfo(np.float32).min).astype(np.float32)
        scores = builder.node("Add", [scores, builder.constant(mask, f"{out}.mask")], f"{out}.masked")
    weights = builder.node("Softmax", [scores], f"{out}.weights", axis=-1)
    builder.node("MatMul", [weights, v], out)


def _crop(builder: Builder, step: Step) -> None:
    starts, ends = step.attributes["starts"], step.attributes["ends"]
    lists = {"starts": starts, "ends": ends, "axes": range(1, len(starts) + 1)}
    names = [builder.constant(np.array(v, np.int64), f"{step.output}.{name}") for name, v in lists.items()]
    builder.node("Slice", [*step.inputs, *names], step.output)


OPERATIONS: dict[str, Place] = {
    "linear": _linear,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "relu": _plain("Relu"),
    "tanh": _plain("Tanh"),
    "sigmoid": _plain("Sigmoid"),
    "silu": _silu,
    "hardswish": _plain("HardSwish"),
    "hardsigmoid": lambda builder, step: builder.node("HardSigmoid", step.inputs, step.output, alpha=1 / 6, beta=0.5),
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "softplus": _plain("Softplus"),
    "mish": _plain("Mish"),
    "sin": _plain("Sin"),
    "prelu": _prelu,
    "reshape": _reshape,
    "max_pool": _pool("MaxPool"),
    "avg_pool": _pool("AveragePool", count_include_pad=1),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "add": _plain("Add"),
    "subtract": _plain("Sub"),
    "divide": _plain("Div"),
    "mixture": _mixture,
    "multiply": _plain("Mul"),
    "scale": _scale,
    "clip": _clip,
    "pad": _pad,
    "mean": _reduced("ReduceMean"),
    "sum": _reduced("ReduceSum"),
    "amax": _reduced("ReduceMax"),
    "permute": _permute,
    "select": _select,
    "slice": _slice,
    "concat": _concat,
    "constant": _constant,
    "softmax": _over_axis("Softmax"),
    "log_softmax": _over_axis("LogSoftmax"),
    "matmul": _plain("MatMul"),
    "attention": _attention,
    "crop": _crop,
}
