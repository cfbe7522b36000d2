"""The pictures of one run: which of `plots` it has the data for, with a sentence on how to read each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pyro_compress.advance import advanced
from pyro_compress.bayes.diagnostics import Diagnosis
from pyro_compress.bayes.marginals import networks, read_marginals
from pyro_compress.compression.prune import CRITERIA, kept
from pyro_compress.graph.network import Network
from pyro_compress.inspection import arviz_compat, drawing, plots
from pyro_compress.inspection.page import Animation, Picture
from pyro_compress.inspection.summary import PREDICTIVE_DRAWS, Inspection
from pyro_compress.metrics import logits_of
from pyro_compress.training.snapshots import read_snapshots
from pyro_compress.types import Posterior, Splits

SCORE_NAMES = {
    "snr": "|mean| / standard deviation of a weight",
    "group-snr": "|mean| / standard deviation of a group's scale",
    "group-mode": "mode of a group's scale",
    "group-relevance": "root mean square of a group's means / of its standard deviations",
    "magnitude": "|weight|",
    "model-reduction": "log(1 + Bayes factor) of keeping a weight",
}


def pictures(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> list[Picture | Animation]:
    """Draw what a run has the data for.

    Raises:
        ValueError: matplotlib is not installed.
    """
    with drawing.style():
        found = list[Picture | Animation]()
        for done, maker in enumerate(MAKERS, 1):
            found += maker(inspection, diagnosis, splits)
            advanced("drawing pictures", done, len(MAKERS))
    return found


Maker = Callable[[Inspection, Diagnosis | None, Splits], Iterator[Picture] | Iterator[Animation]]


def _training(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Picture]:
    if not inspection.history:
        return
    figure, axes = drawing.figure(1, 2, (6.0, 2.6))
    plots.training_curves(axes[0], inspection.history)
    yield Picture(
        "Training",
        "Left: the objective and its KL part over the epochs with a posterior, of one draw where the KL has no closed "
        "form. Right: validation error (of a regression: RMSE) of the posterior mean. Shaded: epochs "
        "that trained point weights only.",
        drawing.svg(figure),
    )


def _scores(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Picture]:
    posterior, (criterion, threshold) = inspection.run.posterior, inspection.criterion
    scores = {name: CRITERIA[criterion](layer).flatten().numpy() for name, layer in posterior.layers.items()}
    figure, axes = drawing.figure(size=(5.0, 3.0))
    plots.score_histogram(axes[0, 0], scores, threshold, SCORE_NAMES[criterion])
    yield Picture(
        "What decides who goes",
        "Scores by layer; what lies left of the dotted threshold carries next to nothing. Two separate hills mean that "
        "any threshold between them gives the same network; one hill means that the threshold is a trade.",
        drawing.svg(figure),
    )


def _groups(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Picture]:
    scales = {
        name: (layer.unit_mean.flatten().numpy(), layer.unit_std.flatten().numpy())
        for name, layer in inspection.run.posterior.layers.items()
        if layer.unit_mean is not None and layer.unit_std is not None and layer.unit_mean.numel() <= 5000
    }
    if not scales:
        return
    figure, axes = drawing.figure(size=(5.0, 4.2))
    plots.group_scales(axes[0, 0], scales)
    kinds = {layer.grouping: None for layer in inspection.run.posterior.layers.values() if layer.unit_mean is not None}
    kind = " or ".join(kinds)
    yield Picture(
        "Group scales",
        f"One scale per {kind} of every layer, sorted: those far to the left multiply everything of their group by "
        "almost nothing, and the group can be removed.",
        drawing.svg(figure),
    )


def _units(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Picture]:
    first = inspection.layers[0]
    size = inspection.run.posterior.layers[first.name].mean.shape[1]
    rows = [(f"inputs of {first.name}", first.inputs, size)]
    rows += [(f"units of {layer.name}", layer.outputs, layer.width) for layer in inspection.layers]
    figure, axes = drawing.figure(size=(5.0, 0.9 + 0.36 * len(rows)))
    plots.unit_activity(axes[0, 0], rows)
    yield Picture(
        "Units above the threshold",
        "After the weights below the threshold are gone, a rule of thumb; the table says how many the file has. "
        "Only units that go altogether make a network faster.",
        drawing.svg(figure),
    )


def _inputs(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Picture]:
    posterior = inspection.run.posterior
    importance = pixel_importance(posterior)
    if importance is None:
        return
    rows = _one_of_each_class(splits, 4)
    figure, axes = drawing.figure(1, 1 + len(rows), (6.0, 1.6))
    plots.input_importance(axes[0], importance, splits.validation.x[rows, 0].numpy())
    yield Picture(
        "What the first layer reads",
        f"Norm of the kept weights of every pixel; {int((importance == 0).sum())} of {importance.size} pixels are not "
        "read at all (red on the examples).",
        drawing.svg(figure),
    )


def pixel_importance(posterior: Posterior) -> np.ndarray | None:
    """Norm of the kept first-layer weights of every pixel `(height, width)`; None unless that layer is a linear one."""
    name, layer = next(iter(posterior.layers.items()))
    shape = posterior.graph.input_shape
    if len(shape) != 3 or shape[0] != 1 or layer.mean.dim() != 2 or layer.mean.shape[1] != math.prod(shape):
        return None
    weights = torch.where(kept(posterior.layers, posterior.criterion)[name], layer.mean, 0.0)
    return weights.norm(dim=0).reshape(shape[1:]).numpy()


def _calibration(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Picture]:
    if splits.task != "classification":
        return
    posterior, data = inspection.run.posterior, splits.validation
    mean = logits_of(Network(posterior.graph, posterior.tensors).eval(), data.x).softmax(1)
    curves = {"posterior mean": _top(mean, data.y)}
    if diagnosis is not None:
        curves[f"{PREDICTIVE_DRAWS} draws averaged"] = _top(_drawn(inspection, data.x).mean(0), data.y)
    figure, axes = drawing.figure(size=(5.0, 3.2))
    plots.reliability(axes[0, 0], curves)
    yield Picture(
        "Reliability",
        "How often the network is right when it claims to be so sure, on the validation split; dots as large as the "
        "share of rows they stand for, bars a standard error, bins of fewer than 5 rows left out. Below the diagonal: "
        "overconfident.",
        drawing.svg(figure),
    )


def _top(probabilities: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    confidence, predicted = probabilities.max(1)
    return confidence.numpy(), (predicted == y).numpy()


def _drawn(inspection: Inspection, x: Tensor) -> Tensor:
    """Class probabilities `(draws, n, classes)` of networks drawn from the posterior."""
    run = inspection.run
    marginals = read_marginals(run.path / "guide.safetensors", run.config, run.posterior)
    found = networks(run.posterior, marginals, PREDICTIVE_DRAWS, 0)
    return torch.stack([logits_of(network, x).softmax(1) for network in found])


def _examples(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Picture]:
    shape = splits.input_shape
    if diagnosis is None or splits.task != "classification" or len(shape) != 3 or shape[0] != 1 or shape[1] != shape[2]:
        return
    x = splits.validation.x[_one_of_each_class(splits, 3)]
    order = torch.randperm(math.prod(shape), generator=torch.Generator().manual_seed(0))
    strange = torch.stack([x[1].rot90(1, (1, 2)), x[2].flatten()[order].reshape(shape)])
    images = torch.cat([x, strange])
    titles = ["as trained"] * len(x) + ["turned", "shuffled"]
    figure, axes = drawing.figure(2, len(images), (6.0, 2.4))
    plots.predictive_examples(axes, images[:, 0].numpy(), _drawn(inspection, images).numpy(), splits.classes, titles)
    yield Picture(
        "Predictions of networks drawn from the posterior",
        f"Bars: mean over {PREDICTIVE_DRAWS} draws; lines: their 5–95 % range. Three validation images, then two that "
        "do not belong: a posterior that knows what it doesn't know spreads out there. Often it doesn't.",
        drawing.svg(figure),
    )


def _leave_one_out(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Picture]:
    if diagnosis is None:
        return
    figure, axes = drawing.figure(size=(5.0, 2.6))
    plots.pareto_k(axes[0, 0], arviz_compat.loo(arviz_compat.inference_data(diagnosis.groups)).pareto_k)
    yield Picture(
        "Leave-one-out, row by row",
        "Rows above the line depend so much on having been fitted that draws from this posterior cannot stand in for "
        "one without them.",
        drawing.svg(figure),
    )


def _pruning(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Animation]:
    path = inspection.run.path / "snapshots.safetensors"
    if not path.is_file():
        return
    epochs, tensors = read_snapshots(path, inspection.run.posterior.layers)
    name = inspection.layers[0].name
    if name not in tensors:
        return
    frames = tensors[name].flatten(2).float().numpy()
    strip, aspect = plots.pruning_strip(frames)
    left = [100 * float((frame != 0).mean()) for frame in frames]
    yield Animation(
        "Weights while they are pruned",
        f"{name}, over the epochs with a posterior: dark where a weight is large, red where it scores below the "
        "threshold. The shorter side of the matrix lies upright.",
        strip,
        tuple(f"epoch {epoch}, {share:.1f} % left" for epoch, share in zip(epochs, left, strict=True)),
        aspect,
    )


def _prior(inspection: Inspection, diagnosis: Diagnosis | None, splits: Splits) -> Iterator[Picture]:
    if inspection.run.config.prior == "none":
        return
    figure, axes = drawing.figure(size=(5.0, 3.0))
    plots.prior_shapes(axes[0, 0])
    yield Picture(
        "Shapes of the priors",
        "All are compared at scale 1. A peak at zero pulls small weights in; flat tails leave large ones alone. "
        "Log-uniform has no finite mass: its height is arbitrary.",
        drawing.svg(figure),
    )


def _one_of_each_class(splits: Splits, most: int) -> list[int]:
    """First validation row of each of the first classes; the first rows where there are none."""
    y = splits.validation.y
    if splits.task != "classification":
        return list(range(min(most, len(y))))
    return [int((y == label).nonzero()[0]) for label in y.unique().tolist()[:most]]


MAKERS: tuple[Maker, ...] = (
    _training,
    _units,
    _scores,
    _groups,
    _inputs,
    _calibration,
    _examples,
    _pruning,
    _leave_one_out,
    _prior,
)
