"""From a configuration to a complete run folder: data, network, fit, and going on where one was interrupted."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_compress.atomic import appended, write_atomically, written
from pyro_compress.data.splits import load_splits, preprocessing
from pyro_compress.doubts import doubt
from pyro_compress.foreign import of_type, toml
from pyro_compress.graph.capture import capture
from pyro_compress.graph.ir import head_of
from pyro_compress.graph.statistics import renewed_statistics
from pyro_compress.machine import give_back
from pyro_compress.networks.decoded import SUFFIX, compressed_bytes, parameters_before
from pyro_compress.networks.nets import build_net
from pyro_compress.networks.normalized import INPUTS, normalized
from pyro_compress.networks.outputs import with_columns, with_one_output
from pyro_compress.networks.weights import put_weights, read_weights
from pyro_compress.outputs import is_several, outputs_of
from pyro_compress.placing import FRAMES
from pyro_compress.process_group import ALONE, ProcessGroup
from pyro_compress.runs.budget import check_memory
from pyro_compress.runs.config import absolute, config_toml, resolve
from pyro_compress.runs.folder import Run, found_complete, load_run, new_folder, unfinished_config
from pyro_compress.runs.posterior_file import write_posterior
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.training.checkpoint import Checkpointer, stops_on_signals
from pyro_compress.training.guards import REWINDS, rates_of, slower
from pyro_compress.training.history import Diverged, Epoch, OnEpoch, OnLayers
from pyro_compress.training.live import watched
from pyro_compress.training.snapshots import Frames
from pyro_compress.types import LayerPosterior, Posterior, Splits

log = logging.getLogger(__name__)

WriteGuide = Callable[[IO[bytes]], None]
"""Writes a posterior's own parameters to an open file."""
START = "start.pcn"
"""A run's copy of the compressed file that it began with."""


def fit_run(
    config: FitConfig,
    out: Path,
    force: bool = False,
    download: bool = False,
    on_epoch: OnEpoch = lambda epoch: None,
    checkpointing: CheckpointConfig | None = None,
    group: ProcessGroup = ALONE,
) -> Run:
    """Load data, build the network, fit it, write the run folder.

    Args:
        config: what the user asked for; None and `auto` are resolved.
        out: folder to make; refused if it exists and is not empty, unless `force`.
        force: replace an existing folder, once the new one is complete, and drop an unfinished one.
        download: fetch a missing torchvision data set.
        on_epoch: called after every epoch.
        checkpointing: when to write checkpoints, and whether to go on from one.
        group: the processes of the fit, all of which call this; the first one writes the folder, and reads a
            checkpoint to the others, which work in a temporary folder. A fit may go on with another number of them.

    Raises:
        ValueError: bad configuration, data or network; an unfinished fit of this name.
        OSError: the folder cannot be written.
        Interrupted: a signal came; the unfinished fit can be resumed.
        Lost: another process ended.
    """
    checkpointing = checkpointing or CheckpointConfig()
    if config.shard != "none" and (checkpointing.snapshots or checkpointing.log):
        raise ValueError(f"--shard {config.shard}: no process has all weights for --snapshots or --log; leave them out")
    if checkpointing.resume and (run := ended_run(out, force, group)):
        return run
    place: AbstractContextManager[Path] = new_folder(out, force, checkpointing.resume)
    if not group.first:
        place, checkpointing, on_epoch = _scratch(), replace(checkpointing, snapshots=False, log=""), lambda epoch: None
    with place as folder:
        splits = _loaded(config, download, group)
        paths, notes = absolute(config), stored_notes(folder, group) if checkpointing.resume else {}
        config = replace(config, data=notes.get("called", {}).get("data", config.data))
        if is_several(splits.task):  # the data say which outputs there are
            config = replace(config, task=splits.task)
        config = resolve(config, len(splits.train))
        net = initial_net(_with_start(config, folder, checkpointing.resume, group), splits)
        sharing = group.sharing(config.shard)
        check_memory(net, splits, config, sharing=sharing)
        if sharing > 1:  # memory counts for more than the time to ask for it again
            give_back(max(parameter.nbytes for parameter in net.parameters()) // sharing, 1 << 20)
        if group.size > 1:
            group.check_same(_starts(config, splits, net))
        checkpointer = Checkpointer(folder, checkpointing.every_epochs, checkpointing.every_minutes, group=group)
        frames = _frames(folder, config) if checkpointing.snapshots else None
        rewinds = list(notes.get("rewinds", []))
        while True:
            text = config_toml(replace(config, **paths), splits, rewinds, group.size)  # type: ignore[arg-type]
            write_atomically(folder / "config.toml", f"{text}\n[called]\ndata = {json.dumps(config.data)}\n".encode())
            try:
                posterior, write_guide = _fit_noted(
                    net, splits, config, on_epoch, _Kept(checkpointer, frames, checkpointing.log)
                )
                break
            except Diverged as error:
                if config.nan_policy == "stop":
                    raise
                config = _rewound(config, checkpointer, rewinds, error)
        if frames:
            frames.collect(folder / "snapshots.safetensors")
        posterior = made_from(folder / START, posterior)
        if write_guide:
            with _file(folder / "guide.safetensors", group) as file:
                write_guide(file)
            del write_guide
        with _file(folder / "posterior.safetensors", group) as file:  # with it the run is complete
            write_posterior(file, posterior)
    return Run(out, replace(config, **paths), posterior, splits.sizes, stored=preprocessing(splits))  # type: ignore[arg-type]


def resume_run(
    out: Path, force: bool = False, download: bool = False, on_epoch: OnEpoch = lambda epoch: None,
    checkpointing: CheckpointConfig | None = None, group: ProcessGroup = ALONE,
    on_config: Callable[[FitConfig], None] = lambda config: None,
) -> Run:  # fmt: skip
    """Go on with an interrupted fit, whose own configuration counts.

    Args:
        out: its folder.
        force: as for `fit_run`, like `download`, `on_epoch`, `checkpointing` and `group`.
        download: as above.
        on_epoch: as above.
        checkpointing: as above.
        group: as above.
        on_config: told of its configuration before anything is done.

    Raises:
        ValueError: there is no such fit; what `fit_run` refuses.
    """
    if run := ended_run(out, force, group):
        return run
    on_config(config := unfinished_config(out, group))
    return fit_run(
        config, out, force, download, on_epoch, replace(checkpointing or CheckpointConfig(), resume=True), group
    )


def ended_run(out: Path, force: bool = False, group: ProcessGroup = ALONE) -> Run | None:
    """The run of a fit whose process ended after everything was written, but before the folder had its name.

    Raises:
        ValueError: the name is taken, and `force` is not given.
    """
    return load_run(out) if group.any(group.first and found_complete(out, force))[0] else None


def _with_start(config: FitConfig, folder: Path, resume: bool, group: ProcessGroup) -> FitConfig:
    """Keep a copy of the compressed file that a fit begins with; to go on, the copy stands in for the file."""
    if not config.net.endswith(SUFFIX):
        return config
    copy = folder / START
    kept = group.bytes_of_first(copy.read_bytes() if resume and copy.is_file() else b"")
    write_atomically(copy, kept or compressed_bytes(Path(config.net)))
    if not kept:
        return config
    return replace(config, net=str(copy), init=str(copy) if config.init == config.net else config.init)


def made_from(path: Path, posterior: Posterior) -> Posterior:
    """A posterior that knows how large a network its compressed file was made from, where it began with one."""
    before = parameters_before(path) if path.suffix == SUFFIX and path.is_file() else None
    return replace(posterior, provenance=posterior.provenance.but(parameters_total=before))


class _Kept(NamedTuple):
    """Where a running fit writes what: checkpoints, snapshots (or None), the live log (or an empty name)."""

    checkpointer: Checkpointer
    frames: Frames | None
    log: str


def _fit_noted(
    net: nn.Module, splits: Splits, config: FitConfig, on_epoch: OnEpoch, kept: _Kept
) -> tuple[Posterior, WriteGuide | None]:
    """Fit from the keeper's latest checkpoint on, every epoch a line of `history.jsonl`."""
    checkpointer, folder = kept.checkpointer, kept.checkpointer.folder
    assert folder is not None
    before = checkpointer.latest()
    earlier = before.numbers.get("history", []) if before else []
    with (
        appended(folder / "history.jsonl") as add,
        watched(kept.log, folder, len(earlier)) as log,
        stops_on_signals(checkpointer),
    ):
        for epoch in earlier:
            add(json.dumps(epoch))

        def note(epoch: Epoch) -> None:
            add(json.dumps(epoch.to_dict()))
            if log:
                log.epoch(epoch)
            on_epoch(epoch)

        viewers: list[OnLayers] = [view for view in (kept.frames, log.layers if log else None) if view]
        return _fit(net, splits, config, note, (checkpointer, viewers))


def _rewound(
    config: FitConfig, checkpointer: Checkpointer, rewinds: list[dict[str, Any]], error: Diverged
) -> FitConfig:
    """Put a fit back to the last checkpoint of an earlier epoch (the beginning, without one), with smaller rates.

    Raises:
        Diverged: it was put back too often.
    """
    if len(rewinds) == REWINDS:
        raise Diverged(f"{error} (put back {REWINDS} times, down to lr {config.lr:g})") from error
    assert checkpointer.folder is not None
    finished = len((checkpointer.folder / "history.jsonl").read_text().splitlines())
    checkpointer.rewind(finished)
    before = checkpointer.latest()
    epoch = len(before.numbers.get("history", [])) if before else 0
    rewinds.append({"failed_in_epoch": finished + 1, "to_epoch": epoch, "reason": str(error)} | rates_of(config))
    doubt(log, f"{error}; back to epoch {epoch} with half the learning rates")
    return slower(config)


def stored_notes(folder: Path, group: ProcessGroup = ALONE) -> dict[str, Any]:
    """What the config.toml of an unfinished fit says, in the first process's folder.

    That is among others how often it was put back already, and what its data were called when it began.
    """
    path = folder / "config.toml"
    data = group.bytes_of_first(path.read_bytes() if path.is_file() else b"")
    found = toml(data, str(path))
    of_type(found.get("rewinds", []), list[dict[str, Any]], f"{path}: rewinds")
    of_type(found.get("called", {}), dict[str, str], f"{path}: called")
    return found


def _loaded(config: FitConfig, download: bool, group: ProcessGroup) -> Splits:
    def load() -> Splits:
        return load_splits(config.data, config.data_dir, config.validation, download, config.reading)

    if not download:
        return load()
    with group.one_after_the_other():
        return load()


def _starts(config: FitConfig, splits: Splits, net: nn.Module) -> dict[str, bytes]:
    """What processes that fit together must have in common."""
    own = ("data", "data_dir", "test_data", "init", "threads", "workers", "in_memory_mib")  # may differ by machine
    options = {name: value for name, value in asdict(config).items() if name not in own}
    targets = b"".join(part.y.numpy().tobytes() for part in (splits.train, splits.validation))
    weights = b"".join(tensor.detach().cpu().numpy().tobytes() for tensor in net.state_dict().values())
    return {
        "the options": json.dumps(options, sort_keys=True).encode(),
        "the data": json.dumps([*splits.train.x.shape, *splits.sizes.values()]).encode() + targets,
        "the first weights": weights,
    }


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for processes whose results nobody needs: the first one has the same."""
    with tempfile.TemporaryDirectory(prefix="pyro-compress-") as folder:
        yield Path(folder)


def _file(path: Path, group: ProcessGroup) -> AbstractContextManager[IO[bytes]]:
    """A file that the first process writes; what the others write of it goes nowhere."""
    return written(path) if group.first else os.fdopen(os.open(os.devnull, os.O_WRONLY), "wb")


def _frames(folder: Path, config: FitConfig) -> Frames:
    if config.prior == "none":
        raise ValueError("snapshots show what a posterior prunes; with prior 'none' there is none")
    if config.shrink_every:
        raise ValueError("snapshots show the whole network, which --shrink-every makes smaller: leave one of them out")
    from pyro_compress.bayes.assignment import assigned

    return Frames(folder / FRAMES, assigned(config).criterion, config.epochs or 1)


def _fit(
    net: nn.Module, splits: Splits, config: FitConfig, note: OnEpoch, kept: tuple[Checkpointer, list[OnLayers]]
) -> tuple[Posterior, WriteGuide | None]:
    """The posterior, and what stores the posterior's parameters (None for a deterministic network)."""
    checkpointer, viewers = kept
    if config.prior == "none":
        from pyro_compress.training.baselines import fit_baseline

        return fit_baseline(net, splits, config, note, checkpointer)[0], None
    from pyro_compress.bayes.extract import extract
    from pyro_compress.bayes.fit import fit_posterior
    from pyro_compress.bayes.marginals import write_marginals

    def on_layers(epoch: int, layers: dict[str, LayerPosterior]) -> None:
        for view in viewers:
            view(epoch, layers)

    fit = fit_posterior(net, splits, config, note, checkpointer, on_layers if viewers else None)
    return extract(fit), lambda file: write_marginals(file, fit.model.net, fit.guide)


def initial_net(config: FitConfig, splits: Splits) -> nn.Module:
    """The plain network that a configuration names, seeded or carrying given weights."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = build_net(config.net, splits.input_shape, splits.outputs, config.hidden, splits.tokens, splits.inputs)
        net = with_one_output(net, outputs_of(splits.task))
        if config.init_range:
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.uniform_(-config.init_range, config.init_range)
    if config.init:
        folder = Path(config.init)
        own = net.state_dict()
        given = load_run(folder).posterior.tensors if folder.is_dir() else read_weights(config.init, own)
        given = {name: tensor for name, tensor in given.items() if name in own or name not in INPUTS}
        head = head_of(capture(net, splits.input_shape, trained=False, kind=splits.kind)) if config.new_head else ()
        put_weights(net, given, config.init, config.net, head)
        if folder.suffix == SUFFIX and any(isinstance(module, _BatchNorm) for module in net.modules()):
            graph = capture(net, splits.input_shape, trained=False, kind=splits.kind)
            net.load_state_dict(renewed_statistics(graph, net.state_dict(), splits.train.x), strict=False)
    net = with_columns(net, splits.input_shape, splits.output_shape, splits.kind)
    if not (config.input_mean or config.input_std):
        return net
    if config.net.endswith(SUFFIX):
        raise ValueError(f"{config.net} says itself what it does to its inputs; leave out input_mean and input_std")
    if splits.inputs:
        raise ValueError("--input-mean and --input-std go with one input; let a network of several do that itself")
    return normalized(net, config.input_mean, config.input_std, splits.input_shape)
