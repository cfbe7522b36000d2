"""Pictures of a run, one function each: data in, the `Axes` they were drawn on out. They need the extra `inspect`."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pyro_compress.inspection.drawing import bare, legend_above, log_axes
from pyro_compress.inspection.palette import ACCENT, GREY, INK, LAYERS, SECOND, layers, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")


def training_curves(axes: Sequence[Axes], history: Sequence[Mapping[str, Any]]) -> Sequence[Axes]:
    """-ELBO and KL on the first axes, validation error on the second, by epoch; point training is shaded.

    Args:
        axes: two.
        history: epochs as in `history.jsonl`.
    """
    epochs = [e["epoch"] for e in history]
    drawn = [(e["epoch"], e["negative_elbo_nats"], e["kl_nats"]) for e in history if e["kl_nats"] is not None]
    if drawn:
        svi, losses, kl = zip(*drawn, strict=True)
        axes[0].plot(svi, losses, color=SECOND, label="-ELBO")
        axes[0].plot(svi, kl, color=GREY, linestyle="--", label="KL")
        if min(*losses, *kl) > 0:
            log_axes(axes[0], "y")
        else:  # of a regression the ELBO may be positive
            axes[0].set_ylim(top=float(np.percentile(losses, 95)))
        axes[0].legend()
    axes[0].set_ylabel("nats, all training rows")
    classified = history[0]["validation_accuracy"] is not None
    errors = [100 * (1 - e["validation_accuracy"]) if classified else e["validation_rmse"] for e in history]
    axes[1].plot(epochs, errors, color=ACCENT)
    axes[1].set_ylabel("validation error, %" if classified else "validation RMSE")
    axes[1].set_ylim(0, max(1.0 if classified else 0.0, 1.1 * float(np.percentile(errors, 90))))
    point = [e["epoch"] for e in history if e["phase"] == "point"]
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.locator_params(axis="x", integer=True)
        ax.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        if point and drawn:
            ax.axvspan(min(point) - 0.5, max(point) + 0.5, color=GREY, alpha=0.2, linewidth=0)
    return axes


def few(layers: Mapping[str, T], pooled: Callable[[list[T]], T], most: int = len(LAYERS)) -> dict[str, T]:
    """As many layers as there are colours; what stands behind them, in the network's order, goes together."""
    if len(layers) <= most:
        return dict(layers)
    names = [*layers]
    shown = {name: layers[name] for name in names[: most - 1]}
    return shown | {f"{len(names) - most + 1} others": pooled([layers[name] for name in names[most - 1 :]])}


def score_histogram(ax: Axes, scores: Mapping[str, np.ndarray], threshold: float, label: str) -> Axes:
    """Histogram of log10 scores by layer, and the threshold below which weights go.

    Args:
        ax: where to draw.
        scores: layer -> scores of its weights, or of its groups; zeros and infinities are left out.
        threshold: score from which a weight is kept.
        label: what the score is.
    """
    logs = {name: np.log10(values[(values > 0) & np.isfinite(values)]) for name, values in scores.items()}
    logs = {name: values for name, values in logs.items() if len(values)}
    logs = few(logs, np.concatenate)
    if not logs:
        ax.text(0.5, 0.5, "no finite scores", ha="center", transform=ax.transAxes)
        return ax
    everything = np.concatenate(list(logs.values()))
    low, high = np.percentile(everything, [0.2, 99.8])
    edges = np.linspace(low, high + 1e-6, 50).tolist()
    for colour, (name, values) in zip(layers(len(logs)), logs.items(), strict=True):
        weights = np.full(len(values), 100 / len(values))
        shown = values.clip(low, high)
        ax.hist(shown, edges, weights=weights, histtype="step", color=colour, label=name, linewidth=1.3)
    if threshold > 0:
        ax.axvline(math.log10(threshold), color=INK, linestyle=":", label="threshold")
    ax.set_xlabel(f"log10 of {label}")
    ax.set_ylabel("% of the layer")
    legend_above(ax)
    return ax


