"""A network while it is fine-tuned: what pruning left of it, its rounding, its units and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.compression.code_length import CodeLength
from pyro_compress.compression.packing import packed
from pyro_compress.compression.precision import snapped
from pyro_compress.compression.shrink import Shrunk, trace_shrink
from pyro_compress.graph.ir import convolves, multiplied
from pyro_compress.graph.network import fixed_of, run_graph
from pyro_compress.graph.operations.table import is_weighted
from pyro_compress.machine import channels_last
from pyro_compress.pcn.layout import layouts
from pyro_compress.settings import FineTune
from pyro_compress.types import Graph, Quantized

SPREAD_RATE = 10.0
"""Learning rate of the logarithms of spreads, relative to that of the weights: an e-th of a spread is what a tenth of
a step is to a weight."""


class QuantizationAware:
    """The network while it is trained; of a masked weight only the survivors are stored.

    Attributes:
        graph: its operations; units disappear.
        shapes: shape of every tensor.
        places: weight name -> flat indices of its survivors.
        free: tensor name -> float32 values before rounding, of a weight those of its survivors.
        log_spread: weight name -> logarithms of its survivors' posterior standard deviations; empty without `svi`.
        steps: step of every quantised tensor; empty during the first stage.
        convolved: whether a convolution reads the images.
    """

    def __init__(self, graph: Graph, tensors: dict[str, Tensor], how: FineTune, spreads: dict[str, Tensor]):
        self.how, self.steps, self.convolved = how, dict[str, float](), convolves(graph)
        self.loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
        self.generator = torch.Generator().manual_seed(how.seed)
        weights = {name for name in multiplied(graph) if tensors[name].dim() > 1}
        self.optimizer: torch.optim.Adam | None = None
        self.hold(graph, {name: tensor.detach().clone() for name, tensor in tensors.items()}, weights)
        self.log_spread = {
            name: std.log().flatten()[self.places[name]] for name, std in spreads.items() if name in weights
        }
        self.drop_dead_units()

    def hold(self, graph: Graph, tensors: dict[str, Tensor], weights: set[str]) -> None:
        """Take over full tensors; what is zero in a weight is gone for good."""
        self.graph = graph
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.places = {name: tensors[name].flatten().nonzero().flatten() for name in weights}
        self.free = {
            name: tensor.flatten()[self.places[name]] if name in self.places else tensor.clone()
            for name, tensor in tensors.items()
        }

    def full(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Full tensors from those of survivors."""
        found = dict(parts)
        for name in parts.keys() & self.places.keys():
            shape = self.shapes[name]
            spread = torch.zeros(math.prod(shape)).scatter(0, self.places[name], parts[name])
            found[name] = spread.view(shape)
        return found

    # --- training

    def train(self, x: Tensor, y: Tensor, teacher: Tensor | None, progress: float, examples: int) -> None:
        """One step of Adam.

        Raises:
            ValueError: the loss is no finite number any more.
        """
        assert self.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * self.how.lr * (1 - progress)
        x, drawn = channels_last(x) if self.convolved else x, self.noisy()
        loss = self.lost(self.worst_nearby(drawn, x, y, teacher) if self.how.sam_rho else drawn, x, y, teacher)
        if not math.isfinite(loss.item()):
            given = {name: getattr(self.how, name) for name in ("lr", "noise", "sam_rho")}
            smaller = " or ".join(f"{name} than {value:g}" for name, value in given.items() if value)
            raise ValueError(f"fine-tuning diverged: its loss is {loss.item():g}; choose a smaller {smaller}")
        if self.steps and self.how.lam:
            lam = self.how.lam * min(1.0, progress / max(self.how.ramp, 1e-9))
            loss = loss + lam / examples * (math.log(2) * self.bits(drawn) - self.log_spreads())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.bound_spreads()

    def lost(self, values: dict[str, Tensor], x: Tensor, y: Tensor, teacher: Tensor | None) -> Tensor:
        """Loss of the network with these values, without its bits."""
        logits = run_graph(self.graph, self.full(values), x)
        loss = self.loss(logits, y)
        if teacher is None:
            return loss
        return distilled(loss, logits, teacher, self.how.teacher_weight, self.how.temperature)

    def worst_nearby(
        self, values: dict[str, Tensor], x: Tensor, y: Tensor, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        """The values, with the surviving weights moved by `sam_rho` up the gradient of the loss.

        Foret et al. 2021, eq. 2: `rho g / |g|`; what it was computed from gets no gradient.
        """
        leaves = {name: value.detach().requires_grad_(name in self.places) for name, value in values.items()}
        weights = list(self.places)
        gradients = torch.autograd.grad(self.lost(leaves, x, y, teacher), [leaves[name] for name in weights])
        length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().clamp_min(1e-12)
        moved = {name: values[name] + self.how.sam_rho / length * g for name, g in zip(weights, gradients, strict=True)}
        return values | moved

    def rounded(self) -> dict[str, Tensor]:
        """Multiples of the steps, with a gradient that passes straight through."""
        found = dict(self.free)
        for name, step in self.steps.items():
            found[name] = found[name] + (torch.round(found[name] / step) * step - found[name]).detach()
        return found

    def noisy(self) -> dict[str, Tensor]:
        """What a training step computes with: rounded values, and noise on the weights."""
        found = self.rounded()
        if not (self.how.noise or self.log_spread):
            return found
        for name, step in self.steps.items():  # in this order in every process: the draws depend on it
            if name in self.places:
                spread = self.log_spread[name].exp() if name in self.log_spread else self.how.noise * step
                found[name] = found[name] + spread * torch.randn(found[name].shape, generator=self.generator)
        return found

    def bits(self, drawn: dict[str, Tensor]) -> Tensor:
        """What the coder will spend on the survivors, or would on draws from their posteriors; differentiable."""
        found = []
        for name, code_length in self.code_lengths.items():
            around = drawn[name] / self.steps[name] if name in self.log_spread else None
            found.append(code_length(self.free[name] / self.steps[name], around))
        return torch.stack(found).sum()

    def log_spreads(self) -> Tensor:
        """Entropy of the survivors' posteriors in nats, up to a constant."""
        return sum((spread.sum() for spread in self.log_spread.values()), torch.zeros(()))

    @torch.no_grad()
    def bound_spreads(self) -> None:
        """No spread is larger than a step."""
        for name in self.log_spread.keys() & self.steps.keys():
            self.log_spread[name].clamp_(max=math.log(self.steps[name]))

    # --- structure

    @torch.no_grad()
    def drop_dead_units(self) -> None:
        """Remove units that nobody hears any more; Adam keeps its memory of the others."""
        before, latent = self.full(self.rounded()), self.full(self.free)
        small = trace_shrink(self.graph, before)
        spread, *memory = [self.full(part) for part in (self.log_spread, *self._memory())]
        tensors = {}
        for name, new in small.tensors.items():
            if name not in latent:
                tensors[name] = new.clone()  # a bias that folding made
            elif name in self.places:
                tensors[name] = _cut(latent[name], small, name)
            else:
                tensors[name] = _cut(latent[name], small, name) + new - _cut(before[name], small, name)
        self.hold(small.graph, tensors, self.places.keys() & tensors.keys())
        self.steps = {name: step for name, step in self.steps.items() if name in tensors}
        left = [self._left({name: _cut(t, small, name) for name, t in part.items() if name in tensors})
                for part in (spread, *memory)]  # fmt: skip
        self.log_spread = left[0]
        self._start(left[1:])

    def _left(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of full tensors like those held, the values that are."""
        return {name: t.flatten()[self.places[name]] if name in self.places else t for name, t in tensors.items()}

    def _memory(self) -> list[dict[str, Tensor]]:
        """Adam's two moments of every tensor that has them, then those of every spread."""
        if self.optimizer is None or not self.optimizer.state:
            return []
        found = []
        for tensors in (self.free, self.log_spread):
            state = {name: self.optimizer.state[t] for name, t in tensors.items() if t in self.optimizer.state}
            found += [{name: one[key] for name, one in state.items()} for key in ("exp_avg", "exp_avg_sq")]
        self.count = next(iter(self.optimizer.state.values()))["step"].clone()
        return found

    def _start(self, memory: list[dict[str, Tensor]]) -> None:
        """An optimizer and code lengths for the tensors as they are now."""
        statistics = fixed_of(self.graph)
        trained = [t for name, t in self.free.items() if name not in statistics]
        spreads = list(self.log_spread.values()) if self.steps else []
        groups = [(trained, 1.0), (spreads, SPREAD_RATE)]
        self.optimizer = torch.optim.Adam(
            [{"params": [t.requires_grad_() for t in part], "rate": rate} for part, rate in groups],
            self.how.lr,
            fused=True,
        )
        for tensors, moments in ((self.free, memory[:2]), (self.log_spread, memory[2:])):
            for name in moments[0] if moments else ():
                first, second = (part[name].clone() for part in moments)
                self.optimizer.state[tensors[name]] = {
                    "step": self.count.clone(), "exp_avg": first, "exp_avg_sq": second,
                }  # fmt: skip
        found = layouts(self.graph, self.shapes)
        self.code_lengths = {
            name: CodeLength(found[name], self.places.get(name)) for name in self.steps if name in found
        }

    # --- precision

    @torch.no_grad()
    def choose_steps(self) -> None:
        """Steps from powers of 2^(-1/4): of weights by their size in the layer, of biases by the recipe."""
        layers = {node.parameters["weight"]: node for node in self.graph.nodes if is_weighted(node.op)}
        for name in multiplied(self.graph):
            if name in self.places:
                weight = self.free[name]
                size = float(weight.square().mean().sqrt()) if len(weight) else 1.0
                self.steps[name] = snapped(self.how.step * size)
            if name in layers and "bias" in layers[name].parameters:
                self.steps[layers[name].parameters["bias"]] = snapped(self.how.bias_step)
        self.bound_spreads()
        self._start([])

    @torch.no_grad()
    def kept(self) -> int:
        """Non-zero values."""
        return sum(int((tensor != 0).sum()) for tensor in self.rounded().values())

    @torch.no_grad()
    def unfolded(self) -> dict[str, Tensor]:
        """The tensors, those with a step rounded."""
        return self.full({name: t.detach() for name, t in self.rounded().items()})

    def packed(self) -> dict[str, Quantized | np.ndarray]:
        """The tensors as the file holds them."""
        return packed(self.graph, self.unfolded(), self.steps)


def _cut(tensor: Tensor, small: Shrunk, name: str) -> Tensor:
    part = tensor[small.rows[name]] if name in small.rows else tensor
    return part[:, small.columns[name]] if name in small.columns else part


def distilled(loss: Tensor, logits: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """Mix a loss with the divergence from a teacher at a temperature (Hinton et al. 2015, section 2)."""
    ours, theirs = F.log_softmax(logits / temperature, 1), F.log_softmax(teacher / temperature, 1)
    divergence = F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    return (1 - weight) * loss + weight * temperature**2 * divergence
