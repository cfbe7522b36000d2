"""A network as data: `capture` turns a module into a `Graph`, `Network` runs a `Graph` as an ordinary module.

The graph is what lets a run folder or a compressed file be rebuilt without the source code of the network, be made
smaller unit by unit, and be run by numpy alone. `torch.export` reads the module; to support another operation, add a
row to `_READERS` (ATen -> operation), one to `_RUN` here and one to `compression.operations.RUN` (numpy).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_compress.types import Graph, Node

WEIGHTED = ("linear", "conv1d", "conv2d", "conv3d")
"""Operations whose weight has shape `(out, in / groups, *kernel)`."""


def capture(net: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """Read a network's operations, in evaluation mode, with a free batch dimension.

    Raises:
        ValueError: the network cannot be exported, or uses an operation that is not supported; both are named.
    """
    training = net.training
    example = torch.zeros(2, *input_shape, device=next(iter(net.parameters()), torch.zeros(())).device)
    try:
        program = torch.export.export(net.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the network cannot be captured by torch.export on {input_shape} inputs: {reason}") from error
    finally:
        net.train(training)
    signature = program.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    graph = _read(program.graph, names, input_shape)
    weights = [node.parameters["weight"] for node in graph.nodes if node.op in WEIGHTED]
    if twice := sorted({name for name in weights if weights.count(name) > 1}):
        raise ValueError(f"{twice[0]} is used by several layers; networks that share weights are not supported")
    return graph


def graph_of(document: dict[str, Any]) -> Graph:
    """A graph from what `dataclasses.asdict` made of one, after a detour through JSON."""
    nodes = tuple(Node(**(node | {"inputs": tuple(node["inputs"])})) for node in document["nodes"])
    return Graph(nodes, tuple(document["input_shape"]))


def _read(traced: torch.fx.Graph, names: Mapping[str, str], input_shape: tuple[int, ...]) -> Graph:
    nodes = [Node("input")]
    place: dict[str, int] = {}  # fx name -> index of the node that computes it
    for fx_node in traced.nodes:
        if fx_node.op == "placeholder":
            if fx_node.name not in names:
                place[fx_node.name] = 0
        elif fx_node.op == "call_function" and not str(fx_node.target).startswith("aten.sym_size"):
            reader = _READERS.get(str(fx_node.target).removeprefix("aten.").partition(".")[0])
            if reader is None:
                raise ValueError(f"unsupported operation {fx_node.target}; supported: {', '.join(sorted(_READERS))}")
            op, inputs, parameters, attributes = reader(fx_node)
            sources = tuple(place[source.name] for source in inputs)
            if op == "identity":
                place[fx_node.name] = sources[0]
                continue
            tensors = {role: names[source.name] for role, source in parameters.items() if source is not None}
            place[fx_node.name] = len(nodes)
            nodes.append(Node(op, sources, tensors, attributes))
        elif fx_node.op == "output":
            outputs = fx_node.args[0]
            if len(outputs) != 1 or place[outputs[0].name] != len(nodes) - 1:
                raise ValueError("the network must return one tensor, computed by its last operation")
    return Graph(tuple(nodes), tuple(input_shape))


Reading = tuple[str, list[torch.fx.Node], dict[str, torch.fx.Node | None], dict[str, Any]]


def _argument(node: torch.fx.Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _linear(node: torch.fx.Node) -> Reading:
    return "linear", [node.args[0]], {"weight": node.args[1], "bias": _argument(node, 2, "bias")}, {}  # type: ignore[list-item, dict-item]


def _conv(node: torch.fx.Node) -> Reading:
    x, weight = node.args[0], node.args[1]
    kernel = weight.meta["val"].shape[2:]  # type: ignore[union-attr]
    rank = len(kernel)
    stride = _each(_argument(node, 3, "stride", 1), rank)
    padding = _argument(node, 4, "padding", 0)
    dilation = _each(_argument(node, 5, "dilation", 1), rank)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = _each(0 if padding == "valid" else padding, rank)
    attributes = {"stride": stride, "padding": [before, after], "dilation": dilation}
    if (groups := _argument(node, 6, "groups", 1)) != 1:
        attributes["groups"] = groups
    return f"conv{rank}d", [x], {"weight": weight, "bias": _argument(node, 2, "bias")}, attributes  # type: ignore[list-item, dict-item]


def _each(value: int | list[int], rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _elementwise(op: str) -> Callable[[torch.fx.Node], Reading]:
    return lambda node: (op, [node.args[0]], {}, {})  # type: ignore[list-item]


def _gelu(node: torch.fx.Node) -> Reading:
    return "gelu", [node.args[0]], {}, {"tanh": node.kwargs.get("approximate", "none") == "tanh"}  # type: ignore[list-item]


def _reshape(node: torch.fx.Node) -> Reading:
    shape = node.meta["val"].shape
    if any(not isinstance(size, int) for size in shape[1:]):
        raise ValueError(f"{node.target} moves the batch dimension, which is not supported")
    return "reshape", [node.args[0]], {}, {"shape": list(shape[1:])}  # type: ignore[list-item]


def _max_pool(node: torch.fx.Node) -> Reading:
    rank = node.meta["val"].dim() - 2
    kernel = _each(node.args[1], rank)  # type: ignore[arg-type]
    if any(d != 1 for d in _each(_argument(node, 4, "dilation", 1), rank)) or _argument(node, 5, "ceil_mode", False):
        raise ValueError("max pooling with dilation or ceil_mode is not supported")
    stride, padding = _argument(node, 2, "stride") or kernel, _argument(node, 3, "padding", 0)
    attributes = {"kernel": kernel, "stride": _each(stride, rank), "padding": _each(padding, rank)}
    return "max_pool", [node.args[0]], {}, attributes  # type: ignore[list-item]


def _avg_pool(node: torch.fx.Node) -> Reading:
    rank = node.meta["val"].dim() - 2
    kernel = _each(node.args[1], rank)  # type: ignore[arg-type]
    if any(_each(_argument(node, 3, "padding", 0), rank)) or _argument(node, 4, "ceil_mode", False):
        raise ValueError("average pooling with padding or ceil_mode is not supported")
    stride = _argument(node, 2, "stride") or kernel
    return "avg_pool", [node.args[0]], {}, {"kernel": kernel, "stride": _each(stride, rank)}  # type: ignore[list-item]


def _adaptive_avg_pool(node: torch.fx.Node) -> Reading:
    before = list(node.args[0].meta["val"].shape[2:])  # type: ignore[union-attr]
    after = list(node.meta["val"].shape[2:])
    if any(b % a for b, a in zip(before, after, strict=True)):
        raise ValueError(f"adaptive average pooling from {before} to {after}: only whole ratios are supported")
    kernel = [b // a for b, a in zip(before, after, strict=True)]
    return "avg_pool", [node.args[0]], {}, {"kernel": kernel, "stride": kernel}  # type: ignore[list-item]


def _batch_norm(node: torch.fx.Node) -> Reading:
    roles = dict(zip(("weight", "bias", "running_mean", "running_var"), node.args[1:5], strict=True))
    return "batch_norm", [node.args[0]], roles, {"eps": node.args[7]}  # type: ignore[list-item, return-value]


def _add(node: torch.fx.Node) -> Reading:
    a, b = node.args[0], node.args[1]
    if not isinstance(b, torch.fx.Node) or a.meta["val"].shape != b.meta["val"].shape or node.kwargs:  # type: ignore[union-attr]
        raise ValueError("addition is supported for two tensors of the same shape only")
    return "add", [a, b], {}, {}  # type: ignore[list-item]


def _pad(node: torch.fx.Node) -> Reading:
    mode = _argument(node, 2, "mode", "constant")
    if mode == "constant" and (_argument(node, 3, "value") or 0) != 0:
        raise ValueError("padding with a constant other than 0 is not supported")
    return "pad", [node.args[0]], {}, {"sizes": list(node.args[1]), "mode": mode}  # type: ignore[list-item, arg-type]


_READERS: dict[str, Callable[[torch.fx.Node], Reading]] = {
    "linear": _linear,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "relu": _elementwise("relu"),
    "relu_": _elementwise("relu"),
    "tanh": _elementwise("tanh"),
    "sigmoid": _elementwise("sigmoid"),
    "silu": _elementwise("silu"),
    "gelu": _gelu,
    "dropout": _elementwise("identity"),
    "alias": _elementwise("identity"),
    "contiguous": _elementwise("identity"),
    "flatten": _reshape,
    "view": _reshape,
    "reshape": _reshape,
    "max_pool1d": _max_pool,
    "max_pool2d": _max_pool,
    "max_pool3d": _max_pool,
    "avg_pool1d": _avg_pool,
    "avg_pool2d": _avg_pool,
    "avg_pool3d": _avg_pool,
    "adaptive_avg_pool1d": _adaptive_avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "batch_norm": _batch_norm,
    "add": _add,
    "add_": _add,
    "pad": _pad,
}


def padded(x: Tensor, attributes: dict[str, Any]) -> tuple[Tensor, list[int]]:
    """The input of a convolution, padded where its sides differ, and the padding that is left to torch."""
    before, after = attributes["padding"]
    if before == after:
        return x, before
    sizes = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return F.pad(x, sizes), [0] * len(before)


def _run_conv(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    x, padding = padded(x, a)
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(padding) - 1]
    return conv(x, p["weight"], p.get("bias"), a["stride"], padding, a["dilation"], a.get("groups", 1))


def _run_pool(kind: str) -> Callable[..., Tensor]:
    def run(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
        pool = getattr(F, f"{kind}_pool{len(a['kernel'])}d")
        return pool(x, a["kernel"], a["stride"], a.get("padding", 0))

    return run


_RUN: dict[str, Callable[..., Tensor]] = {
    "linear": lambda x, p, a: F.linear(x, p["weight"], p.get("bias")),
    "conv1d": _run_conv,
    "conv2d": _run_conv,
    "conv3d": _run_conv,
    "relu": lambda x, p, a: F.relu(x),
    "tanh": lambda x, p, a: torch.tanh(x),
    "sigmoid": lambda x, p, a: torch.sigmoid(x),
    "silu": lambda x, p, a: F.silu(x),
    "gelu": lambda x, p, a: F.gelu(x, approximate="tanh" if a["tanh"] else "none"),
    "reshape": lambda x, p, a: x.reshape(x.shape[0], *a["shape"]),  # len(x) would fix the batch in torch.export
    "max_pool": _run_pool("max"),
    "avg_pool": _run_pool("avg"),
    "batch_norm": lambda x, p, a: F.batch_norm(
        x, p["running_mean"], p["running_var"], p.get("weight"), p.get("bias"), eps=a["eps"]
    ),
    "add": lambda x, y, p, a: x + y,
    "mixture": lambda *given: _mixture(given[:-2]),
    "pad": lambda x, p, a: F.pad(x, a["sizes"], a["mode"]),
}


def _mixture(logits: tuple[Tensor, ...]) -> Tensor:
    """Log of the mean class probability; `deploy.ensemble` makes such nodes, no module is read as one."""
    log_probs = torch.stack([one.log_softmax(1) for one in logits])
    return log_probs.logsumexp(0) - math.log(len(logits))


def run_node(node: Node, inputs: list[Tensor], parameters: dict[str, Tensor]) -> Tensor:
    """Apply one operation to its inputs, given its parameters by role."""
    return _RUN[node.op](*inputs, parameters, node.attributes)


def run_graph(graph: Graph, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Map inputs `(batch, *input_shape)` to the network's output, given its tensors by name."""
    values = [x]
    for node in graph.nodes[1:]:
        parameters = {role: tensors[name] for role, name in node.parameters.items()}
        values.append(run_node(node, [values[i] for i in node.inputs], parameters))
    return values[-1]


class Network(nn.Module):
    """Runs a `Graph` on given tensors. Its `state_dict` has the names of the captured network; batch norm is frozen."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]):
        super().__init__()
        self.graph = graph
        used = [name for node in graph.nodes for name in node.parameters.values()]
        for name in dict.fromkeys(used):
            *path, leaf = name.split(".")
            parent: nn.Module = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            if leaf.startswith("running_"):
                parent.register_buffer(leaf, tensors[name].clone())
            else:
                parent.register_parameter(leaf, nn.Parameter(tensors[name].clone()))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs `(batch, *input_shape)` to the network's output."""
        return run_graph(self.graph, dict(self.named_parameters()) | dict(self.named_buffers()), x)


def widths(graph: Graph, tensors: Mapping[str, Any]) -> list[int]:
    """Live inputs of the first layer with weights, then the number of outputs of every such layer, in order."""
    weights = [tensors[node.parameters["weight"]] for node in graph.nodes if node.op in WEIGHTED]
    first = weights[0]
    live = (first != 0).reshape(first.shape[0], first.shape[1], math.prod(first.shape[2:])).any(2).any(0)
    return [int(live.sum()), *(int(weight.shape[0]) for weight in weights)]
