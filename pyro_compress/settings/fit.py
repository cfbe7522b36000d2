"""What determines a fit: `FitConfig`, from the parts that data, network, prior, baseline and machine have in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pyro_compress.settings.data import MOST, DataConfig, ReadConfig
from pyro_compress.settings.declared import Config, setting
from pyro_compress.settings.registries import Names

COMPILE_STEPS = 5000
"""Fewer SVI steps than this do not pay back the compiler's half minute."""
LARGE = 1e30
"""Of real numbers: a larger one is a slip."""
PRIOR, POSTERIOR, TRAINING, RUNNING = "Prior", "Posterior", "Training", "Running"
BASELINE = "Without a prior (--prior none)"
HEADINGS = (PRIOR, "Network", "Data", TRAINING, POSTERIOR, BASELINE, RUNNING)
"""Headings in the order of `--help`; others follow."""


@dataclass(frozen=True)
class MethodConfig(Config):
    """What is put on the weights: a prior, or nothing."""

    heading: ClassVar = PRIOR

    prior: str = setting(
        "horseshoe", "Of the weights; none: a deterministic baseline; MODULE:FUNCTION: a Pyro function of yours; "
        "PATTERN=PRIOR: of the tensors with such names, repeatable (docs/tutorials/own-prior.md).",
        among=Names("bayes/priors.py", "PRIORS", ("none",)), other="MODULE:FUNCTION", kind="joined",
    )  # fmt: skip


@dataclass(frozen=True)
class NetworkConfig(Config):
    """The network, and what its weights start from."""

    heading: ClassVar = "Network"

    net: str = setting(
        "mlp", "{names}, torchvision:NAME, package.module:function, or a .pcn file's architecture.",
        among=Names("networks/nets.py", "NETS"), other="MODULE:FUNCTION", unit="NAME", path=True, searched=False,
    )  # fmt: skip
    hidden: tuple[int, ...] = setting(
        (500, 500), "Widths of the hidden layers of mlp.", least=1, most=MOST, searched=False
    )
    init: str = setting(
        "", "Trained weights to start from: a checkpoint (safetensors, or what torch saved), a .pcn file, "
        "torchvision:WEIGHTS, or a run folder.", unit="WEIGHTS", path=True,
    )  # fmt: skip
    new_head: bool = setting(False, "With --init: the last layer starts anew, for other classes than its.")
    input_mean: tuple[float, ...] = setting(
        (), "The network subtracts it from its inputs: one number, or one per channel; default: what --init wants."
    )
    input_std: tuple[float, ...] = setting((), "What they are divided by then, likewise.", above=0)
    init_range: float = setting(
        0.0, "Weights start uniform in ±RANGE; 0: as torch starts them.", least=0, most=LARGE, unit="RANGE"
    )


@dataclass(frozen=True)
class TrainingConfig(Config):
    """What every fit is trained by."""

    heading: ClassVar = TRAINING

    epochs: int | None = setting(
        None, "Passes over the data, those of --pretrain-epochs included; default: 30, up to 100 for small data sets.",
        least=1, most=MOST, searched=False,
    )  # fmt: skip
    batch_size: int | None = setting(
        None, "Examples per step; default: 128, or 64 below 10,000 examples.", least=1, most=MOST
    )
    lr: float | None = setting(
        None, "Learning rate of means and of everything deterministic; the default fits the prior.", above=0
    )
    optimizer: str = setting(
        "adam", "sgd: with --prior none; default rates there are 1e-3 for adam, 0.1 for sgd. natural: with a prior, "
        "natural gradients for means and spreads of weights (docs/explanation/natural.md).",
        among=Names("training/point.py", "OPTIMIZERS", ("natural",)),
    )  # fmt: skip
    lr_schedule: str = setting(
        "late-decay", "Learning rates over training.", among=Names("training/point.py", "SCHEDULES")
    )
    precision: str = setting(
        "float32", "Precision of the matrix products in training steps; bfloat16 pays where the processor has it. "
        "bfloat16-variances: with --estimator local, of those of variances alone, which need few digits.",
        among=("float32", "bfloat16", "bfloat16-variances"),
    )  # fmt: skip
    patience: int = setting(
        0, "After so many epochs without a better validation NLL, let the rates fall over as many and end (with "
        "--lr-schedule constant at once); 0: never.", least=0, most=MOST,
    )  # fmt: skip
    nan_policy: str = setting(
        "stop", "When the loss is NaN or explodes: stop, or back to a checkpoint with half the rates, three times at "
        "most.", among=("stop", "rewind"), group=RUNNING,
    )  # fmt: skip
    seed: int = setting(0, "Seeds start, shuffling and sampling.", group=RUNNING)


