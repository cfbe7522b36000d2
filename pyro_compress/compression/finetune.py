"""Rate-aware fine-tuning: the surviving means, trained on as the integers that the file will hold.

First a masked fine-tune of the means that pruning left, then training through rounding (straight-through, Bengio et al.
2013) with the loss `cross entropy + rate · ln 2 / N · bits`, where `bits` is what the coder is about to spend
(`rate.py`). Units that die on the way are removed. Optionally the logits of a teacher are matched (Hinton et al. 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.compression.layout import layouts
from pyro_compress.compression.precision import snapped
from pyro_compress.compression.rate import Rate
from pyro_compress.compression.shrink import Shrunk, trace_shrink
from pyro_compress.data.augment import AUGMENTATIONS, check_images
from pyro_compress.data.tasks import TASKS
from pyro_compress.networks.graph import WEIGHTED, batch_statistics, run_graph
from pyro_compress.types import Data, Graph, Masks, Posterior, Quantized


@dataclass(frozen=True)
class FineTune:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training set through rounding.
        masked_epochs: passes before, on the masked means in float32.
        rate: price of a bit in nats of the training set's log-likelihood, over ln 2; 1 is the description length.
        ramp: share of the epochs over which the price rises to `rate`.
        step: step of the weights, in units of the root mean square of what the mask kept in a layer.
        bias_step: step of the biases, as a power of two.
        noise: standard deviation of Gaussian noise on the surviving weights while training, in units of the step: they
            are to be as insensitive as their precision says (Hinton & van Camp 1993).
        batch_size: examples per step.
        lr: Adam's learning rate; falls linearly to 0 in both stages.
        teacher_weight: share of the loss that is the teacher's.
        temperature: of the softmax under which teacher and network are compared.
        augment: name in `AUGMENTATIONS`, or `none`: how training images are changed every time they are seen.
        seed: shuffles.
    """

    epochs: int = 30
    masked_epochs: int = 2
    rate: float = 1.0
    ramp: float = 0.3
    step: float = 1.0
    bias_step: float = 0.125
    noise: float = 0.0
    batch_size: int = 256
    lr: float = 3e-3
    teacher_weight: float = 0.7
    temperature: float = 2.0
    augment: str = "none"
    seed: int = 0


OnEpoch = Callable[[int, int, int], None]
"""(epoch, epochs, non-zero values)."""
Teach = Callable[[Tensor], Tensor]
"""Inputs -> a teacher's logits."""


def finetune(
    posterior: Posterior, masks: Masks, train: Data, how: FineTune,
    teacher: Teach | None = None, on_epoch: OnEpoch = lambda epoch, epochs, kept: None,
) -> tuple[Graph, dict[str, Quantized | np.ndarray]]:  # fmt: skip
    """Fine-tune what the masks keep of the posterior mean, as integers.

    Args:
        posterior: the waist.
        masks: weights to keep.
        train: training examples; nothing else is looked at.
        how: the recipe.
        teacher: whose logits are matched; None trains on the labels alone.
        on_epoch: called after every epoch.

    Returns:
        The smaller network and its tensors; weights and biases quantised, everything else float32.

    Raises:
        ValueError: the loss is not finite.
    """
    tensors = {name: torch.where(masks[name], layer.mean, 0.0) for name, layer in posterior.layers.items()}
    tensors |= posterior.dense
    work = _Work(posterior.graph, tensors | batch_statistics(posterior.graph, tensors, train.x), how)
    loss, noise = TASKS[posterior.task].loss, posterior.noise or 1.0
    work.loss = lambda outputs, y: loss(outputs, y, noise)
    read = _reader(train, teacher, how, work.generator)
    total = how.masked_epochs + how.epochs
    for epoch in range(total):
        if epoch == how.masked_epochs:
            work.choose_steps()
        stage = how.epochs if work.steps else how.masked_epochs
        done = epoch - (how.masked_epochs if work.steps else 0)
        order = torch.randperm(len(train), generator=work.generator)
        batches = order.split(how.batch_size)
        for index, rows in enumerate(batches):
            progress = (done + index / len(batches)) / stage
            work.train(*read(rows), progress, len(train))
        work.drop_dead_units()
        on_epoch(epoch + 1, total, work.kept())
    if not work.steps:
        work.choose_steps()
        work.drop_dead_units()
    return work.graph, work.packed()


