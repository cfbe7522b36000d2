"""The values that flow between the parts; nothing here computes more than a shape or a sum.

`Posterior` stands in the middle: left of it everything samples (Pyro), right of it everything is
deterministic. Neither torch nor Pyro is imported at run time, so that a decoder needs only numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pyro_compress.inputs import Input
from pyro_compress.length import Length, shapes_taken
from pyro_compress.outputs import outputs_of
from pyro_compress.provenance import Provenance

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

T = TypeVar("T", "np.ndarray", "Tensor")


@dataclass(frozen=True)
class LayerShape:
    """What a prior may know about a weight (or bias) tensor.

    Attributes:
        name: name of the tensor in the network, e.g. `1.weight`; the prefix of its site names.
        weight: its shape, `(out, in, *kernel)`, or `(out,)` for a bias.
        grouping: which weights share a scale: `weight` (none), `input` (a column) or `output` (a row).
        device: where its values live.
        rows: how many rows of the raw weight are drawn here; None: all.
    """

    name: str
    weight: tuple[int, ...]
    grouping: str = "weight"
    device: str = "cpu"
    rows: int | None = None

    @property
    def site(self) -> str:
        """Name of the raw weight's site; scales are its siblings (`1.weight.raw`, `1.weight.scale`)."""
        return f"{self.name}.raw"

    @property
    def raw(self) -> tuple[int, ...]:
        """Shape of what is drawn here of the raw weight."""
        return self.weight if self.rows is None else (self.rows, *self.weight[1:])

    @property
    def gate(self) -> tuple[int, ...]:
        """Shape of the group scales, broadcastable to `weight`."""
        if self.grouping == "weight":
            return self.weight
        out, into, *kernel = self.weight
        ones = (1,) * len(kernel)
        return (1, into, *ones) if self.grouping == "input" else (out, 1, *ones)


class WeightDraw(NamedTuple):
    """One draw from a prior or posterior: the weight is `gate * raw`. `gate` is None for priors without groups."""

    gate: Tensor | None
    raw: Tensor


