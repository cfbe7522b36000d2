"""Where a network comes from: what a compressed file repeats of the fit behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """Data, prior, seed and whatever else a file needs so that its network can be evaluated again.

    Attributes:
        entries: name -> value as JSON takes it, in the order in which files hold them; `pcn.meta.ENTRIES` says what
            each may be. Files of other versions may hold more.
    """

    entries: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """Name of the data, or path; empty: they have none."""
        return str(self.entries.get("data", ""))

    @property
    def prior(self) -> str:
        """Of the weights; empty: not known."""
        return str(self.entries.get("prior", ""))

    @property
    def task(self) -> str:
        """Name in `pyro_compress.data.tasks.TASKS`."""
        return str(self.entries.get("task", "classification"))

    @property
    def noise(self) -> float | None:
        """Standard deviation of regression's Gaussian likelihood, in standard deviations of the targets."""
        return self.entries.get("noise")

    @property
    def parameters_total(self) -> int | None:
        """Values of the network that a fit's own compressed file was made from; None: it began with no such file."""
        found = self.entries.get("parameters_total")
        return None if found is None else int(found)

    def but(self, entries: Mapping[str, Any] | None = None, **more: Any) -> Provenance:
        """The same with other entries, those that are None left out."""
        changed = dict(entries or {}) | more
        return Provenance(dict(self.entries) | {name: value for name, value in changed.items() if value is not None})
