"""The objective: Pyro's mean-field ELBO, its KL weighted, its terms noted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Independent, Normal
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_compress.bayes.estimators import estimator_of
from pyro_compress.bayes.guides import Guide, MeanField
from pyro_compress.bayes.layers import Drawn, bayes_layers
from pyro_compress.bayes.model import Model
from pyro_compress.bayes.shards import Shards
from pyro_compress.training.point import products


class Share(NamedTuple):
    """One process's part of the terms of an ELBO whose weights are split: what all have adds up to the whole.

    Attributes:
        rows: of the minibatch.
        split: sites of which it holds rows.
        own: of the KL of those rows.
        rest: of the KL of all other sites.
    """

    rows: float | Tensor
    split: Collection[str]
    own: float
    rest: float

    def of(self, site: str) -> float:
        """Its part of the KL of a site."""
        return self.own if site in self.split else self.rest


class ElboTerms(Messenger):
    """Scales the KL of every latent site, in model and guide alike, and notes the expected log-likelihood.

    Args:
        kl_weight: factor on the KL.
        closed_form: sites whose KL is closed-form. Pyro evaluates their densities all the same, and then does not use
            them; as `Trace` memoises densities, a placeholder saves about half of the step. Should a rule be missing
            after all, the placeholder makes Pyro's Monte Carlo fallback fail loudly.
        share: of this process; None: it has all.

    Attributes:
        log_likelihood_nats: sum over the evaluations since construction, scaled to the whole data set.
    """

    def __init__(
        self, kl_weight: float | Tensor, closed_form: frozenset[str] = frozenset(), share: Share | None = None
    ):
        super().__init__()
        self.share, self.unshared = share, dict[str, Any]()
        self.kl_weight, self.closed_form = kl_weight, closed_form
        self.log_likelihood_nats: Any = 0.0  # the first term brings its device

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":
            return
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * (
                self.kl_weight * self.share.of(msg["name"]) if self.share else self.kl_weight
            )
        elif self.share:
            self.unshared[msg["name"]] = msg["scale"]
            msg["scale"] = msg["scale"] * self.share.rows

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.closed_form:
            msg["log_prob"] = msg["log_prob_sum"] = msg["score_parts"] = None
        if msg["is_observed"]:
            log_prob = msg["fn"].log_prob(msg["value"]).detach()
            scale = self.unshared.get(msg["name"], msg["scale"])
            self.log_likelihood_nats = scale_and_mask(log_prob, scale).sum() + self.log_likelihood_nats


class StaticELBO(TraceMeanField_ELBO):
    """`TraceMeanField_ELBO` that never asks the device for a number, so that a step can be traced as one graph.

    Pyro's own reads the loss back (`.item()`) on every evaluation; the terms and their order are the same.
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Negative ELBO, averaged over the particles."""
        loss: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            for name, site in model_trace.nodes.items():
                if site["type"] == "sample" and site["is_observed"]:
                    loss = loss - site["log_prob_sum"]
                elif site["type"] == "sample":
                    loss = loss + _kl_of_site(site, guide_trace.nodes[name])
            for name, site in guide_trace.nodes.items():
                if site["type"] == "sample" and name not in model_trace.nodes:  # auxiliary sites of AutoGuides
                    loss = loss + site["score_parts"].entropy_term.sum()
        return loss / self.num_particles


def _kl_of_site(model_site: dict[str, Any], guide_site: dict[str, Any]) -> Tensor:
    """Weighted KL of one latent site, closed-form if a rule is registered, else from its one sample."""
    try:
        kl = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return _negative_entropy(guide_site) - model_site["log_prob_sum"]
    return scale_and_mask(kl, scale=guide_site["scale"], mask=guide_site["mask"]).sum()


def _negative_entropy(site: dict[str, Any]) -> Tensor:
    """Weighted log-density of one reparameterized draw under its own distribution.

    A normal draw's is -½ε² - log(scale) - ½log(2π): its gradient is the entropy's, whatever was drawn, though autograd
    would find it as a difference of equal terms, at a third of a scale mixture's step. So the number is the draw's, and
    the gradient the entropy's.
    """
    drawn: Tensor = site["score_parts"].entropy_term.sum()
    single = site["fn"].base_dist if isinstance(site["fn"], Independent) else site["fn"]
    if not isinstance(single, Normal):
        return drawn
    expected = scale_and_mask(-site["fn"].entropy(), scale=site["scale"], mask=site["mask"]).sum()
    return drawn.detach() + (expected - expected.detach())


@dataclass(frozen=True)
class Objective:
    """What one step minimises.

    Attributes:
        elbo: model and guide under an ELBO, as a module.
        layers: the model's layers with a prior.
        estimator: name in `ESTIMATORS`.
        closed_form: sites whose KL is closed-form.
        size: examples in the training set.
        precision: `float32`, `bfloat16` for the matrix products (torch's autocast), or `bfloat16-variances` for those
            of variances alone.
        shards: the processes that its weights are split among; None: this one has all.
    """

    elbo: ELBOModule
    layers: list[Drawn]
    estimator: str
    closed_form: frozenset[str]
    size: int
    precision: str = "float32"
    shards: Shards | None = None

    def __call__(
        self, x: Tensor, y: Tensor, kl_weight: float | Tensor, call: Callable[..., Tensor] | None = None,
        rows: float | Tensor = 1.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Loss in nats per training example, and the expected log-likelihood of the training set in nats.

        Args:
            x: inputs of the minibatch.
            y: their labels.
            kl_weight: weight of the KL in this step.
            call: evaluates the ELBO module, `elbo` itself if None (a functional call, where parameters are inputs).
            rows: share of the minibatch that x and y are, where weights are split: all losses add up to the whole.
        """
        terms = ElboTerms(kl_weight, self.closed_form, self.share(rows))
        with (
            products(self.precision, x),
            terms,
            estimator_of(self.estimator, self.precision)(self.elbo.guide.marginal, self.layers, len(y)),
        ):
            loss = (call or self.elbo)(x, y)
        return loss / self.size, terms.log_likelihood_nats / self.elbo.elbo.num_particles

    def share(self, rows: float | Tensor) -> Share | None:
        """This process's share of the terms, with so much of the minibatch; None: it has all."""
        if self.shards is None:
            return None
        return Share(rows, split_sites(self.elbo.guide), 1 / self.shards.copies, 1 / self.shards.group.size)


def build_objective(
    model: Model, guide: Guide, estimator: str, samples: int, precision: str = "float32", shards: Shards | None = None
) -> Objective:
    """Objective of a model and its guide with `samples` Monte Carlo samples per step."""
    elbo = StaticELBO(num_particles=samples)(model, guide)
    sites = closed_form_sites(guide, model.net)
    return Objective(elbo, bayes_layers(model.net), estimator, sites, model.size, precision, shards)


def split_sites(guide: Guide) -> Collection[str]:
    """Sites of which this process holds rows."""
    return guide.split if isinstance(guide, MeanField) else ()


def closed_form_sites(guide: Guide, net: nn.Module) -> frozenset[str]:
    """Sites whose prior has closed-form KLs to the guide's marginals: none under Pyro's AutoGuides."""
    if not isinstance(guide, MeanField):
        return frozenset()
    found: set[str] = set()
    for layer in bayes_layers(net):
        for shape, prior in layer.parts:
            if prior.closed_form:
                found |= {site for site in guide.families if site.startswith(f"{shape.name}.")}
    return frozenset(found)


@torch.no_grad()
def kl_nats(net: nn.Module, guide: Guide, samples: int = 1, shards: Shards | None = None) -> float:
    """KL(posterior ‖ prior) of all sites: closed forms, and sampled estimates where a prior has none.

    Of split weights every process has its rows' part: the average over all processes is the KL.
    """
    device = str(next(guide.parameters()).device)

    def prior() -> None:
        for layer in bayes_layers(net):
            layer.draw(device)

    share = Share(1.0, split_sites(guide), float(shards.size), 1.0) if shards else None
    drawn_apart = torch.random.fork_rng() if shards else nullcontext()  # how much is drawn depends on the rows
    with pyro.validation_enabled(False), ElboTerms(1.0, share=share), drawn_apart:
        return float(StaticELBO(num_particles=samples).differentiable_loss(prior, guide))
