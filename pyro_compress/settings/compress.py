"""What determines a compression: `CompressConfig`, what it is to reach (`Goal`), how it fine-tunes (`FineTune`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pyro_compress.settings.data import MOST
from pyro_compress.settings.declared import Config, built, setting
from pyro_compress.settings.registries import Names

if TYPE_CHECKING:
    from pyro_compress.types import Posterior
else:
    Posterior = Any  # its module needs numpy, and `--help` does not

REMOVED, FINE_TUNING, RESULTS = "What is removed and rounded", "Fine-tuning", "Results"
AUGMENTATIONS = Names("data/augment.py", "AUGMENTATIONS", ("none",))


@dataclass(frozen=True)
class Goal(Config):
    """How much is pruned, or what the result has to reach on the validation split.

    Attributes:
        reference: what the tolerance counts against; the uncompressed posterior mean if None.
    """

    heading: ClassVar = REMOVED

    criterion: str | None = setting(
        None, "Score that orders weights for pruning; the default fits the prior.",
        among=Names("compression/prune.py", "CRITERIA"),
    )  # fmt: skip
    sparsity: float | dict[str, float] | None = setting(
        None, "Share of the weights to remove, instead of a search; layer=share,... for one per layer.",
        least=0, below=1, searched=False,
    )  # fmt: skip
    rule: bool = setting(
        False, "Remove what the criterion itself calls superfluous, instead of a search: with model-reduction every "
        "weight without which the evidence is larger; with snr log alpha above 3, with group-snr above -3.",
        searched=False,
    )  # fmt: skip
    tolerance: float = setting(
        0.005, "Validation accuracy (mean IoU of segmentation) that may be lost (0.005: half a point); regression and "
        "reconstruction: share by which the RMSE may grow, texts: the bits.",
        least=0, most=1, searched=False,
    )  # fmt: skip
    nll_tolerance: float | None = setting(
        None, "Validation NLL that may be lost; default: twice --tolerance, less below 3,000 examples.",
        least=0, unit="NATS", searched=False,
    )  # fmt: skip
    target_error: float | None = setting(
        None, "Validation error that may be reached (0.02: two points; regression: RMSE / spread; texts: bits), "
        "instead of a tolerance.", least=0, unit="SHARE", searched=False,
    )  # fmt: skip
    max_bytes: int | None = setting(
        None, "Largest file; the best that fits, instead of a tolerance.", least=1, unit="BYTES", searched=False
    )
    reference: Posterior | None = None


@dataclass(frozen=True)
class FineTune(Config):
    """How to fine-tune: the surviving weights are trained on as integers, at λ nats per nat of code."""

    heading: ClassVar = FINE_TUNING

    epochs: int = setting(
        30, "Train what is left on as integers, likelihood against bits; the report counts --masked-epochs too.",
        least=1, most=MOST, unit="EPOCHS", option="finetune", kind="switch",
    )  # fmt: skip
    masked_epochs: int = setting(
        2, "Epochs before those of --finetune, on the masked weights, which are not rounded yet.",
        least=0, most=MOST, unit="EPOCHS",
    )  # fmt: skip
    lam: float = setting(
        1.0, "λ: nats of log-likelihood that may be given up to save a nat of code; 1 is the description length.",
        least=0, unlisted=True,
    )  # fmt: skip
    ramp: float = setting(0.3, "Share of the epochs over which λ rises to its value.", least=0, unlisted=True)
    step: float = setting(
        1.0, "Step size of the weights in fine-tuning, relative to each layer's own scale (the root mean square of "
        "what the mask kept).", above=0,
    )  # fmt: skip
    bias_step: float = setting(0.125, "Step size of the biases, as a power of two.", above=0, unlisted=True)
    noise: float = setting(
        0.0, "Noise on the weights in fine-tuning, in steps (Hinton & van Camp 1993).", least=0, unit="STEPS"
    )
    sam_rho: float = setting(
        0.0, "Sharpness-aware fine-tuning (Foret et al. 2021): descend from the worst weights within this distance. "
        "Takes twice the time.", least=0, unit="RHO",
    )  # fmt: skip
    svi: bool = setting(
        False, "Go on with SVI in fine-tuning: weights learn spreads, the coder is the prior, --noise is for the "
        "others.", option="finetune-svi",
    )  # fmt: skip
    batch_size: int = setting(
        256, "Examples per step of fine-tuning; fewer take longer, and may generalise better.",
        least=1, most=MOST, unit="EXAMPLES", option="finetune-batch-size",
    )  # fmt: skip
    lr: float = setting(
        3e-3, "Adam's learning rate in fine-tuning; falls linearly to 0.", least=0, option="finetune-lr"
    )
    teacher_weight: float = setting(
        0.7, "Share of the loss that is the teacher's.", least=0, most=1, unit="SHARE", searched=False
    )
    temperature: float = setting(
        2.0, "Of the softmax under which teacher and network are compared.", above=0, searched=False
    )
    augment: str = setting(
        "none", "Training images, changed every time they are seen in fine-tuning; a teacher sees what the network "
        "sees.", among=AUGMENTATIONS, option="finetune-augment",
    )  # fmt: skip
    seed: int = setting(0, "Shuffles.", unlisted=True)


@dataclass(frozen=True)
class CompressConfig(Goal):
    """Everything that determines a compression: a goal, and how to reach it.

    docs/settings.md lists its fields, with defaults and ranges.

    Attributes:
        finetuning: how to fine-tune; None: not at all.

    Raises:
        ValueError: a value that is out of range, an unknown name, settings that exclude each other.
    """

    rounding: str | None = setting(
        None, "compensated (of --net, the default): every integer for what it costs outputs and file, the weights not "
        "yet rounded make up for it. nearest: after pruning by a criterion. smallest (of RUN, the default): both, and "
        "the smaller file is kept.", among=("nearest", "compensated", "smallest"), searched=False,
    )  # fmt: skip
    relative_step: float | None = setting(
        None, "Step size of the weights, relative to each layer's own scale; goes with --sparsity or --rule. Default: "
        "found on validation.", above=0, former="coarseness",
    )  # fmt: skip
    bits: tuple[int, ...] = setting(
        (), "Bits per weight, sign included, one number or one per layer, instead of a search for the steps.",
        least=2, most=15, searched=False,
    )  # fmt: skip
    lam: tuple[float, ...] = setting(
        (), "λ, the Lagrange multiplier of rounding: nats of distortion, by the posterior's spread, that may be given "
        "up to save a nat of code; 0: to the nearest. Repeatable: the best is taken.",
        least=0, name="lambda", former="bit_price", kind="repeated", searched=False,
    )  # fmt: skip
    repair: int | None = setting(
        None, "Epochs in which, after rounding with compensation, biases and norms learn from the given network, "
        "without labels; default: 6, fewer for large networks.", least=0, most=MOST, unit="EPOCHS", searched=False,
    )  # fmt: skip
    finetuning: FineTune | None = field(default=None, metadata={"part": FineTune})
    finetune_lambda: float | None = setting(
        None, "λ of fine-tuning: nats of log-likelihood that may be given up to save a nat of code; 1 is the "
        "description length. Default: searched for on validation.", least=0, group=FINE_TUNING, former="rate",
    )  # fmt: skip
    teacher: tuple[str, ...] = setting(
        (), "Run whose network is distilled into this one while fine-tuning. Repeatable: their mean probabilities are.",
        unit="RUN", kind="run", group=FINE_TUNING, searched=False,
    )  # fmt: skip
    reorder: int | None = setting(
        None, "Passes of the coder spent on the order of hidden units that takes the fewest bytes; default: some "
        "seconds.", least=0, most=MOST, unit="PASSES", group=RESULTS, searched=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check every value, and those that exclude each other."""
        super().__post_init__()
        given = [
            f"--{n.replace('_', '-')}"
            for n in ("sparsity", "target_error", "max_bytes")
            if getattr(self, n) is not None
        ] + ["--rule"] * self.rule
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
        if self.finetuning is None and (self.finetune_lambda is not None or self.teacher):
            raise ValueError("--finetune-lambda and --teacher go with --finetune EPOCHS")
        if self.finetuning and self.relative_step is not None:
            raise ValueError("--relative-step goes without --finetune; fine-tuning has --step")
        if self.rounding in ("compensated", "smallest") and not replace(self, rounding=None).rounds_only:
            raise ValueError(
                f"rounding {self.rounding} chooses every integer itself: leave out criterion, sparsity, rule, steps, "
                "bits, lambda and fine-tuning, or take rounding nearest"
            )
        if self.finetuning and (self.bits or self.lam):
            raise ValueError("--bits and --lambda go without --finetune, which chooses every integer itself")

    @property
    def rounds_only(self) -> bool:
        """Whether nothing asks for pruning, for another rounding than with compensation, or for fine-tuning."""
        asked = (self.rounding, self.criterion, self.sparsity, self.relative_step, self.bits, self.lam, self.finetuning)
        return not self.rule and all(value in (None, ()) for value in asked)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From options by the names that the command line and TOML files have for them: `finetune_lr`.

        Raises:
            ValueError: as when it is made, or one of fine-tuning without `finetune`.
        """
        return built(cls, options)
