"""Pictures show the numbers they were given; the gallery draws for every kind of run."""

import math

import numpy as np
import pytest
from scipy import integrate

from pyro_compress.compression.curve import draw_curve
from pyro_compress.compression.target import Trial
from pyro_compress.inspection import drawing, plots

HISTORY = [
    {"epoch": 1, "phase": "point", "negative_elbo_nats": None, "kl_nats": None, "validation_accuracy": 0.8},
    {"epoch": 2, "phase": "svi", "negative_elbo_nats": 900.0, "kl_nats": 700.0, "validation_accuracy": 0.9},
    {"epoch": 3, "phase": "svi", "negative_elbo_nats": 800.0, "kl_nats": 650.0, "validation_accuracy": 0.95},
]


def test_training_curves() -> None:
    _, axes = drawing.figure(1, 2)
    left, right = plots.training_curves(axes[0], HISTORY)
    elbo, kl = left.get_lines()
    assert elbo.get_xydata().tolist() == [[2, 900], [3, 800]]
    assert kl.get_xydata().tolist() == [[2, 700], [3, 650]]
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), [20, 10, 5])


def test_score_histogram_counts_every_finite_score() -> None:
    _, axes = drawing.figure()
    scores = np.concatenate([np.full(30, 0.1), np.full(70, 10.0), [0.0, np.inf]])
    ax = plots.score_histogram(axes[0, 0], {"a": scores}, 1.0, "score")
    heights = ax.patches[0].get_xy()[:, 1]
    assert heights.max() == pytest.approx(70)
    assert [line.get_xdata()[0] for line in ax.get_lines()] == [0.0]  # log10 of the threshold
    empty = plots.score_histogram(drawing.figure()[1][0, 0], {"a": np.full(3, np.inf)}, 0.0, "score")
    assert empty.texts[0].get_text() == "no finite scores"


def test_more_layers_than_colours_go_together() -> None:
    scores = {f"layer {i}": np.full(10, 10.0**i) for i in range(9)}
    ax = plots.score_histogram(drawing.figure()[1][0, 0], scores, 0.0, "score")
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == [*(f"layer {i}" for i in range(5)), "4 others"]
    assert len({patch.get_edgecolor() for patch in ax.patches}) == 6
    pairs = {name: (values, values) for name, values in scores.items()}
    forest = plots.group_scales(drawing.figure()[1][0, 0], pairs)
    assert [text.get_text() for text in forest.get_legend().get_texts()][-1] == "4 others (40)"


def test_forest_is_sorted() -> None:
    _, axes = drawing.figure()
    mean, std = np.array([0.1, -3.0, 1.0]), np.array([0.01, 0.1, 0.2])
    ax = plots.group_scales(axes[0, 0], {"a": (mean, std)})
    assert ax.get_lines()[0].get_xdata().tolist() == [3.0, 1.0, 0.1]
    segments = ax.collections[0].get_segments()
    assert segments[1][:, 0].tolist() == pytest.approx([0.8, 1.2])


def test_unit_activity() -> None:
    _, axes = drawing.figure()
    ax = plots.unit_activity(axes[0, 0], [("a", 30, 40), ("b", 0, 10)])
    assert [patch.get_width() for patch in ax.patches] == [100, 100, 75, 0]
    assert [text.get_text() for text in ax.texts] == ["30 of 40", "0 of 10"]


def test_reliability_by_hand() -> None:
    """Ten rows at confidence 0.55, six of them right; three rows alone in their bin are left out."""
    _, axes = drawing.figure()
    confidence = np.array([0.55] * 10 + [0.95] * 3)
    right = np.array([True] * 6 + [False] * 7)
    ax = plots.reliability(axes[0, 0], {"net": (confidence, right)})
    np.testing.assert_allclose(ax.get_lines()[1].get_xydata(), [[0.55, 0.6]])


def test_input_importance_marks_what_is_not_read() -> None:
    _, axes = drawing.figure(1, 2)
    importance = np.array([[0.0, 2.0], [1.0, 0.0]])
    _, example = plots.input_importance(axes[0], importance, np.zeros((1, 2, 2)))
    red = np.asarray(example.images[0].get_array())
    assert (red[..., 0] > red[..., 1] + 0.1).tolist() == (importance == 0).tolist()


def test_pareto_k_counts() -> None:
    ax = plots.pareto_k(drawing.figure()[1][0, 0], np.array([0.1, 0.8, 0.71, 0.7]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["2 rows up to 0.7", "2 rows above"]


def test_predictive_examples() -> None:
    _, axes = drawing.figure(2, 2)
    probabilities = np.array([[[0.9, 0.1], [0.5, 0.5]], [[0.7, 0.3], [0.1, 0.9]]])
    plots.predictive_examples(axes, np.zeros((2, 4, 4)), probabilities, ("0 - zero", "cat"), ("x", "y"))
    assert [patch.get_height() for patch in axes[1, 0].patches] == pytest.approx([0.8, 0.2])
    assert [patch.get_height() for patch in axes[1, 1].patches] == pytest.approx([0.3, 0.7])
    assert [label.get_text() for label in axes[1, 0].get_xticklabels()] == ["0", "cat"]


def test_the_curve_of_a_search_has_its_front() -> None:
    trials = [Trial(0.5, 0.1, 0.0, size, error, 0.1) for size, error in ((900, 0.02), (500, 0.03), (400, 0.03))]
    ax = draw_curve(drawing.figure()[1][0, 0], trials)
    assert ax.collections[0].get_offsets().tolist() == [[900, 2], [500, 3], [400, 3]]
    assert ax.get_lines()[0].get_xydata().tolist() == [[900, 2], [400, 3]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["candidates", "no smaller one is as good"]


def test_prior_shapes_are_densities() -> None:
    ax = plots.prior_shapes(drawing.figure()[1][0, 0])
    assert len(ax.get_lines()) == 4
    mass, _ = integrate.quad(lambda w: float(plots.DENSITIES["spike-and-slab"](np.array([w]))[0]), -8, 8, points=[0])
    assert mass == pytest.approx(1, abs=1e-4)
    # horseshoe: bounds of Carvalho, Polson & Scott 2010, theorem 1
    for w in (0.3, 1.0, 3.0):
        value, scale = float(plots.DENSITIES["horseshoe"](np.array([w]))[0]), (2 * math.pi**3) ** -0.5
        assert scale / 2 * math.log(1 + 4 / w**2) < value < scale * math.log(1 + 2 / w**2)


def test_svg_is_the_same_every_time() -> None:
    texts = []
    for _ in range(2):
        with drawing.style():
            figure, axes = drawing.figure()
            plots.pareto_k(axes[0, 0], np.array([0.1, 0.8]))
            texts.append(drawing.svg(figure))
    assert texts[0] == texts[1]
    assert texts[0].startswith("<svg")
    assert "2026" not in texts[0]
