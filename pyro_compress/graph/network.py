"""`Network`: a `Graph` as an ordinary module.

The graph is what lets a run folder or a compressed file be rebuilt without the source code of the network, be made
smaller unit by unit, and be run by numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pyro_compress.graph.operations.kept import whole_tensors
from pyro_compress.graph.operations.norms import STATISTICS_ROLES
from pyro_compress.graph.operations.table import has_statistics
from pyro_compress.graph.packing import in_one_row
from pyro_compress.graph.rules.table import run_node
from pyro_compress.pcn import gate
from pyro_compress.types import Graph, Node


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
        self._captured_graph, self._captured_lengths = graph, dict[tuple[int, ...], Graph]()
        fixed = fixed_of(graph)
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
            if name in fixed:
                parent.register_buffer(leaf, value)
            else:
                parent.register_parameter(leaf, nn.Parameter(value))

    def forward(self, x: Tensor | Mapping[str, Tensor] | None = None, /, **inputs: Tensor) -> Tensor:
        """Map inputs `(batch, *input_shape)`, or several by their names, to the network's output.

        Sequences may be shorter, where the graph takes shorter ones (`Graph.least`).
        """
        x = one_of(x, inputs, self._captured_graph)
        tensors, graph = dict(self.named_parameters()) | dict(self.named_buffers()), self._captured_graph
        return run_graph(self._at(tuple(x.shape[1:]), tensors) if graph.least else graph, tensors, x)

    def _at(self, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> Graph:
        """The graph for examples of a shape; of shorter sequences the gate judges it once."""
        if shape == self._captured_graph.input_shape:
            return self._captured_graph
        if shape not in self._captured_lengths:
            found = self._captured_graph.at(shape)
            gate.check(found, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
            self._captured_lengths[shape] = found
        return self._captured_lengths[shape]


def one_of(x: Tensor | Mapping[str, Tensor] | None, named: Mapping[str, Tensor], graph: Graph) -> Tensor:
    """What a network was called with, as one tensor; several inputs come as a mapping, or by keyword.

    Raises:
        TypeError: other inputs than the network's.
        ValueError: one of another shape.
    """
    given = named if x is None else x
    if not isinstance(given, Mapping):
        if (torch.compiler.is_compiling() or not torch.jit.is_tracing()) and not graph.fits(tuple(given.shape[1:])):
            raise ValueError(f"inputs of shape {tuple(given.shape[1:])}; this network takes {graph.takes}")
        return given
    known = [one.name for one in graph.inputs]
    if sorted(given) != sorted(known):
        found, takes = (", ".join(sorted(names)) for names in (given, known))
        raise TypeError(f"inputs {found or '(none)'}; the network takes {takes or 'one, without a name'}")
    for one in graph.inputs:
        if (shape := tuple(given[one.name].shape[1:])) != one.shape:
            raise ValueError(f"{one.name} of shape {shape}; this network takes {one.shape}")
    return in_one_row(given, graph.inputs)


def fixed_of(graph: Graph) -> set[str]:
    """Names of the tensors that no training changes: running statistics of batch norm, and whole numbers."""
    normed = (node for node in graph.nodes if has_statistics(node.op))
    return {node.parameters[role] for node in normed for role in STATISTICS_ROLES} | whole_tensors(graph)


ENDLESS = 2.0**100
"""What stands for infinity and the like: sums with it are finite, and the exponential of minus it is 0."""


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """A network's tensors by name: its state dict, and the buffers that it leaves out; buffers without infinities."""
    buffers = finite_buffers(net)
    return buffers | dict(net.state_dict()) | buffers


def finite_buffers(net: nn.Module) -> dict[str, Tensor]:
    """Buffers by name, those that are shared under all of their names, without infinities."""
    return {name: _finite(buffer) for name, buffer in net.named_buffers(remove_duplicate=False)}


def _finite(buffer: Tensor) -> Tensor:
    """A buffer with a number that a file can hold in place of infinity and the like: it does the same in a mask."""
    if not buffer.is_floating_point() or not (buffer.abs() > ENDLESS).any():
        return buffer
    return buffer.clamp(-ENDLESS, ENDLESS)
