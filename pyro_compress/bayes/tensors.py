"""Tensors with a prior that are no weight of a layer of their own: embeddings, recurrent and shared weights.

Such a tensor is drawn once per forward pass, before the network runs, and put wherever the network holds it; a tensor
that several modules share is one site. That is weight sampling (Blundell et al. 2015), which is right whatever the
network does with it; local reparameterization and flipout draw outputs of a layer that is used once, and serve those.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from pyro_compress.bayes.assignment import Assignment
from pyro_compress.bayes.layers import Drawn
from pyro_compress.bayes.layers import multiplied as weight_of
from pyro_compress.bayes.priors import Prior
from pyro_compress.bayes.shards import gathered
from pyro_compress.graph.ir import multiplied
from pyro_compress.graph.operations.row import Channels
from pyro_compress.graph.operations.table import OPERATIONS, is_last
from pyro_compress.types import Graph, LayerShape

Places = list[tuple[nn.Module, str]]
"""Modules that hold a tensor, and what they call it."""


class BayesTensor(Drawn):
    """One tensor of a network that is drawn from its prior before the network runs.

    Args:
        shape: its name, shape and grouping.
        prior: its prior.
        places: where the network holds it; it is taken out of there.
    """

    def __init__(self, shape: LayerShape, prior: Prior, places: Places):
        super().__init__(shape, prior)
        self.places = tuple(places)
        for module, leaf in places:
            del module._parameters[leaf]

    def put(self, device: str) -> None:
        """Draw it, and put it where the network holds it."""
        value = weight_of(self.drawn(device))
        value = value if self.rows is None else gathered(value, self.rows)
        for module, leaf in self.places:
            setattr(module, leaf, value)


def drawable(net: nn.Module, graph: Graph, plain: Collection[str]) -> list[str]:
    """Names of the parameters that a network multiplies by, and no layer with a prior stands in for.

    Weights of layers that are called twice or share their weight, embeddings, weights of recurrent layers, of
    transposed convolutions, and whatever else goes into a product; tensors of one dimension stay point estimates.

    Args:
        net: the network.
        graph: what was captured of it.
        plain: names of the weights of layers that get a prior anyway.

    Examples:
        >>> from pyro_compress.graph.capture import capture
        >>> net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> drawable(net, capture(net, (3,), kind="int64"), ["2.weight"])
        ['0.weight']
    """
    parameters = dict(net.named_parameters(remove_duplicate=False))
    wide = (name for name in multiplied(graph) if name in parameters and parameters[name].dim() > 1)
    return [name for name in wide if name not in plain]


def across(graph: Graph) -> set[str]:
    """Names of the weights of two dimensions with a row for every input."""
    return {
        node.parameters["weight"]
        for node in graph.nodes
        if node.op in OPERATIONS and OPERATIONS[node.op].channels is Channels.MADE_ACROSS and is_last(node.op)
    }


def with_tensors(
    net: nn.Module, priors: Assignment, grouping: str, names: Collection[str], keep: tuple[str, ...],
    turned: Collection[str] = (),
) -> nn.Module:  # fmt: skip
    """A network some of whose tensors are drawn before it runs; it is changed.

    Args:
        net: the network.
        priors: of the tensors.
        grouping: as for `bayesianize`; of an embedding scales are shared by a row, which belongs to a word, and a
            tensor of another number of dimensions than two has none.
        names: of the tensors.
        keep: patterns of paths or names that stay as they are.
        turned: those with a row for every input, `(in, out)`: inputs share scales by rows, outputs by columns.
    """
    parameters = dict(net.named_parameters(remove_duplicate=False))
    drawn = []
    for name in names:
        path = name.rpartition(".")[0]
        if any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in keep):
            continue
        weight = parameters[name]
        same = [other for other, one in parameters.items() if one is weight]
        places = [(net.get_submodule(other.rpartition(".")[0]), other.rpartition(".")[2]) for other in same]
        embeds = any(isinstance(module, nn.Embedding) for module, _ in places)
        prior = priors.of(name)
        assert prior is not None
        own = priors.grouping(name, grouping)
        if name in turned:
            own = {"input": "output", "filter": "output", "output": "input"}.get(own, own)
        shape = LayerShape(name, tuple(weight.shape), _grouping_of(own, weight, embeds, prior))
        drawn.append(BayesTensor(shape, prior, places))
        drawn[-1].aliases = tuple(same)
    if not drawn:
        return net
    plain: type[nn.Module] = type(net)

    def forward(self: nn.Module, x: Tensor, *more: Any) -> Any:
        for one in self._drawn_tensors:  # type: ignore[union-attr]
            one.put(str(x.device))
        return plain.forward(self, x, *more)

    object.__setattr__(net, "_drawn_tensors", tuple(drawn))  # no submodule: a Sequential would call it
    net.__class__ = type(f"Drawn{plain.__name__}", (plain,), {"forward": forward})
    return net


def _grouping_of(grouping: str, weight: Tensor, embeds: bool, prior: Prior) -> str:
    if weight.dim() != 2 and "weight" in prior.groupings:
        return "weight"
    if embeds and grouping in ("input", "filter") and "output" in prior.groupings:
        return "output"
    return "input" if grouping == "filter" else grouping
