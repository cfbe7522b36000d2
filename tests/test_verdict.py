"""What the last lines of a report say: outside of what was asked for, at chance level; nothing where all is well."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pyro_compress.cli.console import report_text
from pyro_compress.cli.main import main
from pyro_compress.compression.pipeline import Report
from pyro_compress.compression.rounding import Rounding
from pyro_compress.compression.target import Target
from pyro_compress.compression.verdict import at_chance, hints_of, larger, outside
from pyro_compress.metrics import regression_scores
from pyro_compress.scores import RegressionScores, Scores, SeveralScores, ratio_text
from pyro_compress.settings import Goal
from pyro_compress.types import Data, Quantity, Splits

RULE, SMALLER = "leaving out --rule (a sparsity is searched for)", "a smaller --lambda (or none)"
GOOD = Scores(0.97, 0.1, 0.01, 0.05)
TARGET = Target(GOOD, 0.005, 0.01)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (GOOD, False),
        (replace(GOOD, accuracy=0.966, nll_nats=0.109), False),
        (replace(GOOD, accuracy=0.96), True),
        (replace(GOOD, nll_nats=0.2), True),  # as accurate, and far less certain
    ],
)
def test_outside_of_the_tolerance(after: Scores, said: bool) -> None:
    found = outside(TARGET, after, ["a smaller --sparsity", "more --tolerance"])
    assert bool(found) is said
    if said:
        assert f"validation accuracy of {after.accuracy:.4f} and {after.nll_nats:.4f} nats" in found
        assert "where a validation accuracy of 0.9650 and an NLL of 0.1100 nats were asked for" in found
        assert found.endswith("try a smaller --sparsity, or more --tolerance")


def test_an_error_that_was_asked_for_counts_instead() -> None:
    target = replace(TARGET, error=0.1, nll_tolerance=float("inf"))
    assert outside(target, replace(GOOD, accuracy=0.91, nll_nats=9.0), ["x"]) == ""
    assert "validation error of 0.11 and 0.1000 nats, where a validation error of 0.1 were asked for" in outside(
        target, replace(GOOD, accuracy=0.89), ["x"]
    )


def test_several_targets_are_bounded_by_what_is_counted_of_them() -> None:
    """Of targets in units of their own the RMSE is that of the largest; the tolerance is of the RMSE / spread."""
    y, units = torch.zeros(400, 2), (Quantity("share", 0.0, 0.1), Quantity("price", 0.0, 1000.0))

    def scored(share: float, price: float) -> RegressionScores:
        """With such errors of the standardised targets, the same in every row."""
        return regression_scores(y + torch.tensor([share, price]), y, units, 1.0)

    before, after = scored(0.4, 0.1), scored(0.6, 0.05)
    assert before.rmse == pytest.approx(((0.04**2 + 100**2) / 2) ** 0.5)
    assert before.relative_rmse == pytest.approx(((0.4**2 + 0.1**2) / 2) ** 0.5)
    assert after.rmse < before.rmse  # of the price, which is better
    target = Target(before, 0.1, float("inf"))
    assert str(target) == "a validation RMSE / spread of 0.3207"  # 0.29155 and a tenth
    assert target.reached(replace(after, relative_rmse=0.3207))
    assert not target.reached(after)
    said = outside(target, after, ["x"])
    assert "validation RMSE / spread of 0.4257 and" in said
    assert "a validation RMSE / spread of 0.3207 were asked for" in said


def test_several_outputs_are_bounded_one_by_one() -> None:
    before = SeveralScores({"digit": GOOD, "ink": RegressionScores(9.0, 1.0, 0.2)}, 1.1)
    after = SeveralScores({"digit": GOOD, "ink": RegressionScores(18.0, 1.0, 0.4)}, 1.1)
    assert (
        "validation digit: accuracy of 0.9700, ink: RMSE / spread of 0.4000 and 1.1000 nats, where a validation "
        in (said := outside(Target(before, 0.5, 9.0), after, ["x"]))
    )
    assert "digit: accuracy of 0.4700, ink: RMSE / spread of 0.3000 and an NLL of 10.1000 nats were asked for" in said
    asked = outside(Target(before, 0.0, float("inf"), 0.3), after, ["x"])  # the mean of both errors is 0.215
    assert (
        "validation digit: error of 0.03, ink: error of 0.4 and 1.1000 nats, where a validation error of 0.3" in asked
    )


@pytest.mark.parametrize(
    ("goal", "rounding", "finetuned", "lam", "hints"),
    [
        (Goal(sparsity=0.9), Rounding(), False, None, ["a smaller --sparsity (or none: it is searched for)"]),
        (Goal(rule=True), Rounding(lams=(1.0, 0.1)), False, None, [RULE, SMALLER]),
        (
            Goal(rule=True),
            Rounding(0.5),
            False,
            None,
            [RULE, "a smaller --relative-step (or none: it is searched for)"],
        ),
        (Goal(max_bytes=9), Rounding(lams=(0.0, 0.1)), False, None, ["more --max-bytes"]),
        (Goal(), Rounding(bits=(4,), lams=(0.1,)), False, None, ["more --bits (or none)", SMALLER]),
        (Goal(), None, True, 4.0, ["a lower --finetune-lambda (or none: it is searched for)"]),
        (Goal(), None, True, None, []),
        (Goal(), None, False, None, []),
    ],
)
def test_hints_are_about_what_was_given(
    goal: Goal, rounding: Rounding | None, finetuned: bool, lam: float | None, hints: list[str]
) -> None:
    last = ["more epochs of --finetune" if finetuned else "--finetune EPOCHS"]
    last += ["more --tolerance"] * (goal.max_bytes is None)  # they exclude each other
    assert hints_of(goal, rounding, finetuned, lam) == hints + last


def labelled(y: torch.Tensor, **known: object) -> Splits:
    part = Data(torch.zeros(len(y), 2), y)
    return Splits(part, part, part, ("a", "b") if "targets" not in known else (), **known)  # type: ignore[arg-type]


@pytest.mark.parametrize(("accuracy", "said"), [(0.5, True), (0.7, True), (0.72, True), (0.9, False), (0.1, True)])
def test_chance_level_is_that_of_the_commonest_class(accuracy: float, said: bool) -> None:
    splits = labelled(torch.tensor([0] * 140 + [1] * 60))  # 70 % by one answer, give or take 3.2
    for elsewhere in (True, False):
        found = at_chance(replace(GOOD, accuracy=accuracy), splits, elsewhere)
        assert bool(found) is said
        assert ("--input-mean" in found) is (said and elsewhere)
        assert ("fit again, with a smaller --kl-weight" in found) is (said and not elsewhere)


@pytest.mark.parametrize(("error", "said"), [(1.0, True), (1.5, True), (0.4, False)])
def test_chance_level_of_a_regression_is_its_mean(error: float, said: bool) -> None:
    y = torch.linspace(-1.73, 1.73, 200)[:, None]
    splits = labelled(y, targets=(Quantity("y"),))
    assert bool(at_chance(RegressionScores(error, 1.0, error), splits, False)) is said


def test_nothing_is_praised_at_chance_level() -> None:
    report = Report("snr", 0.9, GOOD, GOOD, GOOD, GOOD, 100, 10, [4, 2], [3, 2], 8.0, 50, 400, {"header": 9})
    report = replace(report, fixed_point_bits=[5, 6], fixed_point_ratio=70.0)
    assert "8.0× smaller" in report_text(report, Path("a.pcn"))
    assert "70.0× (computed, no file)" in report_text(report, Path("a.pcn"))
    assert "fixed point" not in report_text(replace(report, fixed_point_ratio=None), Path("a.pcn"))  # nothing is left
    assert "×" not in report_text(replace(report, warnings=["at chance level before ..."]), Path("a.pcn"))


def test_what_took_weights_out() -> None:
    report = Report("snr", 0.9, GOOD, GOOD, GOOD, GOOD, 100, 10, [4, 2], [3, 2], 8.0, 50, 400, {"header": 9})
    assert "criterion           snr, 90.0 % of the weights removed by it" in report_text(report, Path("a.pcn"))
    stuck = report_text(replace(report, units_stuck={"layer_norm": 3, "group_norm": 1}), Path("a.pcn"))
    assert stuck.count("units that stay     4 without weights: their channels meet layer_norm, group_norm\n") == 1
    assert "\nrounding            relative step 0.0884, λ 0.1\n" in report_text(
        replace(report, relative_step=2**-3.5, lam=0.1), Path("a.pcn")
    )
    assert "rounding" not in report_text(replace(report, lam=0.0), Path("a.pcn"))  # bits by hand, to the nearest
    text = report_text(replace(report, rounding="compensated"), Path("a.pcn"))
    assert "rounding            compensated, 90.0 % of the weights rounded to zero" in text
    assert "criterion" not in text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that knows the digits a little."""
    out = tmp_path_factory.mktemp("verdict") / "run"
    fit = "fit --prior log-uniform --hidden 8 --limit 400 --epochs 8 --pretrain-epochs 7 --lr 0.02 --threads 1 --out"
    result = CliRunner().invoke(main, [*fit.split(), str(out)])
    assert result.exit_code == 0, result.output
    return out


