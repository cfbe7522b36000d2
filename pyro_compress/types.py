"""The values that flow between the parts; nothing here computes more than a shape or a sum.

The waist of the hourglass is `Posterior`: left of it everything samples (Pyro), right of it everything is
deterministic. Neither torch nor Pyro is imported at run time, so that a decoder needs only numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class LayerShape:
    """What a prior may know about a weight (or bias) tensor.

    Attributes:
        name: name of the tensor in the network, e.g. `1.weight`; the prefix of its site names.
        weight: its shape, `(out, in, *kernel)`, or `(out,)` for a bias.
        grouping: which weights share a scale: `weight` (none), `input` (a column) or `output` (a row).
        device: where its values live.
    """

    name: str
    weight: tuple[int, ...]
    grouping: str = "weight"
    device: str = "cpu"

    @property
    def site(self) -> str:
        """Name of the raw weight's site; scales are its siblings (`1.weight.raw`, `1.weight.scale`)."""
        return f"{self.name}.raw"

    @property
    def gate(self) -> tuple[int, ...]:
        """Shape of the group scales, broadcastable to `weight`."""
        if self.grouping == "weight":
            return self.weight
        out, into, *kernel = self.weight
        ones = (1,) * len(kernel)
        return (1, into, *ones) if self.grouping == "input" else (out, 1, *ones)


class WeightDraw(NamedTuple):
    """One draw from a prior or posterior: the weight is `gate * raw`. `gate` is None for priors without groups."""

    gate: Tensor | None
    raw: Tensor


