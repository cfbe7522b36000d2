"""A network as data: `capture` turns a module into a `Graph`, `Network` runs a `Graph` as an ordinary module.

The graph is what lets a run folder or a compressed file be rebuilt without the source code of the network, be made
smaller unit by unit, and be run by numpy alone. `torch.export` reads the module; to support another operation, add a
row to `aten.READERS` (ATen -> operation), one to `_RUN` here and one to `pcn.operations.RUN` (numpy).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_compress.foreign import of_type, record, shown, table
from pyro_compress.networks.checked import compare, compare_training, exported, refuse_unsupported
from pyro_compress.networks.reading import read
from pyro_compress.pcn import gate
from pyro_compress.types import Graph, Node

WEIGHTED = ("linear", "conv1d", "conv2d", "conv3d")
"""Operations whose weight has shape `(out, in / groups, *kernel)`."""
POINTWISE = (
    "relu", "tanh", "sigmoid", "silu", "hardswish", "hardsigmoid", "gelu", "leaky_relu", "elu", "softplus", "mish",
    "sin", "scale", "clip",
)  # fmt: skip
"""Functions of single values."""


def capture(net: nn.Module, input_shape: tuple[int, ...], outputs: int | None = None, trained: bool = True) -> Graph:
    """Read a network's operations, in evaluation mode, with a free batch dimension, and compare the two.

    Args:
        net: the network; it stays as it is.
        input_shape: shape of one example.
        outputs: how many the data ask for; None: any.
        trained: whether the network itself is to be trained, and must return the same shape in training mode.

    Raises:
        ValueError: the network cannot be exported, uses an operation that is not supported, computes something else
            than what was read (operation and module path are named), or is none that a file could hold.
    """
    refuse_unsupported(net)
    found = read(exported(net, input_shape), input_shape)
    used = [(node.op, role, name) for node in found.graph.nodes for role, name in node.parameters.items()]
    weights = [name for op, role, name in used if op in WEIGHTED and role == "weight"]
    if twice := sorted({name for name in weights if [name for *_, name in used].count(name) > 1}):
        raise ValueError(f"{twice[0]} is used by several layers; networks that share weights are not supported")
    gate.check(found.graph, {name: tuple(tensor.shape) for name, tensor in _used(net, found.graph)}, gate.UNLIMITED)
    compare(net, found, run_node, outputs)
    if trained:
        compare_training(net, input_shape)
    return found.graph


def _used(net: nn.Module, graph: Graph) -> list[tuple[str, Tensor]]:
    """The tensors of a network that a graph names, all under those names."""
    held = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers(remove_duplicate=False))
    return [(name, held[name]) for node in graph.nodes for name in node.parameters.values()]


def head_of(graph: Graph) -> list[str]:
    """Names of the tensors of the last layer with weights."""
    last = [node for node in graph.nodes if node.op in WEIGHTED][-1:]
    return [name for node in last for name in node.parameters.values()]


def graph_of(document: Any) -> Graph:
    """A graph from what `dataclasses.asdict` made of one, after a detour through JSON.

    Raises:
        ValueError: it is none: other fields or types, a node that reads one that comes later.
    """
    told = table(document, "graph")
    nodes = [record(Node, node, "node") for node in of_type(told.get("nodes"), list[Any], "nodes")]
    shape = of_type(told.get("input_shape"), list[int], "input_shape")
    if not nodes or nodes[0] != Node("input", []):  # type: ignore[arg-type]
        raise ValueError("the first node must be the input")
    for index, node in enumerate(nodes[1:], 1):
        if not node.inputs or not all(0 <= i < index for i in node.inputs):
            raise ValueError(f"node {index} reads {shown(list(node.inputs))}; it may read nodes before it only")
    return Graph(tuple(replace(node, inputs=tuple(node.inputs)) for node in nodes), tuple(shape))


def padded(x: Tensor, attributes: dict[str, Any]) -> tuple[Tensor, list[int]]:
    """The input of a convolution, padded where its sides differ, and the padding that is left to torch."""
    before, after = attributes["padding"]
    if before == after:
        return x, before
    return F.pad(x, _around(before, after)), [0] * len(before)


def _around(before: list[int], after: list[int]) -> list[int]:
    """Padding as torch takes it, the last dimension first."""
    return [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]


def _run_conv(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    x, padding = padded(x, a)
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(padding) - 1]
    return conv(x, p["weight"], p.get("bias"), a["stride"], padding, a["dilation"], a.get("groups", 1))


def _run_pool(kind: str) -> Callable[..., Tensor]:
    def run(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
        padding, rounds_up = a.get("padding", 0), {"ceil_mode": True} if "after" in a else {}
        if kind == "max" and _only_values(x) and not any(padding or ()) and not rounds_up:
            return _max_of_slices(x, a["kernel"], a["stride"])
        pool = getattr(F, f"{kind}_pool{len(a['kernel'])}d")
        return pool(x, a["kernel"], a["stride"], padding, **rounds_up)

    return run


def _only_values(x: Tensor) -> bool:
    """Whether nobody wants more than numbers from the CPU: neither gradients nor a traced program."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or x.is_cuda)


