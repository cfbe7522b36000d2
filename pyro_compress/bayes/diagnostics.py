"""A fitted posterior as ArviZ sees posteriors: draws, densities, likelihoods and predictions, in named groups.

A variational posterior over the weights of a network has too many dimensions to store: the groups hold every layer
scale, group scales and weights up to a budget, the norm of every unit, and the likelihood of a seeded subset of the
*training* rows (LOO speaks of rows that were fitted). The same rows are taken from every fit of the same data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_compress.advance import advanced
from pyro_compress.bayes.marginals import Marginals, TensorDraw, draw, draw_prior, drawn_network, kl_by_tensor
from pyro_compress.compression.prune import unit_scores
from pyro_compress.data.several import task_named
from pyro_compress.graph.network import Network
from pyro_compress.types import Data, Groups, LayerShape, Posterior

ROW_SEED = 0
"""Seed of the training rows and of the weights that are stored: the same in every run."""
FILE_BYTES = 4_400_000
"""What draws and likelihoods may take of a file of 5 MB; names of elements and the format's own bytes are the rest."""
ROW_BYTES = 12
"""Of one row's likelihood and prediction in one draw."""


LEAST_SPREAD = 1e-6
"""Nats: a row whose log-likelihood varies less over the draws is certain."""


AUTO = 0
"""As many draws as go with the size of the network."""
LARGE = 5_000_000
"""Values of a network from which eighty draws, and twenty from the prior, have to do."""


@dataclass(frozen=True)
class Size:
    """How much is drawn.

    Attributes:
        draws: networks drawn from the posterior; `AUTO`: 200, of large networks 80 (and 20 from the prior).
        rows: training rows whose likelihood is stored.
        weights: weights stored per layer, at most; fewer where the budget of the file asks for it.
        prior_draws: draws from the prior.
    """

    draws: int = 200
    rows: int = 500
    weights: int = 1000
    prior_draws: int = 60


@dataclass(frozen=True)
class Diagnosis:
    """Draws and what follows from them.

    Attributes:
        groups: ready for `arviz_compat.inference_data`.
        log_ratios: log p(data, weights) - log q(weights) of every draw, in nats: what k-hat is computed from. Under
            an improper prior, and from a subset of the rows, it is known up to a constant only.
        ratio_rows: training rows that the target's likelihood was computed from, scaled up to all.
        kl_nats: KL(posterior ‖ prior) by tensor, in closed form, by quadrature, or the mean over the draws.
        kl_se_nats: standard errors of those that are means over the draws; of all others nothing is sampled.
    """

    groups: Groups
    log_ratios: np.ndarray
    ratio_rows: int
    kl_nats: dict[str, float]
    kl_se_nats: dict[str, float] = field(default_factory=dict)


