"""What any inference left -> `Posterior`: guides, AutoGuides, MCMC draws, Laplace approximations, means and spreads.

Of a model that `program` made everything is known: priors, groups, the network. Of any other, names say what is what: a
site or parameter is called as the network calls the tensor (`fc1.weight`), with or without `.raw`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyro_compress.bayes.assignment import assigned
from pyro_compress.bayes.extract import moments, net_with, posterior_of
from pyro_compress.bayes.layers import bayes_layers, multiplied
from pyro_compress.bayes.matched import Draw, Matched, Moments, correlated, drawn, gaussian, matched
from pyro_compress.bayes.priors import Prior
from pyro_compress.bayes.program import ProgramGuide, ProgramModel
from pyro_compress.foreign import shown
from pyro_compress.graph.ir import multiplied as multiplied_by
from pyro_compress.graph.network import Network, tensors_of
from pyro_compress.graph.statistics import batch_statistics
from pyro_compress.metrics import SPLITS, examples_of, residual_noise
from pyro_compress.networks.fitted import with_graph
from pyro_compress.provenance import Provenance
from pyro_compress.settings import FitConfig
from pyro_compress.types import LayerPosterior, LayerShape, Posterior, Splits


@dataclass(frozen=True)
class Inferred:
    """A posterior, and what of it is drawn from again.

    Attributes:
        posterior: moments of every weight, and the network.
        marginals: of every site, behind a guide's face; None where nothing has a spread.
        shapes: tensors that these sites make up.
        config: prior, task and the like.
        exact: whether the marginals are the source's own, and not matched to its draws.
    """

    posterior: Posterior
    marginals: Any
    shapes: list[LayerShape]
    config: FitConfig
    exact: bool = True


def of_program(model: ProgramModel, splits: Splits, source: Any, draws: int, seed: int) -> Inferred:
    """The posterior of a model that `program` made.

    Args:
        model: the model, with whatever of it was trained.
        splits: its data.
        source: its guide, an AutoGuide, MCMC, draws by site.
        draws: networks drawn, where it is not Gaussian.
        seed: seeds them.

    Raises:
        ValueError: sites that are missing.
    """
    families = {site: one.family for site, one in model.starts.items()}
    parts = [part for layer in bayes_layers(model.net) for part in layer.parts]
    own = source if isinstance(source, ProgramGuide) else gaussian(source)
    if own is not None:
        _check_sites(own.families, families)
    products = any(prior.factors is not None for _, prior in parts) or len(families) > len(parts)
    if own is not None and not (products and own is not source and correlated(source)):
        with pyro.validation_enabled(False):  # a spread of 0 is one
            found = {shape.name: moments(shape, prior, own) for shape, prior in parts}
    else:
        samples = list(_checked(_draws_of(source, model, draws, seed), families))
        found = {shape.name: _moments_of(shape, prior, samples) for shape, prior in parts}
    marginals: Any = own if own is not None else matched(samples, families)
    noise = model.likelihood.noise
    provenance = Provenance(model.config.provenance).but(noise=noise)
    spread = any(bool(layer.std.any()) for layer in found.values())
    criterion = assigned(model.config).criterion if spread else "magnitude"
    net = _settled(model, examples_of(splits, SPLITS[0]).x, found)
    posterior = posterior_of(net, model.graph, found, criterion, provenance)
    shapes = [shape for shape, _ in parts]
    return Inferred(posterior, marginals if spread else None, shapes, model.config, own is not None)


def _check_sites(found: Iterable[str], wanted: Iterable[str]) -> None:
    if missing := sorted(set(wanted) - set(found)):
        raise ValueError(f"nothing is known of site {missing[0]}; what was inferred has {', '.join(found)}")


def _checked(samples: Iterable[Draw], families: Mapping[str, Any]) -> Iterator[Draw]:
    for sample in samples:
        _check_sites(sample, families)
        yield sample


@torch.no_grad()
def _settled(model: ProgramModel, x: Tensor, found: dict[str, LayerPosterior]) -> nn.Module:
    """The model's network, with the statistics of batch norm that belong to its posterior mean."""
    means = {name: tensor.to(model.config.device) for name, tensor in net_with(model.net, found).items()}
    buffers = dict(model.net.named_buffers())
    for name, values in batch_statistics(model.graph, means, x).items():
        buffers[name].copy_(values)
    return model.net


