"""How good predictions are: what every task's scores offer, and those of the tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


class Quality(Protocol):
    """Quality on one split; every task has its own numbers, and all have these."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def nll_nats(self) -> float:
        """Negative log-likelihood in nats per example."""

    @property
    def error(self) -> float:
        """What a search lowers: the share of wrong answers, or the RMSE in standard deviations of the targets."""

    @property
    def cells(self) -> dict[str, str]:
        """Heading -> number, for people; the first is what the task is judged by."""

    @property
    def epoch(self) -> dict[str, float | None]:
        """Fields of `pyro_compress.training.history.Epoch`."""

    def within(self, reference: Any, tolerance: float) -> bool:
        """Whether no more than a tolerance is lost against other scores."""

    def reaches(self, error: float) -> bool:
        """Whether the error is no larger than this."""

    def bound(self, tolerance: float) -> str:
        """The worst that is still within a tolerance of these scores, in words."""


@dataclass(frozen=True)
class Scores:
    """Quality of a classifier: accuracy in [0, 1], NLL, expected calibration error, Brier score."""

    accuracy: float
    nll_nats: float
    ece: float
    brier: float

    @property
    def error(self) -> float:
        """Share of the examples that are wrong."""
        return 1 - self.accuracy

    @property
    def cells(self) -> dict[str, str]:
        """Heading -> number."""
        numbers = {"NLL (nats)": self.nll_nats, "ECE": self.ece, "Brier": self.brier}
        return {"accuracy": f"{100 * self.accuracy:.2f} %"} | {name: f"{n:.4f}" for name, n in numbers.items()}

    @property
    def epoch(self) -> dict[str, float | None]:
        """What the history keeps."""
        return {"validation_accuracy": self.accuracy, "validation_nll_nats": self.nll_nats}

    def within(self, reference: Scores, tolerance: float) -> bool:
        """Whether at most `tolerance` of accuracy is lost."""
        return self.accuracy >= reference.accuracy - tolerance

    def reaches(self, error: float) -> bool:
        """Whether at most this share of the examples is wrong."""
        return self.accuracy >= 1.0 - error

    def bound(self, tolerance: float) -> str:
        """The accuracy that is still within the tolerance."""
        return f"accuracy of {self.accuracy - tolerance:.4f}"


@dataclass(frozen=True)
class RegressionScores:
    """Quality of a regression: RMSE and NLL in the targets' own units, and the RMSE relative to their spread.

    Attributes:
        rmse: root mean squared error; over all targets, where there are several.
        nll_nats: negative log-density per example under the learned noise.
        relative_rmse: RMSE of the standardised targets: 1 is what their training mean would score.
    """

    rmse: float
    nll_nats: float
    relative_rmse: float

    @property
    def error(self) -> float:
        """The relative RMSE."""
        return self.relative_rmse

    @property
    def cells(self) -> dict[str, str]:
        """Heading -> number."""
        shares = {"NLL (nats)": f"{self.nll_nats:.4f}", "RMSE / spread": f"{self.relative_rmse:.4f}"}
        return {"RMSE": f"{self.rmse:.5g}"} | shares

    @property
    def epoch(self) -> dict[str, float | None]:
        """What the history keeps."""
        return {"validation_accuracy": None, "validation_rmse": self.rmse, "validation_nll_nats": self.nll_nats}

    def within(self, reference: RegressionScores, tolerance: float) -> bool:
        """Whether the RMSE grew by at most this share."""
        return self.relative_rmse <= reference.relative_rmse * (1 + tolerance)

    def reaches(self, error: float) -> bool:
        """Whether the relative RMSE is no larger than this."""
        return self.relative_rmse <= error

    def bound(self, tolerance: float) -> str:
        """The RMSE that is still within the tolerance."""
        return f"RMSE of {self.rmse * (1 + tolerance):.5g}"
