"""Run folders: what `fit` writes and every other command reads.

    config.toml             everything that determined the fit, resolved, with versions and split sizes
    history.jsonl           one line per epoch (`pyro_compress.training.history.Epoch`)
    posterior.safetensors   the waist: moments of every weight, and the graph of the network as metadata
    guide.safetensors       the posterior's own parameters, to draw from it again (absent with prior none)
    snapshots.safetensors   if asked for: the pruned weights at the end of the epochs
    tensorboard/            if asked for: the same as history.jsonl, and histograms, as TensorBoard's events

A folder appears under its name only when it is complete; until then it is `.NAME.unfinished` beside it, with the last
two checkpoints (`pyro_compress.training.checkpoint`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pyro_compress.compression.file import write_atomically
from pyro_compress.data.splits import load_splits
from pyro_compress.networks.nets import build_net
from pyro_compress.networks.weights import put_weights, read_weights
from pyro_compress.runs.budget import check_memory
from pyro_compress.runs.config import config_toml, options_in, resolve
from pyro_compress.runs.waist import posterior_bytes, read_posterior
from pyro_compress.training.checkpoint import Keeper, stops_on_signals
from pyro_compress.training.guards import REWINDS, slower
from pyro_compress.training.history import Diverged, Epoch, OnEpoch, OnLayers
from pyro_compress.training.live import watched
from pyro_compress.training.snapshots import Frames
from pyro_compress.types import FitConfig, LayerPosterior, Posterior, Splits
from pyro_compress.world import ALONE, World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    path: Path
    config: FitConfig
    posterior: Posterior

    def splits(self, data_dir: str = "") -> Splits:
        """The data it was fitted on."""
        config = self.config
        return load_splits(config.data, data_dir or config.data_dir, config.validation, reading=config.reading)


@dataclass(frozen=True)
class Keeping:
    """What of a running fit is kept.

    Attributes:
        every_epochs: a checkpoint at the end of every so many-th epoch.
        every_minutes: and whenever so many minutes have passed; 0: never.
        resume: go on from an unfinished fit, where there is one.
        snapshots: store the pruned weights of the epochs, to show how they went.
        log: name in `pyro_compress.training.live.LOGS`; empty for none.
    """

    every_epochs: int = 5
    every_minutes: float = 10.0
    resume: bool = False
    snapshots: bool = False
    log: str = ""


def fit_run(
    config: FitConfig,
    out: Path,
    force: bool = False,
    download: bool = False,
    on_epoch: OnEpoch = lambda epoch: None,
    keeping: Keeping | None = None,
    world: World = ALONE,
) -> Run:
    """Load data, build the network, fit it, write the run folder.

    Args:
        config: what the user asked for; None and `auto` are resolved.
        out: folder to make; refused if it exists and is not empty, unless `force`.
        force: replace an existing folder, once the new one is complete, and drop an unfinished one.
        download: fetch a missing torchvision data set.
        on_epoch: called after every epoch.
        keeping: when to write checkpoints, and whether to go on from one.
        world: the processes of the fit, all of which call this; the first one writes the folder, and reads a
            checkpoint to the others, which work in a temporary folder. A fit may go on with another number of them.

    Raises:
        ValueError: bad configuration, data or network; an unfinished fit of this name.
        OSError: the folder cannot be written.
        Interrupted: a signal came; the unfinished fit can be resumed.
        Lost: another process ended.
    """
    keeping = keeping or Keeping()
    place: AbstractContextManager[Path] = new_folder(out, force, keeping.resume)
    if not world.first:
        place, keeping, on_epoch = _scratch(), replace(keeping, snapshots=False, log=""), lambda epoch: None
    with place as folder:
        splits = _loaded(config, download, world)
        config = resolve(config, len(splits.train))
        net = initial_net(config, splits)
        check_memory(net, splits, config)
        if world.size > 1:
            world.check_same(_starts(config, splits, net))
        keeper = Keeper(folder, keeping.every_epochs, keeping.every_minutes, world=world)
        frames = _frames(folder, config) if keeping.snapshots else None
        rewinds = stored_rewinds(folder, world) if keeping.resume else []
        while True:
            write_atomically(folder / "config.toml", config_toml(config, splits, rewinds, world.size).encode())
            try:
                posterior, guide = _fit_noted(net, splits, config, on_epoch, _Kept(keeper, frames, keeping.log))
                break
            except Diverged as error:
                if config.nan_policy == "stop":
                    raise
                config = _rewound(config, keeper, rewinds, error)
        if frames:
            frames.collect(folder / "snapshots.safetensors")
        (folder / "posterior.safetensors").write_bytes(posterior_bytes(posterior))
        if guide:
            (folder / "guide.safetensors").write_bytes(guide)
    return Run(out, config, posterior)


class _Kept(NamedTuple):
    """Where a running fit writes what: checkpoints, snapshots (or None), the live log (or an empty name)."""

    keeper: Keeper
    frames: Frames | None
    log: str


def _fit_noted(
    net: nn.Module, splits: Splits, config: FitConfig, on_epoch: OnEpoch, kept: _Kept
) -> tuple[Posterior, bytes]:
    """Fit from the keeper's latest checkpoint on, every epoch a line of `history.jsonl`."""
    keeper, folder = kept.keeper, kept.keeper.folder
    assert folder is not None
    before = keeper.latest()
    earlier = before.numbers["history"] if before else []
    with (
        (folder / "history.jsonl").open("w") as history,
        watched(kept.log, folder, len(earlier)) as log,
        stops_on_signals(keeper),
    ):
        for epoch in earlier:
            history.write(json.dumps(epoch) + "\n")

        def note(epoch: Epoch) -> None:
            history.write(json.dumps(epoch.as_dict()) + "\n")
            history.flush()
            if log:
                log.epoch(epoch)
            on_epoch(epoch)

        viewers: list[OnLayers] = [view for view in (kept.frames, log.layers if log else None) if view]
        return _fit(net, splits, config, note, (keeper, viewers))