def _max_of_slices(x: Tensor, kernel: list[int], stride: list[int]) -> Tensor:
    """Max pooling axis by axis as the maximum of strided slices: the same bits as torch's own, ten times as fast.

    Torch's pooling also notes where each maximum was, pixel by pixel. Only its gradient needs that: of several equal
    values it goes to the first, here it would be shared.
    """
    for axis, (size, step) in enumerate(zip(kernel, stride, strict=True), x.dim() - len(kernel)):
        reach = (x.shape[axis] - size) // step * step + 1
        windows = [x.narrow(axis, i, reach)[(slice(None),) * axis + (slice(None, None, step),)] for i in range(size)]
        x = functools.reduce(torch.maximum, windows)
    return x


def _run_concat(*arguments: Any) -> Tensor:
    *inputs, _, attributes = arguments
    return torch.cat(inputs, attributes["axis"])


def _run_scale(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    """In as few operations as it was read from."""
    factor, offset = a["factor"], a.get("offset", 0)
    if offset and factor == -1:
        return offset - x
    x = x if factor == 1 else x * factor
    return x + offset if offset else x


_RUN: dict[str, Callable[..., Tensor]] = {
    "linear": lambda x, p, a: F.linear(x, p["weight"], p.get("bias")),
    "conv1d": _run_conv,
    "conv2d": _run_conv,
    "conv3d": _run_conv,
    "relu": lambda x, p, a: F.relu(x),
    "tanh": lambda x, p, a: torch.tanh(x),
    "sigmoid": lambda x, p, a: torch.sigmoid(x),
    "silu": lambda x, p, a: F.silu(x),
    "hardswish": lambda x, p, a: F.hardswish(x),
    "hardsigmoid": lambda x, p, a: F.hardsigmoid(x),
    "gelu": lambda x, p, a: F.gelu(x, approximate="tanh" if a["tanh"] else "none"),
    "leaky_relu": lambda x, p, a: F.leaky_relu(x, a["slope"]),
    "elu": lambda x, p, a: torch.ops.aten.elu(x, a["alpha"], a["scale"]),
    "softplus": lambda x, p, a: F.softplus(x),
    "mish": lambda x, p, a: F.mish(x),
    "sin": lambda x, p, a: x.sin(),
    "prelu": lambda x, p, a: F.prelu(x, p["weight"]),
    "reshape": lambda x, p, a: x.reshape(x.shape[0], *a["shape"]),  # len(x) would fix the batch in torch.export
    "max_pool": _run_pool("max"),
    "avg_pool": _run_pool("avg"),
    "batch_norm": lambda x, p, a: F.batch_norm(
        x, p["running_mean"], p["running_var"], p.get("weight"), p.get("bias"), eps=a["eps"]
    ),
    "layer_norm": lambda x, p, a: F.layer_norm(x, x.shape[-1:], p.get("weight"), p.get("bias"), a["eps"]),
    "group_norm": lambda x, p, a: F.group_norm(x, a["groups"], p.get("weight"), p.get("bias"), a["eps"]),
    "add": lambda x, y, p, a: x + y,
    "subtract": lambda x, y, p, a: x - y,
    "divide": lambda x, y, p, a: x / y,
    "mixture": lambda *given: _mixture(given[:-2]),
    "multiply": lambda x, y, p, a: x * y,
    "scale": _run_scale,
    "clip": lambda x, p, a: F.hardtanh(x, a["low"], a["high"]),
    "pad": lambda x, p, a: F.pad(x, a["sizes"], a["mode"]),
    "mean": lambda x, p, a: x.mean(a["axes"], a.get("keepdim", False)),
    "sum": lambda x, p, a: x.sum(a["axes"], a.get("keepdim", False)),
    "amax": lambda x, p, a: x.amax(a["axes"], a.get("keepdim", False)),
    "permute": lambda x, p, a: x.permute(0, *a["axes"]),
    "select": lambda x, p, a: x.select(a["axis"], a["index"]),
    "slice": lambda x, p, a: x[(slice(None),) * a["axis"] + (slice(a["start"], a["stop"], a.get("step", 1)),)],
    "concat": _run_concat,
    "constant": lambda x, p, a: _constant(p["value"], x, a).expand(x.shape[0], *a["shape"]),
    "softmax": lambda x, p, a: x.softmax(a["axis"]),
    "log_softmax": lambda x, p, a: x.log_softmax(a["axis"]),
    "matmul": lambda x, y, p, a: x @ y,
    "attention": lambda q, k, v, p, a: F.scaled_dot_product_attention(q, k, v, is_causal=a["causal"], scale=a["scale"]),
}


def _constant(value: Tensor, x: Tensor, a: dict[str, Any]) -> Tensor:
    value, shape = value.to(x.dtype), (1, *a["shape"])
    return value if value.shape == shape else value.reshape(shape)  # `capture` reads no reshape of a parameter


def _mixture(logits: tuple[Tensor, ...]) -> Tensor:
    """Log of the mean class probability; `deploy.ensemble` makes such nodes, no module is read as one."""
    log_probs = torch.stack([one.log_softmax(1) for one in logits])
    return log_probs.logsumexp(0) - math.log(len(logits))


def run_node(node: Node, inputs: list[Tensor], parameters: dict[str, Tensor]) -> Tensor:
    """Apply one operation to its inputs, given its parameters by role."""
    return _RUN[node.op](*inputs, parameters, node.attributes)


def run_graph(
    graph: Graph, tensors: Mapping[str, Tensor], x: Tensor, before: Callable[[Node, list[Tensor]], None] | None = None
) -> Tensor:
    """Map inputs `(batch, *input_shape)` to the network's output, given its tensors by name.

    A value is let go with its last reader: a deep network on many images would else hold all of its activations.

    Args:
        graph: the network.
        tensors: its tensors.
        x: inputs.
        before: called with every operation and its inputs, before it runs; may change `tensors`.
    """
    values, finished = {0: x}, graph.finished
    for index, node in enumerate(graph.nodes[1:], 1):
        inputs = [values[i] for i in node.inputs]
        if before:
            before(node, inputs)
        values[index] = run_node(node, inputs, {role: tensors[name] for role, name in node.parameters.items()})
        for i in finished[index]:
            del values[i]
    return values[len(graph.nodes) - 1]


STATISTICS = 1024
"""Examples that the statistics of batch norm are taken from, where they are taken anew."""
STATISTICS_ROLES = ("running_mean", "running_var")
STATISTICS_VALUES = 1 << 22
"""Fewer examples are taken where they hold more values than this together, but 64 in any case."""


@torch.no_grad()
def batch_statistics(graph: Graph, tensors: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Mean and variance of what every batch norm is given when the network sees `x`, by their tensors' names.

    Weights that changed after training (averaged, pruned, rounded) make the running statistics stale; these are what
    they would be (Izmailov et al. 2018, section 3.2, for averaged weights).

    Args:
        graph: the network.
        tensors: its tensors, as they are now.
        x: examples of the training set, `(n, *input_shape)`; of many, `STATISTICS` are taken at random.
    """
    return _seen(graph, tensors, x, anew=True)


@torch.no_grad()
def renewed_statistics(graph: Graph, tensors: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Batch norm's tensors with the statistics of `x`, and weights and biases under which its outputs stay.

    A file holds scale and shift, and no statistics (`compression.packing`). Training that goes on from it normalises by
    the minibatch, and needs the weights and biases that belong to that.

    Args:
        graph: the network.
        tensors: its tensors.
        x: as for `batch_statistics`.
    """
    seen, found = _seen(graph, tensors, x, anew=False), dict[str, Tensor]()
    for node in foldable_norms(graph):
        names = [node.parameters[role] for role in ("weight", "bias", *STATISTICS_ROLES)]
        weight, bias, mean, variance = (tensors[name] for name in names)
        new_mean, new_variance, eps = seen[names[2]], seen[names[3]], node.attributes["eps"]
        scale = weight / (variance + eps).sqrt()
        new = scale * (new_variance + eps).sqrt(), bias + scale * (new_mean - mean), new_mean, new_variance
        found |= dict(zip(names, new, strict=True))
    return found


def foldable_norms(graph: Graph) -> list[Node]:
    """Batch norms with statistics, scale and shift, of which nothing means anything else to another operation."""
    roles = {"weight", "bias", *STATISTICS_ROLES}
    norms = [node for node in graph.nodes if node.op == "batch_norm" and roles <= node.parameters.keys()]
    return [norm for norm in norms if all(_alike(norm, node) for node in graph.nodes)]


def _alike(norm: Node, node: Node) -> bool:
    """Whether another operation reads none of batch norm's tensors, or all of them in the same way."""
    apart = not set(norm.parameters.values()) & set(node.parameters.values())
    same = (node.op, node.parameters, node.attributes) == (norm.op, norm.parameters, norm.attributes)
    return apart or same


def _seen(graph: Graph, tensors: Mapping[str, Tensor], x: Tensor, anew: bool) -> dict[str, Tensor]:
    """Statistics of what every batch norm is given; anew: behind others that go by theirs already."""
    if all(node.op != "batch_norm" for node in graph.nodes):
        return {}
    enough = min(STATISTICS, max(64, STATISTICS_VALUES // max(x[:1].numel(), 1)))
    if len(x) > enough:
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:enough]
        x = x[rows.to(x.device)]
    x = x.to(next(iter(tensors.values())).device)
    found = dict[str, Tensor]()
    current = dict(tensors)

    def look(node: Node, inputs: list[Tensor]) -> None:
        if node.op != "batch_norm":
            return
        axes = [axis for axis in range(inputs[0].dim()) if axis != 1]
        variance, mean = torch.var_mean(inputs[0], axes, correction=0)
        found.update({node.parameters["running_mean"]: mean, node.parameters["running_var"]: variance})
        if anew:
            current.update(found)

    run_graph(graph, current, x, look)
    return found


class Network(nn.Module):
    """Runs a `Graph` on given tensors. Its `state_dict` has the names of the captured network; batch norm is frozen.

    What it has of its own bears a name that no network gives a part of itself.

    Args:
        graph: the network.
        tensors: its tensors by name.
        own: take them as they are; else they are copied.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], own: bool = False):
        super().__init__()
        self._captured_graph = graph
        statistics = statistics_of(graph)
        used = [name for node in graph.nodes for name in node.parameters.values()]
        for name in dict.fromkeys(used):
            *path, leaf = name.split(".")
            parent: nn.Module = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            value = tensors[name] if tensors[name].is_floating_point() else tensors[name].float()
            value = value if own else value.clone()
            if name in statistics:
                parent.register_buffer(leaf, value)
            else:
                parent.register_parameter(leaf, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs `(batch, *input_shape)` to the network's output."""
        return run_graph(self._captured_graph, dict(self.named_parameters()) | dict(self.named_buffers()), x)


def statistics_of(graph: Graph) -> set[str]:
    """Names of the running statistics of batch norm."""
    return {node.parameters[role] for node in graph.nodes if node.op == "batch_norm" for role in STATISTICS_ROLES}


def first_weights(graph: Graph) -> list[str]:
    """Names of the weights that read the input and nothing that another weight made."""
    reads = {0: (True, False)}  # node -> whether it comes from the input, whether a weight lies between
    found = []
    for index, node in enumerate(graph.nodes[1:], 1):
        sources = [reads[i] for i in node.inputs] if node.op != "constant" else []
        from_input, weighted = any(one for one, _ in sources), any(two for _, two in sources)
        if node.op in WEIGHTED and from_input and not weighted:
            found.append(node.parameters["weight"])
        reads[index] = from_input, weighted or node.op in WEIGHTED
    return found


def widths(graph: Graph, tensors: Mapping[str, Any]) -> list[int]:
    """Live inputs of the first layer with weights, then the number of outputs of every such layer, in order."""
    weights = [tensors[node.parameters["weight"]] for node in graph.nodes if node.op in WEIGHTED]
    first = weights[0]
    live = (first != 0).reshape(first.shape[0], first.shape[1], math.prod(first.shape[2:])).any(2).any(0)
    return [int(live.sum()), *(int(weight.shape[0]) for weight in weights)]
