"""Figures: what is drawn is what was given."""

import math

import numpy as np
import pytest
from scipy import stats

from pyro_compress.studies import figures as study_plots
from pyro_compress.studies.tables import Row


def row(method: str, seed: int, sparsity: float, accuracy: float) -> Row:
    return Row("mnist", "mlp", method, "", sparsity, seed, accuracy, 0.1, 0.01, 60.0 * (seed + 1), f"{method}{seed}")


ROWS = [
    row(m, seed, s, base - s / 2 + seed / 100)
    for m, base in (("a", 0.9), ("b", 0.8))
    for seed in (0, 1)
    for s in (0, 0.5)
]


def test_styles_differ_without_colour() -> None:
    looks = [(str(s["linestyle"]), s["marker"]) for s in study_plots.STYLES]
    assert len(set(looks)) == len(looks)
    assert len({s["marker"] for s in study_plots.STYLES}) == len(looks)


def test_prior_is_the_mixture_density() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.scale_mixture_prior(ax, 0.5, 1.0, math.exp(-6))
    x, y = ax.lines[2].get_data()
    expected = 0.5 * stats.norm.pdf(x, 0, 1) + 0.5 * stats.norm.pdf(x, 0, math.exp(-6))
    assert np.allclose(y, expected)


def test_sparsity_shows_means_bands_and_claims() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.accuracy_against_sparsity(ax, ROWS, {"a": {0.0: 0.99}})
    first, claim, second = ax.lines
    assert list(first.get_xdata()) == [100, 50]
    assert list(first.get_ydata()) == pytest.approx([90.5, 65.5])
    assert list(second.get_ydata()) == pytest.approx([80.5, 55.5])
    assert list(claim.get_ydata()) == [99]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((65, 91))
    assert ax.xaxis_inverted()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_time_shows_one_point_per_seed() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.accuracy_against_time(ax, ROWS, 0.5)
    assert ax.collections[0].get_offsets().tolist() == pytest.approx(np.array([[1, 65], [2, 66]]))


def test_weights_tell_their_variance() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.weight_distributions(ax, {"a": np.array([-0.1, 0.1]), "b": np.array([-9.0, 9.0])})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a, variance 0.01", "b, variance 81"]


def test_curves_and_bytes() -> None:
    _, (left, right) = study_plots.new_figure(2)
    study_plots.training_curves(left, {"a": [1.0, 2.0, 3.0]}, "loss")
    assert left.lines[0].get_xydata().tolist() == [[1, 1], [2, 2], [3, 3]]
    study_plots.accuracy_against_bytes(right, {"a": [(2000, 0.9), (1000, 0.8)]}, 10_000)
    assert right.lines[0].get_xydata() == pytest.approx(np.array([[1, 80], [2, 90]]))
    assert right.lines[1].get_xdata()[0] == 10


def test_panels_share_looks_and_one_legend() -> None:
    figure, axes = study_plots.new_figure(2)
    labels = ["b", "a"]
    for ax, rows in zip(axes, (ROWS, [row for row in ROWS if row.label == "a"]), strict=True):
        study_plots.accuracy_against_sparsity(ax, rows, labels=labels)
    study_plots.name_once(figure)
    of_a = {line.get_color() for ax in axes for line in ax.get_lines() if line.get_label() == "a"}
    assert of_a == {study_plots.STYLES[1]["color"]}
    assert all(ax.get_legend() is None for ax in axes)
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == ["a", "b"]


def test_many_names_leave_the_lines_their_room() -> None:
    rows = [row(f"a method of a long name, number {index}", 0, s, 0.9) for index in range(16) for s in (0, 0.5)]
    figure, (ax,) = study_plots.new_figure()
    study_plots.accuracy_against_sparsity(ax, rows)
    study_plots.name_once(figure)
    figure.draw_without_rendering()
    width, height = ax.get_window_extent().size / figure.dpi
    assert width > 4
    assert height > 2.5
