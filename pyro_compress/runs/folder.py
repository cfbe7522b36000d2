"""Run folders: what `fit` writes and every other command reads.

    config.toml             everything that determined the fit, resolved, with versions and split sizes
    examples.npz            the data, where a Python program gave them without a name (`runs.saved`)
    history.jsonl           one line per epoch (`pyro_compress.training.history.Epoch`)
    posterior.safetensors   moments of every weight, and the graph of the network as metadata
    guide.safetensors       the posterior's own parameters, to draw from it again (absent with prior none)
    start.pcn               a copy of the compressed file that the fit began with, if it did (`--net FILE.pcn`)
    snapshots.safetensors   if asked for: the pruned weights at the end of the epochs
    tensorboard/            if asked for: the same as history.jsonl, and histograms, as TensorBoard's events

A folder appears under its name only when it is complete; until then it is `.NAME.unfinished` beside it, with the last
two checkpoints (`pyro_compress.training.checkpoint`), and one process holds its lock. The posterior is written last but
for them, so that a run is complete with it; checkpoints go when the folder has its name (`pyro_compress.placing`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyro_compress.atomic import drop_left
from pyro_compress.compression.prune import CRITERIA
from pyro_compress.data.splits import before, load_splits
from pyro_compress.foreign import of_type, read_toml, shown, toml
from pyro_compress.kinds import EXAMPLES, foreign_to_run, is_run
from pyro_compress.networks.bounded import check_inputs
from pyro_compress.pcn import gate
from pyro_compress.places import check_folder, check_name
from pyro_compress.placing import (
    CHECKPOINTS,
    emptied,
    incomplete,
    located,
    making,
    put_in_place,
    recover,
    unfinished,
    unordinary,
)
from pyro_compress.process_group import ALONE, ProcessGroup
from pyro_compress.runs.config import options_of, preprocessing_in, read_config
from pyro_compress.runs.posterior_file import read_posterior
from pyro_compress.settings import FitConfig
from pyro_compress.training.history import Diverged
from pyro_compress.types import Posterior, Preprocessing, Splits


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder, read.

    Attributes:
        path: of the folder.
        config: resolved; its paths are absolute.
        posterior: moments of every weight, and the network.
        sizes: rows of every split that it was fitted with; empty where the folder does not say.
        data: where the same data lie now, if elsewhere than `config` says.
        stored: how its data became inputs and outputs; None: an earlier version did not write it down.
    """

    path: Path
    config: FitConfig
    posterior: Posterior
    sizes: Mapping[str, int] = field(default_factory=dict)
    data: str = ""
    stored: Preprocessing | None = None

    def __repr__(self) -> str:
        """What was fitted on what."""
        config = self.config
        return f"Run: {self.path}; prior {config.prior}; net {config.net} on {self.called}, {self.posterior!r}"

    @property
    def called(self) -> str:
        """What its data were called when it was fitted."""
        return str(self.posterior.provenance.entries.get("data", self.config.data))

    @property
    def known(self) -> Preprocessing | None:
        """How its data become inputs and outputs; None where they say it themselves."""
        if self.stored:
            return self.stored
        return before(self.data or self.config.data, self.config.reading, self.plan.output[0])

    @property
    def plan(self) -> gate.Plan:
        """What is known of its network before it runs."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.posterior.tensors.items()}
        return gate.check(self.posterior.graph, shapes, gate.UNLIMITED)

    def splits(self, data_dir: str = "") -> Splits:
        """The data it was fitted on.

        Raises:
            ValueError: they are not there; or what is said to be the same data is not.
        """
        config, data = self.config, self.data or self.config.data
        if Path(data).is_absolute() and not Path(data).exists():
            raise ValueError(
                f"{data} is not there any more; say with --data (data= in Python) where the run's data are now"
            )
        beside = Path(data).parent / Path(config.test_data).name
        moved = config.reading
        if self.data and config.test_data and beside.is_file():
            moved = replace(moved, test_data=str(beside))
        where = data_dir or config.data_dir
        shape, takes = self.posterior.graph.input_shape, self.posterior.graph.inputs
        splits = load_splits(data, where, config.validation, False, moved, self.known, shape, takes)
        self._check_same(splits, data)
        return splits

    def _check_same(self, splits: Splits, data: str) -> None:
        check_inputs(self.posterior.graph, splits.input_shape, splits.kind, data, splits.inputs)
        outputs, found = self.plan.output[0], splits.output_shape[0]
        if self.data and splits.task == "classification":
            found = len({int(y) for part in (splits.train, splits.validation) for y in part.y.unique()})
        if outputs != found:
            raise ValueError(f"{data}: {found} classes or targets; this network has {outputs} outputs")
        if self.data and self.sizes and dict(self.sizes) != splits.sizes:
            both = [", ".join(f"{name} {rows}" for name, rows in sizes.items()) for sizes in (splits.sizes, self.sizes)]
            raise ValueError(f"{self.data} holds {both[0]} rows, the run was fitted with {both[1]}: not the same data")


def found_complete(out: Path, force: bool = False) -> bool:
    """Whether a fit that is to be resumed had ended already, unseen; it has its name then.

    Raises:
        ValueError: another folder has it, and may not be replaced.
    """
    check_name(out)
    if recover(out, is_run):
        return is_run(out)
    if not unfinished(out := located(out)).is_dir():
        return False
    with making(out) as folder:
        if folder is None or not is_run(folder):
            return False
        check_run_folder(out, force)
        put_in_place(folder, out)
        return True


@contextmanager
def new_folder(out: Path, force: bool, resume: bool = False) -> Iterator[Path]:
    """A folder beside `out` that takes its name on success; on failure it stays if it holds a checkpoint or all.

    Where the fit diverged it would again: nothing stays of it.

    Raises:
        ValueError: it is there already, cannot be written, or another process is writing it.
    """
    found_complete(out, force)
    check_run_folder(out, force)
    with making(out := located(out)) as folder:
        if folder is None:
            raise ValueError(f"another fit is writing {out}; wait for its end, or choose another --out")
        if any(folder.glob(CHECKPOINTS)) and not resume and not force:
            raise ValueError(
                f"an unfinished fit lies in {folder}; go on with: fit --resume {out}, or start anew with --force"
            )
        if not resume:
            emptied(folder)
        elif odd := unordinary(folder):
            raise ValueError(f"{odd} is no ordinary file or folder: no fit of this program left it; move it away")
        drop_left(folder)
        try:
            yield folder
            put_in_place(folder, out)
        except BaseException as error:
            lost = not (any(folder.glob(CHECKPOINTS)) or is_run(folder))
            if lost or isinstance(error, Diverged):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def check_run_folder(out: Path, force: bool = False) -> None:
    """Refuse a place where no run can be written, or that holds something else.

    Raises:
        ValueError: says why, and what to do.
    """
    check_folder(out, _foreign, force, "run")


def _foreign(folder: Path) -> list[str] | None:
    return foreign_to_run(folder) if is_run(folder) else None


def unfinished_config(out: Path, group: ProcessGroup = ALONE) -> FitConfig:
    """Configuration of an unfinished fit, which the first of several processes reads to the others.

    Raises:
        ValueError: there is none.
    """
    path = unfinished(out) / "config.toml"
    data = group.bytes_of_first(_unfinished_text(out, path) if group.first else b"")
    return _config_of(options_of(toml(data, str(path)), str(path)), path)


def _unfinished_text(out: Path, path: Path) -> bytes:
    if not path.is_file() or not any(path.parent.glob(CHECKPOINTS)):
        state = "is complete" if (out / "posterior.safetensors").is_file() else "has no unfinished fit"
        raise ValueError(incomplete(out) or f"{out} {state}; nothing to resume")
    return path.read_bytes()


def stored_config(path: Path) -> FitConfig:
    """The configuration that a run's config.toml holds.

    Raises:
        ValueError: it is damaged, or no fit can have had it.
    """
    return _config_of(read_config(path), path)


def _config_of(options: dict[str, Any], path: Path) -> FitConfig:
    try:
        return FitConfig(**options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_run(path: Path, data: str = "") -> Run:
    """Read a run folder.

    Args:
        path: the folder.
        data: where its data lie now; empty: where they lay.

    Raises:
        ValueError: not a run folder, or a damaged one.
    """
    recover(path, is_run)
    if not (path / "config.toml").is_file() or not (path / "posterior.safetensors").is_file():
        raise ValueError(
            incomplete(path)
            or f"{path} is no run folder (it needs config.toml and posterior.safetensors, as fit writes them)"
        )
    where = path / "config.toml"
    document = read_toml(where)
    config, stored = _config_of(options_of(document, str(where)), where), preprocessing_in(document, str(where))
    if Path(config.data).name == EXAMPLES and (path / EXAMPLES).is_file():  # the folder may have been moved
        config = replace(config, data=str((path / EXAMPLES).absolute()))
    sizes: dict[str, int] = of_type(document.get("splits", {}), dict[str, int], f"{where}: splits")
    posterior = read_posterior(path / "posterior.safetensors")
    if posterior.criterion not in CRITERIA:
        raise ValueError(f"{path}: criterion {shown(posterior.criterion)}; allowed: {', '.join(CRITERIA)}")
    if posterior.task != config.task:
        raise ValueError(f"{path}: config.toml says {config.task}, its posterior {posterior.task}")
    return Run(path, config, posterior, sizes, data, stored)
