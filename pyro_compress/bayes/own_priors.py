"""Priors that are no row of `PRIORS`: a Pyro function of a shape and a name, given as an object or by where it is.

::

    def laplace(shape, name, scale=0.1):
        return pyro.sample(name, Laplace(0.0, scale).expand(shape).to_event(len(shape)))

Such a prior may have sites of its own beside the weight's, called `f"{name}.anything"`, on the reals or on the positive
numbers: their posteriors are normal and log-normal. Nothing else has to be known of it: a fit estimates its KL
from the weights that a step draws, the posterior starts at the given weights, weights are ranked by signal to noise.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import pyro
import torch
from pyro.distributions import Distribution, LogNormal, Normal, constraints
from torch import Tensor

from pyro_compress.bayes.priors import PRIORS, Prior, Start
from pyro_compress.foreign import own_code, shown, unknown
from pyro_compress.imports import imported
from pyro_compress.types import LayerShape, WeightDraw

log = logging.getLogger(__name__)

GROUP = "pyro_compress.priors"
"""Entry points of installed packages that bring priors: a name, and a function or a `Prior`."""
DRAWS = 101
"""Draws from the prior whose median a site of its own starts at."""
SPREAD = math.exp(-2.5)
"""Standard deviation that such a site starts with: of its logarithm, or relative to the prior's spread."""

_brought: dict[str, Prior] = {}


def prior_named(name: str) -> Prior:
    """A prior by its name: a row of `PRIORS`, one that was brought, an entry point, or `package.module:function`.

    Raises:
        ValueError: there is none of this name, or what is there is no prior.
    """
    if (found := PRIORS.get(name) or _brought.get(name)) is not None:
        return found
    if own_code(name):
        found = as_prior(imported(name, "prior"), name)
    else:
        installed = {point.name: point for point in entry_points(group=GROUP)}
        if name not in installed:
            known = [*PRIORS, *_brought, *installed, "none"]
            raise unknown("prior", name, known, "or package.module:function")
        found = as_prior(installed[name].load(), name)
    _brought[name] = found
    return found


def bring(prior: Prior | Callable[..., Any], name: str = "") -> str:
    """Make a prior known in this process; returns the name that `FitConfig.prior` calls it by.

    Args:
        prior: a `Prior`, or a Pyro function `(shape, name, **options) -> weight` as the module says.
        name: what to call it; empty: `module:function`.

    Raises:
        ValueError: a name that is taken, or no prior.

    Examples:
        >>> import pyro
        >>> from pyro.distributions import Laplace
        >>> def laplace(shape, name, scale=0.1):
        ...     return pyro.sample(name, Laplace(0.0, scale).expand(shape).to_event(len(shape)))
        >>> bring(laplace, "laplace")
        'laplace'
        >>> prior_named("laplace").estimator
        'weight'
    """
    function = prior.draw if isinstance(prior, Prior) else prior
    name = name or f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    if name in (*PRIORS, "none"):
        raise ValueError(f"there is a prior called {name} already")
    _brought[name] = as_prior(prior, name)
    return name


