"""Fine-tuning by likelihood and bits: what it minimises, what it removes, what the file tells of it."""

import json
import math
import os
import subprocess
import sys
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pyro_compress as pc
from pyro_compress.cli.main import main
from pyro_compress.compression import finetuned, search
from pyro_compress.compression.candidates import Candidates, to_module
from pyro_compress.compression.code_length import CodeLength
from pyro_compress.compression.finetune import finetune
from pyro_compress.compression.finetuned import FineTuning, Teacher, logits_by
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.compression.precision import snapped
from pyro_compress.compression.quantization_aware import QuantizationAware, distilled
from pyro_compress.compression.rounding import Grid, Rounding
from pyro_compress.compression.target import SearchCallbacks, Trial, target_of
from pyro_compress.data.augment import AUGMENTATIONS
from pyro_compress.graph.network import Network, run_graph
from pyro_compress.metrics import evaluate
from pyro_compress.pcn import context, file, runner
from pyro_compress.pcn.layout import layouts, plain
from pyro_compress.runs.folder import Run
from pyro_compress.settings import FineTune
from pyro_compress.types import Compressed, Graph, Node, Posterior, Splits, nonzero


@pytest.fixture(scope="module")
def run(fitted_run: Run) -> Run:
    return fitted_run


def masks(posterior: Posterior, ratio: float = 0.22) -> dict[str, torch.Tensor]:
    return {name: layer.mean.abs() > ratio * layer.std for name, layer in posterior.layers.items()}


def finetuned_run(run: Run, splits: Splits, **how: float) -> Compressed:
    recipe = FineTune(**({"epochs": 4, "batch_size": 128} | how))  # type: ignore[arg-type]
    return Compressed(*finetune(run.posterior, masks(run.posterior), splits.train, recipe), {})


def quantization_aware(run: Run, **how: float) -> QuantizationAware:
    posterior, recipe = run.posterior, FineTune(**how)  # type: ignore[arg-type]
    tensors = {name: layer.mean * masks(posterior)[name] for name, layer in posterior.layers.items()}
    spreads = {name: layer.std for name, layer in posterior.layers.items()} if recipe.svi else {}
    work = QuantizationAware(posterior.graph, tensors | posterior.dense, recipe, spreads)
    work.choose_steps()
    return work


