"""The SVI loop: a plain network, data and a configuration in; a model, its guide and their history out."""

from __future__ import annotations

import copy
import functools
import logging

import pyro
import torch
from torch import Tensor, nn

from pyro_compress.bayes.capture import captured
from pyro_compress.bayes.dead_units import refuse_dropout, stored_network, with_stored_network, without_dead_units
from pyro_compress.bayes.elbo import kl_nats
from pyro_compress.bayes.extract import load_means, moments
from pyro_compress.bayes.layers import bayes_layers, check_keep, left_out
from pyro_compress.bayes.model import Fit, Likelihood
from pyro_compress.bayes.own_guides import Own
from pyro_compress.bayes.sharded_step import Part, check_sharded, sharded
from pyro_compress.bayes.shards import shards_of
from pyro_compress.bayes.step import Rule, Step, eager
from pyro_compress.bayes.train_state import (
    TrainState,
    bayesian,
    check_assigned,
    check_free,
    chosen,
    first_train_state,
    frozen_sentence,
)
from pyro_compress.doubts import doubt
from pyro_compress.graph.ir import convolves
from pyro_compress.graph.statistics import batch_statistics
from pyro_compress.metrics import residual_noise
from pyro_compress.networks.fitted import check_trainable, with_graph
from pyro_compress.networks.outputs import doubtful_end
from pyro_compress.settings import COMPILE_STEPS, FitConfig
from pyro_compress.tensorfile import Given, Later
from pyro_compress.training.checkpoint import Checkpointer, restoring
from pyro_compress.training.guards import diverged, exploded, over_pruned
from pyro_compress.training.history import Diverged, Epoch, OnEpoch, OnLayers, OnStep
from pyro_compress.training.point import LOOK_EVERY, SCHEDULES, PointPlan
from pyro_compress.training.progress import Progress
from pyro_compress.types import Splits


def fit_posterior(
    net: nn.Module,
    splits: Splits,
    config: FitConfig,
    on_epoch: OnEpoch = lambda epoch: None,
    checkpointer: Checkpointer | None = None,
    on_layers: OnLayers | None = None,
    on_step: OnStep | None = None,
) -> Fit:
    """Fit a mean-field posterior over a network's weights by stochastic variational inference.

    Args:
        net: a plain network; it is copied, not changed.
        splits: trained on `train`; `validation` is watched.
        config: a resolved configuration (`pyro_compress.resolve`).
        on_epoch: called after every epoch; where it returns True, the fit ends there, and what it has is the result.
        checkpointer: writes checkpoints; the fit goes on from its latest, where it has one.
        on_layers: called after every epoch with a posterior.
        on_step: called after every step; it ends the fit likewise.

    Raises:
        ValueError: what `bayesianize` and `capture` refuse.
        Diverged: the loss is not finite.
        Interrupted: a signal came, and a checkpoint was written.

    Examples:
        >>> import pyro_compress as pc
        >>> splits = pc.load_splits("digits")
        >>> net = pc.build_net("mlp", splits.input_shape, len(splits.classes), (20,))
        >>> config = pc.resolve(pc.FitConfig(prior="log-uniform", epochs=4), len(splits.train))
        >>> fit = pc.fit_posterior(net, splits, config)
        >>> fit.history[-1].phase, fit.history[-1].epoch
        ('svi', 4)
    """
    config = config.on(splits.origin, splits.task)
    if config.shard != "none":
        check_sharded(config, on_layers is not None)
    check_keep(net, config.keep)
    net, graph = with_graph(net, splits)
    check_trainable(net)
    among = chosen(net, graph)
    check_free(among)
    check_assigned(config, among)
    bayesian(net, config, among)  # refuses before any time is spent
    if config.batch_norm == "frozen" and not any(node.op == "batch_norm" for node in graph.nodes):
        raise ValueError("the network has no batch norm whose statistics could be frozen: leave --batch-norm out")
    if config.shrink_every:
        refuse_dropout(net)
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(config.seed)
        progress = Progress(splits, config, on_epoch, checkpointer or Checkpointer(), on_step, convolves(graph))
        if progress.group.first:
            for sentence in (
                doubtful_end(graph, splits.task),
                left_out(net, graph, [*among.layers, *among.tensors, *among.frozen], config.keep),
                frozen_sentence(among),
            ):
                doubt(log, sentence)
        start = copy.deepcopy(net).to(config.device)
        if progress.snapshot is None or progress.snapshot.phase == "point":
            assert config.lr
            plan = PointPlan(
                config.pretrain_epochs or 0, config.lr, schedule=config.lr_schedule, precision=config.precision
            )
            progress.train_point(start, plan)
        noise = residual_noise(start.eval(), splits, config.device) or 1.0
        likelihood = Likelihood(splits.task, len(splits.train), noise, progress.weights)
        shards = shards_of(config.shard, progress.group)
        train_state = first_train_state(start, graph, likelihood, progress.example(2), config, among, shards)
        _refuse_what_layers_lack(train_state, progress.example(2))
        train_state = _Inference(progress, train_state, on_layers).run()
    if progress.group.first:
        doubt(log, over_pruned(progress.history, splits))
    model, guide = train_state.objective.elbo.model, train_state.objective.elbo.guide
    return Fit(model, guide, net, train_state.graph, config, tuple(progress.history), train_state.removals)


def _refuse_what_layers_lack(train_state: TrainState, example: tuple[Tensor, Tensor]) -> None:
    """Run the program once: a layer with a prior can be called, and has nothing else of what stood in its place.

    Raises:
        ValueError: the network asks it for more.
    """
    try:
        with torch.random.fork_rng(), torch.no_grad():
            train_state.objective(*example, 1.0)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"the network asks a layer with a prior for more than its output: {error}; leave it as it is with --keep"
        ) from error


log = logging.getLogger(__name__)


class _Inference:
    """The SVI phase of a fit.

    Args:
        progress: data, history, checkpoints.
        train_state: the network's program, before the first step.
        on_layers: called after every epoch.
    """

    def __init__(self, progress: Progress, train_state: TrainState, on_layers: OnLayers | None = None):
        self.progress, self.train_state, self.on_layers = progress, train_state, on_layers
        self.config, self.batches = progress.config, progress.minibatches.batches
        self.pretrained = self.config.pretrain_epochs or 0
        self.total = ((self.config.epochs or 0) - self.pretrained) * self.batches
        self.noted: list[Tensor] = []  # of every minibatch of the running epoch

    def run(self) -> TrainState:
        """Maximise the ELBO, from the snapshot on where there is one."""
        config, progress = self.config, self.progress
        snapshot = progress.snapshot if progress.snapshot and progress.snapshot.phase == "svi" else None
        if snapshot:
            with restoring(progress.checkpointer):
                self.train_state = with_stored_network(snapshot.numbers, self.train_state, progress.example(2), config)
                self.train_state.state.restore(snapshot.part("state"), snapshot.numbers["step"])
                self.noted = list(snapshot.tensors["noted"].to(config.device) * float(progress.group.first))
        step = self.stepper()
        if snapshot:
            progress.go_on(snapshot)
        else:
            state = self.train_state.state
            same = [tensor for name, tensor in state.tensors().items() if name not in state.split()]
            progress.begin(same, self.pretrained * self.batches)
        for _ in range(len(progress.history), 0 if progress.stopped else config.epochs or 0):
            self.epoch(step)
            smaller = self.smaller()
            self.note(smaller)
            if progress.over(config.kl_weight):
                break
            if smaller:
                self.train_state = smaller
                step = self.stepper()
        self.settle()
        return self.train_state

    def epoch(self, step: Step) -> None:
        """One pass over the data."""
        state, config = self.train_state.state, self.config
        self.train_mode()
        for index, x, y in self.progress.minibatches.epoch():
            weight = self.kl_weight(state.count) * minibatch_weight(config.kl_schedule, index, self.batches)
            factor = SCHEDULES[config.lr_schedule](state.count / self.total) * self.progress.cooldown()
            self.noted.append(step(x, y, weight, factor) * self.progress.minibatches.share)
            if index % LOOK_EVERY == 0:
                self.look(state.count)
            ends = self.progress.tell("svi", state.count, self.noted[-1])
            self.progress.keep("svi", self.tensors, state.count, stored_network(self.train_state))
            if ends:
                break
        model = self.train_state.objective.elbo.model
        self.progress.group.average_statistics_(model)
        model.eval()

    def smaller(self) -> TrainState | None:
        """The network without its dead units, where it is time to look for them and enough of it would go."""
        every, epoch = self.config.shrink_every, len(self.progress.history) + 1
        if not every or (epoch - self.pretrained) % every or epoch == self.config.epochs:
            return None
        return without_dead_units(self.train_state, self.progress.example(2), self.config, epoch)

    def note(self, smaller: TrainState | None) -> None:
        """Evaluate the terms of the ELBO and the posterior mean."""
        model, guide, step = (
            self.train_state.objective.elbo.model,
            self.train_state.objective.elbo.guide,
            self.train_state.state.count,
        )
        shards = self.train_state.objective.shards
        kl = self.progress.group.mean(kl_nats(model.net, guide, self.config.samples, shards))
        log_likelihood = float(self.whole(self.noted).mean())
        self.noted.clear()
        done = self.pretrained * self.batches + step
        before = self.progress.history[-1] if self.progress.history else None
        terms = {"expected log-likelihood": log_likelihood, "KL": kl}
        broken = [f"{name} is {number:g}" for name, number in terms.items() if not abs(number) < float("inf")]
        if wrong := ", ".join(broken) or exploded(kl, log_likelihood, before, self.progress.splits):
            raise self.failed(wrong, done)
        self.train_state.mean_net.load_state_dict(self.statistics(self.mean()), strict=False)
        epoch = Epoch(
            phase="svi", step=done, negative_elbo_nats=kl - log_likelihood,
            expected_log_likelihood_nats=log_likelihood, kl_nats=kl, kl_weight=self.kl_weight(step),
            widths=smaller.removals[-1].widths_after if smaller else None,
        )  # fmt: skip
        if self.on_layers:
            layers = bayes_layers(model.net)
            found = {layer.shape.name: moments(layer.shape, layer.prior, guide) for layer in layers}
            self.on_layers(len(self.progress.history) + 1, found)
        self.progress.note(self.train_state.mean_net, epoch, model.likelihood.noise)

    def look(self, step: int) -> None:
        """Stop where the last noted log-likelihood is not finite."""
        number = float(self.whole(self.noted[-1:]))
        if not abs(number) < float("inf"):
            raise self.failed(f"expected log-likelihood is {number:g}", self.pretrained * self.batches + step)

    def failed(self, term: str, step: int) -> Diverged:
        """The error of a term of the ELBO that went wrong."""
        return diverged(term, step, self.train_state.objective.elbo.named_parameters(), self.config)

    def train_mode(self) -> None:
        """Training mode; batch norm normalises by the minibatch and updates its statistics, unless it is frozen."""
        self.train_state.objective.elbo.model.train()
        if self.config.batch_norm == "frozen":
            for module in self.train_state.objective.elbo.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def mean(self) -> dict[str, Tensor]:
        """The posterior mean, which the plain network takes."""
        into, elbo = self.train_state.mean_net, self.train_state.objective.elbo
        load_means(into, elbo.model.net, elbo.guide)
        return dict(into.state_dict())

    def statistics(self, mean: dict[str, Tensor]) -> dict[str, Tensor]:
        """Statistics of batch norm under the posterior mean.

        Those that ran along are of networks with noise on their weights, which widens what batch norm sees; the mean
        network is another one.
        """
        if self.config.batch_norm == "frozen":
            return {}
        return batch_statistics(self.train_state.graph, mean, self.progress.splits.train.x)

    @torch.no_grad()
    def settle(self) -> None:
        """Give the model, at the end, the statistics that belong to its posterior mean."""
        net = self.train_state.objective.elbo.model.net
        buffers = dict(net.named_buffers())
        for name, values in self.statistics(self.mean()).items():
            buffers[name].copy_(values)

    def tensors(self) -> dict[str, Given]:
        """What a checkpoint holds of this phase."""
        self.progress.group.average_statistics_(self.train_state.objective.elbo)
        split = self.train_state.state.split()
        kept: dict[str, Given] = {"noted": self.whole(self.noted)}
        for name, own in self.train_state.state.tensors().items():
            kept[f"state/{name}"] = own
            if name in split:
                rows = split[name]
                kept[f"state/{name}"] = Later(rows.whole, functools.partial(rows.gathered, own), own.dtype, own)
        return kept

    def whole(self, noted: list[Tensor]) -> Tensor:
        """Log-likelihoods that whole minibatches have, of which every process noted the share of its own rows."""
        summed = torch.stack(noted)
        self.progress.group.add_([summed])
        return summed

    def stepper(self) -> Step:
        """The eager step, or the captured one where compiling it pays."""
        config, minibatches = self.config, self.progress.minibatches
        rule = Rule(config.clip_norm, config.accumulate, minibatches.combine if minibatches.group.size > 1 else None)
        objective, trained, state = self.train_state.objective, self.train_state.trained, self.train_state.state
        if objective.shards:
            return self.sharded_stepper(Rule(config.clip_norm, config.accumulate))
        own = isinstance(objective.elbo.guide, Own)  # what it does beside drawing, a trace would do once
        if config.compile == "off" or (config.compile == "auto" and (own or self.total < COMPILE_STEPS)):
            return eager(objective, trained, rule, state)
        try:
            example = self.progress.example(minibatches.usual)
            self.train_mode()
            return captured(objective, trained, rule, state, example)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            log.warning("the step could not be compiled and runs eagerly: %s: %s", type(error).__name__, reason)
            return eager(objective, trained, rule, state)

    def sharded_stepper(self, rule: Rule) -> Step:
        """The step of a fit whose weights are split: a graph, compiled where that pays and all processes can."""
        config, minibatches, of = self.config, self.progress.minibatches, self.train_state
        example = self.progress.example(minibatches.usual)
        self.train_mode()

        def build(compiled: bool) -> Step:
            part = lambda: Part(minibatches.examples, minibatches.share)  # noqa: E731
            return sharded(of.objective, of.trained, rule, of.state, example, part, compiled)

        if config.compile == "off" or (config.compile == "auto" and self.total < COMPILE_STEPS):
            return build(compiled=False)
        reason, step = "", None
        try:
            step = build(compiled=True)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
        if not self.progress.group.any(step is None)[0] and step:
            return step
        log.warning("the step could not be compiled by all processes and runs as a plain graph: %s", reason)
        return build(compiled=False)

    def kl_weight(self, step: int) -> float:
        """KL weight at an SVI step: linear warm-up, then constant."""
        warmup = (self.config.kl_warmup or 0.0) * self.batches
        return self.config.kl_weight * (min(1.0, step / warmup) if warmup else 1.0)


def minibatch_weight(schedule: str, index: int, batches: int) -> float:
    """Weight of the KL on minibatch `index` (from 0), relative to an even share; the mean over an epoch is 1.

    `uniform`: 1. `blundell`: M 2^(M-i) / (2^M - 1) for i = 1..M (Blundell et al. 2015, section 3.4): unbiased over an
    epoch, but after about ten minibatches the prior is no longer felt.
    """
    if schedule == "uniform":
        return 1.0
    return batches * 2.0 ** -(index + 1) / (1 - 2.0**-batches)