def seeded_rows(data: Data, rows: int) -> Tensor:
    """Indices of at most `rows` rows, the same for every fit of the same data."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(ROW_SEED))
    return order[:rows].sort().values


def told_apart(log_likelihood: np.ndarray) -> np.ndarray:
    """Log-likelihoods `(1, draws, rows)` with a millionth of a nat of seeded noise on rows that are certain.

    A network that is sure of a row gives it log-likelihood 0 in every draw. All its importance weights are equal then,
    no tail can be fitted to them, and its Pareto k would be infinite: an alarm where there is nothing to fear.
    """
    certain = np.ptp(log_likelihood, axis=1)[0] < LEAST_SPREAD
    noise = np.random.default_rng(ROW_SEED).random((*log_likelihood.shape[:2], int(certain.sum())))
    adjusted = log_likelihood.copy()
    adjusted[..., certain] -= (LEAST_SPREAD * noise).astype(adjusted.dtype)
    return adjusted


@torch.no_grad()
def diagnose(
    posterior: Posterior, marginals: Marginals, train: Data, size: Size, seed: int = 0, all_rows: bool = False
) -> Diagnosis:
    """Draw networks from a posterior and note what diagnostics need.

    Args:
        posterior: graph, point-valued tensors, pruning criterion.
        marginals: the posterior's own parameters.
        train: the training split.
        size: how much is drawn.
        seed: seeds the draws.
        all_rows: compute the target's likelihood from every training row (exact, slow on large sets).
    """
    chosen = seeded_rows(train, size.rows)
    subset = Data(train.x[chosen], train.y[chosen])
    plan = {name: _Stored(shape, marginals, size) for name, shape in marginals.shapes.items() if len(shape.weight) > 1}
    collected = _Collected(plan, {"prior": size.prior_draws}, size.draws)
    ratio_rows = train if all_rows else subset
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for drawn in range(size.draws):
            _draw_once(collected, posterior, marginals, subset, (ratio_rows, len(train)))
            advanced("drawing networks", drawn + 1, size.draws)
        for _ in range(size.prior_draws):
            if not _draw_prior_once(collected, marginals):
                break
    values = collected.arrays()
    kl, errors = _kl(marginals, values["sample_stats"]["kl"][0])
    values["log_likelihood"]["y"] = told_apart(values["log_likelihood"]["y"])
    values["observed_data"] = {"y": subset.y.numpy()}
    values["constant_data"] = _constants(posterior, plan, kl, errors)
    attrs = {"rows_of_elbo": len(ratio_rows), "training_rows": len(train), "draw_seed": seed}
    groups = Groups(values, _dims(plan), _coords(plan, chosen, list(kl)), dict(posterior.provenance.entries) | attrs)
    return Diagnosis(groups, values["sample_stats"]["elbo"][0], len(ratio_rows), kl, errors)


def _kl(marginals: Marginals, drawn: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """KL by tensor, and the standard error of those that the draws `(draws, tensors)` tell."""
    kl, errors = dict[str, float](), dict[str, float]()
    for (name, exact), own in zip(kl_by_tensor(marginals).items(), drawn.T, strict=True):
        kl[name] = float(own.mean()) if exact is None else exact
        if exact is None:
            errors[name] = float(own.std(ddof=1)) / math.sqrt(len(own))
    return kl, errors


def _draw_once(
    collected: _Collected, posterior: Posterior, marginals: Marginals, rows: Data, target: tuple[Data, int]
) -> None:
    """One network: what it makes of the rows, its weights, its densities against the target's rows and their number."""
    drawn = draw(marginals)
    network = drawn_network(posterior, drawn)
    task, noise = task_named(posterior.task), posterior.noise
    outputs = _outputs(network, rows.x)
    likelihood = task.log_likelihood(outputs, rows.y, noise)
    collected.add("log_likelihood", "y", likelihood.double())  # float32 makes ArviZ lose rows that are nearly certain
    collected.add("posterior_predictive", "y", task.sample(outputs, noise))
    collected.draw("posterior", drawn)
    data, examples = target
    if data is not rows:
        likelihood = task.log_likelihood(_outputs(network, data.x), data.y, noise)
    _add_densities(collected, drawn, float(likelihood.sum()) * examples / len(data))


def _draw_prior_once(collected: _Collected, marginals: Marginals) -> bool:
    """One network of the prior, let go when its weights are noted; False if there is none."""
    if (drawn := draw_prior(marginals)) is None:
        return False
    collected.draw("prior", drawn)
    return True


def _outputs(network: Network, x: Tensor) -> Tensor:
    return torch.cat([network(part).double() for part in x.split(1000)])


def _add_densities(collected: _Collected, drawn: dict[str, TensorDraw], likelihood: float) -> None:
    """The ELBO's integrand at one draw, and its terms; their means over the draws estimate ELBO and KL."""
    log_prior = sum(d.log_prior for d in drawn.values())
    log_posterior = sum(d.log_posterior for d in drawn.values())
    terms = {
        "log_prior": log_prior,
        "log_posterior": log_posterior,
        "expected_log_likelihood": likelihood,
        "elbo": likelihood + log_prior - log_posterior,
    }
    for name, number in terms.items():
        collected.add("sample_stats", name, torch.tensor(number, dtype=torch.float64))
    kl = [d.log_posterior - d.log_prior for d in drawn.values()]
    collected.add("sample_stats", "kl", torch.tensor(kl, dtype=torch.float64))


