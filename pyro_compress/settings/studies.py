"""What a study says beside the settings of its fits: `SearchConfig` of `tune`, `StudyConfig` of `compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from pyro_compress.settings.data import MOST
from pyro_compress.settings.declared import Config, setting
from pyro_compress.settings.registries import Names

NAME = "Of the study; default: its file's."


class Machine(TypedDict, total=False):
    """Where a study finds its data and computes: settings of a fit that are none of its own."""

    data_dir: str
    device: str
    threads: int


@dataclass(frozen=True)
class SearchConfig(Config):
    """How settings are searched."""

    heading: ClassVar = "Search"

    name: str = setting("", NAME)
    objective: str = setting(
        "pareto", "What is to be small: validation error and file bytes, or one of them with a bound on the other.",
        among=("pareto", "bytes-at-error", "error-at-bytes"),
    )  # fmt: skip
    bound: float = setting(
        0.0, "Largest error of interest (0.02: two points; pareto may leave it out), or the bytes of error-at-bytes.",
        least=0,
    )  # fmt: skip
    sampler: str = setting("gp", "What proposes settings.", among=Names("tuning/storage.py", "SAMPLERS"))
    trials: int = setting(60, "Trials at the last fidelity; 0: no limit, the default where minutes are given.", least=0)
    minutes: float = setting(0.0, "Minutes of computing, over all workers; 0: no limit.", least=0)
    fidelities: tuple[int, ...] = setting(
        (), "Epochs of a fit, cheap ones first; only the last enter the front.", least=1, most=MOST
    )
    cheap_trials: int = setting(20, "Trials at each fidelity but the last.", least=1)
    promote: int = setting(2, "Fits of a fidelity with which the next one starts.", least=1)
    compressions_per_fit: int = setting(6, "Trials that share a fit.", least=1)
    layer_wise: bool = setting(False, "One kept share per layer.")
    seed: int = setting(0, "Of the sampler.", least=0)

    def __post_init__(self) -> None:
        """Check every value, and those that only go together."""
        super().__post_init__()
        needed, error = self.objective != "pareto", self.objective != "error-at-bytes"
        if (needed and self.bound == 0) or (error and self.bound >= 1):
            raise ValueError(
                f"objective {self.objective!r} with bound {self.bound:g}: pareto and bytes-at-error take an error "
                "below 1 (0.02 is two points; pareto may leave it out), error-at-bytes a number of bytes"
            )
        if list(self.fidelities) != sorted(set(self.fidelities)):
            raise ValueError(f"fidelities {list(self.fidelities)}: give epochs, fewest first, like [8, 50]")
        if not (self.trials or self.minutes):
            raise ValueError("trials 0, minutes 0: give a budget, one of them above 0")


@dataclass(frozen=True)
class MethodConfig(Config):
    """One row of a comparison, beside its settings of a fit."""

    heading: ClassVar = "Methods"

    name: str = setting("", "Of the method; needed.")
    variant: str = setting("", "Of the method, where several have its name.")
    sparsities: tuple[float, ...] = setting((), "Instead of the study's.", least=0, below=1)
    criterion: str = setting(
        "", "Score that orders weights for pruning; default: the posterior's own.",
        among=Names("compression/prune.py", "CRITERIA", ("",)),
    )  # fmt: skip
    choose: dict[str, Any] = setting(
        {}, "Settings of a fit -> values among which validation chooses, all combinations."
    )


@dataclass(frozen=True)
class StudyConfig(Config):
    """What is compared."""

    heading: ClassVar = "Study"

    name: str = setting("", NAME)
    datasets: tuple[str, ...] = setting((), "Data sets, as for fit; needed.")
    networks: tuple[str, ...] = setting((), "Networks, as for fit; needed.")
    sparsities: tuple[float, ...] = setting((), "Shares of the weights to remove; needed.", least=0, below=1)
    seeds: tuple[int, ...] = setting((), "Of the fits; needed.")
    out_of_domain: dict[str, str] = setting({}, "Data set -> another one, for the comparison of uncertainties.")
    choose_by: str = setting(
        "nll", "What the best of several fits is on validation.", among=Names("studies/plan.py", "CHOOSE_BY")
    )
