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
class TextScores:
    """Quality of next-token prediction, over all tokens that have one after them.

    Attributes:
        bits: bits per token: what an ideal coder would spend on one, the NLL in nats over ln 2.
        perplexity: `exp(nll_nats)`.
        accuracy: share of the tokens that had been the most probable.
        nll_nats: per token.
        unit: what a token is: `byte`, `character` or `token`.
    """

    bits: float
    perplexity: float
    accuracy: float
    nll_nats: float
    unit: str = "token"

    @property
    def error(self) -> float:
        """Bits per token."""
        return self.bits

    @property
    def cells(self) -> dict[str, str]:
        """Heading -> number."""
        return {
            f"bits per {self.unit}": f"{self.bits:.4f}",
            "perplexity": f"{self.perplexity:.3f}",
            "accuracy": f"{100 * self.accuracy:.2f} %",
            "NLL (nats)": f"{self.nll_nats:.4f}",
        }

    @property
    def epoch(self) -> dict[str, float | None]:
        """What the history keeps."""
        return {"validation_accuracy": self.accuracy, "validation_nll_nats": self.nll_nats}

    def within(self, reference: TextScores, tolerance: float) -> bool:
        """Whether the bits per token grew by at most this share."""
        return self.bits <= reference.bits * (1 + tolerance)

    def reaches(self, error: float) -> bool:
        """Whether the bits per token are no more than this."""
        return self.bits <= error

    def bound(self, tolerance: float) -> str:
        """The bits per token that are still within the tolerance."""
        return f"{self.bits * (1 + tolerance):.4f} bits per {self.unit}"


@dataclass(frozen=True)
class PositionScores:
    """Quality of a class per position, over all positions that have a label.

    Attributes:
        accuracy: share of the positions that are right.
        mean_iou: intersection over union of what is and what was taken for a class, its mean over the classes that are
            in either.
        macro_f1: F1 (twice the right ones over those that are plus those taken for it), its mean likewise.
        nll_nats: per position.
        judged: which of the first three the task is judged by.
    """

    accuracy: float
    mean_iou: float
    macro_f1: float
    nll_nats: float
    judged: str = "accuracy"

    @property
    def error(self) -> float:
        """1 less what the task is judged by."""
        return 1 - float(getattr(self, self.judged))

    @property
    def cells(self) -> dict[str, str]:
        """Heading -> number, what the task is judged by first."""
        shares = {"accuracy": self.accuracy, "mean_iou": self.mean_iou, "macro_f1": self.macro_f1}
        order = [self.judged, *(name for name in shares if name != self.judged)]
        return {POSITION_HEADINGS[name]: f"{100 * shares[name]:.2f} %" for name in order} | {
            "NLL (nats)": f"{self.nll_nats:.4f}"
        }

    @property
    def epoch(self) -> dict[str, float | None]:
        """What the history keeps."""
        return {"validation_accuracy": self.accuracy, "validation_nll_nats": self.nll_nats}

    def within(self, reference: PositionScores, tolerance: float) -> bool:
        """Whether at most `tolerance` of what the task is judged by is lost."""
        return self.error <= reference.error + tolerance

    def reaches(self, error: float) -> bool:
        """Whether the error is no larger than this."""
        return self.error <= error

    def bound(self, tolerance: float) -> str:
        """What is still within the tolerance."""
        return f"{POSITION_HEADINGS[self.judged]} of {1 - self.error - tolerance:.4f}"


POSITION_HEADINGS = {"accuracy": "accuracy", "mean_iou": "mean IoU", "macro_f1": "macro F1"}
"""Field of `PositionScores` -> what people call it."""


@dataclass(frozen=True)
class LabelScores:
    """Quality of several labels of yes or no per example.

    Attributes:
        accuracy: share of all labels that are right, at a probability of a half.
        exact_match: share of the examples of which every label is right.
        macro_f1: F1 of a label, its mean over those that some example has or is given.
        nll_nats: per example, of all its labels together.
    """

    accuracy: float
    exact_match: float
    macro_f1: float
    nll_nats: float

    @property
    def error(self) -> float:
        """Share of the labels that are wrong."""
        return 1 - self.accuracy

    @property
    def cells(self) -> dict[str, str]:
        """Heading -> number."""
        shares = {"label accuracy": self.accuracy, "exact match": self.exact_match, "macro F1": self.macro_f1}
        return {name: f"{100 * n:.2f} %" for name, n in shares.items()} | {"NLL (nats)": f"{self.nll_nats:.4f}"}

    @property
    def epoch(self) -> dict[str, float | None]:
        """What the history keeps."""
        return {"validation_accuracy": self.accuracy, "validation_nll_nats": self.nll_nats}

    def within(self, reference: LabelScores, tolerance: float) -> bool:
        """Whether at most `tolerance` of the label accuracy is lost."""
        return self.accuracy >= reference.accuracy - tolerance

    def reaches(self, error: float) -> bool:
        """Whether at most this share of the labels is wrong."""
        return self.accuracy >= 1.0 - error

    def bound(self, tolerance: float) -> str:
        """The label accuracy that is still within the tolerance."""
        return f"label accuracy of {self.accuracy - tolerance:.4f}"


@dataclass(frozen=True)
class SeveralScores:
    """Quality of several outputs, each with its own scores.

    Attributes:
        parts: name of the output -> its scores.
        nll_nats: of all outputs of an example together.
    """

    parts: dict[str, Any]
    nll_nats: float

    @property
    def error(self) -> float:
        """Mean of the outputs' errors."""
        return float(sum(part.error for part in self.parts.values())) / len(self.parts)

    @property
    def relative_rmse(self) -> float:
        """Root mean square of the relative RMSE of those that are numbers; 0 where none is."""
        found = [part.relative_rmse**2 for part in self.parts.values() if isinstance(part, RegressionScores)]
        return float((sum(found) / max(len(found), 1)) ** 0.5)

    @property
    def cells(self) -> dict[str, str]:
        """Heading -> number: what each output is judged by, then the NLL."""
        firsts = {name: next(iter(part.cells.items())) for name, part in self.parts.items()}
        return {f"{name}: {heading}": number for name, (heading, number) in firsts.items()} | {
            "NLL (nats)": f"{self.nll_nats:.4f}"
        }

    @property
    def epoch(self) -> dict[str, float | None]:
        """What the history keeps: the accuracy, or the RMSE, of the first output that has one."""
        kept: dict[str, float | None] = {"validation_accuracy": None}
        for part in reversed(self.parts.values()):
            kept |= {name: value for name, value in part.epoch.items() if value is not None}
        return kept | {"validation_nll_nats": self.nll_nats}

    def within(self, reference: SeveralScores, tolerance: float) -> bool:
        """Whether no output loses more than a tolerance, as its own task counts it."""
        return all(part.within(reference.parts[name], tolerance) for name, part in self.parts.items())

    def reaches(self, error: float) -> bool:
        """Whether no output's error is larger."""
        return all(part.reaches(error) for part in self.parts.values())

    def bound(self, tolerance: float) -> str:
        """The worst of every output that is still within the tolerance."""
        return ", ".join(f"{name}: {part.bound(tolerance)}" for name, part in self.parts.items())


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
        """The relative RMSE that is still within the tolerance: what counts where targets have units of their own."""
        return f"RMSE / spread of {self.relative_rmse * (1 + tolerance):.4f}"


def ratio_text(ratio: float) -> str:
    """How much smaller a file is than the network's values as float32, or larger."""
    return f"{ratio:.1f}× smaller" if ratio >= 1 else f"{1 / max(ratio, 1e-9):.1f}× larger"