class _Collected:
    """Draws by group and variable.

    Room for all draws of a variable is taken with its first: small tensors that are kept one by one come to lie between
    large ones that are let go, and hold their memory apart.

    Args:
        plan: what is stored of each tensor.
        draws: group -> how many there will be at most.
        otherwise: the same of groups that are not named there.
    """

    def __init__(self, plan: dict[str, _Stored], draws: dict[str, int], otherwise: int) -> None:
        self.plan, self.draws, self.otherwise = plan, draws, otherwise
        self.found: dict[str, dict[str, np.ndarray]] = {}
        self.counts: dict[tuple[str, str], int] = {}

    def add(self, group: str, name: str, value: Tensor) -> None:
        found, count = self.found.setdefault(group, {}), self.counts.get((group, name), 0)
        if name not in found:
            room = (self.draws.get(group, self.otherwise), *value.shape)
            found[name] = torch.empty(room, dtype=value.dtype).numpy()
        found[name][count], self.counts[group, name] = value.numpy(), count + 1

    def draw(self, group: str, drawn: dict[str, TensorDraw]) -> None:
        for name, stored in self.plan.items():
            for variable, value in stored.variables(drawn[name]):
                self.add(group, f"{name}.{variable}", value.float())

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Group -> variable -> `(1, draws, ...)`."""
        return {
            group: {name: values[None, : self.counts[group, name]] for name, values in variables.items()}
            for group, variables in self.found.items()
        }


class _Stored:
    """What is stored of one weight tensor: which elements, under which names."""

    def __init__(self, shape: LayerShape, marginals: Marginals, size: Size):
        most = most_stored([s for s in marginals.shapes.values() if len(s.weight) > 1], size)
        self.shape = shape
        self.units = _some(shape.weight[0], most)
        self.elements = _some(math.prod(shape.weight), most)
        self.gates = _some(math.prod(shape.gate), most)
        own = marginals.priors.of(shape.name)
        self.grouped = own is not None and own.factors is not None
        self.layer_sites = [site for site in marginals.of(shape.name) if site.startswith(f"{shape.name}.global_")]

    def variables(self, drawn: TensorDraw) -> Iterator[tuple[str, Tensor]]:
        """Variable -> value of one draw."""
        yield "element", drawn.value.flatten()[self.elements]
        yield "unit_norm", drawn.norms[self.units]
        if drawn.gate is not None:
            yield "group_scale", drawn.gate.flatten()[self.gates]
        if self.layer_sites:
            yield "layer_scale", torch.cat([drawn.sites[site].flatten().sqrt() for site in self.layer_sites]).prod()

    def names(self, index: Tensor, shape: tuple[int, ...]) -> list[str]:
        places = np.unravel_index(index.numpy(), shape)
        return [",".join(map(str, place)) for place in zip(*places, strict=True)]

    def group_names(self) -> list[Any]:
        """Input or output numbers; `out,in` for scales of single weights."""
        axis = {"input": 1, "output": 0}.get(self.shape.grouping)
        return self.gates.tolist() if axis is not None else self.names(self.gates, self.shape.gate)


def most_stored(shapes: Sequence[LayerShape], size: Size) -> int:
    """Most weights, group scales and units of one layer, of each kind, that keep the file under its limit.

    Who asks for so many draws and rows that their likelihoods pass it alone gets a larger file: half of it for these.
    """
    left = max(FILE_BYTES - ROW_BYTES * size.rows * size.draws, FILE_BYTES // 2)
    values = left // (4 * (size.draws + size.prior_draws))

    def taken(most: int) -> int:
        return sum(min(most, count) for s in shapes for count in (math.prod(s.weight), math.prod(s.gate), s.weight[0]))

    low, high = 1, size.weights
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if taken(middle) <= values else (low, middle - 1)
    return low


def _some(total: int, most: int) -> Tensor:
    """All indices, or `most` seeded ones in order."""
    if total <= most:
        return torch.arange(total)
    kind = torch.int32 if total < 1 << 31 else torch.int64  # the same order in half of the memory
    order = torch.randperm(total, generator=torch.Generator().manual_seed(ROW_SEED), dtype=kind)
    return order[:most].long().sort().values


def _constants(
    posterior: Posterior, plan: dict[str, _Stored], kl: dict[str, float], errors: dict[str, float]
) -> dict[str, np.ndarray]:
    """KL per tensor, and the pruning score of every output unit that is stored: that of its best weight."""
    values = {
        "kl_nats": np.array(list(kl.values())),
        "kl_se_nats": np.array([errors.get(name, 0.0) for name in kl]),
    }
    for name, stored in plan.items():
        layer = posterior.layers[name]
        values[f"{name}.unit_score"] = unit_scores(layer, posterior.criterion)[stored.units].numpy()
    return values


def _dims(plan: dict[str, _Stored]) -> dict[str, list[str]]:
    dims = {"y": ["row"], "kl": ["tensor"], "kl_nats": ["tensor"], "kl_se_nats": ["tensor"]}
    for name in plan:
        dims |= {
            f"{name}.element": [f"{name}.index"],
            f"{name}.unit_norm": [f"{name}.unit"],
            f"{name}.unit_score": [f"{name}.unit"],
            f"{name}.group_scale": [f"{name}.group"],
        }
    return dims


def _coords(plan: dict[str, _Stored], rows: Tensor, tensors: list[str]) -> dict[str, Any]:
    coords: dict[str, Any] = {"row": rows.numpy(), "tensor": tensors}
    for name, stored in plan.items():
        coords[f"{name}.index"] = stored.names(stored.elements, stored.shape.weight)
        coords[f"{name}.unit"] = stored.units.numpy()
        if stored.grouped:
            coords[f"{name}.group"] = stored.group_names()
    return coords
