"""A fit while it runs, whatever the method: data on the device, shuffling, clock, history, checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_compress.data.augment import AUGMENTATIONS
from pyro_compress.data.several import task_named
from pyro_compress.data.tasks import class_weights
from pyro_compress.machine import SLOW_BFLOAT16, has_bfloat16
from pyro_compress.metrics import evaluate
from pyro_compress.settings import FitConfig
from pyro_compress.tensorfile import Given, Later
from pyro_compress.training.checkpoint import Checkpointer, Snapshot, random_states, restoring, set_random_states
from pyro_compress.training.guards import diverged, not_finite
from pyro_compress.training.history import Diverged, Epoch, Iteration, OnEpoch, OnStep, epoch_of
from pyro_compress.training.minibatches import Minibatches
from pyro_compress.training.point import AfterStep, PointPlan, PointState, no_change, optimizer_tensors, train_point
from pyro_compress.types import Splits

log = logging.getLogger(__name__)


class Progress:
    """What a running fit knows of itself.

    Args:
        splits: trained on `train`; `validation` is watched.
        config: resolved.
        on_epoch: called after every epoch.
        checkpointer: writes checkpoints, holds the one to go on from, and knows the processes of the fit.
        on_step: called after every step; None: nobody asks.
        convolved: whether a convolution reads the images.

    Attributes:
        group: these processes.
        minibatches: what hands them out.
        weights: of the classes, `(classes,)`; None: all count alike.
        history: one entry per epoch.
        snapshot: where the fit goes on; None: it begins.
        turned: epochs after which patience had run out; None: it has not.
        stopped: whether who is told of epochs and steps has ended the fit.
    """

    def __init__(
        self,
        splits: Splits,
        config: FitConfig,
        on_epoch: OnEpoch,
        checkpointer: Checkpointer,
        on_step: OnStep | None = None,
        convolved: bool = False,
    ):
        assert config.batch_size
        self.splits, self.config, self.on_epoch, self.checkpointer = splits, config, on_epoch, checkpointer
        self.on_step, self.stopped = on_step, False
        self.group, generator = checkpointer.group, torch.Generator().manual_seed(config.seed)
        if self.group.first and config.precision != "float32" and not has_bfloat16(config.device):
            log.warning("%s", SLOW_BFLOAT16.format(config.precision))
        augment = AUGMENTATIONS.get(config.augment)
        self.minibatches = Minibatches(
            splits.train, config.batch_size, generator, config.device, augment, self.group, convolved
        )
        balanced = config.class_weights == "balanced"
        self.weights = class_weights(splits.train.y, splits.outputs).to(config.device) if balanced else None
        self.started, self.history = time.perf_counter(), list[Epoch]()
        self.turned: int | None = None
        self.snapshot = checkpointer.latest()
        if self.snapshot:
            with restoring(checkpointer):
                self.history = [epoch_of(epoch, "history") for epoch in self.snapshot.numbers["history"]]
                self.started -= self.snapshot.numbers["seconds"]
            self.turned = self.snapshot.numbers.get("turned")

    def example(self, size: int) -> tuple[Tensor, Tensor]:
        """The first examples, on the device: what a minibatch looks like, in memory too."""
        train, device = self.splits.train, self.config.device
        rows = torch.arange(min(size, len(train)))
        return self.minibatches.laid_out(train.x[rows].to(device)), train.y[rows].to(device)

    def keep(
        self, phase: str, tensors: Callable[[], dict[str, Given]], step: int, more: dict[str, Any] | None = None
    ) -> None:
        """Let the checkpointer write a checkpoint, if one is due after this step.

        Args:
            phase: `point` or `svi`.
            tensors: gives what the phase has to keep.
            step: steps of the phase so far.
            more: whatever else it has to keep, as JSON takes it.

        Raises:
            Interrupted: a signal came, and the checkpoint was written.
            Diverged: the state is not finite; it is not written.
        """
        last = self.minibatches.position == self.minibatches.batches
        self.checkpointer.after_step(
            len(self.history) + 1 if last else 0, lambda: self._taken(phase, tensors(), step, more or {})
        )

    def _taken(self, phase: str, tensors: dict[str, Given], step: int, more: dict[str, Any]) -> Snapshot:
        later = {name: one for name, one in tensors.items() if isinstance(one, Later)}
        whole = {name: one for name, one in tensors.items() if not isinstance(one, Later)}
        own = {name: one.own for name, one in later.items() if one.own is not None}
        if self.group.any(bool(not_finite((whole | own).items())))[0]:
            raise diverged("a checkpoint was due, but the state is broken", step, (whole | own).items(), self.config)
        order = {f"feed/{name}": tensor for name, tensor in self.minibatches.tensors().items()}
        numbers = more | {
            "step": step,
            "position": self.minibatches.position,
            "history": [epoch.to_dict() for epoch in self.history],
            "turned": self.turned,
            "seconds": time.perf_counter() - self.started,
        }
        return Snapshot(phase, whole | order | random_states(), numbers, later)

    def tell(self, phase: str, step: int, noted: Tensor | None = None) -> bool:
        """Tell of a step; returns whether the fit ends here."""
        if self.on_step is not None:
            ends = self.on_step(Iteration(phase, len(self.history) + 1, step, noted)) is True
            self.stopped = self.stopped or self.group.any(ends)[0]
        return self.stopped

    def go_on(self, snapshot: Snapshot) -> None:
        """Put shuffling and noise where the snapshot was taken."""
        with restoring(self.checkpointer):
            self.minibatches.restore(snapshot.part("feed"), snapshot.numbers["position"])
            set_random_states(snapshot)
        self._own_noise(snapshot.numbers["step"])

    def begin(self, tensors: Iterable[Tensor], step: int = 0) -> None:
        """Let all processes begin a phase at the first one's tensors, each with noise of its own."""
        self.group.broadcast_(tensors)
        self._own_noise(step)

    def _own_noise(self, step: int) -> None:
        if (seed := self.group.own_noise(self.config.seed, step)) is not None:
            self.minibatches.generator.manual_seed(seed)  # the order of the examples comes from the first process

    def point_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """What point weights minimise: the task's loss, every example weighted by its class."""
        task = task_named(self.splits.task)
        if self.weights is None:
            return task.loss(outputs, y, 1.0)
        return -(self.weights[y] * task.log_likelihood(outputs, y, 1.0)).mean()

    def train_point(self, net: nn.Module, plan: PointPlan, begin: Callable[[int], AfterStep] = no_change) -> None:
        """Train point weights, from the snapshot on where it is one of this phase.

        Args:
            net: the network, trained in place.
            plan: epochs, optimizer, rates.
            begin: steps done, the network being where they led -> what is called after each further step; it may
                change the weights.
        """
        start = None
        if self.snapshot:
            with restoring(self.checkpointer):
                if self.snapshot.phase != "point":
                    raise ValueError(f"its phase is {self.snapshot.phase}")
                net.load_state_dict(self.snapshot.part("net"))
            start = PointState(self.snapshot.numbers["step"], len(self.history), self.snapshot.part("optimizer"))
            self.go_on(self.snapshot)
        else:
            self.begin(net.state_dict().values())
        after_step = begin(start.step if start else 0)

        def after_epoch(epoch: int, step: int) -> bool:
            self.group.average_statistics_(net)
            self.note(net, Epoch(phase="point", step=step))
            pretraining = self.config.prior != "none"  # patience lets it run to its end
            return not (self.stopped if pretraining else self.over(None))

        def then_keep(step: int, optimizer: torch.optim.Optimizer) -> bool:
            after_step(step, optimizer)
            ends = self.tell("point", step)
            self.keep("point", lambda: self._point_tensors(net, optimizer), step)
            return ends

        plan = replace(plan, loss=self.point_loss, cooldown=self.cooldown)

        def failed(loss: Tensor, step: int) -> Diverged:
            return diverged(f"loss is {float(loss.detach()):g}", step, net.named_parameters(), self.config)

        train_point(net, self.minibatches, plan, after_epoch, then_keep, start, failed)

    def cooldown(self) -> float:
        """Factor on the learning rates of the running step: from 1 linearly to 0 once patience has run out."""
        if self.turned is None:
            return 1.0
        since = len(self.history) - self.turned + (self.minibatches.position - 1) / self.minibatches.batches
        return 1 - since / self.config.patience

    def over(self, kl_weight: float | None) -> bool:
        """Whether training ends after this epoch: patience has run out, and the rates, if they fall, have fallen.

        Or who is told of it has ended it.
        """
        if self.stopped:
            return True
        if self.turned is None and self._out_of_patience(kl_weight):
            self.turned = len(self.history)
        if self.turned is None:
            return False
        return self.config.lr_schedule == "constant" or len(self.history) >= self.turned + self.config.patience

    def _out_of_patience(self, kl_weight: float | None) -> bool:
        """Whether the last `patience` epochs at this KL weight brought no better validation NLL."""
        patience = self.config.patience
        losses = [e.validation_nll_nats for e in self.history if e.kl_weight == kl_weight]
        out = bool(patience) and len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])
        return self.group.any(out)[0]

    def note(self, net: nn.Module, epoch: Epoch, noise: float | None = None) -> None:
        """Evaluate the network, complete the epoch, append it to the history and report it."""
        scores = evaluate(net.eval(), self.splits, "validation", self.config.device, noise)
        values: dict[str, Any] = scores.epoch
        complete = replace(
            epoch,
            epoch=len(self.history) + 1,
            epochs=self.config.epochs or 0,
            lr=self.config.lr,
            seconds=time.perf_counter() - self.started,
            **values,
        )
        self.history.append(complete)
        ends = self.on_epoch(complete) is True
        self.stopped = self.stopped or self.group.any(ends)[0]

    def _point_tensors(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Given]:
        self.group.average_statistics_(net)
        kept: dict[str, Given] = {f"net/{name}": tensor for name, tensor in net.state_dict().items()}
        return kept | {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(optimizer).items()}