@dataclass(frozen=True)
class Node:
    """One operation of a captured network.

    Attributes:
        op: name of the operation (see `pyro_compress.graph.operations.table`).
        inputs: indices of the nodes it reads; node 0 is the network's input.
        parameters: role (`weight`, `bias`, ...) -> tensor name.
        attributes: JSON values (stride, padding, ...).
    """

    op: str
    inputs: tuple[int, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A network as a list of operations in execution order; the last node is the output.

    Attributes:
        nodes: node 0 has the operation `input`.
        input_shape: shape of one example, without the batch dimension.
        kind: type of the inputs: `float32`, or `int64` for numbers of words, characters or bytes.
        inputs: of several inputs, what lies in one row of float32, `pyro_compress.inputs`; empty: there is one.
        least: the shortest sequences that it takes, `input_shape` being of the longest; 0: it takes no others.
    """

    nodes: tuple[Node, ...]
    input_shape: tuple[int, ...]
    kind: str = "float32"
    inputs: tuple[Input, ...] = ()
    least: int = 0

    @property
    def takes(self) -> str:
        """Shapes of one example that it takes, in words."""
        return shapes_taken(self.input_shape, self.least)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it takes examples of a shape."""
        shorter = self.least and len(shape) == 1 and self.least <= shape[0] < self.input_shape[0]
        return tuple(shape) == self.input_shape or bool(shorter)

    def at(self, shape: tuple[int, ...]) -> Graph:
        """The graph for examples of a shape: its own, or that of shorter sequences.

        Raises:
            ValueError: it takes no such examples.
        """
        if tuple(shape) == self.input_shape:
            return self
        if not self.fits(shape):
            raise ValueError(f"inputs of shape {tuple(shape)}; this network takes {self.takes}")
        return self.lengthened(shape[0] - self.input_shape[0])

    def lengthened(self, more: int) -> Graph:
        """The graph for sequences of so many steps more than the longest, and for these alone."""
        nodes = tuple(replace(node, attributes=Length.at(node.attributes, more)) for node in self.nodes)
        return replace(self, nodes=nodes, input_shape=(self.input_shape[0] + more,), least=0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        if not self.least:
            return asdict(self)
        spelled = (Length.spelled(node.attributes, self.input_shape[0]) for node in self.nodes)
        nodes = zip(self.nodes, spelled, strict=True)
        return asdict(replace(self, nodes=tuple(replace(node, attributes=found) for node, found in nodes)))

    @property
    def finished(self) -> list[list[int]]:
        """Per node, those whose value nobody reads after it: what a run of the graph may let go."""
        last = {i: index for index, node in enumerate(self.nodes) for i in node.inputs}
        found: list[list[int]] = [[] for _ in self.nodes]
        for i, index in last.items():
            found[index].append(i)
        return found


@dataclass(frozen=True)
class Data:
    """Examples `x` of shape `(n, *input_shape)` (float32) and what belongs to them.

    `x` may be whole numbers of words, characters or bytes (int64), `(n, length)`. `y` holds class labels of shape
    `(n,)` (int64), standardised targets of shape `(n, targets)` (float32), or what else a task says (`data.tasks`).
    """

    x: Tensor
    y: Tensor
    inputs: tuple[Input, ...] = ()
    """Of several inputs in a file of examples, what lies in a row of `x`; `Splits` has it for all of its parts."""

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Column:
    """How one column of a table becomes inputs of a network.

    Attributes:
        name: in the table's header.
        mean: of the training rows; a number enters as `(value - mean) / std`.
        std: standard deviation of the training rows; 1 for a constant column.
        categories: of a column of names: one input each, 1 where the row has it; a name that is none of them is all 0.
    """

    name: str
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantity:
    """A target of regression: the network's output stands for `(value - mean) / std`, moments of the training rows."""

    name: str
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Preprocessing:
    """What must be known to feed a network elsewhere, and to read its outputs.

    Attributes:
        scale: the raw value (an integer) that becomes 1.0; 1 where inputs are taken as they are.
        classes: names in the order of the outputs; empty: numbered from 0.
        columns: of a table, in the order of the inputs; empty for anything else.
        targets: of regression, in the order of the outputs; empty for classification.
    """

    scale: float
    classes: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    targets: tuple[Quantity, ...] = ()


PER_POSITION = ("next-token", "tagging", "segmentation")
"""Tasks of a class per position."""


def kind_of(x: Any) -> str:
    """Type of examples, as `Graph.kind`; what stays on disk is read as float32."""
    kind = getattr(x, "dtype", None)
    return "float32" if kind is None or kind.is_floating_point else "int64"


@dataclass(frozen=True)
class Splits:
    """Thresholds and recipes are chosen on `validation`; `test` is read once, at the end, by `metrics` alone.

    The other fields are those of `Preprocessing`.
    """

    train: Data
    validation: Data
    test: Data
    classes: tuple[str, ...]
    scale: float = 1.0
    columns: tuple[Column, ...] = ()
    targets: tuple[Quantity, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)
    """Where they come from, as fields of `FitConfig` (`data`, `validation`, how they are read); empty: made by hand."""
    task: str = ""
    """Name in `pyro_compress.data.tasks.TASKS`; empty: regression where there are targets, else classification."""
    tokens: int = 0
    """How many kinds of tokens the inputs are of, numbered from 0; 0: they are no tokens."""
    inputs: tuple[Input, ...] = ()
    """Of several inputs, what lies in a row of `x`: see `pyro_compress.inputs`."""

    def __post_init__(self) -> None:
        """Fill in the task."""
        object.__setattr__(self, "task", self.task or ("regression" if self.targets else "classification"))

    @property
    def outputs(self) -> int:
        """Outputs of a network for these data: one per class, per target or per label; per value of an input."""
        if self.task == "reconstruction":
            return math.prod(self.input_shape)
        several = outputs_of(self.task)
        return several.size if several else len(self.targets) or len(self.classes)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one example's outputs: `(outputs,)`, with the positions after it where each has a class."""
        if self.task == "reconstruction":
            return self.input_shape
        return (self.outputs, *(self.train.y.shape[1:] if self.task in PER_POSITION else ()))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train.x.shape[1:])

    @property
    def kind(self) -> str:
        """Type of the inputs, as `Graph.kind`."""
        return kind_of(self.train.x)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples per split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


@dataclass(frozen=True)
class LayerPosterior:
    """Moments of one layer's weights under the posterior.

    Attributes:
        mean: posterior mean of the weight, `(out, in, *kernel)`.
        std: its standard deviation, same shape; all zero for a deterministic network.
        unit_mean: mean of the group scale in gate shape; None without groups.
        unit_std: its standard deviation.
        grouping: grouping of the prior.
        whole: the layer that these are some rows of; None: they are all.
    """

    mean: Tensor
    std: Tensor
    unit_mean: Tensor | None = None
    unit_std: Tensor | None = None
    grouping: str = "weight"
    whole: LayerPosterior | None = None

    @cached_property
    def power(self) -> float:
        """Mean of mean² + std² over the layer's weights."""
        parts = zip(self.mean.flatten().split(BLOCK), self.std.flatten().split(BLOCK), strict=True)
        return sum(float((m.square() + s.square()).double().sum()) for m, s in parts) / max(self.mean.numel(), 1)


@dataclass(frozen=True)
class Removal:
    """Units that left the network while it was fitted.

    Attributes:
        epoch: at the end of which epoch (1, 2, ...).
        widths_before: widths from input to output.
        widths_after: the same afterwards.
        parameters_before: values of the network.
        parameters_after: the same afterwards.
    """

    epoch: int
    widths_before: list[int]
    widths_after: list[int]
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True, repr=False)
class Posterior:
    """All that compression may know of a fit.

    Attributes:
        graph: the network.
        layers: weight tensor name -> moments, in network order.
        dense: every other tensor by name (biases, batch-norm statistics), float32.
        criterion: pruning criterion that fits the prior (a name in `CRITERIA`).
        provenance: where it comes from, written into the compressed file.
        removals: units that left while it was fitted; `graph` is what they left behind.
    """

    graph: Graph
    layers: dict[str, LayerPosterior]
    dense: dict[str, Tensor]
    criterion: str
    provenance: Provenance
    removals: tuple[Removal, ...] = ()

    def __repr__(self) -> str:
        """How many weights, for what."""
        weights = sum(layer.mean.numel() for layer in self.layers.values())
        return f"Posterior: {weights:,} weights in {len(self.layers)} tensors, {self.task}; criterion {self.criterion}"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The posterior-mean network: tensor name -> value."""
        return {name: layer.mean for name, layer in self.layers.items()} | self.dense

    @property
    def largest_bytes(self) -> int:
        """Size of its largest tensor."""
        return max(4 * tensor.numel() for tensor in self.tensors.values())

    @property
    def parameters_total(self) -> int:
        """Values of the network that it all began with: what every ratio of sizes is a ratio to.

        Where a fit began with a compressed file, that is the network which the file was made from.
        """
        if (before := self.provenance.parameters_total) is not None:
            return before
        if self.removals:
            return self.removals[0].parameters_before
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def task(self) -> str:
        """Name in `pyro_compress.data.tasks.TASKS`."""
        return self.provenance.task

    @property
    def noise(self) -> float | None:
        """Standard deviation of regression's Gaussian likelihood, in standard deviations of the targets."""
        return self.provenance.noise