WAYS = {
    "compress RUN": None,
    "compress RUN --tolerance 0.002": None,
    "compress RUN --sparsity 0.97": True,
    "compress RUN --sparsity 0 --relative-step 9": True,
    "compress RUN --bits 2": None,
    "compress RUN --sparsity 0.5 --bits 2": True,
    "compress RUN --lambda 0.01": None,
    "compress RUN --max-bytes 150": True,
    "compress RUN --max-bytes 6000": False,
    "compress RUN --target-error 0.5": False,
    "compress RUN --finetune 1 --finetune-lambda 60": True,
    "compress RUN --finetune 1": None,
    "export RUN --ensemble 2": None,
    "export RUN --ensemble 2 --sparsity 0.98": True,
}
"""Ways in which the README makes a file, some of them too far; whether they are outside of what was asked for, where
that is no accident."""


@pytest.mark.parametrize("way", WAYS)
def test_no_success_outside_the_tolerance_without_a_word(way: str, run: Path, tmp_path: Path) -> None:
    """Exit code 0 outside of what was asked for is said in the last lines and in the JSON; else nothing is written."""
    command, _, *options = way.split()
    export = command == "export"
    out = tmp_path / ("f.onnx" if export else "f.pcn")
    cheap = [] if export else ["--threads", "1", "--reorder", "0"]
    result = CliRunner().invoke(main, [command, str(run), *options, *cheap, "--out", str(out), "--json"])
    if result.exit_code:
        assert WAYS[way] is None
        assert result.stderr.startswith("Error: no ")
        assert not out.exists()
        return
    told, said = json.loads(result.stdout), "outside the tolerance" in " ".join(result.stderr.split())
    assert WAYS[way] in (None, said)
    if not export:
        assert told["within_tolerance"] is not said
        assert any("outside the tolerance" in text for text in told["warnings"]) is said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--criterion snr", "criterion 'snr' needs a posterior's spread, and these are point weights: take magnitude"),
        ("--lambda 0.1", "--lambda weighs bits against a posterior's spread, and these are point weights"),
    ],
)
def test_point_weights_have_no_spread(options: str, said: str, tmp_path: Path) -> None:
    fit = "fit --prior none --hidden 4 --limit 100 --epochs 1 --threads 1 --out"
    assert CliRunner().invoke(main, [*fit.split(), str(tmp_path / "run")]).exit_code == 0
    result = CliRunner().invoke(main, ["compress", str(tmp_path / "run"), *options.split(), "--sparsity", "0.3"])
    assert (result.exit_code, result.stderr) == (1, f"Error: {said}\n")


def test_a_file_larger_than_its_network_says_so() -> None:
    assert larger(226, 152).startswith("the file takes 226 bytes, the network's values as float32 152: ")
    assert larger(151, 152) == ""
    assert ratio_text(152 / 226) == "1.5× larger"
    assert ratio_text(1054.4) == "1054.4× smaller"