def as_prior(given: Any, name: str) -> Prior:
    """A prior from a `Prior` or from a Pyro function.

    Raises:
        ValueError: it is neither, or a function that does not take a shape and a name.
    """
    if isinstance(given, Prior):
        return given
    if isinstance(given, list | tuple):
        raise ValueError(
            f"prior {given!r:.80} is a {type(given).__name__}; several go to tensors by their names: "
            "{'conv*': 'horseshoe', '*': 'gaussian'}"
        )
    if not callable(given):
        raise ValueError(f"prior {shown(name)} is a {type(given).__name__}; it must be a Pyro function or a Prior")
    taken = list(inspect.signature(given).parameters.values())
    if [one.name for one in taken[:2]] != ["shape", "name"]:
        arguments = ", ".join(one.name for one in taken)
        raise ValueError(
            f"prior {shown(name)} takes ({arguments}); a prior takes (shape, name, and its options by name)"
        )
    if bad := [one.name for one in taken[2:] if one.default is inspect.Parameter.empty]:
        raise ValueError(f"option {bad[0]} of prior {shown(name)} has no default")

    def draw(shape: LayerShape, **options: float) -> WeightDraw:
        with torch.device(shape.device):
            value = given(shape.weight, shape.site, **options)
        if isinstance(value, WeightDraw):
            return value
        if not isinstance(value, Tensor) or value.shape != shape.weight:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"prior {shown(name)} gives {what}; it must give what it draws at {shape.site}")
        return WeightDraw(None, value)

    first = inspect.Parameter("shape", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    options = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in taken[2:]]
    draw.__signature__ = inspect.Signature([first, *options])  # type: ignore[attr-defined]
    functools.update_wrapper(draw, given, assigned=("__name__", "__doc__"), updated=())
    draw.__dict__.pop("__wrapped__", None)

    def start(shape: LayerShape, weight: Tensor, std: float, **options: float) -> dict[str, Start]:
        return _start(lambda given: draw(given, **options), name, shape, weight, std)

    start.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*(inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("shape", "weight", "std")), *options]
    )
    log.info("the KL of prior %s is estimated from the weights that are drawn", name)
    return Prior(draw, ("weight",), False, start, estimator="weight", lr=2e-3)


def _start(
    draw: Callable[[LayerShape], WeightDraw], name: str, shape: LayerShape, weight: Tensor, std: float
) -> dict[str, Start]:
    """The weight at what is given, every other site at the prior's median.

    Raises:
        ValueError: no site for the weight, another one that is not called after it, or one on a space that no
            posterior here has.
    """
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        try:
            with pyro.poutine.trace() as traced:
                given = draw(shape)
        except Exception as error:  # it is the user's
            reason = str(error).strip().split("\n")[0][:160]
            if type(error) is ValueError and reason.startswith("prior "):
                raise
            raise ValueError(f"prior {shown(name)} fails: {type(error).__name__}: {reason}") from error
    sites = {site: node["fn"] for site, node in traced.trace.nodes.items() if node["type"] == "sample"}
    if shape.site not in sites:
        sampled = ", ".join(sites) or "nothing"
        raise ValueError(
            f"prior {shown(name)} samples {sampled}; it must sample the weight under the name that it is given"
        )
    if given.gate is None and given.raw is not traced.trace.nodes[shape.site]["value"]:
        raise ValueError(f"prior {shown(name)} gives something else than what it samples at {shape.site}: return that")
    if getattr(sites[shape.site].support, "base_constraint", sites[shape.site].support) is not constraints.real:
        raise ValueError(
            f"prior {shown(name)} samples weights on {sites[shape.site].support}; their posterior is normal: they "
            "must be real numbers"
        )
    starts = {}
    for site, fn in sites.items():
        if site == shape.site:
            starts[site] = Start(Normal, weight, torch.full_like(weight, std))
        elif not site.startswith(f"{shape.name}."):
            raise ValueError(f"prior {shown(name)} samples {site}; call sites of your own f'{{name}}.anything'")
        else:
            starts[site] = _at_median(fn, site, name)
    return starts


def _at_median(fn: Distribution, site: str, name: str) -> Start:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack([fn.sample() for _ in range(DRAWS)])
    support = getattr(fn.support, "base_constraint", fn.support)
    middle = draws.median(0).values
    if support in (constraints.positive, constraints.nonnegative):
        loc = middle.clamp_min(1e-30).log()
        return Start(LogNormal, loc, torch.full_like(loc, SPREAD))
    if support is constraints.real:
        return Start(Normal, middle, SPREAD * (draws - middle).abs().median(0).values.clamp_min(1e-6))
    raise ValueError(
        f"prior {shown(name)} samples {site} on {support}; sites of a prior are real or positive: write it as a "
        "function of such ones"
    )
