"""The SVI loop: a plain network, data and a configuration in; a model, its guide and their history out."""

from __future__ import annotations

import copy
import logging
import time

import pyro
import torch
from torch import Tensor, nn

from pyro_compress.bayes.capture import captured
from pyro_compress.bayes.elbo import Objective, build_objective, kl_nats
from pyro_compress.bayes.extract import mean_tensors
from pyro_compress.bayes.guides import build_guide, starts_of
from pyro_compress.bayes.layers import bayesianize
from pyro_compress.bayes.model import Classifier, Fit
from pyro_compress.bayes.priors import PRIORS
from pyro_compress.bayes.step import Rule, Step, eager, tuned_parameters
from pyro_compress.graph import capture
from pyro_compress.metrics import evaluate
from pyro_compress.training import (
    SCHEDULES,
    Diverged,
    Epoch,
    OnEpoch,
    PointPlan,
    batch_count,
    minibatches,
    train_point,
)
from pyro_compress.types import Data, FitConfig, Scores, Splits


def fit_posterior(net: nn.Module, splits: Splits, config: FitConfig, on_epoch: OnEpoch = lambda epoch: None) -> Fit:
    """Fit a mean-field posterior over a network's weights by stochastic variational inference.

    Args:
        net: a plain network; it is copied, not changed.
        splits: trained on `train`; `validation` is watched.
        config: a resolved configuration (`pyro_compress.resolve`).
        on_epoch: called after every epoch.

    Raises:
        ValueError: what `bayesianize` and `capture` refuse.
        Diverged: the loss is not finite.

    Example:
        >>> import pyro_compress as pc
        >>> splits = pc.load_splits("digits")
        >>> net = pc.build_net("mlp", splits.input_shape, len(splits.classes), (20,))
        >>> config = pc.resolve(pc.FitConfig(prior="log-uniform", epochs=4), len(splits.train))
        >>> fit = pc.fit_posterior(net, splits, config)
        >>> fit.history[-1].phase, fit.history[-1].epoch
        ('svi', 4)
    """
    prior = PRIORS[config.prior].with_options(config.prior_options)
    bias_prior = None if config.bias_prior == "none" else prior
    bayesianize(net, prior, config.grouping, bias_prior, config.keep)  # refuses before any time is spent
    graph = capture(net, splits.input_shape)
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(config.seed)
        loop = _Loop(copy.deepcopy(net).to(config.device), splits, config, on_epoch)
        loop.pretrain()
        bayes_net = bayesianize(loop.net, prior, config.grouping, bias_prior, config.keep)
        model = Classifier(bayes_net, len(splits.train)).to(config.device)
        weights = {name: tensor.detach() for name, tensor in loop.net.state_dict().items()}
        starts = starts_of(bayes_net, weights, config.init_scale)
        example = (loop.train.x[:2], loop.train.y[:2])
        guide = build_guide(config.guide, model, starts, config.max_scale, example)
        assert config.estimator
        loop.infer(build_objective(model, guide, config.estimator, config.samples, config.precision))
    return Fit(model, guide, net, graph, config, tuple(loop.history))


log = logging.getLogger(__name__)

COMPILE_STEPS = 5000
"""Fewer SVI steps than this do not pay back the compiler's half minute."""


NOTE_EVERY = 20
"""The log-likelihood of every so many-th minibatch of an epoch goes into the history."""