@dataclass(frozen=True)
class PosteriorConfig(Config):
    """What goes with a prior."""

    heading: ClassVar = POSTERIOR

    prior_options: dict[str, float] = setting(
        {}, "Option of the prior, e.g. tau0=1e-5. Repeatable.", option="prior-option", group=PRIOR
    )
    grouping: str | None = setting(
        None, "Weights that share a scale; default: input for horseshoe and normal-jeffreys, else weight (none do). "
        "filter: output channels of convolutions and inputs of linear layers, as in the paper of these two priors.",
        among=("weight", "input", "output", "filter"), group=PRIOR,
    )  # fmt: skip
    bias_prior: str = setting(
        "none", "none: biases are point estimates; same: that of the weights.", among=("none", "same"), group=PRIOR
    )
    keep: tuple[str, ...] = setting(
        (), "Layers without a prior, by dotted path (head*, say). Repeatable.", unit="PATTERN", searched=False,
        group="Network",
    )  # fmt: skip
    pretrain_epochs: int | None = setting(
        None, "How many of --epochs train point weights first; the default fits the prior.",
        least=0, most=MOST, group=TRAINING,
    )  # fmt: skip
    lr_scale: float | None = setting(
        None, "Learning rate of posterior log-scales; the default fits the prior.", above=0, group=TRAINING
    )
    lr_group: float | None = setting(
        None, "Learning rate of group and layer scales; the default fits the prior.", above=0, group=TRAINING
    )
    natural_lr: float | None = setting(
        None, "With --optimizer natural: learning rate of means of weights; default: 10 by the number of steps.",
        above=0, group=TRAINING,
    )  # fmt: skip
    natural_beta1: float = setting(
        0.9, "Likewise: weight of the past in their mean gradient.", least=0, below=1, group=TRAINING
    )
    natural_beta2: float | None = setting(
        None, "Likewise: weight of the past in their precision; default: 1 less 25 by the number of steps.",
        least=0, below=1, group=TRAINING,
    )  # fmt: skip
    kl_warmup: float | None = setting(
        None, "Epochs, after pretraining, over which the KL weight rises; the default fits the prior.",
        least=0, most=MOST, unit="EPOCHS", group=TRAINING,
    )  # fmt: skip
    kl_weight: float = setting(1.0, "Final KL weight; 1 is the ELBO.", above=0, group=TRAINING)
    kl_schedule: str = setting(
        "uniform", "Share of each minibatch in the KL: the same, or falling (Blundell et al. 2015).",
        among=("uniform", "blundell"), group=TRAINING,
    )  # fmt: skip
    samples: int = setting(1, "Monte Carlo samples per step.", least=1, most=1 << 16, group=TRAINING)
    clip_norm: float = setting(
        0.0, "Scale the gradient down to this norm; 0: never.", least=0, most=LARGE, group=TRAINING
    )
    accumulate: int = setting(1, "Parts of a minibatch per step, to save memory.", least=1, most=MOST, group=TRAINING)
    batch_norm: str = setting(
        "update", "Statistics in SVI steps: they run along, and are taken anew for the posterior mean, or stay those "
        "of the first weights.", among=("update", "frozen"), group=TRAINING,
    )  # fmt: skip
    estimator: str | None = setting(
        None, "How the gradient is estimated; the default fits the prior.",
        among=Names("bayes/estimators.py", "ESTIMATORS"),
    )  # fmt: skip
    guide: str = setting(
        "mean-field",
        "Family of the posterior; auto-*: Pyro's AutoGuides; MODULE:FUNCTION: a Pyro guide of yours "
        "(docs/how-to/own-guide.md).",
        among=Names("bayes/guides.py", "GUIDES"),
        other="MODULE:FUNCTION",
    )
    shrink_every: int = setting(
        0, "Remove dead units after every so many-th epoch of the posterior, to fit faster; 0: never.",
        least=0, most=MOST, unit="EPOCHS",
    )  # fmt: skip
    init_scale: float | None = setting(
        None, "Initial posterior standard deviation of a raw weight; the default fits the prior.", above=0
    )
    max_scale: float | None = setting(
        None, "Bound on the first layer's raw standard deviations; 0: none; the default fits the prior.",
        least=0, most=LARGE,
    )  # fmt: skip
    compile: str = setting(
        "auto", "Compile the SVI step; auto: if it pays.", among=("auto", "on", "off"), group=RUNNING,
        identity=False, searched=False,
    )  # fmt: skip
    shard: str = setting(
        "none", "Under torchrun, split the posterior among all processes, or among those of each machine; none: each "
        "holds all of it (docs/how-to/split.md).",
        among=("none", "all", "machine"), group=RUNNING, identity=False, searched=False,
    )  # fmt: skip