@torch.no_grad()
def _moments_of(shape: LayerShape, prior: Prior, samples: Iterable[Draw]) -> LayerPosterior:
    """Moments of a tensor and of its group scales over draws of its sites."""
    weight, gate = Moments(), Moments()
    for sample in samples:
        values = {site: value for site, value in sample.items() if site.startswith(f"{shape.name}.")}
        with pyro.validation_enabled(False), pyro.poutine.block():
            one = pyro.poutine.condition(prior.draw, values)(shape)
        weight.add(multiplied(one))
        if one.gate is not None:
            gate.add(one.gate)
    mean, std = weight.mean.float(), weight.std.float()
    if not gate.count:
        return LayerPosterior(mean, std, grouping=shape.grouping)
    return LayerPosterior(mean, std, gate.mean.float(), gate.std.float(), shape.grouping)


def _draws_of(source: Any, model: ProgramModel | None, draws: int, seed: int) -> Iterable[Draw]:
    """Draws of sites from MCMC, from arrays by site, or from a guide that is run."""
    if callable(getattr(source, "get_samples", None)):
        source = source.get_samples()
    if isinstance(source, Mapping):
        arrays = {str(name): torch.as_tensor(np.asarray(values)) for name, values in source.items()}
        lengths = {len(values) if values.dim() else 0 for values in arrays.values()}
        if len(lengths) != 1 or not lengths - {0}:
            raise ValueError("draws are arrays (draws, *shape of the site), by site, of as many draws each")
        return ({name: values[i] for name, values in arrays.items()} for i in range(lengths.pop()))
    if not callable(source) or model is None:
        raise ValueError(
            f"a {type(source).__name__} is no posterior: give a guide, MCMC, draws or (mean, std) by name, or a "
            "Laplace approximation; a guide goes with the model that program made"
        )
    return drawn(source, model.example, draws, seed)


def of_names(net: nn.Module, splits: Splits, source: Any, config: FitConfig) -> Inferred:
    """The posterior of a plain network, by what its tensors are called.

    Args:
        net: the network.
        splits: its data.
        source: an AutoGuide, MCMC, draws by name, `(mean, std)` by name, a Laplace approximation.
        config: what is known of it.

    Raises:
        ValueError: names that the network does not have, shapes that are others, spreads that are none.
    """
    plain, graph = with_graph(net, splits)
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors_of(plain).items()}
    found = {name.removesuffix(".raw"): pair for name, pair in _pairs(source).items()}
    if strange := sorted(found.keys() - tensors.keys()):
        raise ValueError(f"the network has no tensor {shown(strange[0])}; it has {', '.join(tensors)}")
    if not found:
        raise ValueError("nothing was inferred: no tensor of the network is named")
    for name, (mean, std) in found.items():
        if {mean.shape, std.shape} != {tensors[name].shape} or not bool(
            torch.isfinite(mean).all() and (std >= 0).all()
        ):
            raise ValueError(
                f"{name}: mean {tuple(mean.shape)} and std {tuple(std.shape)} must be finite, std not negative, and "
                f"have the tensor's shape {tuple(tensors[name].shape)}"
            )
    weights = [name for name in multiplied_by(graph) if tensors[name].dim() > 1]
    tensors |= {name: mean for name, (mean, _) in found.items()}
    x = examples_of(splits, SPLITS[0]).x
    tensors |= batch_statistics(graph, tensors, x)
    layers = {name: LayerPosterior(tensors[name], torch.zeros_like(tensors[name])) for name in weights}
    layers |= {name: LayerPosterior(*found[name]) for name in weights if name in found}
    used = {name for node in graph.nodes for name in node.parameters.values()}
    dense = {name: tensor.float() for name, tensor in tensors.items() if name in used and name not in layers}
    spread = {name: layer for name, layer in layers.items() if bool(layer.std.any())}
    posterior = Posterior(graph, layers, dense, "snr" if spread else "magnitude", Provenance(config.provenance))
    posterior = replace(posterior, provenance=posterior.provenance.but(noise=_noise(posterior, splits)))
    sites = {f"{name}.raw": (layer.mean, layer.std) for name, layer in spread.items()}
    families = dict.fromkeys(sites, torch.distributions.Normal)
    shapes = [LayerShape(name, tuple(layer.mean.shape)) for name, layer in spread.items()]
    return Inferred(posterior, Matched(families, sites) if sites else None, shapes, config, not _drawn(source))


