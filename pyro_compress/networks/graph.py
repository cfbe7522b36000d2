"""A network as data: `capture` turns a module into a `Graph`, `Network` runs a `Graph` as an ordinary module.

The graph is what lets a run folder or a compressed file be rebuilt without the source code of the network, be made
smaller unit by unit, and be run by numpy alone. `torch.export` reads the module; to support another operation, add a
row to `aten.READERS` (ATen -> operation), one to `_RUN` here and one to `pcn.operations.RUN` (numpy).
"""

from __future__ import annotations

import functools
import logging
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_compress.networks.aten import PARTS, READERS, Reading
from pyro_compress.types import Graph, Node

WEIGHTED = ("linear", "conv1d", "conv2d", "conv3d")
"""Operations whose weight has shape `(out, in / groups, *kernel)`."""
POINTWISE = (
    "relu", "tanh", "sigmoid", "silu", "hardswish", "hardsigmoid", "gelu", "leaky_relu", "elu", "softplus", "mish",
    "sin", "scale", "clip",
)  # fmt: skip
"""Functions of single values."""


def capture(net: nn.Module, input_shape: tuple[int, ...]) -> Graph:
    """Read a network's operations, in evaluation mode, with a free batch dimension.

    Raises:
        ValueError: the network cannot be exported, or uses an operation that is not supported; both are named.
    """
    for path, module in net.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            raise ValueError(
                f"{path or 'the network'}: torch.nn.MultiheadAttention keeps its projections in one bare parameter; "
                "replace it first with pyro_compress.split_attention(net), which computes the same"
            )
    training = net.training
    example = torch.zeros(2, *input_shape, device=next(iter(net.parameters()), torch.zeros(())).device)
    try:
        with _quiet_torch():
            program = torch.export.export(net.eval(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the network cannot be captured by torch.export on {input_shape} inputs: {reason}") from error
    finally:
        net.train(training)
    graph = _Reading(program).graph(input_shape)
    weights = [node.parameters["weight"] for node in graph.nodes if node.op in WEIGHTED]
    if twice := sorted({name for name in weights if weights.count(name) > 1}):
        raise ValueError(f"{twice[0]} is used by several layers; networks that share weights are not supported")
    return graph


def head_of(graph: Graph) -> list[str]:
    """Names of the tensors of the last layer with weights."""
    last = [node for node in graph.nodes if node.op in WEIGHTED][-1:]
    return [name for node in last for name in node.parameters.values()]


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without what torch logs of an error before it raises it: the message says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def graph_of(document: dict[str, Any]) -> Graph:
    """A graph from what `dataclasses.asdict` made of one, after a detour through JSON."""
    nodes = tuple(Node(**(node | {"inputs": tuple(node["inputs"])})) for node in document["nodes"])
    return Graph(nodes, tuple(document["input_shape"]))


class _Reading:
    """One pass over an exported program.

    Attributes:
        nodes: what was read so far.
        place: name of a value in the program -> index of the node that computes it.
        names: name of an argument in the program -> name of the tensor in the network.
    """

    def __init__(self, program: torch.export.ExportedProgram):
        self.signature, self.traced = program.graph_signature, program.graph
        self.names = self.signature.inputs_to_parameters | self.signature.inputs_to_buffers
        self.nodes, self.place = [Node("input")], dict[str, int]()

    def graph(self, input_shape: tuple[int, ...]) -> Graph:
        """The whole program as a graph."""
        for node in self.traced.nodes:
            if node.op == "placeholder" and node.name in self.signature.user_inputs:
                self.place[node.name] = 0
            elif node.op == "call_function":
                self.read(node)
            elif node.op == "output":
                outputs = node.args[0]
                if len(outputs) != 1 or self.place.get(outputs[0].name) != len(self.nodes) - 1:
                    raise ValueError("the network must return one tensor, computed by its last operation")
        return Graph(tuple(self.nodes), tuple(input_shape))

    def read(self, fx_node: torch.fx.Node) -> None:
        """Append what an operation of the program does."""
        source, *part = list[Any](fx_node.args) if fx_node.target is operator.getitem else [fx_node]
        aten, _, called = str(source.target).partition(".")
        called = called.partition(".")[0]
        name = called.removesuffix("_")
        if aten != "aten" or name == "sym_size":
            return
        several = isinstance(fx_node.meta["val"], tuple | list)
        if several or (part and not fx_node.users):  # a part is read where somebody wants it
            return
        readers: Mapping[str, Callable[..., Reading]] = PARTS if part else READERS
        if name not in readers:
            raise ValueError(f"unsupported operation {_told(source)}; supported: {', '.join(sorted(READERS | PARTS))}")
        try:
            op, inputs, parameters, attributes = readers[name](source, *part)
            rank = max(source.meta["val"].dim() for source in inputs)
            sources = tuple(self.located(source, rank) for source in inputs)
            tensors = {role: self.names[source.name] for role, source in parameters.items() if source is not None}
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            reason = error if isinstance(error, ValueError) else "its arguments are not those of a layer"
            raise ValueError(f"{_told(source)}: {reason}") from error
        if op == "identity":
            self.place[fx_node.name] = sources[0]
            return
        self.place[fx_node.name] = len(self.nodes)
        if called.endswith("_"):  # in place: who reads the argument later reads the result
            self.place[inputs[0].name] = len(self.nodes)
        self.nodes.append(Node(op, sources, tensors, attributes))

    def located(self, source: torch.fx.Node, rank: int) -> int:
        """Index of a value; a parameter that is read like one (a class token, say) becomes a node of its own.

        Args:
            source: what is read.
            rank: dimensions of what it meets; torch puts dimensions of 1 in front of a parameter that has fewer.
        """
        if source.name not in self.place:
            tensor = self.names[source.name]
            if tensor in self.signature.non_persistent_buffers:
                raise ValueError(f"buffer {tensor} is not in the network's state_dict; register it as persistent")
            own = tuple(source.meta["val"].shape)
            batch, *shape = (1,) * (rank - len(own)) + own
            if batch != 1:
                raise ValueError(f"{tensor} of shape {own} is read as a value; its first dimension must be 1")
            self.place[source.name] = len(self.nodes)
            self.nodes.append(Node("constant", (0,), {"value": tensor}, {"shape": shape}))
        return self.place[source.name]


def _told(node: torch.fx.Node) -> str:
    """An operation and the path of the module that calls it, for messages."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]).removeprefix("L['self']").lstrip(".") if stack else ""
    return f"{node.target} in {path}" if path else str(node.target)


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
    "constant": lambda x, p, a: _constant(p["value"], (1, *a["shape"])).expand(x.shape[0], *a["shape"]),
    "softmax": lambda x, p, a: x.softmax(a["axis"]),
    "log_softmax": lambda x, p, a: x.log_softmax(a["axis"]),
    "matmul": lambda x, y, p, a: x @ y,
    "attention": lambda q, k, v, p, a: F.scaled_dot_product_attention(q, k, v, is_causal=a["causal"], scale=a["scale"]),
}


def _constant(value: Tensor, shape: tuple[int, ...]) -> Tensor:
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
    for node in graph.nodes:
        if node.op == "batch_norm" and {"weight", "bias"} <= node.parameters.keys():
            names = [node.parameters[role] for role in ("weight", "bias", "running_mean", "running_var")]
            weight, bias, mean, variance = (tensors[name] for name in names)
            new_mean, new_variance, eps = seen[names[2]], seen[names[3]], node.attributes["eps"]
            scale = weight / (variance + eps).sqrt()
            new = scale * (new_variance + eps).sqrt(), bias + scale * (new_mean - mean), new_mean, new_variance
            found |= dict(zip(names, new, strict=True))
    return found


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