Masks = dict[str, "Tensor"]
"""Weight tensor name -> bool tensor, True where the weight is kept."""


@dataclass(frozen=True)
class Quantized:
    """Integers on a uniform grid: value = `codes * step`."""

    codes: np.ndarray
    step: float


@dataclass(frozen=True)
class Compressed:
    """What a `.pcn` file holds: the (smaller) network and its tensors, quantised or dense float32.

    Attributes:
        graph: its operations.
        tensors: its tensors.
        meta: where it comes from.
        unfolded: operations and float32 tensors, the weights of its layers apart, before batch norm became scale and
            shift, which goes into no file: what a file is held against before it is written; None: nothing was folded.
        rounded: relative step and λ of the grid that its weights lie on, which go into no file; a step of 0 where bits
            were given; None: no search chose a grid.
    """

    graph: Graph
    tensors: dict[str, Quantized | np.ndarray]
    meta: dict[str, Any]
    unfolded: tuple[Graph, dict[str, Tensor]] | None = field(default=None, compare=False, repr=False)
    rounded: tuple[float, float] | None = field(default=None, compare=False, repr=False)

    @property
    def parameters(self) -> int:
        """Number of non-zero values."""
        values = (tensor.codes if isinstance(tensor, Quantized) else tensor for tensor in self.tensors.values())
        return sum(nonzero(value) for value in values)

    @property
    def task(self) -> str:
        """Name in `pyro_compress.data.tasks.TASKS`."""
        return str(self.meta.get("task", "classification"))

    @property
    def noise(self) -> float | None:
        """As `Posterior.noise`."""
        return self.meta.get("noise")


def count(shape: tuple[int, ...]) -> int:
    """Number of elements of a tensor of this shape."""
    return math.prod(shape)


BLOCK = 1 << 20
"""Values that are worked on at a time, where what is worked out of a large tensor would be as large as it."""


CACHED = 1 << 16
"""Values that stay in a core's cache while one thing after the other is done to them."""


def rows_of(shape: tuple[int, ...], most: int = BLOCK) -> list[slice]:
    """Parts of the first axis with so many values each, at least a row; of a single number everything."""
    if not shape:
        return [slice(None)]
    each = max(1, most // max(math.prod(shape[1:]), 1))
    return [slice(start, start + each) for start in range(0, shape[0], each)]


def blocks(values: T, most: int = BLOCK) -> Iterator[T]:
    """The same parts of a tensor or an array, as views."""
    return (values[rows] if values.ndim else values for rows in rows_of(tuple(values.shape), most))


def nonzero(values: T) -> int:
    """How many values are not zero; torch's own sum of a mask holds eight bytes for each."""
    return sum(int((part != 0).sum()) for part in blocks(values))


@dataclass(frozen=True)
class Groups:
    """Arrays on their way to ArviZ.

    Attributes:
        values: group -> variable -> array, `(chain, draw, ...)` in sampled groups, `(...)` in data groups.
        dims: variable -> names of the dimensions after chain and draw.
        coords: dimension -> its labels.
        attrs: what else is worth knowing, JSON values.
    """

    values: dict[str, dict[str, np.ndarray]]
    dims: dict[str, list[str]] = field(default_factory=dict)
    coords: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