def _drawn(source: Any) -> bool:
    """Whether a source is draws, which may show more than moments."""
    return callable(getattr(source, "get_samples", None)) or (isinstance(source, Mapping) and not _is_pairs(source))


def _noise(posterior: Posterior, splits: Splits) -> float | None:
    return residual_noise(Network(posterior.graph, posterior.tensors).eval(), splits)


Pairs = dict[str, tuple[Tensor, Tensor]]


def _pairs(source: Any) -> Pairs:
    """Mean and standard deviation by name."""
    if isinstance(source, Mapping) and _is_pairs(source):
        return {str(n): (_tensor(mean), _tensor(std)) for n, (mean, std) in source.items()}
    if hasattr(source, "mean") and hasattr(source, "model") and not callable(source.mean):
        return _of_laplace(source)
    if (own := gaussian(source)) is not None:
        return {site: (q.mean, q.stddev) for site in own.families if (q := own.marginal(site))}
    found = dict[str, Moments]()
    for sample in _draws_of(source, None, 0, 0):
        for name, value in sample.items():
            found.setdefault(name, Moments()).add(value)
    return {name: (one.mean.float(), one.std.float()) for name, one in found.items()}


def _is_pairs(source: Mapping[str, Any]) -> bool:
    return all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in source.values())


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values).detach().cpu().float()


def _of_laplace(source: Any) -> Pairs:
    """A Laplace approximation as `laplace-torch` leaves it: over all parameters, or over those of the last layer.

    Raises:
        ValueError: it has no variances, or another number of parameters.
    """
    mean = _tensor(source.mean).flatten()
    variance = _variances(source)
    named = [(name, one) for name, one in source.model.named_parameters() if one.requires_grad]
    if (
        sum(one.numel() for _, one in named) != len(mean)
        and (last := getattr(source.model, "last_layer", None)) is not None
    ):
        own = {id(one) for one in last.parameters()}
        named = [(name, one) for name, one in named if id(one) in own]
    if not sum(one.numel() for _, one in named) == len(mean) == len(variance):
        raise ValueError(
            f"the Laplace approximation has {len(mean)} means and {len(variance)} variances, the parameters of its "
            "model are others in number"
        )
    found, start = Pairs(), 0
    for name, one in named:
        part = slice(start, start := start + one.numel())
        found[name.removeprefix("model.")] = mean[part].view_as(one), variance[part].sqrt().view_as(one)
    return found


def _variances(source: Any) -> Tensor:
    for name in ("posterior_variance", "posterior_covariance"):
        try:
            values = _tensor(getattr(source, name))
        except (AttributeError, NotImplementedError):
            continue
        return values.diagonal() if values.dim() == 2 else values.flatten()
    precision: Any = getattr(source, "posterior_precision", None)
    if callable(getattr(precision, "diag", None)):
        return _tensor(precision.diag(exponent=-1)).flatten()
    raise ValueError("the Laplace approximation has neither posterior_variance nor posterior_covariance")