def _reader(
    train: Data, teacher: Teach | None, how: FineTune, generator: torch.Generator
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]:
    """Rows -> (inputs, targets, teacher's logits); a teacher sees what the network sees, changed images too."""
    augment = AUGMENTATIONS.get(how.augment)
    check_images(augment, train)
    if augment is None:
        logits = teacher(train.x) if teacher else None
        return lambda rows: (train.x[rows], train.y[rows], None if logits is None else logits[rows])

    def changed(rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x = augment(train.x[rows], generator)
        return x, train.y[rows], teacher(x) if teacher else None

    return changed


class _Work:
    """The network while it is trained; of a masked weight only the survivors are stored.

    Attributes:
        graph: its operations; units disappear.
        shapes: shape of every tensor.
        places: weight name -> flat indices of its survivors.
        free: tensor name -> float32 values before rounding, of a weight those of its survivors.
        steps: step of every quantised tensor; empty during the first stage.
    """

    def __init__(self, graph: Graph, tensors: dict[str, Tensor], how: FineTune):
        self.how, self.steps = how, dict[str, float]()
        self.loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
        self.generator = torch.Generator().manual_seed(how.seed)
        weights = {n.parameters["weight"] for n in graph.nodes if n.op in WEIGHTED}
        self.optimizer: torch.optim.Adam | None = None
        self.hold(graph, {name: tensor.detach().clone() for name, tensor in tensors.items()}, weights)
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
        """One step of Adam."""
        assert self.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = self.how.lr * (1 - progress)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)  # pools several times as fast on a CPU
        logits = run_graph(self.graph, self.full(self.noisy()), x)
        loss = self.loss(logits, y)
        if teacher is not None:
            loss = distilled(loss, logits, teacher, self.how.teacher_weight, self.how.temperature)
        if self.steps and self.how.rate:
            price = self.how.rate * min(1.0, progress / max(self.how.ramp, 1e-9))
            loss = loss + price * math.log(2) / examples * self.bits()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def rounded(self) -> dict[str, Tensor]:
        """Multiples of the steps, with a gradient that passes straight through."""
        found = dict(self.free)
        for name, step in self.steps.items():
            found[name] = found[name] + (torch.round(found[name] / step) * step - found[name]).detach()
        return found

    def noisy(self) -> dict[str, Tensor]:
        """What a training step computes with: rounded values, and noise on the weights."""
        found = self.rounded()
        if self.how.noise:
            for name in self.places.keys() & self.steps.keys():
                drawn = torch.randn(found[name].shape, generator=self.generator)
                found[name] = found[name] + self.how.noise * self.steps[name] * drawn
        return found

    def bits(self) -> Tensor:
        """What the coder will spend on the survivors, differentiable."""
        return torch.stack([rate(self.free[name] / self.steps[name]) for name, rate in self.rates.items()]).sum()

    # --- structure

    @torch.no_grad()
    def drop_dead_units(self) -> None:
        """Remove units that nobody hears any more; Adam keeps its memory of the others."""
        before, latent = self.full(self.rounded()), self.full(self.free)
        small = trace_shrink(self.graph, before)
        memory = [self.full(part) for part in self._memory()]
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
        self._start([{name: _cut(t, small, name) for name, t in part.items() if name in tensors} for part in memory])

    def _memory(self) -> list[dict[str, Tensor]]:
        """Adam's two moments of every tensor that has them."""
        if self.optimizer is None or not self.optimizer.state:
            return []
        state = {name: self.optimizer.state[t] for name, t in self.free.items() if t in self.optimizer.state}
        self.count = next(iter(state.values()))["step"].clone()
        return [{name: one[key] for name, one in state.items()} for key in ("exp_avg", "exp_avg_sq")]

    def _start(self, memory: list[dict[str, Tensor]]) -> None:
        """An optimizer and prices for the tensors as they are now."""
        trained = [t for name, t in self.free.items() if not name.rpartition(".")[2].startswith("running_")]
        self.optimizer = torch.optim.Adam([t.requires_grad_() for t in trained], self.how.lr, fused=True)
        for name in memory[0] if memory else ():
            first, second = (part[name] for part in memory)
            if name in self.places:
                first, second = first.flatten()[self.places[name]], second.flatten()[self.places[name]]
            self.optimizer.state[self.free[name]] = {
                "step": self.count.clone(), "exp_avg": first.clone(), "exp_avg_sq": second.clone(),
            }  # fmt: skip
        found = layouts(self.graph, self.shapes)
        self.rates = {name: Rate(found[name], self.places.get(name)) for name in self.steps if name in found}

    # --- precision

    @torch.no_grad()
    def choose_steps(self) -> None:
        """Steps from powers of 2^(-1/4): of weights by their size in the layer, of biases by the recipe."""
        for node in self.graph.nodes:
            if node.op in WEIGHTED:
                weight = self.free[node.parameters["weight"]]
                size = float(weight.square().mean().sqrt()) if len(weight) else 1.0
                self.steps[node.parameters["weight"]] = snapped(self.how.step * size)
                if "bias" in node.parameters:
                    self.steps[node.parameters["bias"]] = snapped(self.how.bias_step)
        self._start([])

    @torch.no_grad()
    def kept(self) -> int:
        """Non-zero values."""
        return sum(int((tensor != 0).sum()) for tensor in self.rounded().values())

    @torch.no_grad()
    def packed(self) -> dict[str, Quantized | np.ndarray]:
        """The tensors as the file holds them."""
        found: dict[str, Quantized | np.ndarray] = {}
        for name, tensor in self.full(self.free).items():
            if name in self.steps:
                codes = torch.round(tensor / self.steps[name]).to(torch.int32).numpy()
                found[name] = Quantized(codes, self.steps[name])
            else:
                found[name] = tensor.detach().numpy()
        return found


def _cut(tensor: Tensor, small: Shrunk, name: str) -> Tensor:
    part = tensor[small.rows[name]]
    return part[:, small.columns[name]] if name in small.columns else part


def distilled(loss: Tensor, logits: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """Mix a loss with the divergence from a teacher at a temperature (Hinton et al. 2015, section 2)."""
    ours, theirs = F.log_softmax(logits / temperature, 1), F.log_softmax(teacher / temperature, 1)
    divergence = F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    return (1 - weight) * loss + weight * temperature**2 * divergence