@dataclass(frozen=True)
class Node:
    """One operation of a captured network.

    Attributes:
        op: name of the operation (see `pyro_compress.networks.graph`).
        inputs: indices of the nodes it reads; node 0 is the network's input.
        parameters: role (`weight`, `bias`, ...) -> tensor name.
        attributes: JSON values (stride, padding, ...).
    """

    op: str
    inputs: tuple[int, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A network as a list of operations in execution order; the last node is the output.

    Attributes:
        nodes: node 0 has the operation `input`.
        input_shape: shape of one example, without the batch dimension.
    """

    nodes: tuple[Node, ...]
    input_shape: tuple[int, ...]

    @property
    def finished(self) -> list[list[int]]:
        """Per node, those whose value nobody reads after it: what a run of the graph may let go."""
        last = {i: index for index, node in enumerate(self.nodes) for i in node.inputs}
        found: list[list[int]] = [[] for _ in self.nodes]
        for i, index in last.items():
            found[index].append(i)
        return found


@dataclass(frozen=True)
class Data:
    """Examples `x` of shape `(n, *input_shape)` (float32) and what belongs to them.

    `y` holds class labels of shape `(n,)` (int64), or standardised targets of shape `(n, targets)` (float32).
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Column:
    """How one column of a table becomes inputs of a network.

    Attributes:
        name: in the table's header.
        mean: of the training rows; a number enters as `(value - mean) / std`.
        std: standard deviation of the training rows; 1 for a constant column.
        categories: of a column of names: one input each, 1 where the row has it; a name that is none of them is all 0.
    """

    name: str
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantity:
    """A target of regression: the network's output stands for `(value - mean) / std`, moments of the training rows."""

    name: str
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Preprocessing:
    """What must be known to feed a network elsewhere, and to read its outputs.

    Attributes:
        scale: the raw value (an integer) that becomes 1.0; 1 where inputs are taken as they are.
        classes: names in the order of the outputs; empty: numbered from 0.
        columns: of a table, in the order of the inputs; empty for anything else.
        targets: of regression, in the order of the outputs; empty for classification.
    """

    scale: float
    classes: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    targets: tuple[Quantity, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How data are read, beside their name.

    Attributes:
        task: name in `pyro_compress.data.tasks.TASKS`.
        target: columns of a table that are to be predicted.
        test_data: table with the test rows; empty: a fifth of the rows is held out.
        image_size: images of a folder are brought to this height and width; 0: they are all of one size.
        limit: training examples to keep, stratified; 0: all.
        in_memory_mib: data of which more would have to be held in memory are read while training.
        workers: processes that read them.
    """

    task: str = "classification"
    target: tuple[str, ...] = ()
    test_data: str = ""
    image_size: int = 0
    limit: int = 0
    in_memory_mib: float = 4096.0
    workers: int = 2

    @property
    def told(self) -> dict[str, Any]:
        """What a compressed file must say of it, so that the same rows are found again: whatever is no default."""
        plain = Reading()
        names = ("task", "target", "test_data", "image_size", "limit")
        found = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}
        return found | ({"target": list(self.target)} if self.target else {})


@dataclass(frozen=True)
class Splits:
    """Thresholds and recipes are chosen on `validation`; `test` is read once, at the end, by `metrics` alone.

    The other fields are those of `Preprocessing`.
    """

    train: Data
    validation: Data
    test: Data
    classes: tuple[str, ...]
    scale: float = 1.0
    columns: tuple[Column, ...] = ()
    targets: tuple[Quantity, ...] = ()

    @property
    def task(self) -> str:
        """Name in `pyro_compress.data.tasks.TASKS`."""
        return "regression" if self.targets else "classification"

    @property
    def outputs(self) -> int:
        """Outputs of a network for these data: one per class, or per target."""
        return len(self.targets) or len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train.x.shape[1:])

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples per split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


@dataclass(frozen=True)
class FitConfig:
    """Everything that determines a fit; a None is filled in by the prior's own recipe (`pyro_compress.resolve`).

    Attributes:
        prior: name in `PRIORS`, or `none` for a deterministic baseline.
        prior_options: keyword arguments of the prior, e.g. `{"tau0": 1e-5}`.
        grouping: `weight`, `input` or `output`.
        bias_prior: `none` (biases are point estimates) or `same` (the weights' prior, per bias).
        net: name in `NETS`, `torchvision:NAME` or `package.module:function`.
        hidden: widths of the hidden layers of `mlp`.
        keep: layers whose path matches one of these patterns (fnmatch) stay deterministic.
        init: trained weights to start from: a `.safetensors`, `.pt` or `.pth` file, `torchvision:WEIGHTS` or a run
            folder; empty for a random start.
        data: name in `DATASETS`, a `.npz`, `.csv` or `.parquet` file, or a folder of images or of `.npy` arrays.
        data_dir: folder of the downloaded data sets.
        task: name in `pyro_compress.data.tasks.TASKS`.
        target: columns of a table that are to be predicted.
        test_data: table with the test rows; empty: a fifth of the rows is held out.
        image_size: images of a folder are brought to this height and width; 0: they are all of one size.
        limit: training examples to keep, stratified; 0: all.
        in_memory_mib: data of which more would have to be held in memory are read while training.
        workers: processes that read them.
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
        lr_schedule: name in `pyro_compress.training.point.SCHEDULES`: what the learning rates do over training.
        pruning: name in `pyro_compress.training.sparse.PRUNING`, or `none`: pruning while training (baselines).
        prune_to: sparsity that such pruning ends at.
        init_range: weights and biases start uniform in ±`init_range`; 0 leaves torch's default start.
        patience: stop after this many epochs without a better validation NLL; 0 never stops early.
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
    data: str = "digits"
    data_dir: str = ""
    task: str = "classification"
    target: tuple[str, ...] = ()
    test_data: str = ""
    image_size: int = 0
    limit: int = 0
    in_memory_mib: float = 4096.0
    workers: int = 2
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
        told |= self.reading.told | ({"dropout": self.dropout} if self.dropout else {})
        return told | ({"augment": self.augment} if self.augment != "none" else {})

    @property
    def reading(self) -> Reading:
        """How its data are read."""
        return Reading(**{one.name: getattr(self, one.name) for one in fields(Reading)})


@dataclass(frozen=True)
class LayerPosterior:
    """Moments of one layer's weights under the posterior.

    Attributes:
        mean: posterior mean of the weight, `(out, in, *kernel)`.
        std: its standard deviation, same shape; all zero for a deterministic network.
        unit_mean: mean of the group scale in gate shape; None without groups.
        unit_std: its standard deviation.
        grouping: grouping of the prior.
    """

    mean: Tensor
    std: Tensor
    unit_mean: Tensor | None = None
    unit_std: Tensor | None = None
    grouping: str = "weight"


@dataclass(frozen=True)
class Removal:
    """Units that left the network while it was fitted.

    Attributes:
        epoch: at the end of which epoch (1, 2, ...).
        widths_before: widths from input to output.
        widths_after: the same afterwards.
        parameters_before: values of the network.
        parameters_after: the same afterwards.
    """

    epoch: int
    widths_before: list[int]
    widths_after: list[int]
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True)
class Posterior:
    """The waist: all that compression may know of a fit.

    Attributes:
        graph: the network.
        layers: weight tensor name -> moments, in network order.
        dense: every other tensor by name (biases, batch-norm statistics), float32.
        criterion: pruning criterion that fits the prior (a name in `CRITERIA`).
        provenance: where it comes from (data set, prior, seed, ...), written into the compressed file.
        removals: units that left while it was fitted; `graph` is what they left behind.
    """

    graph: Graph
    layers: dict[str, LayerPosterior]
    dense: dict[str, Tensor]
    criterion: str
    provenance: dict[str, Any]
    removals: tuple[Removal, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The posterior-mean network: tensor name -> value."""
        return {name: layer.mean for name, layer in self.layers.items()} | self.dense

    @property
    def parameters_total(self) -> int:
        """Values of the network that the fit began with: what every ratio of sizes is a ratio to."""
        if self.removals:
            return self.removals[0].parameters_before
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def task(self) -> str:
        """Name in `pyro_compress.data.tasks.TASKS`."""
        return str(self.provenance.get("task", "classification"))

    @property
    def noise(self) -> float | None:
        """Standard deviation of regression's Gaussian likelihood, in standard deviations of the targets."""
        return self.provenance.get("noise")


Masks = dict[str, "Tensor"]
"""Weight tensor name -> bool tensor, True where the weight is kept."""


@dataclass(frozen=True)
class Quantized:
    """Integers on a uniform grid: value = `codes * step`."""

    codes: np.ndarray
    step: float


@dataclass(frozen=True)
class Compressed:
    """What a `.pcn` file holds: the (smaller) network and its tensors, quantised or dense float32."""

    graph: Graph
    tensors: dict[str, Quantized | np.ndarray]
    meta: dict[str, Any]

    @property
    def parameters(self) -> int:
        """Number of non-zero values."""
        return sum(int((t.codes if isinstance(t, Quantized) else t).astype(bool).sum()) for t in self.tensors.values())

    @property
    def task(self) -> str:
        """Name in `pyro_compress.data.tasks.TASKS`."""
        return str(self.meta.get("task", "classification"))

    @property
    def noise(self) -> float | None:
        """As `Posterior.noise`."""
        return self.meta.get("noise")


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


def count(shape: tuple[int, ...]) -> int:
    """Number of elements of a tensor of this shape."""
    return math.prod(shape)
