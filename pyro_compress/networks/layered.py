"""A `Graph` as real layers again, to go on training: what `graph.Network` is for evaluation.

`Network` holds bare tensors and freezes batch norm. Here every layer with weights, and every batch norm, is the torch
module of that name once more, so that `bayesianize` finds it and batch norm keeps its statistics.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import skip_init

from pyro_compress.graph.network import Network, one_of
from pyro_compress.graph.operations.table import has_statistics, is_weighted
from pyro_compress.graph.rules.layers import padded
from pyro_compress.graph.rules.table import run_node
from pyro_compress.types import Graph, Node

Momenta = dict[str, float | None]
"""Path of a batch norm -> its momentum, which no graph holds."""


def momenta(net: nn.Module) -> Momenta:
    """Momentum of every batch norm of a network."""
    return {path: module.momentum for path, module in net.named_modules() if isinstance(module, _BatchNorm)}


class Layered(Network):
    """Runs a `Graph` through layers of its own; its `state_dict` has the names of the captured network.

    Dropout is no operation of a graph, and whatever else the captured network did in training mode only is gone.

    Args:
        graph: the operations.
        tensors: its tensors; they are copied.
        momentum: of its batch norms, where it is not torch's default.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], momentum: Momenta | None = None):
        super().__init__(graph, tensors)
        self._captured_paths: list[str] = []
        for node in graph.nodes:
            path = self._path(node)
            if path:
                bare = self.get_submodule(path)
                parent, _, leaf = path.rpartition(".")
                layer = _batch_norm(node, bare, momentum or {}, path) if has_statistics(node.op) else _layer(node, bare)
                for kind in ("_parameters", "_buffers"):
                    getattr(layer, kind).update(getattr(bare, kind))
                setattr(self.get_submodule(parent), leaf, layer)
            self._captured_paths.append(path)

    def _path(self, node: Node) -> str:
        """Path of the module that holds an operation's tensors, and no others; empty where there is none."""
        if not is_weighted(node.op) and not has_statistics(node.op):
            return ""
        paths = {name.rpartition(".")[0] for name in node.parameters.values()}
        named = all(name.rpartition(".")[2] == role for role, name in node.parameters.items())
        path = paths.pop() if len(paths) == 1 and named else ""
        if not path:
            return ""
        there = self.get_submodule(path)
        own = {name for name, value in (there._parameters | there._buffers).items() if value is not None}
        alone = own - {"num_batches_tracked"} == set(node.parameters) and not there._modules
        return path if alone else ""

    def forward(self, x: Tensor | Mapping[str, Tensor] | None = None, /, **inputs: Tensor) -> Tensor:
        """Map inputs `(batch, *input_shape)`, or several by their names, to the network's output."""
        values = [one_of(x, inputs, self._captured_graph)]
        for node, path in zip(self._captured_graph.nodes[1:], self._captured_paths[1:], strict=True):
            given = [values[i] for i in node.inputs]
            if path:
                if node.op.startswith("conv"):
                    given = [padded(given[0], node.attributes)[0]]
                values.append(self.get_submodule(path)(*given))
            else:
                parameters = {role: operator.attrgetter(name)(self) for role, name in node.parameters.items()}
                values.append(run_node(node, given, parameters))
        return values[-1]


def _layer(node: Node, bare: nn.Module) -> nn.Module:
    weight, bias = bare.get_parameter("weight"), "bias" in node.parameters
    out, into, *kernel = weight.shape
    if node.op == "linear":
        return skip_init(nn.Linear, into, out, bias=bias)
    attributes = node.attributes
    groups = attributes.get("groups", 1)
    kinds: dict[str, Callable[..., nn.Module]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
    before, after = attributes["padding"]
    return skip_init(
        kinds[node.op], into * groups, out, tuple(kernel), stride=tuple(attributes["stride"]),
        padding=tuple(before) if before == after else 0, dilation=tuple(attributes["dilation"]), groups=groups,
        bias=bias,
    )  # fmt: skip


def _batch_norm(node: Node, bare: nn.Module, momentum: Momenta, path: str) -> nn.Module:
    mean = bare.get_buffer("running_mean")
    norm = AnyBatchNorm(len(mean), node.attributes["eps"], momentum.get(path, 0.1), "weight" in node.parameters)
    return norm.to(mean.device)


class AnyBatchNorm(_BatchNorm):
    """Batch norm over any number of dimensions: a graph does not tell them apart."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass
