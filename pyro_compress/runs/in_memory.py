"""A fit and its compression in memory: what `fit` and `compress` do on the command line, for Python programs.

Everything here can be written with the parts as well: `splits_from`, `resolve`, `fit_posterior`, `extract`, `compress`,
`save`.
"""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pyro_compress.atomic import write_atomically
from pyro_compress.compression.pipeline import Report, compress_run, load, way_of
from pyro_compress.compression.target import SearchCallbacks
from pyro_compress.data.examples import batch_size_of
from pyro_compress.data.sources import splits_from
from pyro_compress.doubts import gathered, keep
from pyro_compress.graph.network import Network
from pyro_compress.places import check_file
from pyro_compress.runs.config import never_shrinks, resolve
from pyro_compress.runs.folder import Run
from pyro_compress.runs.given import named, net_name, settings_of, takes
from pyro_compress.runs.run import initial_net
from pyro_compress.runs.saved import Sites, write_run
from pyro_compress.scores import ratio_text
from pyro_compress.settings import CompressConfig, FitConfig, Goal, PosteriorConfig
from pyro_compress.settings.declared import current, declared
from pyro_compress.training.callbacks import Callbacks
from pyro_compress.training.history import Epoch
from pyro_compress.training.settled import unsettled
from pyro_compress.types import Posterior, Splits

if TYPE_CHECKING:
    from pyro_compress.bayes.model import Fit


