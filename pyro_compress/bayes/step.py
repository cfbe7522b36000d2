"""One step on the objective, as Pyro and torch run it: the reference for the captured one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_compress.bayes.assignment import Assignment, Pace
from pyro_compress.bayes.elbo import Objective
from pyro_compress.bayes.guides import MeanField
from pyro_compress.bayes.model import LOG_NOISE_BOUNDS
from pyro_compress.bayes.natural import Natural, Rates, natural_step
from pyro_compress.bayes.shards import Rows

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's."""
MEANS, SPREADS = "guide.loc.", "guide.log_scale."
"""What names of a mean-field guide's parameters begin with."""

Step = Callable[[Tensor, Tensor, float, float], Tensor]
"""(x, y, KL weight, factor on all rates) -> the expected log-likelihood of the training set in nats, as this minibatch
has it; the next step may overwrite the tensor."""


@dataclass(frozen=True)
class Trained:
    """One parameter, how fast it moves, and where it must stay.

    Attributes:
        name: its name in the ELBO module.
        parameter: the parameter.
        rate: Adam's base learning rate.
        bounds: (low, high) that it is put back into after every step; None for none.
        natural: rates of means and log-scales that move by natural gradients; None: Adam moves it.
        rows: which rows of a split tensor it is; None: a tensor of its own.
    """

    name: str
    parameter: nn.Parameter
    rate: float
    bounds: tuple[float, float] | None
    natural: Natural | None = None
    rows: Rows | None = None


