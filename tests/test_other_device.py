"""Steps on another device than the host, without one: shapes alone, on torch's `meta` device.

Every operation whose tensors lie on two devices is refused there, and so is whatever would ask the device for a number:
the rules of a CUDA device that no test machine has. What a CUDA graph does to a step is played by stand-ins.
"""

import contextlib
import copy
import logging
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_compress.bayes import capture as capturing
from pyro_compress.bayes.capture import _clipped, _recorded, call_of, gradients_of, new_scalars, update_
from pyro_compress.bayes.estimators import ESTIMATORS
from pyro_compress.bayes.guides import GUIDES
from pyro_compress.bayes.model import Likelihood
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.bayes.step import Rule, State
from pyro_compress.bayes.train_state import TrainState, first_train_state
from pyro_compress.data.several import task_named
from pyro_compress.graph.capture import capture
from pyro_compress.graph.network import Network, tensors_of
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig
from pyro_compress.training.point import PointPlan, train_point

N = 6


class Tokens(nn.Module):
    """A class for every position of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell, self.end = nn.Embedding(7, 5), nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.cell(self.table(x))[0]).transpose(1, 2)


def images(outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, outputs)
    )


def given(task: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of a task, and a minibatch."""
    if task in ("next-token", "tagging", "segmentation"):
        return Tokens(), torch.randint(0, 7, (N, 8)), torch.randint(0, 3, (N, 8))
    x = torch.randn(N, 2, 6, 6)
    if task == "reconstruction":
        return nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)), x, x
    labels = {"classification": torch.randint(0, 3, (N,)), "multi-label": torch.randint(0, 2, (N, 3)).float()}
    return images(3), x, labels.get(task, torch.randn(N, 3))


def train_state_of(task: str = "classification", **options: Any) -> tuple[TrainState, Tensor, Tensor]:
    torch.manual_seed(0)
    net, x, y = given(task)
    graph = capture(net, tuple(x.shape[1:]), kind="int64" if x.dtype == torch.int64 else "float32")
    config = resolve(FitConfig(epochs=2, device="cpu", task=task, **options), 100)
    weights = torch.ones(3) if task == "classification" else None
    return first_train_state(net, graph, Likelihood(task, 100, 1.0, weights), (x[:2], y[:2]), config), x, y


def traced_elsewhere(train_state: TrainState, x: Tensor, y: Tensor, rule: Rule) -> torch.fx.Graph:
    """One whole step, gradient and update, traced on shapes that lie on another device."""
    objective, trained, state = train_state.objective, train_state.trained, train_state.state
    names = [t.name for t in trained] + [name for name, _ in objective.elbo.named_buffers()]

    def step(state: list[Any], scalars: Any, x: Tensor, y: Tensor) -> Tensor:
        values, first, second, buffers = state
        leaves = [value.detach().requires_grad_() for value in values]
        named = dict(zip(names, [*leaves, *buffers], strict=True))
        call = call_of(objective.elbo, named)
        gradients, noted = gradients_of(lambda x, y: objective(x, y, scalars[0], call), rule, leaves, x, y)
        update_(trained, values, first, second, _clipped(gradients, rule.clip_norm), scalars)
        return noted

    tensors = [state.parameters, state.first, state.second, state.buffers]
    elsewhere = [[tensor.to("meta") for tensor in part] for part in tensors]
    scalars = new_scalars(trained, torch.device("meta"))
    with pyro.validation_enabled(False):  # as a fit does: validation reads values
        graph = make_fx(step)(elsewhere, scalars, x.to("meta"), y.to("meta")).graph
    graph.eliminate_dead_code()
    return graph


