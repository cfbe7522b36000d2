"""Parts of a page: what stands in them is escaped, bars and tables add up, a player shows its frames."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_compress.inspection import anatomy, file_plots, page
from pyro_compress.inspection.drawing import figure
from pyro_compress.inspection.page_style import CSS, SCRIPT
from pyro_compress.inspection.summary import LayerSummary
from pyro_compress.pcn import file
from pyro_compress.studies.page import sizes, smallest
from pyro_compress.studies.tables import Row
from pyro_compress.types import Compressed, Graph, Node, Quantized

NASTY = "<script>alert('x')</script>\"&"


def test_every_text_is_escaped() -> None:
    animation = page.Animation(NASTY, NASTY, b"png", (NASTY, NASTY), 1.0)
    made = page.document(
        NASTY,
        NASTY,
        [
            page.section(NASTY, page.facts([(NASTY, NASTY)]) + page.note(NASTY)),
            page.split([(NASTY, 2.0)]),
            page.table([(NASTY, NASTY), (NASTY, f"**{NASTY}**")], chips=1),
            page.gallery([page.Picture(NASTY, NASTY, "<svg/>"), animation]),
        ],
    )
    assert made.count("<script>") == 1  # the page's own
    assert "alert('x')" not in made
    (labels,) = re.findall(r'data-labels="([^"]*)"', made)
    assert json.loads(html.unescape(labels)) == [NASTY, NASTY]


def test_a_bar_is_as_wide_as_the_logarithms() -> None:
    widths = re.findall(r"width:([\d.]+)%", page.split([("a", 100.0), ("b", 0.9), ("c", 10.0)]))
    assert [float(width) for width in widths] == pytest.approx([200 / 3, 100 / 3], abs=0.01)
    assert re.findall('class="(c.)"', page.split([("a", 0.5), ("b", 2.0)])) == ["c1"]  # as in the table beside it
    assert ">b" not in page.split([("a", 1e9), ("b", 1.1)])  # no room for its name
    assert page.split([("a", 1.0)]) == '<div class="split"></div>'


@pytest.mark.parametrize(("factor", "text"), [(1215.2, "1,215"), (99.96, "100"), (5.352, "5.35"), (0.9, "0.9")])
def test_factors_have_three_digits(factor: float, text: str) -> None:
    assert page.times(factor) == text


@pytest.mark.parametrize(("codes", "bits"), [([0, 0], 0), ([1, -1], 2), ([2], 3), ([-3], 3), ([4], 4), ([127], 8)])
def test_integers_are_as_wide_as_the_largest(codes: list[int], bits: int) -> None:
    assert anatomy.integer_bits(Quantized(np.array(codes, np.int32), 0.5)) == bits


def test_steps_from_dense_to_file() -> None:
    tensors = {"w": Quantized(np.array([[1, 0], [-3, 2]], np.int32), 0.5), "b": np.zeros(2, np.float32)}
    steps = anatomy.steps_of(Compressed(None, tensors, {"parameters_total": 100}), 9)  # type: ignore[arg-type]
    assert (steps.dense, steps.structure, steps.precision, steps.coding) == (400, 24, 10, 9)  # 4 × 3 + 2 × 32 bits
    assert steps.factors == pytest.approx({"structure": 400 / 24, "precision": 2.4, "coding": 10 / 9})
    told = anatomy.step_rows(steps)
    assert [row[1] for row in told] == ["bytes", "400", "24", "10", "9"]


def test_the_bytes_of_layers_add_up_to_the_file(tmp_path: Path) -> None:
    graph = Graph((Node("input"), Node("linear", (0,), {"weight": "w", "bias": "b"})), (3,))
    codes = np.array([[0, 0, 1], [0, -1, 0]], np.int32)
    network = Compressed(graph, {"w": Quantized(codes, 0.25), "b": np.arange(2, dtype=np.float32)}, {"prior": "none"})
    data, parts = file.dumps(network)
    (tmp_path / "n.pcn").write_bytes(data)
    layer = LayerSummary("w", 1000, 10, 1.0, None, 1, 1, 40, in_file=(3, 4))
    gone = LayerSummary("gone.weight", 50, 0, 1.0, None, 1, 1, 7, in_file=(0, 0))
    _, first, second, *rest, last = anatomy.layer_rows([layer, gone], network, tmp_path / "n.pcn")
    assert first[:6] == ("w", "3", "4 of 40", "2 of 1,000", "2", str(parts["w"]))
    assert second[:5] == ("gone.weight", "0", "0 of 7", "0 of 50", "gone")
    counted = [int(row[5].replace(",", "")) for row in (first, *rest)]
    assert sum(counted) == len(data) == int(last[5].replace(",", ""))


def test_histograms_count_before_and_after() -> None:
    _, axes = figure()
    before, after = torch.randn(500, generator=torch.Generator().manual_seed(0)).numpy(), np.array([0.0] * 7 + [0.5])
    (ax,) = file_plots.weight_histograms(axes[0], {"w": (before, after)})
    counts, edges = np.histogram(before, np.linspace(-1, 1, 62) * np.abs(before).max())
    filled, outline = (patch.get_xy() for patch in ax.patches)
    assert filled[:, 1].max() == counts.max()
    assert outline[:, 1].max() == 7
    assert outline[outline[:, 1].argmax(), 0] == pytest.approx(edges[30])  # zero lies within one column
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "file"]
    assert ax.get_yscale() == "log"


def test_the_curve_shows_its_points_and_marks() -> None:
    _, axes = figure()
    marks = {"before, float32": (4000, 2.0), "this file": (90, 2.5)}
    ax = file_plots.size_against_error(axes[0, 0], [(500, 2.0, 0.5), (100, 4.0, 1.0)], marks, "validation error (%)")
    curve, before, this = ax.get_lines()
    assert curve.get_xydata().tolist() == [[100, 4], [500, 2]]
    assert (before.get_xydata().tolist(), this.get_xydata().tolist()) == ([[4000, 2]], [[90, 2.5]])
    assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == 5
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["pruned and rounded", *marks]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_the_example_is_of_this_version() -> None:
    """`bash scripts/example_report.sh` makes it anew."""
    text = (Path(__file__).parents[1] / "docs/example/report.html").read_text()
    assert CSS in text
    assert SCRIPT in text
    assert text.count('class="player"') == 1


def sized(method: str, seed: int, sparsity: float, accuracy: float, size: int | None) -> Row:
    return Row("mnist", "mlp", method, "", sparsity, seed, accuracy, 0.1, 0.01, 1.0, f"{method}{seed}", file_bytes=size)


def test_sizes_of_a_comparison() -> None:
    rows = [sized("a", seed, s, 0.98 - s / 10, 1000 - int(900 * s) + 100 * seed) for seed in (0, 1) for s in (0, 0.5)]
    rows += [sized("b", 0, 0.5, 0.5, 10), sized("old", 0, 0, 0.99, None)]
    assert sizes(rows) == [["method", "0 %", "50 %"], ["a", "1,050 ± 71", "600 ± 71"], ["b", "", "10"]]
    assert smallest(rows) == [("bytes: a, 0 % removed", "1,050")]
    assert sizes([rows[-1]]) == smallest([rows[-1]]) == []
