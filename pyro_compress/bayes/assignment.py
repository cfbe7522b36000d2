"""Which tensor has which prior: one for all, or by patterns of their names, `conv*=horseshoe,fc*=log-uniform`.

The first pattern that matches counts. A pattern (fnmatch) is held against a tensor's name (`fc1.weight`) and against
its layer's path (`fc1`); `none` keeps what it matches a point estimate.

Every tensor is fitted by its own prior's recipe: its start, its initial standard deviation, its learning rates, its
grouping. The numbers of a configuration are those of the first prior; the others' stand in the same proportion to them
as their recipes do. What a fit has once is what serves all: the longest pretraining and warm-up; an estimator that all
of them allow; their criterion, or, where they differ, the signal-to-noise ratio, which is known of every weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from pyro_compress.bayes.own_priors import bring, prior_named
from pyro_compress.bayes.priors import Prior, weight_start
from pyro_compress.foreign import shown
from pyro_compress.settings import FitConfig

ALL = "*"


class Pace(NamedTuple):
    """A tensor's numbers, as multiples of the configuration's.

    Attributes:
        lr: learning rate of raw weights.
        lr_scale: of log-scales.
        lr_group: of group scales.
        init_scale: initial standard deviation.
    """

    lr: float = 1.0
    lr_scale: float = 1.0
    lr_group: float = 1.0
    init_scale: float = 1.0


@dataclass(frozen=True)
class Assignment:
    """Priors by pattern.

    Attributes:
        parts: pattern and prior (None: a point estimate), the first one that matches first.
    """

    parts: tuple[tuple[str, Prior | None], ...]

    def of(self, name: str) -> Prior | None:
        """Prior of a tensor; None: it has none."""
        return next((prior for pattern, prior in self.parts if _matches(pattern, name)), None)

    def pace(self, name: str) -> Pace:
        """How a tensor's recipe relates to the first prior's."""
        own, first = self.of(name), self.first
        if own is None or own is first:
            return Pace()
        return Pace(*(getattr(own, one) / getattr(first, one) for one in Pace._fields))

    @property
    def priors(self) -> list[Prior]:
        """All of them, in order."""
        return [prior for _, prior in self.parts if prior is not None]

    @property
    def first(self) -> Prior:
        """The one whose recipe a configuration's numbers are those of."""
        return self.priors[0]

    @property
    def criterion(self) -> str:
        """Name of the pruning criterion that fits all of them."""
        found = {prior.criterion for prior in self.priors}
        return found.pop() if len(found) == 1 else "snr"

    @property
    def estimator(self) -> str:
        """Name of the estimator that all of them allow."""
        found = {prior.estimator for prior in self.priors}
        return found.pop() if len(found) == 1 else "weight"

    @property
    def proper(self) -> bool:
        """Whether all have a finite mass."""
        return all(prior.proper for prior in self.priors)

    @property
    def scaled(self) -> bool:
        """Whether any has group scales."""
        return any(prior.factors is not None for prior in self.priors)

    @property
    def more_sites(self) -> bool:
        """Whether any has sites beside the raw weights: scales, the components of a mixture, those of an own prior."""
        return any(getattr(prior.start, "func", prior.start) is not weight_start for prior in self.priors)

    @property
    def groupings(self) -> list[str]:
        """Those that any of them allows, the default first."""
        by_default = sorted(self.priors, key=lambda prior: prior.factors is None)
        return list(dict.fromkeys(one for prior in by_default for one in prior.groupings))

    @property
    def max_scale(self) -> float | None:
        """Bound on the first layer's standard deviations; None: it is that of the layer's own prior."""
        found = {prior.max_scale for prior in self.priors}
        return found.pop() if len(found) == 1 else None

    def grouping(self, name: str, asked: str) -> str:
        """Grouping of a tensor: what is asked for, or what its prior has instead."""
        prior = self.of(name)
        return asked if prior is None or asked in prior.groupings else prior.groupings[0]

    def check(self, names: Iterable[str]) -> None:
        """Hold the patterns against the tensors that may have a prior.

        Raises:
            ValueError: a tensor that no pattern matches, or a pattern that no tensor has as its first.
        """
        matched = {name: next((p for p, _ in self.parts if _matches(p, name)), None) for name in names}
        patterns = ", ".join(pattern for pattern, _ in self.parts)
        if missed := [name for name, pattern in matched.items() if pattern is None]:
            raise ValueError(
                f"{', '.join(missed[:4])} matches none of the priors' patterns {patterns}; give it a prior, or "
                "'*=none' to keep the rest without one"
            )
        if idle := [pattern for pattern, _ in self.parts if pattern not in (ALL, *matched.values())]:
            raise ValueError(
                f"the prior of {idle[0]!r} is no tensor's; tensors that may have one: {', '.join(list(matched)[:8])}"
            )


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern means a tensor, by its name or by the path of its layer."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)


def everywhere(prior: Prior) -> Assignment:
    """One prior for all tensors."""
    return Assignment(((ALL, prior),))


def assigned(config: FitConfig) -> Assignment:
    """The priors of a configuration, with its options.

    Raises:
        ValueError: unknown priors, patterns that are none, options that none of them has.
    """
    return assignment_of(config.prior, config.prior_options)


def assignment_of(text: str, options: Mapping[str, float] | None = None) -> Assignment:
    """Priors from a name, or from `pattern=name,pattern=name`.

    Examples:
        >>> found = assignment_of("conv*=horseshoe,fc*=log-uniform", {"tau0": 1e-4})
        >>> found.of("conv1.weight").criterion, found.of("fc1.weight").criterion, found.criterion
        ('group-mode', 'snr', 'snr')
    """
    options = options or {}
    if "=" not in text and "," not in text:
        return everywhere(prior_named(text).with_options(dict(options)))
    parts = list[tuple[str, Prior | None]]()
    for part in text.split(","):
        pattern, equals, name = (one.strip() for one in part.partition("="))
        if not (pattern and equals and name):
            raise ValueError(
                f"prior {shown(text)}: {shown(part)} is no PATTERN=PRIOR; several priors go to tensors "
                "by their names, like 'conv*=horseshoe', '*=gaussian'"
            )
        parts.append((pattern, None if name == "none" else prior_named(name)))
    if len({pattern for pattern, _ in parts}) < len(parts):
        raise ValueError(f"prior {shown(text)}: a pattern stands there twice")
    if not any(prior for _, prior in parts):
        raise ValueError(f"prior {shown(text)} is none at all; say 'none'")
    known = {name for _, prior in parts if prior for name in prior.options}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"unknown prior option {', '.join(unknown)}; allowed: {', '.join(sorted(known)) or 'none'}")
    return Assignment(tuple((pattern, _with_own(prior, options)) for pattern, prior in parts))


def _with_own(prior: Prior | None, options: Mapping[str, float]) -> Prior | None:
    return prior and prior.with_options({name: value for name, value in options.items() if name in prior.options})


def spelled(prior: Any) -> str:
    """What `FitConfig.prior` calls a prior, or priors by pattern; objects are made known in this process.

    Args:
        prior: a name, a Pyro function, a `Prior`, or a dictionary of these by pattern.
    """
    if isinstance(prior, str):
        return prior
    if isinstance(prior, Mapping):
        return ",".join(f"{pattern}={spelled(one)}" for pattern, one in prior.items())
    return bring(prior)