def _rewound(config: FitConfig, keeper: Keeper, rewinds: list[dict[str, Any]], error: Diverged) -> FitConfig:
    """Put a fit back to the last checkpoint of an earlier epoch (the beginning, without one), with smaller rates.

    Raises:
        Diverged: it was put back too often.
    """
    if len(rewinds) == REWINDS:
        raise Diverged(f"{error} (put back {REWINDS} times, down to lr {config.lr:g})") from error
    assert keeper.folder is not None
    finished = len((keeper.folder / "history.jsonl").read_text().splitlines())
    keeper.rewind(finished)
    before = keeper.latest()
    rates = {name: getattr(config, name) for name in ("lr", "lr_scale", "lr_group")}
    epoch = len(before.numbers["history"]) if before else 0
    rewinds.append({"failed_in_epoch": finished + 1, "to_epoch": epoch, "reason": str(error)} | rates)
    log.warning("%s; back to epoch %d with half the learning rates", error, epoch)
    return slower(config)


def stored_rewinds(folder: Path, world: World = ALONE) -> list[dict[str, Any]]:
    """How often an unfinished fit was put back already, as the first process's folder says."""
    path = folder / "config.toml"
    text = world.bytes_of_first(path.read_bytes() if path.is_file() else b"").decode()
    return list(tomllib.loads(text).get("rewinds", []))


def _loaded(config: FitConfig, download: bool, world: World) -> Splits:
    def load() -> Splits:
        return load_splits(config.data, config.data_dir, config.validation, download, config.reading)

    if not download:
        return load()
    with world.one_after_the_other():
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


def _frames(folder: Path, config: FitConfig) -> Frames:
    if config.prior == "none":
        raise ValueError("snapshots show what a posterior prunes; with prior 'none' there is none")
    if config.shrink_every:
        raise ValueError("snapshots show the whole network, which --shrink-every makes smaller: leave one of them out")
    from pyro_compress.bayes.priors import PRIORS

    return Frames(folder / "frames", PRIORS[config.prior].criterion, config.epochs or 1)


