"""A trained network as integers without training: layer after layer, each making up for what those before it lost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_compress.compression.candidates import BIAS_LEVELS, origin_of, to_module
from pyro_compress.compression.compensation import problem_of, rounded_layer
from pyro_compress.compression.curvature import (
    CHUNK,
    Sensitivity,
    drawn_of,
    moments,
    most_values,
    sensitivities,
)
from pyro_compress.compression.packing import before_folding, packed
from pyro_compress.compression.prune import removed_share
from pyro_compress.compression.search import PRECISION_TOLERANCE
from pyro_compress.compression.shrink import shrink
from pyro_compress.compression.target import NLL_PER_ACCURACY, Goal, Target, Trial, Watch, target_of
from pyro_compress.graph.operations.table import has_statistics, is_weighted
from pyro_compress.graph.rules.table import run_node
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import file
from pyro_compress.pcn.codec import quarter_power
from pyro_compress.pcn.layout import layouts
from pyro_compress.scores import Quality
from pyro_compress.types import Compressed, Graph, Posterior, Splits

IMAGES = 8192
"""Most calibration examples."""
VALUES = 1 << 28
"""Values of activations that are held, about: a gibibyte of float32."""
PRICES = (1e-9, 1e-5)
"""Range of the first search for a price, in nats per bit and example."""
STEPS, NEAR, NEAR_STEPS = 9, 0.6, 4
"""Bisections of that range; then, with other settings, how far from the best price so far, on a logarithmic scale, and
with how many."""


@dataclass(frozen=True)
class Setting:
    """How a network is rounded.

    Attributes:
        price: nats per bit and example.
        damping: of the moments, in units of their mean; more is safer with fewer examples and coarser steps.
        descending: columns with the largest second moment first.
    """

    price: float
    damping: float = 0.1
    descending: bool = False


@dataclass(frozen=True)
class Rounded:
    """A rounded network.

    Attributes:
        tensors: all of them, weights on their grids, statistics of batch norm taken anew.
        steps: weight tensor name -> step.
    """

    tensors: dict[str, Tensor]
    steps: dict[str, float]


@dataclass
class Calibrated:
    """A network with what is needed to round it at any price.

    Attributes:
        graph: the network.
        tensors: as it was given.
        x: calibration examples.
        worth: sensitivity of the outputs of every layer, by its index.
        exponents: of the steps that were found last, by layer; where the next search begins.
    """

    graph: Graph
    tensors: dict[str, Tensor]
    x: Tensor
    worth: dict[int, Sensitivity]
    exponents: dict[int, int] = field(default_factory=dict)

    @torch.no_grad()
    def rounded(self, setting: Setting) -> Rounded:
        """Round every layer with weights, the first to the last, on what the rounded layers before it give it."""
        tensors, steps = dict(self.tensors), dict[str, float]()
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        places, finished = layouts(self.graph, shapes), self.graph.finished
        parts = list(self.x.split(CHUNK))
        now: dict[int, list[Tensor]] = {0: parts}
        before: dict[int, list[Tensor]] = {0: parts}
        for index, node in enumerate(self.graph.nodes[1:], 1):
            if is_weighted(node.op):
                name, (source,) = node.parameters["weight"], node.inputs
                found = moments(now[source], before[source], node, shapes[name])
                problem = problem_of(
                    self.tensors[name], found, self.worth[index], places[name], setting.price, setting.damping,
                    setting.descending,
                )  # fmt: skip
                codes, exponent = rounded_layer(problem, self.exponents.get(index))
                self.exponents[index], steps[name] = exponent, quarter_power(exponent)
                tensors[name] = torch.from_numpy(codes).float().view(shapes[name]) * steps[name]
            elif has_statistics(node.op):
                tensors |= _statistics(now[node.inputs[0]], node.parameters)
            for values, given in ((before, self.tensors), (now, tensors)):
                parameters = {role: given[name] for role, name in node.parameters.items()}
                shared = values is now and all(given[n] is self.tensors[n] for n in node.parameters.values())
                if shared and all(a is b for i in node.inputs for a, b in zip(now[i], before[i], strict=True)):
                    now[index] = before[index]
                    continue
                chunks = zip(*(values[i] for i in node.inputs), strict=True)
                values[index] = [run_node(node, list(inputs), parameters) for inputs in chunks]
            for i in finished[index]:
                del now[i], before[i]
        return Rounded(tensors, steps)


def _statistics(parts: list[Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Mean and variance by channel."""
    axes = [axis for axis in range(parts[0].dim()) if axis != 1]
    count = sum(part.numel() // part.shape[1] for part in parts)
    mean = sum((part.double().sum(axes) for part in parts), torch.zeros(())) / count
    shape = [-1 if axis == 1 else 1 for axis in range(parts[0].dim())]
    square = sum(((part.double() - mean.view(shape)).square().sum(axes) for part in parts), torch.zeros(())) / count
    return {names["running_mean"]: mean.float(), names["running_var"]: square.float()}


@dataclass(frozen=True)
class Compensation:
    """Rounding with compensation, in place of rounding to the nearest.

    Attributes:
        dampings: that are tried.
        orders: that are tried: columns by descending second moment, or as they lie.
        seed: draws the calibration examples and the labels for the sensitivity of outputs.
    """

    dampings: tuple[float, ...] = (0.1, 0.3, 0.03)
    orders: tuple[bool, ...] = (False, True)
    seed: int = 0


def compress_compensated(
    posterior: Posterior, splits: Splits, how: Compensation | None = None, goal: Goal | None = None,
    device: str = "cpu", watch: Watch | None = None,
) -> tuple[Compressed, float]:  # fmt: skip
    """Round a network's weights with compensation, at the highest price of a bit that reaches the goal.

    No label is looked at but those of the validation split, and nothing is trained. The price is searched for by
    bisection on a logarithmic scale, for one damping and order of columns after the other; the smallest file among all
    candidates that reach the target is taken, with a bound on the bytes the one of the lowest validation NLL.

    Args:
        posterior: the network: its means.
        splits: inputs of `train` calibrate; `validation` chooses.
        how: what is tried.
        goal: what to reach; a sparsity is none.
        device: where candidates are evaluated; rounding runs on the CPU.
        watch: told of progress and candidates.

    Returns:
        The network as it goes into the file, and the share of its weights that became 0.

    Raises:
        ValueError: a goal that names a sparsity, or that no candidate reaches.
    """
    how, goal, watch = how or Compensation(), goal or Goal(), watch or Watch()
    if goal.sparsity is not None:
        raise ValueError("a sparsity is reached by pruning; rounding with compensation takes a tolerance or a size")
    search = _Search(posterior, splits, goal, device, watch)
    search.calibrate(how.seed)
    settings = [(damping, order) for order in how.orders for damping in how.dampings]
    for done, (damping, order) in enumerate(settings, 1):
        search.bisect(damping, order)
        watch.trial(done, len(settings))
    return search.finished()


class _Search:
    """Candidates at many prices, and the best so far."""

    def __init__(self, posterior: Posterior, splits: Splits, goal: Goal, device: str, watch: Watch):
        self.posterior, self.splits, self.goal, self.device, self.watch = posterior, splits, goal, device, watch
        self.target = target_of(posterior, splits, goal, device)
        self.best: tuple[float, Rounded, Quality, float] | None = None

    def calibrate(self, seed: int) -> None:
        """Draw examples, as many as fit into `VALUES`, and take the sensitivity of the outputs."""
        graph, tensors, x = self.posterior.graph, self.posterior.tensors, self.splits.train.x
        number = min(IMAGES, len(x), max(CHUNK, VALUES // most_values(graph, tensors, x[:2])))
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:number]
        gradient = drawn_of(self.posterior.task, self.posterior.noise)
        chosen = x[rows]
        self.network = Calibrated(graph, tensors, chosen, sensitivities(graph, tensors, chosen, gradient, seed))

    def candidate(self, rounded: Rounded, levels: int) -> Compressed:
        """The network as a file holds it."""
        graph, small = shrink(self.posterior.graph, dict(rounded.tensors))
        held = packed(graph, small, rounded.steps, levels)
        told = origin_of(self.posterior, self.splits, "magnitude")
        return Compressed(graph, held, told, before_folding(graph, small))

    def scores_of(self, network: Compressed) -> Quality:
        return evaluate(to_module(network).to(self.device), self.splits, "validation", self.device, network.noise)

    def look(self, setting: Setting) -> bool:
        """Whether a setting reaches the goal (and with a bound on the bytes, whether it fits)."""
        rounded = self.network.rounded(setting)
        network = self.candidate(rounded, BIAS_LEVELS[0])
        size, scored = len(file.dumps(network)[0]), self.scores_of(network)
        zeros = removed_share({name: rounded.tensors[name] != 0 for name in self.posterior.layers})
        if self.watch.candidate is not None:
            self.watch.candidate(Trial(zeros, 0.0, setting.price, size, scored.error, scored.nll_nats))
        bounded = self.goal.max_bytes is not None
        good = size <= self.goal.max_bytes if self.goal.max_bytes is not None else self.target.reached(scored)
        worth = scored.nll_nats if bounded else size
        if good and (self.best is None or worth < self.best[0]):
            self.best = worth, rounded, scored, math.log(setting.price)
        return good

    def bisect(self, damping: float, descending: bool) -> None:
        """Look for the border between prices that reach the goal and those that do not."""
        low, high = (math.log(price) for price in PRICES)
        steps = STEPS
        if self.best is not None:
            best = self.best[3]
            low, high, steps = best - NEAR, best + NEAR, NEAR_STEPS
        for _ in range(steps):
            middle = (low + high) / 2
            good = self.look(Setting(math.exp(middle), damping, descending))
            if good == (self.goal.max_bytes is None):
                low = middle
            else:
                high = middle

    def finished(self) -> tuple[Compressed, float]:
        """The best candidate, its biases as coarse as the target allows."""
        if self.best is None:
            wanted = f"fits into {self.goal.max_bytes} bytes" if self.goal.max_bytes else f"reaches {self.target}"
            raise ValueError(f"no candidate {wanted}; allow more, or fine-tune with --finetune")
        _, rounded, scored, _ = self.best
        target = self.target
        if self.goal.max_bytes is not None:
            target = Target(scored, PRECISION_TOLERANCE, NLL_PER_ACCURACY * PRECISION_TOLERANCE)
        best = self.candidate(rounded, BIAS_LEVELS[0])
        for levels in BIAS_LEVELS[1:]:
            coarser = self.candidate(rounded, levels)
            if not target.reached(self.scores_of(coarser)):
                break
            best = coarser
        return best, removed_share({name: rounded.tensors[name] != 0 for name in self.posterior.layers})
