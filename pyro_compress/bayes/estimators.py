"""How a layer's random output is estimated: one messenger each.

All are unbiased for the same ELBO where a layer is applied once per example. Where it is applied at several positions
(convolutions, linear layers on sequences), local reparameterization draws at every position, as is standard practice
(Molchanov et al. 2017, section 4.4; Louizos et al. 2017): every output's distribution is right, the correlation of the
outputs of one weight is lost, and the expected log-likelihood is that of another model, whose KL is still that of the
weights. So it is no bound on the evidence; `inspect` gives the ELBO by draws of whole weights beside it. Weight
sampling and flipout stay unbiased.

An estimator is in force around both guide and model (`with estimator: elbo(x, y)`). It acts on the `affine` effect of
`pyro_compress.bayes.layers`, and may choose how the guide's sites are drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Distribution, LogNormal
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_compress.bayes.draws import coins_of_examples, normal_of_examples
from pyro_compress.bayes.layers import BayesLayer, Bias, Drawn, Operation, bias_value, multiplied
from pyro_compress.bayes.priors import Marginal
from pyro_compress.types import WeightDraw

VARIANCE_FLOOR = 1e-16


class WeightSampling(Messenger):
    """One weight per minibatch, shared by its examples: the default meaning of `affine` (Blundell et al. 2015)."""

    def __init__(self, marginal: Marginal, layers: list[Drawn], batch: int):
        super().__init__()


class LocalReparameterization(Messenger):
    """Draws each layer's output from its Gaussian instead of its weight (Kingma et al. 2015, section 2.3).

    Given the group scales, the output is Gaussian with mean `op(x, loc)` and variance `op(x², scale²)`, each example
    its own draw; so does each position of a convolution or a sequence, which changes the objective (see above). Group
    scales of `input` and `output` grouping are drawn per example as well (as Louizos et al. do):
    the expected log-likelihood is a sum over examples, so independent draws per example leave it unchanged and lower
    its variance. Scales of single weights cannot be: they would need a weight per example, and are shared by the
    minibatch.

    Where a prior's KL is closed-form nobody reads the values of its sites, and the guide does not draw them. A gate is
    drawn from its factors: a product of log-normal scales is one log-normal variable. The outputs have the distribution
    they would have site by site, for half of the noise; the gradient in the sites' spreads is its expectation given the
    product, so its variance is lower.

    A variance needs few digits: where `coarse`, its product and the gradient's are of bfloat16, with sums in float32.
    Every output's variance is then right to a few thousandths, and its noise as much.

    Args:
        marginal: site -> posterior marginal.
        layers: the layers with a prior.
        batch: number of examples of the minibatch.
        coarse: products of variances in bfloat16 (torch's autocast), those of means as they are.
    """

    def __init__(self, marginal: Marginal, layers: list[Drawn], batch: int, coarse: bool = False):
        super().__init__()
        self.marginal, self.batch, self.coarse = marginal, batch, coarse
        own = [layer for layer in layers if isinstance(layer, BayesLayer)]  # other tensors are drawn as they are
        self.layers = {layer.shape.site: layer for layer in own if layer.prior.closed_form}
        self.unread = tuple(f"{layer.shape.name}." for layer in self.layers.values())

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        if self.unread and msg["name"].startswith(self.unread):
            msg["value"], msg["done"] = msg["fn"].mean, True

    def _pyro_affine(self, msg: dict[str, Any]) -> None:
        op, x, weight, bias = msg["args"]
        site = msg["kwargs"]["site"]
        q, gate = self.marginal(site), self._gate(site, weight)
        b_loc, b_var = _bias_moments(bias, site, self.marginal)
        if gate is not None and gate.shape == q.loc.shape:  # a scale of every single weight
            mean = op.function(x, gate * q.loc, b_loc)
            variance = self._variance(op, x, gate * q.scale, b_var)
        else:
            into, out = _gates(op, gate, q.loc.shape, x.dim())
            x = x if into is None else x * into
            mean, variance = op.function(x, q.loc, None), self._variance(op, x, q.scale, None)
            if out is not None:
                mean, variance = mean * out, variance * out.square()
            mean = mean if b_loc is None else mean + _on_channels(b_loc, op, x.dim())
            variance = variance if b_var is None else variance + _on_channels(b_var, op, x.dim())
        noise = normal_of_examples(mean)
        msg["value"], msg["done"] = (
            torch.addcmul(mean, variance.clamp_min(VARIANCE_FLOOR).sqrt(), noise),
            True,
        )

    def _variance(self, op: Operation, x: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        """Of the output, given the standard deviations of the weight and the variance of the bias."""
        if not self.coarse:
            return op.function(x.square(), scale.square(), bias)
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            product = op.function(x.square(), scale.square(), None).float()
        return product if bias is None else product + _on_channels(bias, op, x.dim())

    def _gate(self, site: str, weight: WeightDraw) -> Tensor | None:
        """A draw of the gate, with a leading dimension of examples where each has its own."""
        layer = self.layers.get(site)
        if layer is None or layer.prior.factors is None:
            return weight.gate
        each = (self.batch,) if layer.shape.grouping != "weight" else ()
        factors = layer.prior.factors(layer.shape.name, self.marginal)
        drawn: list[Tensor] = [_drawn(factor, each) for factor in factors]
        return functools.reduce(torch.mul, drawn)


def _drawn(factor: Distribution, each: tuple[int, ...]) -> Tensor:
    """A draw of a normal or log-normal factor, one for every example where `each` says how many there are."""
    if not each:
        return factor.rsample()
    normal = factor.loc + normal_of_examples(factor.loc.new_empty(each + factor.loc.shape)) * factor.scale
    return normal.exp() if isinstance(factor, LogNormal) else normal


class Flipout(Messenger):
    """One weight perturbation per minibatch, flipped by random signs per example (Wen et al. 2018, eq. 6).

    `op(x, gate·loc) + s · op(x ∘ r, gate·(raw - loc))` with random signs r on the inputs and s on the outputs of each
    example. The group scales are shared by the minibatch.
    """

    def __init__(self, marginal: Marginal, layers: list[Drawn], batch: int):
        super().__init__()
        self.marginal = marginal

    def _pyro_affine(self, msg: dict[str, Any]) -> None:
        op, x, weight, bias = msg["args"]
        loc = self.marginal(msg["kwargs"]["site"]).loc
        mean = op.function(x, multiplied(WeightDraw(weight.gate, loc)), bias_value(bias))
        flipped = op.function(x * _signs(x, op), multiplied(WeightDraw(weight.gate, weight.raw - loc)), None)
        msg["value"], msg["done"] = mean + flipped * _signs(flipped, op), True


def _signs(x: Tensor, op: Operation) -> Tensor:
    """Random signs per example and channel, shared by all positions of a convolution (Wen et al. 2018, section 3.2)."""
    shape = [1] * x.dim()
    shape[0], shape[op.channel_axis] = x.shape[0], x.shape[op.channel_axis]
    return coins_of_examples(x.new_empty(shape)) * 2 - 1


def _bias_moments(bias: Bias, site: str, marginal: Marginal) -> tuple[Tensor | None, Tensor | None]:
    """Mean and variance of a bias; its scales, if any, are shared by the minibatch."""
    if not isinstance(bias, WeightDraw):
        return bias, None
    q: Distribution = marginal(site.removesuffix("weight.raw") + "bias.raw")
    if bias.gate is None:
        return q.loc, q.scale.square()
    return bias.gate * q.loc, (bias.gate * q.scale).square()


def _on_channels(vector: Tensor, op: Operation, dims: int) -> Tensor:
    """Shape `(channels,)` so that it broadcasts over an output of `dims` dimensions."""
    return vector if op.channel_axis == -1 else vector.view(-1, *[1] * (dims - 2))


def _gates(op: Operation, gate: Tensor | None, weight: torch.Size, dims: int) -> tuple[Tensor | None, Tensor | None]:
    """The gate as factors on the input and on the output, shared or (with a leading batch dimension) per example."""
    if gate is None:
        return None, None
    batch = gate.shape[0] if gate.dim() > len(weight) else 1
    out, into = gate.shape[-len(weight)], gate.shape[1 - len(weight)]
    shape = [batch] + [1] * (dims - 1)
    shape[op.channel_axis] = max(out, into)
    factor = gate.reshape(shape)
    return (factor, None) if out == 1 and into == weight[1] else (None, factor)


Estimator = Callable[[Marginal, list[Drawn], int], Messenger]
COARSE = "bfloat16-variances"
"""The precision of a step whose products of variances alone are of bfloat16."""

ESTIMATORS: dict[str, Estimator] = {
    "weight": WeightSampling,
    "local": LocalReparameterization,
    "flipout": Flipout,
}


def estimator_of(name: str, precision: str = "float32") -> Estimator:
    """The estimator of a name, at the `--precision` of the step."""
    if precision == COARSE and name == "local":
        return functools.partial(LocalReparameterization, coarse=True)
    return ESTIMATORS[name]