def _fit(
    net: nn.Module, splits: Splits, config: FitConfig, note: OnEpoch, kept: tuple[Keeper, list[OnLayers]]
) -> tuple[Posterior, bytes]:
    """The waist, and the posterior's parameters as they are stored (empty for a deterministic network)."""
    keeper, viewers = kept
    if config.prior == "none":
        from pyro_compress.training.baselines import fit_baseline

        return fit_baseline(net, splits, config, note, keeper)[0], b""
    from pyro_compress.bayes.extract import extract
    from pyro_compress.bayes.fit import fit_posterior
    from pyro_compress.bayes.marginals import marginals_bytes

    def on_layers(epoch: int, layers: dict[str, LayerPosterior]) -> None:
        for view in viewers:
            view(epoch, layers)

    fit = fit_posterior(net, splits, config, note, keeper, on_layers if viewers else None)
    return extract(fit), marginals_bytes(fit.model.net, fit.guide)


def initial_net(config: FitConfig, splits: Splits) -> nn.Module:
    """The plain network that a configuration names, seeded or carrying given weights."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = build_net(config.net, splits.input_shape, splits.outputs, config.hidden)
        if config.init_range:
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.uniform_(-config.init_range, config.init_range)
    if config.init:
        folder = Path(config.init)
        given = load_run(folder).posterior.tensors if folder.is_dir() else read_weights(config.init)
        put_weights(net, given, config.init, config.net)
    return net


def unfinished(out: Path) -> Path:
    """Where a run lies until it is complete."""
    return out.parent / f".{out.name}.unfinished"


@contextmanager
def new_folder(out: Path, force: bool, resume: bool = False) -> Iterator[Path]:
    """A folder beside `out` that takes its name on success; on failure it stays only if it holds a checkpoint.

    A user's error (`ValueError`) would come again: nothing stays of it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} exists and is not a folder")
    if out.exists() and any(out.iterdir()) and not force:
        raise ValueError(f"{out} exists and is not empty; choose another --out, or replace it with --force")
    folder = unfinished(out)
    if folder.exists() and not resume:
        if any(folder.glob("checkpoint-*")) and not force:
            raise ValueError(
                f"an unfinished fit lies in {folder}; go on with: fit --resume {out}, or start anew with --force"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
        for path in folder.glob("checkpoint-*"):
            path.unlink()
        if out.exists():
            old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-old-"))
            os.replace(out, old)
            os.replace(folder, out)
            shutil.rmtree(old)
        else:
            os.replace(folder, out)
    except BaseException as error:
        if isinstance(error, ValueError) or not any(folder.glob("checkpoint-*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def unfinished_config(out: Path, world: World = ALONE) -> FitConfig:
    """Configuration of an unfinished fit, which the first of several processes reads to the others.

    Raises:
        ValueError: there is none.
    """
    path = unfinished(out) / "config.toml"
    text = world.bytes_of_first(_unfinished_text(out, path) if world.first else b"").decode()
    return _config_in(text, path)


def _unfinished_text(out: Path, path: Path) -> bytes:
    if not path.is_file() or not any(path.parent.glob("checkpoint-*")):
        state = (
            "is complete" if (out / "posterior.safetensors").is_file() else "has no unfinished fit with a checkpoint"
        )
        raise ValueError(f"{out} {state}; nothing to resume")
    return path.read_bytes()


def stored_config(path: Path) -> FitConfig:
    """The configuration that a run's config.toml holds."""
    return _config_in(path.read_text(), path)


def _config_in(text: str, path: Path) -> FitConfig:
    options = options_in(text, str(path))
    for name in ("hidden", "keep", "target"):
        options[name] = tuple(options.get(name, ()))
    return FitConfig(**options)


def load_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: not a run folder, or a damaged one.
    """
    if not (path / "config.toml").is_file() or not (path / "posterior.safetensors").is_file():
        raise ValueError(
            f"{path} is no run folder (it needs config.toml and posterior.safetensors, as fit writes them)"
        )
    return Run(path, stored_config(path / "config.toml"), read_posterior(path / "posterior.safetensors"))