class _Loop:
    """State of one fit while it runs: data on the device, shuffling, clock, history."""

    def __init__(self, net: nn.Module, splits: Splits, config: FitConfig, on_epoch: OnEpoch):
        self.net, self.splits, self.config, self.on_epoch = net, splits, config, on_epoch
        self.train = Data(splits.train.x.to(config.device), splits.train.y.to(config.device))
        self.generator = torch.Generator().manual_seed(config.seed)
        self.started, self.history = time.perf_counter(), list[Epoch]()
        self.batches = batch_count(len(self.train), self.batch_size)

    @property
    def batch_size(self) -> int:
        assert self.config.batch_size
        return self.config.batch_size

    def pretrain(self) -> None:
        """Train point weights for the posterior to start from."""

        def note(epoch: int, step: int) -> bool:
            self.note("point", step, evaluate(self.net, self.splits, "validation", self.config.device))
            return True

        assert self.config.lr
        epochs = self.config.pretrain_epochs or 0
        plan = PointPlan(epochs, self.batch_size, self.config.lr, schedule=self.config.lr_schedule)
        train_point(self.net, self.train, plan, self.generator, note)

    def infer(self, objective: Objective) -> None:
        """Maximise the ELBO."""
        config, model, guide = self.config, objective.elbo.model, objective.elbo.guide
        step_once = self.stepper(objective)
        done, epochs = len(self.history), (config.epochs or 0) - len(self.history)
        total, step = epochs * self.batches, 0
        for _ in range(epochs):
            model.train()
            noted: list[Tensor] = []
            for index, (x, y) in enumerate(minibatches(self.train, self.batch_size, self.generator)):
                weight = self.kl_weight(step) * minibatch_weight(config.kl_schedule, index, self.batches)
                factor = SCHEDULES[config.lr_schedule](step / total)
                log_likelihood = step_once(x, y, weight, factor, index % NOTE_EVERY == 0)
                if log_likelihood is not None:
                    noted.append(log_likelihood)
                step += 1
            model.eval()
            kl = kl_nats(model.net, guide, config.samples)
            mean_ll = float(torch.stack(noted).mean())
            self._check(mean_ll, kl, done * self.batches + step)
            self.net.load_state_dict(mean_tensors(model.net, guide))
            scores = evaluate(self.net.eval(), self.splits, "validation", config.device)
            self.note("svi", done * self.batches + step, scores, mean_ll, kl, self.kl_weight(step))
            if self.out_of_patience():
                break

    def stepper(self, objective: Objective) -> Step:
        """The eager step, or the captured one where compiling it pays."""
        config = self.config
        assert config.lr
        assert config.lr_scale
        assert config.lr_group
        tuned = tuned_parameters(objective, config.lr, config.lr_scale, config.lr_group)
        rule = Rule(config.clip_norm, config.accumulate)
        steps = ((config.epochs or 0) - len(self.history)) * self.batches
        if config.compile == "off" or (config.compile == "auto" and steps < COMPILE_STEPS):
            return eager(objective, tuned, rule)
        try:
            example = (self.train.x[: self.batch_size], self.train.y[: self.batch_size])
            objective.elbo.model.train()
            return captured(objective, tuned, rule, example)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            log.warning("the step could not be compiled and runs eagerly: %s: %s", type(error).__name__, reason)
            return eager(objective, tuned, rule)

    def kl_weight(self, step: int) -> float:
        """KL weight at an SVI step: linear warm-up, then constant."""
        warmup = (self.config.kl_warmup or 0.0) * self.batches
        return self.config.kl_weight * (min(1.0, step / warmup) if warmup else 1.0)

    def out_of_patience(self) -> bool:
        """Whether the last `patience` epochs at full KL weight brought no better validation NLL."""
        patience = self.config.patience
        losses = [e.validation_nll_nats for e in self.history if e.kl_weight == self.config.kl_weight]
        return bool(patience) and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])

    def _check(self, log_likelihood: float, kl: float, step: int) -> None:
        for name, number in (("expected log-likelihood", log_likelihood), ("KL", kl)):
            if not abs(number) < float("inf"):
                raise Diverged(f"{name} is {number} after step {step}: try a smaller --lr or --lr-group")

    def note(
        self,
        phase: str,
        step: int,
        scores: Scores,
        log_likelihood: float | None = None,
        kl: float | None = None,
        kl_weight: float | None = None,
    ) -> None:
        """Append an epoch to the history and report it."""
        epoch = Epoch(
            epoch=len(self.history) + 1,
            epochs=self.config.epochs or 0,
            phase=phase,
            step=step,
            negative_elbo_nats=None if log_likelihood is None or kl is None else kl - log_likelihood,
            expected_log_likelihood_nats=log_likelihood,
            kl_nats=kl,
            kl_weight=kl_weight,
            validation_accuracy=scores.accuracy,
            validation_nll_nats=scores.nll_nats,
            seconds=time.perf_counter() - self.started,
        )
        self.history.append(epoch)
        self.on_epoch(epoch)


def minibatch_weight(schedule: str, index: int, batches: int) -> float:
    """Weight of the KL on minibatch `index` (from 0), relative to an even share; the mean over an epoch is 1.

    `uniform`: 1. `blundell`: M 2^(M-i) / (2^M - 1) for i = 1..M (Blundell et al. 2015, section 3.4): unbiased over an
    epoch, but after about ten minibatches the prior is no longer felt.
    """
    if schedule == "uniform":
        return 1.0
    return batches * 2.0 ** -(index + 1) / (1 - 2.0**-batches)