@dataclass(frozen=True)
class BaselineConfig(Config):
    """What goes without a prior."""

    heading: ClassVar = BASELINE

    dropout: float = setting(0.0, "Rate before every layer with weights.", least=0, below=1, unit="RATE")
    dropout_input: float | None = setting(None, "Rate at the input; default: --dropout.", least=0, below=1, unit="RATE")
    momentum: float = setting(0.9, "Momentum of sgd.", least=0, below=1)
    weight_decay: float = setting(0.0, "Weight decay; with adam decoupled from its steps.", least=0)
    pruning: str = setting(
        "none", "Prune while training: Han et al. 2015, Zhu & Gupta 2017, Frankle & Carbin 2019, Guo et al. 2016 "
        "(surgery).",
        among=Names("training/sparse.py", "PRUNING", ("none",)),
    )  # fmt: skip
    prune_to: float = setting(0.0, "Share of the weights that --pruning ends without.", least=0, below=1, unit="SHARE")


@dataclass(frozen=True)
class MachineConfig(Config):
    """Where a command computes."""

    heading: ClassVar = RUNNING

    device: str = setting(
        "auto", "auto: CUDA where there is one.", among=("auto", "cpu", "cuda"), identity=False, searched=False
    )
    threads: int = setting(
        0, "CPU threads; 0 leaves torch's default.", least=0, most=1 << 10, identity=False, searched=False
    )


@dataclass(frozen=True)
class CheckpointConfig(Config):
    """What of a running fit is kept; `resume`: go on from an unfinished one, where there is one."""

    heading: ClassVar = "Results"

    every_epochs: int = setting(
        5, "A checkpoint every so many epochs.", least=1, most=MOST, unit="EPOCHS", option="checkpoint-epochs"
    )
    every_minutes: float = setting(
        10.0,
        "And whenever so many minutes have passed; 0: never.",
        least=0,
        unit="MINUTES",
        option="checkpoint-minutes",
    )
    resume: bool = setting(False, "Go on from an unfinished fit, where there is one.", unlisted=True)
    snapshots: bool = setting(False, "Store the pruned weights of the epochs, for the report's animation.")
    log: str = setting(
        "", "Watch the fit: scalars and histograms in RUN/LOG.", among=Names("training/live.py", "LOGS", ("",))
    )


@dataclass(frozen=True)
class FitConfig(
    MachineConfig, BaselineConfig, PosteriorConfig, TrainingConfig, DataConfig, NetworkConfig, MethodConfig
):
    """Everything that determines a fit; a None is filled in by the prior's own recipe (`pyro_compress.resolve`).

    docs/settings.md lists its fields, with defaults and ranges. `config.part(DataConfig)` gives one of the parts.

    Raises:
        ValueError: a value that is out of range, an unknown name.
    """

    deterministic: bool = setting(
        False, "Refuse operations that are not deterministic (only CUDA has some).", group=RUNNING
    )

    def __post_init__(self) -> None:
        """Check every value, and those that only go together."""
        super().__post_init__()
        if not self.hidden:
            raise ValueError("hidden (): give a width at least")
        if self.new_head and not self.init:
            raise ValueError("new_head goes with init, the weights that the other layers start from")
        if self.class_weights != "none" and self.task != "classification":
            raise ValueError(f"class_weights {self.class_weights!r} goes with classification, not with {self.task}")

    @property
    def provenance(self) -> dict[str, Any]:
        """What a compressed file says about its origin: just enough to evaluate it again."""
        found: dict[str, Any] = {"prior": self.prior, "data": self.data, "seed": self.seed}
        if self.validation is not None:
            found["validation"] = self.validation
        found |= self.stored | ({"dropout": self.dropout} if self.dropout else {})
        return found | ({"augment": self.augment} if self.augment != "none" else {})

    def on(self, origin: dict[str, Any], task: str) -> FitConfig:
        """The same with data as they are, whatever this said of them.

        Args:
            origin: where they come from (`Splits.origin`); empty: they have no name under which they are found again.
            task: what they are for.
        """
        return replace(self, **({"data": "", "validation": None, "task": task} | origin))

    @property
    def reading(self) -> ReadConfig:
        """How its data are read, and nothing else of it."""
        return self.part(ReadConfig)
