"""Guides that are no row of `GUIDES`: a Pyro guide, or what makes one of a model, as an object or by where it is.

Any of Pyro's AutoGuides by its class, a function of a `model` that returns a guide, or a guide `(x, y)` that samples
every site of the model. Its parameters are learned with all others; spreads, by their names, at the rate of scales.

What a step draws, and so the objective, is the guide's own. What is stored of it, shown and compressed are its
marginals: exact where it is Gaussian, else the moments of draws (`matched`).
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.metadata import entry_points
from typing import Any

import pyro
import torch
from pyro.distributions import Distribution, LogNormal, constraints
from pyro.infer.autoguide import AutoGuide, AutoNormal, AutoNormalizingFlow
from pyro.infer.autoguide.initialization import init_to_value
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to

from pyro_compress.bayes.matched import Matched, drawn, gaussian, matched
from pyro_compress.bayes.priors import Start
from pyro_compress.foreign import own_code, shown, unknown
from pyro_compress.imports import imported

GROUP = "pyro_compress.guides"
"""Entry points of installed packages that bring guides."""
DRAWS = 200
"""Draws from a guide that is not Gaussian, from which its marginals are taken."""
SCALES = re.compile(r"(scales?|std|sigma|cov)(_\w*)?$|\bscales\.")
"""Names of parameters that are spreads."""

_brought: dict[str, Any] = {}


def bring_guide(guide: Any, name: str = "") -> str:
    """Make a guide known in this process; returns the name that `FitConfig.guide` calls it by.

    Args:
        guide: as the module says.
        name: what to call it; empty: `module:function`.

    Raises:
        ValueError: nothing that could be a guide.
    """
    if not callable(guide):
        raise ValueError(f"a {type(guide).__name__} is no guide: give a Pyro guide, or what makes one of a model")
    kind = guide if hasattr(guide, "__qualname__") else type(guide)
    name = name or f"{kind.__module__}:{kind.__qualname__}"
    _brought[name] = guide
    return name


def own_guide(name: str, rows: Mapping[str, Any]) -> Any:
    """A guide that is no row of a registry: one that was brought, an entry point, or `package.module:function`.

    Raises:
        ValueError: there is none of this name.
    """
    if name in _brought:
        return _brought[name]
    if own_code(name):
        found = imported(name, "guide")
    else:
        installed = {point.name: point for point in entry_points(group=GROUP)}
        if name not in installed:
            raise unknown("guide", name, [*rows, *_brought, *installed], "package.module:function")
        found = installed[name].load()
    bring_guide(found, name)
    return found


def median(start: Start) -> Tensor:
    """Where a posterior starts, as a value of its site."""
    return start.loc.exp() if start.family is LogNormal else start.loc.clone()


def made_guide(given: Any, model: nn.Module, starts: Mapping[str, Start]) -> Callable[..., Any]:
    """A guide from an AutoGuide's class, a function of a `model`, or a guide as it is.

    Args:
        given: one of these.
        model: the model.
        starts: site -> where its posterior starts.

    Raises:
        ValueError: none of these.
    """
    if isinstance(given, type) and issubclass(given, AutoGuide):
        medians = {site: median(one) for site, one in starts.items()}
        narrow = {"init_scale": min(float(one.scale.median()) for one in starts.values())}
        starting = {} if issubclass(given, AutoNormalizingFlow) else {"init_loc_fn": init_to_value(values=medians)}
        made: Callable[..., Any] = given(model, **starting, **(narrow if given is AutoNormal else {}))
        return made
    if not callable(given):
        raise ValueError(f"a guide is a Pyro function, an AutoGuide, or a function of a model; got {given!r:.60}")
    guide: Callable[..., Any] = given(model) if wants_model(given) else given
    if not callable(guide):
        raise ValueError(f"a function of a model must return a guide; got {guide!r:.60}")
    return guide


def wants_model(given: Any) -> bool:
    """Whether a function makes a guide of a model: `model` is its first parameter."""
    if isinstance(given, nn.Module):
        return False
    try:
        return next(iter(inspect.signature(given).parameters), "") == "model"
    except (TypeError, ValueError):
        return False


class _Parameters(Messenger):
    """Keeps what a guide calls `pyro.param` in a module, where Pyro would put it into its global store."""

    def __init__(self, kept: nn.ParameterDict, spaces: dict[str, Any]):
        super().__init__()
        self.kept, self.spaces = kept, spaces

    def _pyro_param(self, msg: Any) -> None:
        name, given = msg["name"].replace(".", "/"), msg["args"][1:]
        if name not in self.kept:
            if not given:
                raise ValueError(f"parameter {msg['name']} of the guide has no first value")
            first = given[0]() if callable(given[0]) and not isinstance(given[0], Tensor) else given[0]
            self.spaces[name] = msg["kwargs"].get("constraint", constraints.real)
            with torch.no_grad():
                self.kept[name] = nn.Parameter(transform_to(self.spaces[name]).inv(first.detach().clone()).contiguous())
        msg["value"], msg["done"], msg["stop"] = transform_to(self.spaces[name])(self.kept[name]), True, True


class Own(nn.Module):
    """A guide of the user's behind the face of ours: `families`, `marginal`, `groups`, `bounds`.

    Args:
        given: as the module says.
        name: what it is called.
        model: the Pyro model.
        starts: site -> where a posterior may start.
        example: arguments of the model.

    Raises:
        ValueError: no guide, one that fails, or that leaves a site out.
    """

    def __init__(self, given: Any, name: str, model: nn.Module, starts: dict[str, Start], example: tuple[Tensor, ...]):
        super().__init__()
        self.families = {site: start.family for site, start in starts.items()}
        self.kept, self.spaces = nn.ParameterDict(), dict[str, Any]()
        self.example = example
        self._matched: tuple[list[Tensor], Matched | None] = [], None
        try:
            with torch.no_grad(), pyro.settings.context(module_local_params=True):
                guide = made_guide(copy.deepcopy(given) if isinstance(given, nn.Module) else given, model, starts)
            if isinstance(guide, PyroModule) and not hasattr(guide._pyro_context, "param_state"):
                guide._pyro_context.param_state = {"params": {}, "constraints": {}}  # it was made for the global store
            self.inner = guide if isinstance(guide, nn.Module) else None
            self._called = (guide,)  # the model within is no submodule
            found = next(drawn(self, example, 1))
        except Exception as error:  # it is the user's
            reason = str(error).strip().split("\n")[0][:160]
            raise ValueError(f"guide {shown(name)} fails: {type(error).__name__}: {reason}") from error
        if missing := sorted(self.families.keys() - found.keys()):
            raise ValueError(
                f"guide {shown(name)} samples {', '.join(list(found)[:6]) or 'nothing'}; it must sample every site of "
                f"the model, {missing[0]} among them"
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Sample every site; without arguments those of the example, which say nothing else."""
        guide = self._called[0]
        keeping = nullcontext() if isinstance(guide, PyroModule) else _Parameters(self.kept, self.spaces)
        with pyro.settings.context(module_local_params=True), keeping:
            return guide(*(args or self.example), **kwargs)

    def marginal(self, site: str) -> Distribution:
        """Posterior marginal of a site, one independent value per element; no gradient goes through it."""
        before, found = self._matched
        now = [parameter.detach() for parameter in self.parameters()]
        if found is None or not all(torch.equal(one, other) for one, other in zip(now, before, strict=True)):
            with pyro.settings.context(module_local_params=True):
                own = gaussian(self._called[0])
            found = own or matched(drawn(self, self.example, DRAWS), self.families)
            self._matched = [parameter.clone() for parameter in now], found
        return found.marginal(site)

    def bounds(self) -> list[tuple[nn.Parameter, tuple[float, float]]]:
        """None: a guide of one's own keeps its parameters where they belong by itself."""
        return []

    def groups(self, lr: float, lr_scale: float, lr_group: float) -> list[dict[str, Any]]:
        """Optimiser groups: spreads, and everything else."""
        named = list(self.named_parameters())
        spreads = [one for name, one in named if SCALES.search(name.removeprefix("kept.").removeprefix("inner."))]
        known = {id(one) for one in spreads}
        others = [one for _, one in named if id(one) not in known]
        return [{"params": others, "lr": lr}, {"params": spreads, "lr": lr_scale}]