@pytest.mark.slow
def test_a_higher_lambda_gives_a_smaller_file(run: Run, digits: Splits) -> None:
    free, cheap, dear = (finetuned_run(run, digits, lam=lam) for lam in (0.0, 1.0, 8.0))
    sizes = [len(file.dumps(network)[0]) for network in (free, cheap, dear)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert evaluate(to_module(cheap), digits, "validation").accuracy > 0.9


def test_the_decoded_file_predicts_the_same(run: Run, digits: Splits) -> None:
    network = finetuned_run(run, digits)
    decoded = file.loads(file.dumps(network)[0])
    with torch.no_grad():
        wanted = to_module(network)(digits.validation.x)
        assert torch.equal(to_module(decoded)(digits.validation.x), wanted)
    assert np.allclose(runner.run(decoded, digits.validation.x.numpy()), wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_file(run: Run, digits: Splits) -> None:
    assert file.dumps(finetuned_run(run, digits, seed=3))[0] == file.dumps(finetuned_run(run, digits, seed=3))[0]


@pytest.mark.parametrize("svi", [False, True])
def test_dropping_units_changes_nothing_but_the_units(run: Run, digits: Splits, svi: bool) -> None:
    """Function, latent values, spreads and Adam's memory of the survivors are those from before."""
    work = quantization_aware(run, svi=svi)
    x, y = digits.train.x[:64], digits.train.y[:64]
    for _ in range(3):
        work.train(x, y, None, 0.5, len(digits.train))
    with torch.no_grad():
        rows = work.full(work.free)["3.weight"].abs().sum(1).argsort()[:5]
        index = work.places["3.weight"] // work.shapes["3.weight"][1]
        work.free["3.weight"][torch.isin(index, rows)] *= 1e-3  # round to zero: five units die
        before = run_graph(work.graph, work.full(work.rounded()), x)
        moments = {name: work.optimizer.state[t]["exp_avg"].abs().sum() for name, t in work.free.items()}  # type: ignore[union-attr]
        last = {name: spread.clone() for name, spread in work.log_spread.items()}
        there = work.free["5.weight"].clone()
    work.drop_dead_units()
    assert work.shapes["3.weight"][0] <= 15
    for name, spread in work.log_spread.items():
        assert len(spread) == len(work.free[name])
        assert set(spread.tolist()) <= set(last[name].tolist())
    if svi:  # a value and its spread stay together
        pairs = set(zip(there.tolist(), last["5.weight"].tolist(), strict=True))
        assert set(zip(work.free["5.weight"].tolist(), work.log_spread["5.weight"].tolist(), strict=True)) <= pairs
        memory = work.optimizer.state[work.log_spread["5.weight"]]  # type: ignore[union-attr]
        assert memory["step"] == 3
        assert memory["exp_avg"].abs().sum() > 0
    with torch.no_grad():
        after = run_graph(work.graph, work.full(work.rounded()), x)
        # folded constants are rounded with the bias that takes them up: half a step at most
        assert (after - before).abs().max() <= 0.5 * sum(step for n, step in work.steps.items() if n.endswith("bias"))
    kept = work.optimizer.state[work.free["1.weight"]]["exp_avg"].abs().sum()  # type: ignore[union-attr]
    assert 0 < kept <= moments["1.weight"]
    assert work.optimizer.state[work.free["5.weight"]]["step"] == 3  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_run_gives_the_same_file_in_every_process(run: Run, tmp_path: Path) -> None:
    """Draws do not depend on the order of a set, which Python shuffles from process to process."""
    found = []
    for seed in ("1", "2", "here"):
        out = tmp_path / f"{seed}.pcn"
        arguments = ["compress", run.path, "--out", out, "--finetune", "1", "--finetune-lambda", "2", "--noise", "0.4"]
        arguments += ["--reorder", "20"]  # passes, told: where they are not, these tests make few
        command = [*map(str, arguments), "--threads", "1"]
        if seed == "here":
            assert CliRunner().invoke(main, command).exit_code == 0
        else:
            subprocess.run(
                [sys.executable, "-m", "pyro_compress", *command],
                check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": seed},
            )  # fmt: skip
        found.append(out.read_bytes())
    assert found[0] == found[1] == found[2]


def test_the_worst_weights_nearby_are_where_they_should_be(run: Run, digits: Splits) -> None:
    """At the radius, on the survivors alone, and worse than any of a hundred other places that far away."""
    work, x, y = quantization_aware(run, sam_rho=0.1), digits.train.x[:256], digits.train.y[:256]
    values = {name: value.detach() for name, value in work.rounded().items()}
    worst = work.worst_nearby(values, x, y, None)
    moved = {name: worst[name] - values[name] for name in worst}
    assert {name for name, by in moved.items() if by.any()} == set(work.places)
    length = torch.stack([moved[name].square().sum() for name in work.places]).sum().sqrt()
    torch.testing.assert_close(float(length), 0.1, rtol=1e-4, atol=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        highest = work.lost(worst, x, y, None)
        for _ in range(100):
            there = {name: torch.randn(values[name].shape, generator=generator) for name in work.places}
            scale = 0.1 / torch.stack([by.square().sum() for by in there.values()]).sum().sqrt()
            assert work.lost(values | {n: values[n] + scale * by for n, by in there.items()}, x, y, None) < highest


def test_a_sharpness_aware_step_descends_from_the_worst_weights(run: Run, digits: Splits) -> None:
    """As Foret et al.'s algorithm 1, spelled out beside it: two gradients, the second one is the step's."""
    work, x, y = quantization_aware(run, sam_rho=0.2, lam=0.0), digits.train.x[:64], digits.train.y[:64]
    names = [name for name in work.free if name in work.steps]
    begin = {name: value.detach().clone().requires_grad_() for name, value in work.rounded().items()}

    def gradients(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = run_graph(work.graph, work.full(values), x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        return dict(zip(names, torch.autograd.grad(loss, [values[name] for name in names]), strict=True))

    first = gradients(begin)
    length = math.sqrt(sum(float(first[name].square().sum()) for name in work.places))
    second = gradients(
        {
            n: (v + (0.2 * first[n] / length if n in work.places else 0)).detach().requires_grad_()
            for n, v in begin.items()
        }
    )
    work.train(x, y, None, 0.0, len(digits.train))
    for name in names:
        taken = work.free[name].grad
        assert taken is not None
        torch.testing.assert_close(taken, second[name], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(taken, first[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("svi", [False, True])
@pytest.mark.slow
def test_sharpness_aware_fine_tuning_ends_in_flatter_places(run: Run, digits: Splits, svi: bool) -> None:
    """What it minimises is smaller than without: the loss at the worst weights nearby, a minibatch at a time."""

    def worst_loss(sam_rho: float) -> float:
        found = finetuned_run(run, digits, epochs=24, batch_size=64, lam=0.0, step=0.2, svi=svi, sam_rho=sam_rho)
        tensors = {name: torch.from_numpy(file.dense(tensor)) for name, tensor in found.tensors.items()}
        work, losses = QuantizationAware(found.graph, tensors, FineTune(sam_rho=0.3), {}), []
        for x, y in zip(digits.train.x.split(64), digits.train.y.split(64), strict=True):
            losses.append(work.lost(work.worst_nearby(work.free, x, y, None), x, y, None).item())
        return sum(losses) / len(losses)

    assert worst_loss(0.3) < 0.9 * worst_loss(0.0)


def test_svi_under_the_mask(run: Run, digits: Splits) -> None:
    """Spreads start at the posterior's, a step bounds them, and their entropy is paid for in the unit of bits."""
    posterior, chosen = run.posterior, masks(run.posterior)
    tensors = {name: torch.where(chosen[name], layer.mean, 0.0) for name, layer in posterior.layers.items()}
    how = FineTune(svi=True, lam=3.0, ramp=0.0, lr=0.0)
    spreads = {name: layer.std for name, layer in posterior.layers.items()}
    work = QuantizationAware(posterior.graph, tensors | posterior.dense, how, spreads)
    work.choose_steps()
    for name, spread in work.log_spread.items():
        std = spreads[name].flatten()
        assert torch.isin(spread.detach(), torch.cat([std.log(), torch.tensor([math.log(work.steps[name])])])).all()
        assert spread.max() <= math.log(work.steps[name]) + 1e-6
    # nothing but the entropy: no data, no bits
    work.loss = lambda outputs, y: outputs.sum() * 0
    work.code_lengths = {name: (lambda values, drawn: values.sum() * 0) for name in work.code_lengths}  # type: ignore[misc]
    work.train(digits.train.x[:8], digits.train.y[:8], None, 1.0, 500)
    for spread in work.log_spread.values():
        assert torch.allclose(spread.grad, torch.tensor(-3.0 / 500))


def test_learned_spreads_tell_what_must_be_precise(run: Run, digits: Splits) -> None:
    """Weights that the loss does not feel take the largest spread, those that it feels a smaller one."""
    network = finetuned_run(run, digits, svi=True, lam=1.0, epochs=8)
    assert evaluate(to_module(network), digits, "validation").accuracy > 0.9
    decoded = file.loads(file.dumps(network)[0])
    assert decoded.parameters == network.parameters
    graph = Graph(
        (Node("input"), Node("linear", (0,), {"weight": "w"})), (2,)
    )  # inputs of the second column are always 0
    x = torch.randn(512, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0])
    y = (x[:, 0] > 0).long()
    work = QuantizationAware(
        graph, {"w": torch.tensor([[-1.0, 1.0], [1.0, 1.0]])}, FineTune(svi=True, lam=1.0, ramp=0.0, lr=5e-3),
        {"w": torch.full((2, 2), 0.05)},
    )  # fmt: skip
    work.choose_steps()
    for _ in range(300):
        work.train(x, y, None, 0.5, len(y))
    spread = work.log_spread["w"].detach().exp()
    assert torch.allclose(spread[[1, 3]], torch.tensor(work.steps["w"]))
    assert (spread[[0, 2]] < 0.5 * spread[[1, 3]]).all(), spread


def test_svi_needs_a_posterior(run: Run, digits: Splits) -> None:
    layers = {n: replace(layer, std=torch.zeros_like(layer.std)) for n, layer in run.posterior.layers.items()}
    with pytest.raises(ValueError, match="point weights only"):
        finetune(replace(run.posterior, layers=layers), masks(run.posterior), digits.train, FineTune(svi=True))


@pytest.mark.parametrize("density", [0.02, 0.1, 0.4])
def test_the_code_length_is_near_what_the_coder_takes(density: float) -> None:
    rng = np.random.default_rng(0)
    codes = (np.round(rng.laplace(0, 2, (60, 200))) * (rng.random((60, 200)) < density)).astype(np.int64)
    layout = plain(codes.shape)
    coder = context.Coder()
    context.code(coder, array("q", codes.ravel().tolist()), *layout)
    spent = 8 * len(coder.finish())
    expected = float(CodeLength(layout)(torch.from_numpy(codes).float().flatten()))
    assert expected == pytest.approx(spent, rel=0.15)


def test_the_code_length_pulls_towards_zero() -> None:
    values = torch.tensor([0.0, 0.4, -0.4, 1.6, -5.3, 0.0, 0.0, 0.0], requires_grad=True)
    CodeLength((2, 4, 1, 1))(values).backward()
    assert values.grad is not None
    assert torch.equal(values.grad[1:5].sign(), torch.tensor([1.0, -1.0, 1.0, -1.0]))


def test_distillation_is_the_mixture_it_says() -> None:
    ours, theirs, loss = torch.randn(5, 3), torch.randn(5, 3), torch.tensor(2.0)
    p, q = (ours / 2).softmax(1), (theirs / 2).softmax(1)
    divergence = (q * (q / p).log()).sum(1).mean()
    assert distilled(loss, ours, theirs, 0.7, 2.0) == pytest.approx(float(0.3 * loss + 0.7 * 4 * divergence), rel=1e-5)
    assert distilled(loss, ours, ours, 0.7, 2.0) == pytest.approx(0.6, abs=1e-5)


@pytest.mark.parametrize("step", [1.0, 0.3, 1e-5, 7.0])
def test_steps_are_powers_of_a_fourth_root(step: float) -> None:
    exponent = 4 * np.log2(snapped(step))
    assert exponent == pytest.approx(round(exponent), abs=1e-5)
    assert abs(exponent - 4 * np.log2(step)) <= 0.5


def test_layouts_follow_the_flattening(digits: Splits) -> None:
    net = pc.build_net("lenet-5-relu", (1, 28, 28), 10)
    from pyro_compress.graph.capture import capture

    graph = capture(net, (1, 28, 28))
    found = layouts(graph, {name: tuple(t.shape) for name, t in net.state_dict().items()})
    assert found["0.weight"] == (20, 1, 5, 5)
    assert found["7.weight"] == (500, 50, 4, 4)
    assert found["9.weight"] == (10, 500, 1, 1)
    graph = capture(pc.build_net("mlp", (1, 28, 28), 10, (5,)), (1, 28, 28))
    assert layouts(graph, {"1.weight": (5, 784), "3.weight": (10, 5)})["1.weight"] == (5, 1, 28, 28)


def test_a_teacher_sees_what_the_network_sees(run: Run, digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """With augmentation a teacher's logits are those of the changed images, batch by batch; without, they are kept."""
    seen, asked = [], []
    monkeypatch.setitem(AUGMENTATIONS, "brighter", lambda x, generator: (seen.append(x), x + 1)[1])

    def teach(x: torch.Tensor) -> torch.Tensor:
        asked.append(x)
        return torch.zeros(len(x), 10)

    how = FineTune(epochs=1, masked_epochs=0, batch_size=500)
    finetune(run.posterior, masks(run.posterior), digits.train, how, teach)
    assert [len(x) for x in asked] == [len(digits.train)]
    asked.clear()
    finetune(run.posterior, masks(run.posterior), digits.train, replace(how, augment="brighter"), teach)
    assert len(asked) == len(seen) == -(-len(digits.train) // 500)
    assert all(torch.equal(changed, x + 1) for changed, x in zip(asked, seen, strict=True))


def test_several_teachers_are_their_mean(run: Run, digits: Splits) -> None:
    other = replace(run.posterior, dense={name: tensor + 0.1 for name, tensor in run.posterior.dense.items()})
    teacher = Teacher.of([(run.posterior, "mlp"), (other, "mlp"), (other, "lenet")])
    assert teacher.name == "2 mlp, lenet"
    x = digits.train.x[:20]
    each = [Network(one.graph, one.tensors).eval()(x).softmax(1) for one in teacher.posteriors]
    torch.testing.assert_close(logits_by(teacher, digits)(x).softmax(1), torch.stack(each).mean(0))


# --- the command line


def compress(run: Run, out: Path, *arguments: str) -> dict:
    result = CliRunner().invoke(main, ["compress", str(run.path), "--out", str(out), "--json", *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_report_and_file_tell_of_fine_tuning(run: Run, tmp_path: Path) -> None:
    plain = compress(run, tmp_path / "plain.pcn")
    assert (plain["finetune_epochs"], plain["teacher"]) == (0, "")
    curve = tmp_path / "curve.csv"
    told = compress(
        run,
        tmp_path / "tuned.pcn",
        "--finetune",
        "4",
        "--finetune-lambda",
        "2",
        "--teacher",
        str(run.path),
        "--curve",
        str(curve),
    )
    assert told["finetune_augment"] == ""
    assert told["finetune_epochs"] == 6  # two masked ones before
    assert (told["finetune_lambda"], told["teacher"]) == (2.0, "mlp")
    assert told["file_bytes"] < plain["file_bytes"]
    assert file.read(tmp_path / "tuned.pcn").meta["teacher"] == "mlp"
    assert "finetune_augment" not in file.read(tmp_path / "tuned.pcn").meta
    header, row = curve.read_text().splitlines()
    assert header == "sparsity,relative_step,lambda,bytes,validation_error,validation_nll_nats"
    assert int(row.split(",")[3]) >= told["file_bytes"]  # its units were put in another order behind the search
    assert 100 * float(row.split(",")[4]) == pytest.approx(100 * (1 - told["validation_accuracy_after"]))


@pytest.mark.slow
def test_rates_are_searched_for(run: Run, digits: Splits, tmp_path: Path) -> None:
    trials: list = []
    how = FineTune(epochs=3, masked_epochs=1, batch_size=64)
    report = compress_run(
        run.posterior, digits, tmp_path / "a.pcn", pc.Goal(target_error=0.08), FineTuning(how),
        callbacks=SearchCallbacks(candidate=trials.append),
    )  # fmt: skip
    assert report.validation_after.accuracy >= 0.92
    assert 3 <= len({trial.lam for trial in trials}) <= 4
    good = [trial for trial in trials if trial.validation_error <= 0.08]
    assert report.finetuned.lam == max(trial.lam for trial in good)
    small = compress_run(
        run.posterior, digits, tmp_path / "b.pcn", pc.Goal(max_bytes=report.file_bytes + 200), FineTuning(how)
    )
    assert small.file_bytes <= report.file_bytes + 200


def test_a_bound_on_the_bytes_leaves_the_weights_that_it_has_room_for(run: Run, digits: Splits) -> None:
    """Else the tolerance, which nobody asked for, would prune what fits."""
    goal, shares = pc.Goal(tolerance=0.2, nll_tolerance=9.0), list[float]()
    target = target_of(run.posterior, digits, goal)
    for most in (None, 1500, 600):
        kept, removed = search.prune(run.posterior, digits, replace(goal, max_bytes=most), target)
        shares.append(removed)
        assert removed == pytest.approx(1 - sum(map(nonzero, kept.values())) / sum(m.numel() for m in kept.values()))
    fitting, removed = search.compress(run.posterior, digits, replace(goal, max_bytes=1500))
    assert shares[1] == pytest.approx(removed, abs=0.01)
    assert len(file.dumps(fitting)[0]) <= 1500
    assert shares[1] < shares[2] <= shares[0]


@pytest.mark.parametrize("goal", [pc.Goal(max_bytes=800), pc.Goal(tolerance=0.5, nll_tolerance=9.0)], ids=str)
def test_a_file_that_rounding_alone_makes_better_is_said_to_be_so(goal: pc.Goal, run: Run, digits: Splits) -> None:
    network, _ = search.compress(run.posterior, digits, goal, Rounding(), passes=0)
    size, scored = len(file.dumps(network)[0]), evaluate(to_module(network), digits, "validation")
    assert finetuned.beaten(run.posterior, digits, goal, size, scored) == ""
    worse = replace(scored, nll_nats=scored.nll_nats + 0.01)
    told = finetuned.beaten(run.posterior, digits, goal, size + 1, worse)
    assert told.startswith(f"rounding alone makes the better file ({size:,} bytes at a validation NLL of")
    assert finetuned.beaten(run.posterior, digits, replace(goal, max_bytes=None, sparsity=0.5), size + 1, worse) == ""


def test_the_smallest_file_is_the_one_as_it_is_written(
    run: Run, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates are found by static tables; the best few are finished, and then their bytes are compared."""
    sizes, dumps = list[int](), file.dumps

    def noted(network: Compressed, in_context: bool = True) -> tuple:
        found = dumps(network, in_context)
        sizes.extend([len(found[0])] if in_context else [])
        return found

    monkeypatch.setattr(file, "dumps", noted)
    network, _ = search.compress(run.posterior, digits)
    assert len(sizes) > 1
    assert len(dumps(network)[0]) == min(sizes)


def test_goals_without_fine_tuning(run: Run, tmp_path: Path) -> None:
    curve = tmp_path / "curve.csv"
    loose = compress(run, tmp_path / "loose.pcn", "--target-error", "0.1", "--curve", str(curve))
    assert loose["validation_accuracy_after"] >= 0.9
    assert len(curve.read_text().splitlines()) > 20


@pytest.mark.parametrize("most", [500, pytest.param(900, marks=pytest.mark.slow)])
def test_no_file_that_fits_is_better(run: Run, digits: Splits, most: int) -> None:
    """Against a walk over sparsities and steps, each as it is written."""
    network, _ = search.compress(run.posterior, digits, pc.Goal(max_bytes=most))
    assert len(file.dumps(network)[0]) <= most
    every = Candidates(run.posterior, digits, "snr", "cpu")
    walked = [
        every.candidate(1 - kept, Grid(step))
        for kept in search.KEPT[::8] for step in search.RELATIVE_STEPS[::2]
    ]  # fmt: skip
    fitting = [every.scores_of(one).nll_nats for one in walked if len(file.dumps(one)[0]) <= most]
    assert every.scores_of(network).nll_nats <= min(fitting) + 0.002


# --- what the last lines say


OUTSIDE = [
    (["--sparsity", "0.99"], "a smaller --sparsity"),
    (["--max-bytes", "200", "--reorder", "0"], "more --max-bytes"),
    (["--sparsity", "0.9", "--bits", "2"], "more --bits"),
    (["--finetune", "1", "--finetune-lambda", "2000"], "a lower --finetune-lambda"),
]


@pytest.mark.parametrize("arguments", [case[0] for case in OUTSIDE], ids=lambda given: " ".join(given))
def test_a_file_outside_the_tolerance_is_said_with_what_to_try(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    hint = dict((" ".join(given), hint) for given, hint in OUTSIDE)[" ".join(arguments)]
    out = tmp_path / "out.pcn"
    found = compress(run, out, *arguments)
    lost = found["validation_accuracy_before"] - found["validation_accuracy_after"]
    assert lost > 0.005 or found["validation_nll_nats_after"] > found["validation_nll_nats_before"]
    assert found["within_tolerance"] is False
    (warning,) = found["warnings"]
    assert warning.startswith("outside the tolerance: validation accuracy")
    assert hint in warning
    if "--bits" in arguments:  # and for people
        shown = CliRunner().invoke(main, ["compress", str(run.path), "--out", str(out), "--force", *arguments])
        assert " ".join(shown.stdout.partition("warning: ")[2].split()) == warning


def test_a_file_within_the_tolerance_has_nothing_to_say(run: Run, tmp_path: Path) -> None:
    found = compress(run, tmp_path / "out.pcn", "--tolerance", "0.02", "--nll-tolerance", "0.1")
    assert found["within_tolerance"] is True
    assert found["warnings"] == []


def test_help_says_how_many_epochs_come_before() -> None:
    told = " ".join(CliRunner().invoke(main, ["compress", "--help"], terminal_width=100).output.split())
    assert "Epochs before those of --finetune, on the masked weights, which are not rounded yet. [default: " in told
    assert f"not rounded yet. [default: {FineTune().masked_epochs};" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--finetune-lambda", "1"], "go with --finetune"),
        (["--target-error", "0.1", "--max-bytes", "100"], "Error: --target-error and --max-bytes exclude each other"),
        (["--max-bytes", "20"], "fits into 20 bytes"),
        (["--target-error", "0"], "allow more"),
        (["--finetune", "1", "--max-bytes", "20"], "no lambda from"),
        (
            ["--finetune", "1", "--finetune-lambda", "1", "--max-bytes", "20"],
            "bytes, more than 20; leave --finetune-lambda out",
        ),
        (["--finetune-svi"], "goes with --finetune"),
        (["--sam-rho", "0.1"], "goes with --finetune"),
        (["--finetune", "1", "--sam-rho", "nan"], "sam_rho nan: it must be finite"),
        (["--finetune", "1", "--step", "inf"], "step inf: it must be"),
        (["--finetune", "1", "--finetune-lambda", "nan"], "finetune_lambda nan: it must be finite"),
        (["--finetune", "1", "--finetune-lambda", "1", "--finetune-lr", "1e30"], "choose a smaller lr than 1e+30"),
        (
            ["--finetune", "1", "--masked-epochs", "0", "--finetune-lambda", "1", "--sam-rho", "1e30"],
            "or sam_rho than 1e+30",
        ),
        (["--lambda", "nan"], "lambda nan: it must be finite"),
        (["--lambda", "inf"], "lambda inf: it must be finite"),
        (["--relative-step", "0.5"], "--relative-step goes with --sparsity or --rule"),
    ],
)
def test_errors_are_one_line(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["compress", str(run.path), "--out", str(tmp_path / "a.pcn"), *arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "a.pcn").exists()


@pytest.mark.parametrize(("most", "found"), [(16.0, 16.0), (0.3, 0.25), (0.1, 2**-3.5), (0.008, 2**-7)])
def test_the_highest_lambda_that_is_good_is_found_below_the_grid_too(most: float, found: float) -> None:
    asked = list[float]()

    def train_at(lam: float) -> Any:
        asked.append(lam)
        return lam, None, lam <= most

    assert finetuned._highest(train_at, lambda: False) == found
    assert len(asked) <= (4 if most >= 0.25 else 8)
    with pytest.raises(ValueError, match=r"no lambda from 0\.0078125 to 16 reaches the target"):
        finetuned._highest(lambda lam: (lam, None, False), lambda: False)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(("least", "between"), [(1.0, (2**-0.5, 1.0)), (0.03, (2**-5.5, 0.04)), (0.0, (0.0, 2**-7))])
def test_of_the_files_that_fit_the_fullest_is_found_below_the_grid_too(
    least: float, between: tuple[float, float]
) -> None:
    def train_at(lam: float) -> Any:
        return lam, Trial(0.0, 0.0, lam, 0, 0.0, lam), lam >= least

    assert between[0] <= finetuned._fullest(train_at, lambda: False) <= between[1]  # type: ignore[operator]
