"""A network as a Pyro program for loops of one's own, and what these leave on its way to compression and to disk."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pyro_compress.data.sources import taken_whole, without_numbers
from pyro_compress.doubts import doubt
from pyro_compress.graph.network import tensors_of
from pyro_compress.metrics import SPLITS, examples_of, residual_noise
from pyro_compress.networks.fitted import with_graph
from pyro_compress.provenance import Provenance
from pyro_compress.runs.config import resolve
from pyro_compress.runs.folder import Run
from pyro_compress.runs.given import settings_of, takes
from pyro_compress.runs.in_memory import spelled
from pyro_compress.runs.saved import Sites, write_run
from pyro_compress.settings import FitConfig
from pyro_compress.training.baselines import point_posterior
from pyro_compress.training.laplace import laplace
from pyro_compress.types import Posterior, Splits

if TYPE_CHECKING:
    from pyro_compress.bayes.inferred import Inferred
    from pyro_compress.bayes.program import ProgramModel


log = logging.getLogger(__name__)


def program(
    net: nn.Module, data: Any, prior: Any = "horseshoe", guide: Any = None, noise: float | None = None, **settings: Any
) -> tuple[ProgramModel, Callable[..., Any]]:
    """An ordinary Pyro model and guide of a network: `model(x, y)`, `guide(x, y)`.

    They run under `pyro.infer.SVI`, `Predictive`, MCMC and whatever else takes Pyro callables; the examples are a plate
    of which `x` is a subsample. `posterior` takes what such a loop left to compression.

    Args:
        net: a plain network; it is copied, not changed.
        data: what the loop will give the model, as they are: `(x, y)` and whatever else `fit` takes, all of it;
            `Splits`, whose training examples count; or `Shapes`.
        prior: as for `fit`.
        guide: None: mean field; a class of Pyro's AutoGuides, a function of a `model`, or a guide.
        noise: of regression, where it is known: its standard deviation, in the units of `y`; None: it is a parameter.
        **settings: fields of `FitConfig`: `keep`, `bias_prior`, `grouping`, `init_scale`, `device`, ...

    Raises:
        ValueError: what `fit_posterior` refuses.

    Examples:
        >>> import pyro, pyro_compress as pc, torch
        >>> x, y = torch.randn(60, 4), torch.arange(60) % 3
        >>> model, guide = pc.program(torch.nn.Linear(4, 3), (x, y), prior="gaussian")
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.TraceMeanField_ELBO())
        >>> loss = svi.step(x[:20], y[:20])
        >>> pc.posterior(model, guide).layers["weight"].std.shape
        torch.Size([3, 4])
    """
    from pyro_compress.bayes.program import guide_of, program_of

    config = FitConfig(prior=spelled(prior), **settings_of(net, settings, "of a program"))
    if config.prior == "none":
        raise ValueError("a program has a prior; 'none' is a plain network")
    splits = taken_whole(data, config.reading, settings.get("task", ""), takes(net))
    config = replace(config, net=type(net).__name__, estimator="weight").on(splits.origin, splits.task)
    model = program_of(net, splits, resolve(config, len(examples_of(splits, SPLITS[0]))), noise)
    return model, guide_of(model, guide)


def posterior(
    net: Any, source: Any = None, data: Any = None, *, draws: int = 1000, seed: int = 0, prior: str = ""
) -> Posterior:
    """What any inference left, as `compress` takes it.

    Args:
        net: the `model` of `program`; or a plain network, whose tensors are then known by their names; or the source
            alone, where that knows its model: a guide of `program`, an AutoGuide, MCMC.
        source: a guide, one of Pyro's AutoGuides, MCMC or its draws `{site: (draws, *shape)}`, `{name: (mean, std)}`,
            an approximation of `laplace-torch`; or `"laplace"`: by the curvature around a trained network's weights.
        data: of a plain network: what it is for, as for `fit`; of a program those that it was made with, if None.
        draws: networks drawn from a guide that is not Gaussian.
        seed: seeds them.
        prior: what a file says of where a plain network's posterior comes from.

    Raises:
        ValueError: none of these, sites or tensors that are missing, shapes that are others.

    Examples:
        >>> import pyro_compress as pc, torch
        >>> net, data = torch.nn.Linear(4, 3), (torch.randn(60, 4), torch.arange(60) % 3)
        >>> found = pc.posterior(net, {"weight": (net.weight, torch.full((3, 4), 0.1))}, data)
        >>> float(found.layers["weight"].std.mean())
        0.10000000149011612
    """
    net, source = _with_model(net, source)
    return inferred(net, source, splits_for(net, data), draws, seed, prior).posterior


def save_run(
    path: str | Path, net: Any, source: Any = None, data: Any = None, *, prior: str = "gaussian",
    draws: int = 1000, seed: int = 0, force: bool = False,
) -> Run:  # fmt: skip
    """Write what was inferred as a run folder.

    Args:
        path: the folder.
        net: as for `posterior`: the `model` of `program`, or a plain network.
        source: as for `posterior`.
        data: as for `posterior`; `Splits` say what is validation and test.
        prior: of a plain network's weights: what `inspect` holds the posterior against.
        draws: as for `posterior`.
        seed: as for `posterior`.
        force: replace an existing run folder.

    Raises:
        ValueError: what `posterior` refuses; something else lies there.
        OSError: it cannot be written.

    Examples:
        >>> import pyro_compress as pc, tempfile, torch
        >>> net, data = torch.nn.Linear(4, 3), pc.splits_from((torch.randn(90, 4), torch.arange(90) % 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pc.save_run(f"{folder}/run", net, {"weight": (net.weight, torch.full((3, 4), 0.1))}, data)
        ...     sorted(file.name for file in run.path.iterdir())
        ['config.toml', 'examples.npz', 'guide.safetensors', 'posterior.safetensors']
    """
    net, source = _with_model(net, source)
    splits = splits_for(net, data)
    found = inferred(net, source, splits, draws, seed, prior)
    assert splits is not None
    if without_numbers(splits):
        raise ValueError("a run folder has data, of which the program knows shapes: give data")
    if not found.exact:
        doubt(log, f"{path} keeps each weight's own spread; how weights go together, which the draws show, is not kept")
    sites = None if found.marginals is None else Sites(found.marginals, found.shapes)
    return write_run(Path(path), found.posterior, found.config, splits, sites, (), force)


def _with_model(net: Any, source: Any) -> tuple[Any, Any]:
    """A model and what was inferred of it, where only the latter is given.

    Raises:
        ValueError: it does not know its model.
    """
    if source is not None:
        return net, source
    model = getattr(net, "model", None) or getattr(getattr(net, "kernel", None), "model", None)
    while isinstance(model, functools.partial) and model.args:
        model = model.args[-1]  # AutoGuides put handlers around it
    if getattr(model, "splits", None) is None:
        raise ValueError(
            f"a {type(net).__name__} does not say of which network: give (net, source), or (model, source)"
        )
    return model, net


def inferred(
    net: nn.Module, source: Any, splits: Splits | None, draws: int = 1000, seed: int = 0, prior: str = ""
) -> Inferred:
    """The same with what can be drawn from again, for a run folder."""
    from pyro_compress.bayes.inferred import of_names, of_program
    from pyro_compress.bayes.program import ProgramModel

    if isinstance(net, ProgramModel):
        splits = splits or net.splits
        if without_numbers(splits) and any(node.op == "batch_norm" for node in net.graph.nodes):
            raise ValueError(
                "batch norm takes its statistics from the data, of which the program knows shapes: give data"
            )
        return of_program(net, splits, source, draws, seed)
    if splits is None:
        raise ValueError("a plain network's posterior needs its data, as for fit: posterior(net, source, data)")
    config = FitConfig(prior=prior, net=type(net).__name__).on(splits.origin, splits.task)
    return of_names(net, splits, _curvature(net, splits) if source == "laplace" else source, config)


def _curvature(net: nn.Module, splits: Splits) -> dict[str, tuple[Tensor, Tensor]]:
    """The diagonal Laplace approximation around trained weights, by name."""
    plain, graph = with_graph(net, splits)
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors_of(plain).items()}
    noise = residual_noise(plain.eval(), splits)
    provenance = Provenance({"task": splits.task}).but(noise=noise)
    found = laplace(point_posterior(graph, tensors, provenance), examples_of(splits, SPLITS[0]))
    return {name: (layer.mean, layer.std) for name, layer in found.layers.items()}


def splits_for(net: nn.Module, data: Any) -> Splits | None:
    """Data of a network; those of its program where none are given."""
    if data is None:
        found: Splits | None = getattr(net, "splits", None)
        return found
    return taken_whole(data, takes=takes(net))
