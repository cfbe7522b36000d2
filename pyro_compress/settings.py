"""What determines a fit: how its data are read, and everything else."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

FINETUNING = {
    "masked_epochs": "masked_epochs", "step": "step", "noise": "noise", "sam_rho": "sam_rho",
    "finetune_svi": "svi", "finetune_lr": "lr", "finetune_batch_size": "batch_size", "finetune_augment": "augment",
    "teacher_weight": "teacher_weight", "temperature": "temperature",
}  # fmt: skip
"""Option of `compress` -> field of `pyro_compress.compression.finetune.FineTune`; what is not given is its default."""

COMPILE_STEPS = 5000
"""Fewer SVI steps than this do not pay back the compiler's half minute."""
TOLD = (
    "task", "target", "test_data", "image_size", "series", "limit", "vocabulary", "context", "tokens", "pad", "ignore",
)  # fmt: skip
"""Fields of `Reading` that a compressed file repeats where they are no defaults."""


@dataclass(frozen=True)
class Reading:
    """How data are read, beside their name.

    Attributes:
        task: name in `pyro_compress.data.tasks.TASKS`.
        target: columns of a table that are to be predicted.
        test_data: table with the test rows; empty: a fifth of the rows is held out.
        image_size: images of a folder are brought to this height and width; 0: they are all of one size.
        series: arrays `(n, channels, length)` and `(n, length)` are series, not grey images and rows of a table.
        limit: training examples to keep, stratified; 0: all.
        in_memory_mib: data of which more would have to be held in memory are read while training.
        workers: processes that read them.
        vocabulary: what the tokens of a text are: `bytes` or `characters`; empty: bytes, where there is a text.
        context: tokens of a text that a network sees at a time.
        tokens: how many kinds of tokens whole numbers in arrays are, from 0 on; 0: they are no tokens.
        pad: token that fills up short sequences, which counts in no loss and no score; -1: there is none.
        ignore: label of positions that have none, beside -100; -1: there is no other.
    """

    task: str = "classification"
    target: tuple[str, ...] = ()
    test_data: str = ""
    image_size: int = 0
    series: bool = False
    limit: int = 0
    in_memory_mib: float = 4096.0
    workers: int = 2
    vocabulary: str = ""
    context: int = 64
    tokens: int = 0
    pad: int = -1
    ignore: int = -1

    def example_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one example of an array, with the dimension of channels that it may leave out."""
        return (1, *shape) if len(shape) == (1 if self.series else 2) else shape

    @property
    def told(self) -> dict[str, Any]:
        """What a compressed file must say of it, so that the same rows are found again: whatever is no default."""
        plain = Reading()
        found = {name: getattr(self, name) for name in TOLD if getattr(self, name) != getattr(plain, name)}
        return found | ({"target": list(self.target)} if self.target else {})


@dataclass(frozen=True)
class FitConfig(Reading):
    """Everything that determines a fit; a None is filled in by the prior's own recipe (`pyro_compress.resolve`).

    How its data are read is inherited from `Reading`.

    Attributes:
        prior: name in `PRIORS`, or `none` for a deterministic baseline.
        prior_options: keyword arguments of the prior, e.g. `{"tau0": 1e-5}`.
        grouping: which weights share a scale: `weight` (none), `input`, `output`, or `filter` (output channels of
            convolutions, inputs of linear layers, as in Louizos et al. 2017).
        bias_prior: `none` (biases are point estimates) or `same` (the weights' prior, per bias).
        net: name in `NETS`, `torchvision:NAME`, `package.module:function`, or a `.pcn` file whose architecture it is.
        hidden: widths of the hidden layers of `mlp`.
        keep: layers whose path matches one of these patterns (fnmatch) stay deterministic.
        init: trained weights to start from: a checkpoint (safetensors, or what torch saved), a `.pcn` file,
            `torchvision:WEIGHTS` or a run folder; empty for a random start.
        new_head: the last layer with weights keeps its random start where others start at `init`: for other classes.
        input_mean: what the network subtracts from its inputs first, one number or one per channel; empty: nothing, or
            what the weights of `init` were trained with, where that is known (torchvision's, a run's).
        input_std: what it divides them by then, likewise.
        data: name in `DATASETS`, a `.npz`, `.csv` or `.parquet` file, or a folder of images or of `.npy` arrays.
        data_dir: folder of the downloaded data sets.
        validation: share of the training set held out; None takes a tenth, or more where that is under 240 rows.
        class_weights: `none`, or `balanced`: every class has the same total weight in the likelihood.
        augment: name in `AUGMENTATIONS`, or `none`: how training images are changed.
        epochs: passes over the training set, pretraining included.
        pretrain_epochs: how many of `epochs` train point weights, from which the posterior starts.
        batch_size: examples per step.
        lr: Adam's learning rate of means and of everything deterministic.
        lr_scale: learning rate of posterior log-scales.
        lr_group: learning rate of the locations of group and layer scales.
        kl_warmup: epochs, after pretraining, over which the KL weight rises linearly to `kl_weight`.
        kl_weight: final weight of the KL term; 1 is the ELBO.
        kl_schedule: how the KL is shared among the minibatches of an epoch: `uniform` or `blundell`.
        samples: Monte Carlo samples per step.
        clip_norm: the gradient of all parameters together is scaled down to this norm; 0 for never.
        accumulate: parts that a minibatch is worked off in before the step, to save memory.
        precision: `float32`, or `bfloat16` for the matrix products of SVI steps.
        batch_norm: in SVI steps: `update` (normalise by the minibatch, statistics run along, and are taken anew for the
            posterior mean), or `frozen` (the statistics of the weights that the posterior starts from).
        estimator: name in `ESTIMATORS`.
        guide: name in `GUIDES`.
        shrink_every: remove dead units after every so many-th epoch of the posterior; 0 for never.
        init_scale: initial posterior standard deviation of a weight; None leaves it to the prior.
        max_scale: upper bound on the first layer's raw posterior standard deviations; 0 for none, None: the prior's.
        dropout: dropout rate before every layer with weights (baselines).
        dropout_input: rate at the network's input, where it differs from `dropout`; None: the same.
        optimizer: `adam`, or `sgd` (baselines).
        momentum: of `sgd`.
        weight_decay: of the baselines' optimizers; with `adam` decoupled from its steps.
        lr_schedule: name in `pyro_compress.training.point.SCHEDULES`: what the learning rates do over training.
        pruning: name in `pyro_compress.training.sparse.PRUNING`, or `none`: pruning while training (baselines).
        prune_to: sparsity that such pruning ends at.
        init_range: weights and biases start uniform in ±`init_range`; 0 leaves torch's default start.
        patience: after this many epochs without a better validation NLL the learning rates fall to 0 over as many
            epochs more, and training ends (with `lr_schedule` constant at once); 0 never ends early.
        nan_policy: what follows a loss that is not finite: `stop`, or `rewind` to the last checkpoint with half the
            learning rates, at most three times.
        deterministic: torch refuses operations that are not (only CUDA has some).
        seed: seeds initialisation, shuffling and sampling.
        compile: whether the SVI step is captured and compiled: `on`, `off`, or `auto` (only where it pays).
        device: `cpu` or `cuda` (`auto` before it is resolved).
        threads: CPU threads; 0 leaves torch's default.
    """

    prior: str = "horseshoe"
    prior_options: dict[str, float] = field(default_factory=dict)
    grouping: str | None = None
    bias_prior: str = "none"
    net: str = "mlp"
    hidden: tuple[int, ...] = (500, 500)
    keep: tuple[str, ...] = ()
    init: str = ""
    new_head: bool = False
    input_mean: tuple[float, ...] = ()
    input_std: tuple[float, ...] = ()
    data: str = "digits"
    data_dir: str = ""
    validation: float | None = None
    class_weights: str = "none"
    augment: str = "none"
    epochs: int | None = None
    pretrain_epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    lr_scale: float | None = None
    lr_group: float | None = None
    kl_warmup: float | None = None
    kl_weight: float = 1.0
    kl_schedule: str = "uniform"
    samples: int = 1
    clip_norm: float = 0.0
    accumulate: int = 1
    precision: str = "float32"
    batch_norm: str = "update"
    estimator: str | None = None
    guide: str = "mean-field"
    shrink_every: int = 0
    init_scale: float | None = None
    max_scale: float | None = None
    dropout: float = 0.0
    dropout_input: float | None = None
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    lr_schedule: str = "late-decay"
    pruning: str = "none"
    prune_to: float = 0.0
    init_range: float = 0.0
    patience: int = 0
    nan_policy: str = "stop"
    deterministic: bool = False
    seed: int = 0
    compile: str = "auto"
    device: str = "auto"
    threads: int = 0

    @property
    def provenance(self) -> dict[str, Any]:
        """What a compressed file says about its origin: just enough to evaluate it again."""
        told: dict[str, Any] = {"prior": self.prior, "data": self.data, "seed": self.seed}
        if self.validation is not None:
            told["validation"] = self.validation
        told |= self.told | ({"dropout": self.dropout} if self.dropout else {})
        return told | ({"augment": self.augment} if self.augment != "none" else {})

    def on(self, origin: dict[str, Any], task: str) -> FitConfig:
        """The same with data as they are, whatever this said of them.

        Args:
            origin: where they come from (`Splits.origin`); empty: they have no name under which they are found again.
            task: what they are for.
        """
        return replace(self, **({"data": "", "validation": None, "task": task} | origin))

    @property
    def reading(self) -> Reading:
        """How its data are read, and nothing else of it."""
        return Reading(**{one.name: getattr(self, one.name) for one in fields(Reading)})


TUPLES = tuple(one.name for one in fields(FitConfig) if isinstance(one.default, tuple))
"""Fields that a TOML file gives as arrays."""


def tupled(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a TOML file with tuples where `FitConfig` has them."""
    return options | {name: tuple(options[name]) for name in TUPLES if name in options}