def held(graph: torch.fx.Graph) -> None:
    """Nothing of a step lies on the host, and its generator draws nothing."""
    found = [node for node in graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert len(found) > 50
    assert [str(node.target) for node in found if node.meta["val"].device.type != "meta"] == []
    assert all(node.kwargs.get("generator") is None for node in graph.nodes)


OFTEN = [(prior, PRIORS[prior].estimator) for prior in PRIORS if prior not in ("horseshoe", "soft-weight-sharing")]
SELDOM = [
    (prior, estimator)
    for prior in PRIORS
    for estimator in ESTIMATORS
    if (prior, estimator) not in OFTEN
]  # fmt: skip


@pytest.mark.parametrize(
    ("prior", "estimator"), [*OFTEN, *(pytest.param(*case, marks=pytest.mark.slow) for case in SELDOM)]
)
def test_steps_of_every_prior_and_estimator(prior: str, estimator: str) -> None:
    held(traced_elsewhere(*train_state_of(prior=prior, estimator=estimator), Rule(clip_norm=1.0)))


@pytest.mark.parametrize("task", ["regression", "multi-label", "reconstruction", "next-token"])
def test_steps_of_every_task(task: str) -> None:
    held(traced_elsewhere(*train_state_of(task, prior="gaussian"), Rule(accumulate=2)))


@pytest.mark.parametrize("guide", [name for name in GUIDES if name != "mean-field"])
def test_steps_of_autoguides(guide: str) -> None:
    train_state, x, y = train_state_of(prior="gaussian", guide=guide, estimator="weight")
    held(traced_elsewhere(train_state, x, y, Rule()))


def test_natural_gradients() -> None:
    held(traced_elsewhere(*train_state_of(prior="gaussian", optimizer="natural"), Rule()))


@pytest.mark.parametrize("task", ["classification", "next-token"])
def test_networks_and_point_training(task: str) -> None:
    """A decoded network, its loss, and the training of point weights."""
    net, x, y = given(task)
    graph = capture(net, tuple(x.shape[1:]), kind="int64" if x.dtype == torch.int64 else "float32")
    decoded = Network(graph, tensors_of(net)).to("meta")
    outputs = decoded(x.to("meta"))
    assert outputs.device.type == "meta"
    assert task_named(task).loss(outputs, y.to("meta"), 1.0).device.type == "meta"

    class Shapes:
        batches, share = 2, 1.0

        def epoch(self) -> Any:
            return ((i, x.to("meta"), y.to("meta")) for i in range(2))

        def combine(self, tensors: Any) -> None: ...

    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # once an epoch the loss is read, only then
        train_point(
            copy.deepcopy(net).to("meta"),
            Shapes(),
            PointPlan(1, 0.1, "sgd", loss=lambda o, y: task_named(task).loss(o, y, 1.0)),
        )  # type: ignore[arg-type]


class Stream:
    """Stands for one of a device."""

    def wait_stream(self, other: object) -> None: ...


def cuda_played(recorded: list[Any], failing: Exception | None = None) -> SimpleNamespace:
    """What `capturing` calls of `torch.cuda`; a graph replays what ran while it was recorded."""

    class CUDAGraph:
        def replay(self) -> None:
            for call in recorded:
                call()

    @contextlib.contextmanager
    def graph(of: CUDAGraph) -> Any:
        if failing is not None:
            raise failing
        recorded.append("begins")
        yield
        recorded.remove("begins")

    return SimpleNamespace(
        CUDAGraph=CUDAGraph,
        Stream=Stream,
        current_stream=Stream,
        stream=lambda s: contextlib.nullcontext(),
        graph=graph,
    )


def counted_state() -> State:
    return State([torch.zeros(2)], [torch.zeros(2)], [torch.zeros(2)], [], torch.zeros(()))


def test_a_recorded_step_reads_every_minibatch_from_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static inputs: a replay sees what was copied into them; warming up leaves the state as it was."""
    recorded: list[Any] = []
    monkeypatch.setattr(capturing.torch, "cuda", cuda_played(recorded))
    state, runs = counted_state(), []

    def run(x: Tensor, y: Tensor) -> None:
        if "begins" in recorded:
            recorded.append(lambda: state.parameters[0].add_(x.sum() + y.sum()))
        state.parameters[0].add_(x.sum())
        runs.append((x, y))

    x, y = torch.ones(3), torch.zeros(3)
    step = _recorded(run, lambda: None, state, x, y)
    assert len(runs) == 4  # three to warm up, one is recorded
    assert torch.equal(state.parameters[0], torch.zeros(2))
    assert len({id(x) for x, _ in runs}) == 1
    assert runs[0][0] is not x
    step(torch.full((3,), 2.0), torch.full((3,), 10.0))
    step(torch.full((3,), 1.0), torch.full((3,), 20.0))
    assert torch.equal(state.parameters[0], torch.full((2,), 36.0 + 63.0))


@pytest.mark.parametrize(
    "failing",
    [
        RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("The NVIDIA driver on your system is too old (found version 11040)"),
    ],
)
def test_what_cannot_be_recorded_runs_without(
    failing: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capturing.torch, "cuda", cuda_played([], failing))
    state, seen = counted_state(), []

    def run(x: Tensor, y: Tensor) -> None:
        state.parameters[0].add_(1)
        seen.append(x)

    with caplog.at_level(logging.WARNING):
        step = _recorded(run, lambda: None, state, torch.ones(2), torch.ones(2))
    (line,) = caplog.messages
    assert line.startswith("the step could not be recorded as a CUDA graph and runs without: ")
    assert str(failing).split("\n")[0] in line
    assert "\n" not in line
    assert torch.equal(state.parameters[0], torch.zeros(2))  # warming up is undone
    x = torch.full((2,), 7.0)
    step(x, x)
    assert seen[-1] is x
    assert torch.equal(state.parameters[0], torch.ones(2))
