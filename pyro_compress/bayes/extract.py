"""From a fit to a `Posterior`: moments of every weight. The last line of Pyro."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_compress.bayes.assignment import assigned
from pyro_compress.bayes.guides import Guide, Marginals, MeanField, whole
from pyro_compress.bayes.layers import bayes_layers
from pyro_compress.bayes.model import Fit
from pyro_compress.bayes.priors import Prior
from pyro_compress.graph.network import tensors_of
from pyro_compress.provenance import Provenance
from pyro_compress.types import Graph, LayerPosterior, LayerShape, Posterior


def extract(fit: Fit) -> Posterior:
    """Moments of every weight under the posterior, exact for all priors.

    With gate g and raw weight independent, `E[w] = E[g] loc` and
    `Var[w] = Var[g] (loc² + scale²) + E[g]² scale²` (Louizos et al. 2017, eq. 6 and appendix).
    Layers without a prior enter with standard deviation 0.

    Examples:
        >>> import pyro_compress as pc
        >>> splits = pc.load_splits("digits")
        >>> net = pc.build_net("mlp", splits.input_shape, len(splits.classes), (20,))
        >>> config = pc.resolve(pc.FitConfig(prior="log-uniform", epochs=4), len(splits.train))
        >>> fit = pc.fit_posterior(net, splits, config)
        >>> posterior = pc.extract(fit)
        >>> {name: tuple(layer.std.shape) for name, layer in posterior.layers.items()}
        {'1.weight': (20, 64), '3.weight': (10, 20)}
    """
    net, guide = fit.model.net, whole(fit.guide)
    found = {shape.name: moments(shape, prior, guide) for layer in bayes_layers(net) for shape, prior in layer.parts}
    noise = fit.model.likelihood.noise
    provenance = Provenance(fit.config.provenance).but(noise=noise)
    posterior = posterior_of(net, fit.graph, found, assigned(fit.config).criterion, provenance)
    return replace(posterior, removals=fit.removals)


def posterior_of(
    net: nn.Module, graph: Graph, found: dict[str, LayerPosterior], criterion: str, provenance: Provenance
) -> Posterior:
    """Moments of tensors, and whatever else a network holds, as what compression takes.

    Args:
        net: with priors; it holds what has none.
        graph: the network as data.
        found: moments of every weight and bias that has a prior.
        criterion: pruning criterion.
        provenance: where it comes from.
    """
    given = tensors_of(net) | net_with(net, found)
    tensors = {name: tensor.detach().cpu() for name, tensor in given.items()}
    layers: dict[str, LayerPosterior] = {}
    for node in graph.nodes:
        if "weight" in node.parameters and tensors[node.parameters["weight"]].dim() > 1:
            name = node.parameters["weight"]
            layers[name] = found.get(name) or LayerPosterior(tensors[name], torch.zeros_like(tensors[name]))
    layers |= {name: layer for name, layer in found.items() if name not in layers and layer.mean.dim() > 1}
    used = {name for node in graph.nodes for name in node.parameters.values()}
    dense = {name: tensor.float() for name, tensor in tensors.items() if name in used and name not in layers}
    return Posterior(graph, layers, dense, criterion, provenance)


@torch.no_grad()
def moments(shape: LayerShape, prior: Prior, guide: Marginals) -> LayerPosterior:
    """Posterior moments of one weight or bias tensor, on the CPU."""
    raw: Any = guide.marginal(shape.site)
    if prior.factors is None:
        loc, scale = raw.loc.detach().cpu(), raw.scale.cpu()
        if not prior.shared_spread or shape.grouping == "weight":
            return LayerPosterior(loc, scale, grouping=shape.grouping)
        return LayerPosterior(loc, scale, _rms(loc, shape), _rms(scale, shape), shape.grouping)
    gate = prior.gate(shape.name, guide.marginal)
    mean, second = gate.mean, raw.loc.square() + raw.scale.square()
    variance = gate.variance * second + mean.square() * raw.scale.square()
    return LayerPosterior(
        (mean * raw.loc).cpu(), variance.sqrt().cpu(), mean.detach().cpu(), gate.stddev.cpu(), shape.grouping
    )


def _rms(tensor: Tensor, shape: LayerShape) -> Tensor:
    """Root mean square of every group, in gate shape."""
    axes = [axis for axis, size in enumerate(shape.gate) if size == 1]
    return tensor.square().mean(axes, keepdim=True).sqrt()


@torch.no_grad()
def mean_tensors(net: nn.Module, guide: Guide) -> dict[str, Tensor]:
    """`state_dict` of the plain network that carries the posterior mean."""
    device = next(guide.parameters()).device
    parts = [part for layer in bayes_layers(net) for part in layer.parts]
    found = net_with(net, {shape.name: moments(shape, prior, guide) for shape, prior in parts})
    return {name: tensor.to(device) for name, tensor in found.items()}


@torch.no_grad()
def load_means(into: nn.Module, net: nn.Module, guide: Guide) -> None:
    """Give a plain network the posterior mean, tensor by tensor; where tensors are split, all processes do.

    Args:
        into: the plain network.
        net: the same with priors.
        guide: its posterior.
    """
    into.load_state_dict(net.state_dict(), strict=False)
    split = guide.split if isinstance(guide, MeanField) else {}
    for layer in bayes_layers(net):
        for shape, prior in layer.parts:
            mean = guide.marginal(shape.site).loc
            mean = split[shape.site].gathered(mean) if shape.site in split else mean
            if prior.factors is not None:
                mean = prior.gate(shape.name, guide.marginal).mean * mean
            into.load_state_dict(dict.fromkeys(layer.aliases or (shape.name,), mean), strict=False)


def net_with(net: nn.Module, found: dict[str, LayerPosterior]) -> dict[str, Tensor]:
    """`state_dict` of a network, its buffers finite, with the means of what has a prior, under all its names."""
    stored = net.state_dict()
    tensors = {name: tensor for name, tensor in tensors_of(net).items() if name in stored}
    for layer in bayes_layers(net):
        for shape, _ in layer.parts:
            if shape.name in found:
                tensors |= dict.fromkeys(layer.aliases or (shape.name,), found[shape.name].mean)
    return tensors