def group_scales(ax: Axes, scales: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Axes:
    """Forest plot: posterior mean ± standard deviation of every group scale, sorted, one colour per layer.

    Args:
        ax: where to draw.
        scales: layer -> means and standard deviations of its group scales.
    """
    from matplotlib.collections import LineCollection

    offset = 0
    scales = few(scales, _together)
    for colour, (name, (mean, std)) in zip(layers(len(scales)), scales.items(), strict=True):
        order = np.argsort(-np.abs(mean))
        centre, spread = np.abs(mean)[order], std[order]
        low = np.maximum(centre - spread, centre / 30)
        y = offset + np.arange(len(centre))
        lines = [[(a, i), (b, i)] for a, b, i in zip(low, centre + spread, y, strict=True)]
        width = min(2.0, max(0.4, 60 / len(lines)))
        many = len(lines) > 100  # as pixels: a thousand lines would be most of the picture's bytes
        ax.add_collection(LineCollection(lines, colors=colour, alpha=0.45, linewidths=width, rasterized=many))
        size = 1.5 if many else 4
        ax.plot(centre, y, ".", color=colour, markersize=size, label=f"{name} ({len(y)})", rasterized=many)
        offset += len(centre) + max(2, len(centre) // 20)
    ax.set_xscale("log")
    ax.set_ylim(offset, -2)
    ax.set_yticks([])
    ax.set_xlabel("group scale, posterior mean ± standard deviation")
    legend_above(ax)
    return ax


def _together(members: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    means, deviations = zip(*members, strict=True)
    return np.concatenate(means), np.concatenate(deviations)


def unit_activity(ax: Axes, layers: Sequence[tuple[str, int, int]]) -> Axes:
    """Units left and gone per layer.

    Args:
        ax: where to draw.
        layers: name, units left, units in all.
    """
    y = np.arange(len(layers))
    ax.barh(y, [100.0] * len(layers), color=GREY, alpha=0.25, height=0.6)
    ax.barh(y, [100 * left / total for _, left, total in layers], color=SECOND, height=0.6)
    for i, (_, left, total) in enumerate(layers):
        share = left / total
        inside = share > 0.35
        ax.text(
            100 * share + (-1.5 if inside else 1.5), i, f"{left} of {total}", va="center",
            ha="right" if inside else "left", color="white" if inside else INK, fontsize=8,
        )  # fmt: skip
    ax.set_yticks(y, [name for name, _, _ in layers])
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.set_xlim(0, 100)
    ax.set_xlabel("% of the units that anything reads")
    return ax


def input_importance(axes: Sequence[Axes], importance: np.ndarray, examples: np.ndarray) -> Sequence[Axes]:
    """What the first layer reads: the importance of every pixel, then examples with unread pixels tinted.

    Args:
        axes: one more than examples.
        importance: `(height, width)`, 0 where no weight is kept.
        examples: `(n, height, width)`, in [0, 1].
    """
    shown = np.ma.masked_equal(importance, 0)
    axes[0].imshow(shown, cmap="viridis", interpolation="nearest")
    axes[0].set_title("importance")
    gone = importance == 0
    for ax, example in zip(axes[1:], examples, strict=True):
        rgb = np.repeat(1 - example[..., None].clip(0, 1), 3, axis=2)
        rgb[gone] = 0.45 * rgb[gone] + 0.55 * np.array([0.78, 0.27, 0.18])
        ax.imshow(rgb, interpolation="nearest")
    if len(axes) > 1:
        axes[1].set_title("not read: red")
    for ax in axes:
        bare(ax)
    return axes


def reliability(ax: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 15) -> Axes:
    """Reliability diagram (Guo et al. 2017, figure 1): accuracy against confidence, with standard errors.

    Args:
        ax: where to draw.
        curves: label -> confidence of the top class, and whether it was right, per example.
        bins: number of bins.
    """
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for colour, (name, (confidence, right)) in zip((SECOND, ACCENT, INK), curves.items(), strict=False):
        which = np.minimum((confidence * bins).astype(int), bins - 1)
        filled = [b for b in range(bins) if (which == b).sum() >= 5]  # fewer rows say nothing
        x = [confidence[which == b].mean() for b in filled]
        y = [right[which == b].mean() for b in filled]
        rows = [int((which == b).sum()) for b in filled]
        sizes = [6 + 50 * number / len(which) for number in rows]
        spread = [math.sqrt(share * (1 - share) / number) for share, number in zip(y, rows, strict=True)]
        ax.plot(x, y, color=colour, linewidth=1, label=name)
        ax.errorbar(x, y, spread, color=colour, linestyle="", elinewidth=0.8, capsize=2)
        ax.scatter(x, y, s=sizes, color=colour)
    ax.set_xlim(0, 1.02)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("confidence")
    ax.set_ylabel("accuracy")
    legend_above(ax)
    return ax


def pareto_k(ax: Axes, k: np.ndarray, limit: float = 0.7) -> Axes:
    """Pareto k of every row, those above the limit in another colour."""
    high = k > limit
    ax.scatter(np.flatnonzero(~high), k[~high], s=5, color=SECOND, label=f"{int((~high).sum())} rows up to {limit}")
    ax.scatter(np.flatnonzero(high), k[high], s=5, color=ACCENT, label=f"{int(high.sum())} rows above")
    ax.axhline(limit, color=INK, linestyle=":", linewidth=1)
    ax.set_xlabel("training row of the subset")
    ax.set_ylabel("Pareto k")
    legend_above(ax)
    return ax


def predictive_examples(
    axes: np.ndarray, images: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], titles: Sequence[str]
) -> np.ndarray:
    """Images, and below each the class probabilities of every draw: their spread is what the posterior doubts.

    Args:
        axes: `(2, n)`.
        images: `(n, height, width)`.
        probabilities: `(draws, n, classes)`.
        classes: their names.
        titles: one per image.
    """
    x = np.arange(len(classes))
    shown = x[:: max(1, len(x) // 4)]
    for i, title in enumerate(titles):
        axes[0, i].imshow(1 - images[i].clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0, i].set_title(title, fontsize=8)
        bare(axes[0, i])
        ax, drawn = axes[1, i], probabilities[:, i]
        ax.bar(x, drawn.mean(0), color=SECOND, alpha=0.5, width=0.8)
        ax.vlines(x, np.percentile(drawn, 5, axis=0), np.percentile(drawn, 95, axis=0), color=INK, linewidth=1)
        ax.set_ylim(0, 1.02)
        ax.set_xticks(shown, [classes[j].split(" ")[0][:5] for j in shown], fontsize=7)
        ax.set_yticks([0, 1] if i == 0 else [])
    return axes


def pruning_strip(frames: np.ndarray, limit: int = 240) -> tuple[bytes, float]:
    """A weight matrix while it is pruned: |weight| in shades, red where it is gone.

    Args:
        frames: `(n, out, in)`, zero where pruned.
        limit: rows and columns shown at most; larger matrices are thinned out.

    Returns:
        PNG of all frames, one below the other, the longer side of the matrix across; width of a frame over its height.
    """
    from PIL import Image

    if frames.shape[1] > frames.shape[2]:
        frames = frames.transpose(0, 2, 1)
    thin = [max(1, -(-size // limit)) for size in frames.shape[1:]]
    shown = np.abs(frames[:, :: thin[0], :: thin[1]]).astype(np.float32)
    shades = (shown / max(float(np.percentile(shown, 99)), 1e-12)).clip(0, 1) ** 0.5
    codes = np.where(shown == 0, 0, 1 + np.rint(30 * shades)).astype(np.uint8)  # red, then white to black
    strip = Image.fromarray(codes.reshape(-1, shown.shape[2]), "L")
    strip.putpalette([236, 150, 130, *np.repeat(np.linspace(255, 0, 31).astype(np.uint8), 3).tolist()])
    buffer = io.BytesIO()
    strip.save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), shown.shape[2] / shown.shape[1]


def prior_shapes(ax: Axes, names: Sequence[str] = ("gaussian", "spike-and-slab", "log-uniform", "horseshoe")) -> Axes:
    """Densities of the priors with their default options, horseshoe with scale 1; improper ones scaled to fit."""
    w = np.linspace(-3, 3, 1201)
    for name, look in looks(names).items():
        ax.plot(w, DENSITIES[name](w), label=name, **look.line() | {"marker": None, "linewidth": 1.3})
    ax.set_ylim(1e-3, 30)
    ax.set_yscale("log")
    ax.set_xlabel("weight")
    ax.set_ylabel("prior density")
    legend_above(ax)
    return ax


def _gaussian(w: np.ndarray, scale: float | np.ndarray = 1.0) -> np.ndarray:
    density: np.ndarray = np.exp(-0.5 * (w / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    return density


def _horseshoe(w: np.ndarray) -> np.ndarray:
    """Normal with half-Cauchy scale, the scale integrated out at the quantiles of its distribution."""
    scales = np.tan(0.5 * np.pi * (np.arange(4000) + 0.5) / 4000)
    return np.stack([_gaussian(value, scales).mean() for value in w])


DENSITIES = {
    "gaussian": _gaussian,
    "spike-and-slab": lambda w: 0.25 * _gaussian(w) + 0.75 * _gaussian(w, math.exp(-6)),
    "log-uniform": lambda w: 0.1 / np.maximum(np.abs(w), 1e-3),
    "normal-jeffreys": lambda w: 0.1 / np.maximum(np.abs(w), 1e-3),
    "horseshoe": _horseshoe,
}
"""Marginal densities over one weight. With z ∝ 1/|z| and a normal raw weight, the weight is log-uniform itself."""