@dataclass(frozen=True)
class Rule:
    """How a minibatch becomes one gradient.

    Attributes:
        clip_norm: the gradient of all parameters together is scaled down to this norm; 0 for never.
        accumulate: parts that a minibatch is worked off in, to save memory; each draws its own noise.
        combine: replaces gradients of this process's part of a minibatch by those of the whole; None: it is the whole.
    """

    clip_norm: float = 0.0
    accumulate: int = 1
    combine: Callable[[Sequence[Tensor]], None] | None = None

    def parts(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """The parts of a minibatch, each with its share of it."""
        for part_x, part_y in zip(x.chunk(self.accumulate), y.chunk(self.accumulate), strict=True):
            yield part_x, part_y, len(part_y) / len(y)


@dataclass
class State:
    """What a step reads and updates in place.

    Attributes:
        parameters: values of the parameters.
        first: first moments of the gradients; empty for log-scales that move by natural gradients.
        second: Adam's second moments; empty for what moves by natural gradients.
        buffers: batch-norm statistics and the like, frozen parameters.
        noted: the expected log-likelihood of the training set in the last captured step, in nats.
        count: steps done.
        rows: of every parameter, which rows of a split tensor it is.
    """

    parameters: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    buffers: list[Tensor]
    noted: Tensor
    count: int = 0
    rows: Sequence[Rows | None] = ()

    @classmethod
    def of(cls, objective: Objective, trained: list[Trained]) -> State:
        """The state before the first step."""
        values = [t.parameter.data for t in trained]
        pairs, none = natural_pairs(trained), values[0].new_zeros(0)
        first, second = ([torch.zeros_like(value) for value in values] for _ in range(2))
        for mean, spread in pairs:
            first[spread] = second[mean] = second[spread] = none
        buffers, noted = list(standing(objective).values()), torch.zeros((), device=values[0].device)
        return cls(values, first, second, buffers, noted, rows=[t.rows for t in trained])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Puts every tensor and the random number generator back on leaving, also after an error (kept by the host)."""
        tensors = [*self.parameters, *self.first, *self.second, *self.buffers]
        saved = [torch.empty_like(tensor, device="cpu").copy_(tensor) for tensor in tensors]
        try:
            with torch.random.fork_rng():
                yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(tensors, saved, strict=True):
                    tensor.copy_(before)

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the count, by name; of split tensors this process's rows."""
        lists = {"parameter": self.parameters, "first": self.first, "second": self.second, "buffer": self.buffers}
        return {f"{kind}/{i}": tensor for kind, tensors in lists.items() for i, tensor in enumerate(tensors)}

    def split(self) -> dict[str, Rows]:
        """Which rows of which split tensors these are, by name."""
        named = {f"{kind}/{i}": rows for kind in ("parameter", "first", "second") for i, rows in enumerate(self.rows)}
        tensors = self.tensors()
        return {name: rows for name, rows in named.items() if rows and tensors[name].numel()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Go on where `tensors`, which are whole, and `count` were taken."""
        split = self.split()
        for name, tensor in self.tensors().items():
            tensor.copy_(split[name].of(tensors[name]) if name in split else tensors[name])
        self.count = count


def standing(objective: Objective) -> dict[str, Tensor]:
    """Tensors that no gradient moves, by name: frozen parameters, batch-norm statistics and the like."""
    frozen = {name: one.data for name, one in objective.elbo.named_parameters() if not one.requires_grad}
    return frozen | dict(objective.elbo.named_buffers())


def natural_of(trained: Sequence[Trained]) -> Natural | None:
    """The rates of natural gradients; None: Adam moves everything."""
    return next((t.natural for t in trained if t.natural), None)


def natural_pairs(trained: Sequence[Trained]) -> list[tuple[int, int]]:
    """Places of the means that move by natural gradients, each with the place of its log-scales."""
    places = {t.name: place for place, t in enumerate(trained) if t.natural}
    means = [name for name in places if name.startswith(MEANS)]
    return [(places[name], places[name.replace(MEANS, SPREADS, 1)]) for name in means]


def move_naturally(
    trained: Sequence[Trained], values: Sequence[Tensor], first: Sequence[Tensor], gradients: Sequence[Tensor],
    rates: Rates,
) -> None:  # fmt: skip
    """Move in place what moves by natural gradients; of all parameters, first moments and gradients."""
    for mean, spread in natural_pairs(trained):
        natural, bounds, given = trained[mean].natural, trained[spread].bounds, (gradients[mean], gradients[spread])
        assert natural
        assert bounds
        natural_step(values[mean], values[spread], first[mean], given, rates, natural.beta1, bounds)


def trained_parameters(
    objective: Objective, lr: float, lr_scale: float, lr_group: float, priors: Assignment | None = None,
    natural: Natural | None = None,
) -> list[Trained]:  # fmt: skip
    """Every parameter of model and guide that is not frozen, each once, with its rate and bounds.

    Args:
        objective: model and guide.
        lr: learning rate of raw weights and of everything deterministic.
        lr_scale: of log-scales.
        lr_group: of group scales.
        priors: whose recipes move some tensors faster than others; None: all move alike.
        natural: moves means and log-scales of raw weights; None: Adam does.
    """
    guide = objective.elbo.guide
    rates = {id(p): group["lr"] for group in guide.groups(lr, lr_scale, lr_group) for p in group["params"]}
    if priors is not None and isinstance(guide, MeanField):
        for site in guide.families:
            for parameter, pace in guide.paced(site, priors.pace(site.rpartition(".")[0])):
                rates[id(parameter)] *= pace
    bounds = {id(p): pair for p, pair in guide.bounds()}
    if (log_noise := objective.elbo.model.likelihood.log_noise) is not None:
        rates[id(log_noise)], bounds[id(log_noise)] = lr_scale, LOG_NOISE_BOUNDS
    moving: dict[int, Natural] = {}
    if natural and isinstance(guide, MeanField):
        raw = [parameter for site in guide.raw_sites for parameter, _ in guide.paced(site, Pace())]
        moving = {id(parameter): natural for parameter in raw}
    split = guide.split_parameters() if isinstance(guide, MeanField) else {}
    return [
        Trained(name, p, rates.get(id(p), lr), bounds.get(id(p)), moving.get(id(p)), split.get(id(p)))
        for name, p in objective.elbo.named_parameters()
        if p.requires_grad
    ]


def eager(objective: Objective, trained: list[Trained], rule: Rule, state: State) -> Step:
    """The step as Pyro and torch run it, on the moments of `state`."""
    parameters = [t.parameter for t in trained]
    natural, adam = natural_of(trained), _adam(trained, state)

    def step(x: Tensor, y: Tensor, kl_weight: float, factor: float) -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        noted = torch.zeros((), device=x.device)
        for part_x, part_y, share in rule.parts(x, y):
            loss, log_likelihood = objective(part_x, part_y, kl_weight)
            (loss * share).backward()
            noted = noted + share * log_likelihood
        if rule.combine:
            rule.combine([parameter.grad for parameter in parameters if parameter.grad is not None])
        if rule.clip_norm:
            nn.utils.clip_grad_norm_(parameters, rule.clip_norm)
        adam(factor)
        state.count += 1
        with torch.no_grad():
            if natural:
                gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
                move_naturally(trained, state.parameters, state.first, gradients, natural.rates(state.count, factor))
            for t in trained:
                if t.bounds:
                    t.parameter.clamp_(*t.bounds)
        return noted

    return step


def _adam(trained: list[Trained], state: State) -> Callable[[float], object]:
    """Torch's step on all that has no natural gradients, called with the factor on the rates."""
    places = [place for place, t in enumerate(trained) if t.natural is None]
    if not places:
        return lambda factor: None
    groups = [{"params": [trained[place].parameter], "lr": trained[place].rate} for place in places]
    optimizer = torch.optim.Adam(groups, betas=(BETA1, BETA2), eps=EPSILON, fused=True)
    for place in places:
        done = torch.tensor(float(state.count), device=state.first[place].device)
        moments = {"step": done, "exp_avg": state.first[place], "exp_avg_sq": state.second[place]}
        optimizer.state[trained[place].parameter] = moments

    def step(factor: float) -> None:
        for group, place in zip(optimizer.param_groups, places, strict=True):
            group["lr"] = trained[place].rate * factor
        optimizer.step()

    return step
