"""Figures: what is drawn is what was given."""

import math

import numpy as np
import pytest
from scipy import stats

from pyro_compress.inspection import drawing
from pyro_compress.inspection.palette import looks
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


def test_prior_is_the_mixture_density() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.scale_mixture_prior(ax, 0.5, 1.0, math.exp(-6))
    x, y = ax.lines[2].get_data()
    expected = 0.5 * stats.norm.pdf(x, 0, 1) + 0.5 * stats.norm.pdf(x, 0, math.exp(-6))
    assert np.allclose(y, expected)


def test_sparsity_shows_means_bands_and_claims() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.error_against_sparsity(ax, ROWS, {"a": {0.0: 0.99}})
    first, claim, second = ax.lines
    assert list(first.get_xdata()) == [100, 50]
    assert list(first.get_ydata()) == pytest.approx([9.5, 34.5])
    assert list(second.get_ydata()) == pytest.approx([19.5, 44.5])
    assert list(claim.get_ydata()) == pytest.approx([1])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((9, 35))
    assert ax.xaxis_inverted()
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "a, published", "b"]


def test_time_shows_the_mean_and_the_range() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.error_against_time(ax, ROWS, 0.5)
    centre, _, (across, along) = ax.containers[0].lines
    assert centre.get_xydata() == pytest.approx(np.array([[1.5, 34.5]]))
    assert across.get_segments()[0] == pytest.approx(np.array([[1, 34.5], [2, 34.5]]))
    assert along.get_segments()[0] == pytest.approx(np.array([[1.5, 34], [1.5, 35]]))


def test_weights_tell_their_variance() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.weight_distributions(ax, {"a": np.array([-0.1, 0.1]), "b": np.array([-9.0, 9.0])})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a, variance 0.01", "b, variance 81"]


def test_curves_are_means_with_bands() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.training_curves(ax, {"a": [[1.0, 2.0, 3.0], [3.0, 4.0]], "b": [[1.0]]}, "loss")
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[1, 2], [2, 3], [3, 3]], [[1, 1]]]
    band = ax.collections[0].get_paths()[0].vertices
    assert [band[band[:, 0] == epoch, 1].tolist() for epoch in (2,)] == [[2.0, 4.0]]
    assert len(ax.collections) == 1  # one seed has no band


def test_bytes_show_seeds_papers_and_the_network_before() -> None:
    _, (ax,) = study_plots.new_figure()
    files = {"a": [[(2000.0, 1.0), (4000.0, 3.0)], [(1000.0, 5.0)]]}
    papers = [("P (2016), computed", 500.0, 2.0), ("Q (2019)", 600.0, 2.5), ("Q (2019)", 700.0, 2.4)]
    study_plots.error_against_bytes(ax, files, papers, (1e6, 1.5))
    centre, _, (across, _) = ax.containers[0].lines
    assert centre.get_xydata() == pytest.approx(np.array([[1000, 5], [3000, 2]]))
    spread = math.sqrt(2) * 1000
    assert across.get_segments()[1][:, 0] == pytest.approx([3000 - spread, 3000 + spread])
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.lines[1:] if line.get_marker() != "None"}
    assert drawn["P (2016), computed"] == [[500, 2]]
    assert drawn["uncompressed, float32"] == [[1e6, 1.5]]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(names) == sorted(["a", "P (2016), computed", "Q (2019)", "uncompressed, float32"])
    points = {tuple(line.get_xydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1}
    assert {(600, 2.5), (700, 2.4)} <= points  # both of Q, named once


def test_a_front_lies_beside_its_trials_and_papers() -> None:
    _, (ax,) = study_plots.new_figure()
    study_plots.search_front(ax, [(900.0, 4.0), (800.0, 5.0)], [(900.0, 4.2)], [("P", 1000.0, 2.0)])
    assert ax.collections[0].get_offsets().tolist() == [[900, 4], [800, 5]]
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"trials (validation)", "front (test)", "P"}


@pytest.mark.parametrize(("value", "text"), [(500, "500 B"), (2500, "2.5 kB"), (1e6, "1 MB")])
def test_sizes_have_units(value: float, text: str) -> None:
    assert drawing.bytes_text(value) == text


@pytest.mark.parametrize(("low", "high"), [(0.68, 1.25), (1.3, 95), (9.9, 10.8), (900, 2_000_000)])
def test_log_axes_have_a_few_plain_numbers(low: float, high: float) -> None:
    figure, (ax,) = study_plots.new_figure()
    ax.plot([1, 2], [low, high])
    drawing.log_axes(ax, "y")
    figure.draw_without_rendering()
    shown = [tick.get_text() for tick in ax.get_yticklabels() if low <= tick.get_position()[1] <= high]
    assert 2 <= len(shown) <= 10
    assert all("e" not in text for text in shown)


def test_panels_share_looks_and_one_legend() -> None:
    figure, axes = study_plots.new_figure(2)
    labels = ["b", "a"]
    for ax, rows in zip(axes, (ROWS, [row for row in ROWS if row.label == "a"]), strict=True):
        study_plots.error_against_sparsity(ax, rows, labels=labels)
    study_plots.name_once(figure)
    of_a = {line.get_color() for ax in axes for line in ax.get_lines() if line.get_label() == "a"}
    assert of_a == {looks(labels)["a"].colour}
    assert all(ax.get_legend() is None for ax in axes)
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == ["a", "b"]


def test_many_names_leave_the_lines_their_room() -> None:
    rows = [row(f"a method of a long name, number {index}", 0, s, 0.9) for index in range(16) for s in (0, 0.5)]
    figure, (ax,) = study_plots.new_figure()
    study_plots.error_against_sparsity(ax, rows)
    study_plots.name_once(figure)
    figure.draw_without_rendering()
    width, height = ax.get_window_extent().size / figure.dpi
    assert width > 4
    assert height > 2.5
