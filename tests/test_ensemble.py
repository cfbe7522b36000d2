"""An exported ensemble predicts what its draws predict together, in every format."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pyro_compress.bayes.marginals import networks, read_marginals
from pyro_compress.cli.main import main
from pyro_compress.compression.candidates import to_module
from pyro_compress.compression.prune import kept
from pyro_compress.deploy.ensemble import ensemble
from pyro_compress.graph.network import Network
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.metrics import evaluate
from pyro_compress.networks.draws import mixture
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.types import Splits

pytest.importorskip("onnxruntime")
needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
SMALL = FitConfig(
    prior="log-uniform", hidden=(30, 20), epochs=10, batch_size=64, device="cpu", threads=1, compile="off"
)


@pytest.fixture(scope="module", params=["log-uniform", "horseshoe"])
def run(request: pytest.FixtureRequest, shared: Callable[[FitConfig], Run]) -> Run:
    return shared(replace(SMALL, prior=request.param))


def invoke(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    return result.exit_code, result.stdout if result.exit_code == 0 else result.stderr


def test_it_is_the_mixture_of_its_draws(run: Run, digits: Splits) -> None:
    network = ensemble(run.path, 3, digits, seed=5)
    masks = kept(run.posterior.layers, run.posterior.criterion)
    members = []
    for member in networks(
        run.posterior, read_marginals(run.path / "guide.safetensors", run.config, run.posterior), 3, 5
    ):
        tensors = member.state_dict()
        pruned = {name: tensors[name] * mask for name, mask in masks.items()}
        members.append(Network(run.posterior.graph, tensors | pruned).eval())
    x = digits.validation.x
    with torch.no_grad():
        torch.testing.assert_close(to_module(network)(x), mixture(members, x), atol=1e-4, rtol=1e-4)
    assert network.parameters <= 3 * sum(int(mask.sum()) for mask in masks.values()) + 3 * 60
    assert not torch.equal(members[0](x[:5]), members[1](x[:5]))


@pytest.mark.parametrize("out", ["e.onnx", "e.safetensors", "e.pt2", "folder", pytest.param("e.c", marks=needs_cc)])
def test_every_format(run: Run, out: str, tmp_path: Path) -> None:
    """The command compares the export with the ensemble on all test inputs before it writes."""
    code, text = invoke(run.path, "--ensemble", "4", "-o", tmp_path / out, "--json")
    assert code == 0, text
    told = json.loads(text)
    assert told["difference"] <= 1e-5 * max(told["largest_output"], 1)
    assert told["after"]["accuracy"] == told["before"]["accuracy"]


def test_uncertainty(digits: Splits, shared: Callable[[FitConfig], Run]) -> None:
    """More draws predict better than one: lower NLL on the test digits, by a concave score (Jensen)."""
    run = shared(SMALL)
    many = ensemble(run.path, 8, digits)
    with torch.no_grad():
        together = evaluate(to_module(many), digits, "validation").nll_nats
        apart = []
        for member in range(8):
            nodes = [node for node in many.graph.nodes if node.op == "mixture"]
            values = _values(many, digits.validation.x)[nodes[0].inputs[member]]
            apart.append(float(torch.nn.functional.cross_entropy(values, digits.validation.y)))
    assert together <= np.mean(apart)


def _values(network, x: torch.Tensor) -> list[torch.Tensor]:
    from pyro_compress.graph.rules.table import run_node

    module, values = to_module(network), [x]
    tensors = module.state_dict()
    for node in network.graph.nodes[1:]:
        parameters = {role: tensors[name] for role, name in node.parameters.items()}
        values.append(run_node(node, [values[i] for i in node.inputs], parameters))
    return values


def test_mixture_is_stable() -> None:
    """Members that are certain and disagree: probabilities of exp(-200), far below the smallest float32."""
    certain = np.zeros((2, 1, 10), np.float32)
    certain[0, 0, 3] = certain[1, 0, 4] = 200
    expected = np.full(10, -200, np.float32)
    expected[3:5] = -np.log(2)
    np.testing.assert_allclose(OPERATIONS["mixture"].run(*certain, {}, {})[0], expected, rtol=1e-5)


def test_refusals(run: Run, tmp_path: Path) -> None:
    fit_run(FitConfig(**{**vars(SMALL), "prior": "none", "epochs": 1}), tmp_path / "plain")
    pcn = tmp_path / "x.pcn"
    pcn.write_bytes(b"")
    for arguments, message in (
        ([run.path], "a run folder with --ensemble"),
        ([pcn, "--ensemble", "3"], "no run folder"),
        ([tmp_path / "plain", "--ensemble", "3"], "nothing to draw"),
        ([pcn, "--sparsity", "0.5"], "goes with --ensemble"),
        ([run.path, "--ensemble", "1"], "ensemble 1: allowed are values from 2 on"),
    ):
        code, text = invoke(*arguments, "-o", tmp_path / "out.onnx")
        assert code in (1, 2)
        assert message in text
        assert not (tmp_path / "out.onnx").exists()
    assert load_run(run.path).config == run.config