@dataclass(frozen=True, repr=False)
class Compression:
    """A compressed network that lies in memory, as the file's bytes.

    Attributes:
        data: what the file holds.
        report: what compression did, and what it cost.
    """

    data: bytes = field(repr=False)
    report: Report

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return len(self.data)

    def save(self, path: str | Path, force: bool = False) -> Path:
        """Write the `.pcn` file.

        Raises:
            ValueError: something else lies there, or `force` is not given.
            OSError: it cannot be written.
        """
        check_file(Path(path), "pcn", force)
        write_atomically(Path(path), self.data)
        return Path(path)

    def module(self) -> Network:
        """The network, as `load` would read it from the file."""
        with tempfile.TemporaryDirectory() as folder:
            write_atomically(path := Path(folder) / "network.pcn", self.data)
            return load(path)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return self.report.to_dict()

    def __repr__(self) -> str:
        """Size, ratio, scores."""
        return "Compression: " + "; ".join(f"{name} {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        return table("Compression", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        report = self.report
        rows = [
            ("file", f"{self.bytes:,} bytes, {ratio_text(report.ratio)} than float32"),
            ("values kept", f"{report.parameters_kept:,} of {report.parameters_total:,}"),
        ]
        for split in ("validation", "test"):
            cells = [next(iter(getattr(report, f"{split}_{when}").cells.items())) for when in ("before", "after")]
            rows.append((f"{split} {cells[0][0]}", f"{cells[0][1]} -> {cells[1][1]}"))
        return rows + [("warning", text) for text in report.warnings]


@dataclass(frozen=True, repr=False)
class Fitted:
    """What `fit` returns.

    Attributes:
        posterior: moments of every weight: what compression takes.
        history: one entry per epoch.
        config: everything that determined it, resolved.
        splits: its data.
        fit: model and guide, still in Pyro; None with prior `none`.
        doubts: what is doubtful of it, in words.
        path: the run folder that it was read from; None: it was not.
    """

    posterior: Posterior
    history: tuple[Epoch, ...]
    config: FitConfig
    splits: Splits
    fit: Fit | None = None
    doubts: tuple[str, ...] = ()
    path: Path | None = None

    def compress(
        self, goal: Goal | None = None, how: Any = None, callbacks: Iterable[Any] = (), **options: Any
    ) -> Compression:  # fmt: skip
        """Prune, round and shrink it, as `pyro-compress compress` does.

        Args:
            goal: what to reach; by default the smallest file that costs half a point of accuracy.
            how: `Rounding`, `Compensation`, `Smallest` or `FineTuning`; None: what the options say.
            callbacks: told of every candidate.
            **options: settings of `CompressConfig` by the names of their options: `tolerance`, `sparsity`,
                `max_bytes`, `finetune`, `finetune_lr`, ... (docs/settings.md)

        Raises:
            ValueError: what `compress` refuses, an unknown option.
        """
        config = configured(goal, options)
        how = how or way_of(config)
        return compressed(self.posterior, self.splits, config, how, self.config.device, callbacks)

    def save(self, path: str | Path, force: bool = False) -> Run:
        """Write a run folder, as `pyro-compress fit` does; `inspect`, `compress`, `evaluate` and the like take it.

        Raises:
            ValueError: something else lies there, or `force` is not given.
            OSError: it cannot be written.
        """
        if self.path is not None:
            raise ValueError(f"{self.path} is a run folder already; copy it")
        sites = None
        if self.fit is not None:
            from pyro_compress.bayes.layers import bayes_layers

            shapes = [shape for layer in bayes_layers(self.fit.model.net) for shape, _ in layer.parts]
            sites = Sites(self.fit.guide, shapes)
        return write_run(Path(path), self.posterior, self.config, self.splits, sites, self.history, force)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: configuration, history, sizes of the splits, doubts."""
        return {
            "config": {name: value for name, value in asdict(self.config).items() if value is not None},
            "history": [epoch.to_dict() for epoch in self.history],
            "splits": self.splits.sizes,
            "doubts": list(self.doubts),
        }

    def to_arviz(self, draws: int = 200, seed: int = 0) -> Any:
        """Draws from the posterior with their likelihoods, as ArviZ takes them.

        Args:
            draws: networks drawn.
            seed: seeds them.

        Raises:
            ValueError: there is no posterior, or ArviZ is not installed.
        """
        from pyro_compress.bayes.diagnostics import Size, diagnose
        from pyro_compress.bayes.marginals import marginals_of, read_marginals
        from pyro_compress.inspection.arviz_compat import arviz, inference_data

        if self.config.prior == "none" or (self.fit is None and self.path is None):
            raise ValueError("a deterministic network has no posterior to draw from; fit it with a prior")
        arviz()
        if self.fit is not None:
            marginals = marginals_of(self.fit.model.net, self.fit.guide, self.config)
        else:
            assert self.path
            marginals = read_marginals(self.path / "guide.safetensors", self.config, self.posterior)
        found = diagnose(self.posterior, marginals, self.splits.train, Size(draws), seed)
        return inference_data(found.groups)

    def __repr__(self) -> str:
        """What was fitted, and how well."""
        return "Fitted: " + "; ".join(f"{name} {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        return table("Fitted", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        config = self.config
        weights = sum(layer.mean.numel() for layer in self.posterior.layers.values())
        rows = [
            *([("run", str(self.path))] if self.path else []),
            ("prior", str(config.prior)),
            ("weights", f"{weights:,} in {len(self.posterior.layers)} tensors"),
        ]
        if self.history:
            last = self.history[-1]
            rows += [
                ("epochs", f"{last.epoch} of {config.epochs}, {last.seconds:.1f} s"),
                ("validation", last.validation),
            ]
        return rows + [("doubt", text) for text in self.doubts]


def configured(goal: Goal | None, options: dict[str, Any]) -> CompressConfig:
    """A goal and options of `compress` as one configuration.

    Raises:
        ValueError: an unknown option, a value out of range.
    """
    options = named(current(options, CompressConfig), declared(CompressConfig), "of a compression")
    asked = {} if goal is None else {name: getattr(goal, name) for name in declared(Goal)}
    return replace(CompressConfig.of(asked | options), reference=goal.reference if goal else None)


def compressed(
    posterior: Posterior, splits: Splits, goal: Goal, how: Any, device: str, callbacks: Iterable[Any]
) -> Compression:  # fmt: skip
    """A compression whose file lies in memory; callbacks are told of its candidates."""
    combined = Callbacks(callbacks)
    search_callbacks = SearchCallbacks(
        trial=combined.on_search,
        candidate=combined.candidates,
        epoch=lambda epoch, epochs, kept: combined.on_search(epoch, epochs),
    )
    with combined.running("compress"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pcn"
        report = compress_run(posterior, splits, path, goal, how, device, search_callbacks)
        return Compression(path.read_bytes(), report)


def fit(
    net: nn.Module | str, train: Any, *, validation: Any = None, test: Any = None, prior: Any = "horseshoe",
    guide: Any = "mean-field", callbacks: Iterable[Any] = (), **settings: Any,
) -> Fitted:  # fmt: skip
    """Fit a posterior over the weights of a network.

    Args:
        net: a plain network, which stays as it is; or a name of `NETS`.
        train: `(x, y)` of tensors or arrays, a `Dataset`, a `DataLoader`, a dictionary of named inputs with `y`, a
            Hugging Face `Dataset`, `Splits`, or a data set's name (`pyro_compress.data.sources`).
        validation: the same for examples that are not trained on, or their share of `train`; None: a tenth, or more
            where that is under 240 rows.
        test: the same for examples that are read once, at the end; None: a fifth of `train`.
        prior: name in `PRIORS`, `none`, or a prior of your own: a Pyro function, a `Prior`, `package.module:function`;
            or a dictionary of these by pattern of the tensors' names, `{"conv*": "horseshoe", "fc*": "log-uniform"}`.
        guide: name in `GUIDES`, or a guide of your own: a class of Pyro's AutoGuides, a function of a `model`, a Pyro
            guide.
        callbacks: functions of an `Epoch`, or `Callback`s; one that returns True ends the fit, whose result is used.
        **settings: fields of `FitConfig`: `epochs`, `seed`, `batch_size`, `lr`, `task`, `keep`, ...

    Raises:
        ValueError: unknown settings, data that are none, what `fit_posterior` refuses.
        Diverged: the loss is not finite.

    Examples:
        >>> import pyro_compress as pc
        >>> fitted = pc.fit("mlp", "digits", hidden=(20,), epochs=2)
        >>> fitted.posterior.layers["1.weight"].std.shape
        torch.Size([20, 64])
    """
    rows, given = declared(PosteriorConfig), settings | {"guide": guide}
    if prior == "none" and (useless := sorted(n for n, one in given.items() if n in rows and one != rows[n].default)):
        raise ValueError(f"{', '.join(useless)}: goes with a prior; prior is 'none'")
    guide = guide if isinstance(guide, str) else _brought(guide)
    config = FitConfig(prior=spelled(prior), guide=guide, **settings_of(net, settings, "of a fit"))
    reading = config.reading
    task, share = settings.get("task", ""), config.validation if validation is None else validation
    splits = splits_from(train, share, test, reading, config.data_dir, task, takes(net))
    config = replace(config, batch_size=config.batch_size or batch_size_of(train), net=net_name(net))
    config = config.on(splits.origin, splits.task)
    if not splits.origin.get("vocabulary"):  # tokens that nobody announced are the network's
        config = replace(config, tokens=splits.tokens)
    combined = Callbacks(callbacks)
    with gathered() as doubts, combined.running("fit"):
        config = resolve(config, len(splits.train))
        module = initial_net(config, splits) if isinstance(net, str) else net
        posterior, history, fitted = _fitted(module, splits, config, combined)
        keep(unsettled([epoch.to_dict() for epoch in history], config.kl_weight))
        keep(never_shrinks(config))
        if config.prior != "none" and all(epoch.kl_nats is None for epoch in history):
            keep("the fit ended before its posterior began: spreads are those that it starts with, and tell nothing")
    return Fitted(posterior, history, config, splits, fitted, tuple(doubts))


def _fitted(
    net: nn.Module, splits: Splits, config: FitConfig, combined: Callbacks
) -> tuple[Posterior, tuple[Epoch, ...], Fit | None]:
    if config.prior == "none":
        from pyro_compress.training.baselines import fit_baseline

        return *fit_baseline(net, splits, config, combined.on_epoch, on_step=combined.steps), None
    from pyro_compress.bayes.extract import extract
    from pyro_compress.bayes.fit import fit_posterior

    fitted = fit_posterior(net, splits, config, combined.on_epoch, on_step=combined.steps)
    return extract(fitted), fitted.history, fitted


def spelled(prior: Any) -> str:
    """What a configuration calls a prior; a name needs no Pyro."""
    if isinstance(prior, str):
        return prior
    from pyro_compress.bayes.assignment import spelled as of_objects

    return of_objects(prior)


def _brought(guide: Any) -> str:
    """What a configuration calls a guide, which is made known in this process."""
    from pyro_compress.bayes.own_guides import bring_guide

    return bring_guide(guide)


def table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A small table for notebooks."""
    cells = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(v)}</td></tr>" for n, v in rows)
    return f"<table><caption>{title}</caption>{cells}</table>"
