"""The command line: parse, call one function, print.

Nothing heavy is imported before a command runs; the names that options offer are read off the source of the modules
that own them, so that `--help` answers at once.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli_deploy import bench, export
from pyro_compress.cli_inspect import inspect_command, report
from pyro_compress.cli_options import data_options, device_options, one_line_errors
from pyro_compress.console import epoch_printer, outcome_line, report_text, scores_text, trial_printer, tune_printer


def names_in(module: str, registry: str) -> tuple[str, ...]:
    """Keys of a registry (a dict literal) in a module of this package, without importing it."""
    source = (Path(__file__).parent / module).read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == registry:
            assert isinstance(statement, ast.AnnAssign)
            assert isinstance(statement.value, ast.Dict)
            return tuple(ast.literal_eval(key) for key in statement.value.keys if key is not None)
    raise ValueError(f"no registry {registry} in {module}")


PRIORS = names_in("bayes/priors.py", "PRIORS")
ESTIMATORS = names_in("bayes/estimators.py", "ESTIMATORS")
GUIDES = names_in("bayes/guides.py", "GUIDES")
CRITERIA = names_in("compression/prune.py", "CRITERIA")
DATASETS = names_in("data.py", "DATASETS")
NETS = names_in("nets.py", "NETS")
OPTIMIZERS = names_in("training.py", "OPTIMIZERS")
SCHEDULES = names_in("training.py", "SCHEDULES")
PRUNING = names_in("sparse_training.py", "PRUNING")


class Widths(click.ParamType):
    """Comma-separated positive integers, or a TOML array of them."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`"500,500"` or `[500, 500]` -> `(500, 500)`."""
        parts = value.split(",") if isinstance(value, str) else value
        try:
            widths = tuple(int(part) for part in parts)
        except (TypeError, ValueError):
            widths = ()
        if not widths or min(widths) < 1:
            self.fail(f"{value!r}: give positive widths separated by commas, like 500,500", param, ctx)
        return widths


class Seeds(click.ParamType):
    """Comma-separated integers."""

    name = "n,n,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """`"0,1"` -> `(0, 1)`."""
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: give seeds separated by commas, like 0,1,2", param, ctx)


class Option(click.ParamType):
    """`name=number`."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """`"tau0=1e-5"` -> `("tau0", 1e-5)`."""
        if isinstance(value, tuple):
            return value
        name, _, number = str(value).partition("=")
        try:
            return name, float(number)
        except ValueError:
            self.fail(f"{value!r}: give an option of the prior as name=number, like tau0=1e-5", param, ctx)


def load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make a TOML file's values the defaults of the command; what stands on the command line wins."""
    if path is not None:
        with one_line_errors():
            from pyro_compress.config import read_config

            options = read_config(path)
        if isinstance(extra := options.get("prior_options"), dict):
            options["prior_options"] = [f"{name}={value}" for name, value in extra.items()]
        ctx.default_map = options


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="pyro-compress")
def main() -> None:
    """Train a network as a Pyro program, keep what its posterior is sure about, ship the rest as nothing."""


@main.command()
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), callback=load_config, is_eager=True,
    expose_value=False, help="TOML file with the same options (a run's config.toml, say); the command line wins.",
)  # fmt: skip
@click.option(
    "--prior",
    type=click.Choice([*PRIORS, "none"]),
    default="horseshoe",
    help="none: a deterministic baseline.",
)
@click.option(
    "--prior-option",
    "prior_options",
    type=Option(),
    multiple=True,
    help="Option of the prior, e.g. tau0=1e-5; repeatable.",
)
@click.option(
    "--grouping", type=click.Choice(["weight", "input", "output"]), default=None,
    help="Weights that share a scale; the default fits the prior.",
)  # fmt: skip
@click.option(
    "--bias-prior",
    type=click.Choice(["none", "same"]),
    default="none",
    help="none: biases are point estimates.",
)
@click.option("--net", default="mlp", metavar="NAME", help=f"{', '.join(NETS)}, or package.module:function.")
@click.option("--hidden", type=Widths(), default="500,500", help="Hidden widths of mlp.")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Layers (dotted path) that stay deterministic; repeatable.",
)
@click.option(
    "--init",
    default="",
    metavar="PATH",
    help="Trained weights to start from: safetensors file or run folder.",
)
@click.option("--data", default="digits", metavar="NAME", help=f"{', '.join(DATASETS)}, or a .npz file.")
@data_options
@click.option("--download", is_flag=True, help="Fetch a missing torchvision data set into --data-dir.")
@click.option(
    "--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=None,
    help="Share of the training set held out; default a tenth, or more where that is under 240 rows.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=None, help="Default: 30, more for small data sets.")
@click.option(
    "--pretrain-epochs",
    type=click.IntRange(0),
    default=None,
    help="How many of them train point weights first.",
)
@click.option("--batch-size", type=click.IntRange(1), default=None, help="Default: 128, or 64 for small data sets.")
@click.option("--lr", type=float, default=None, help="Learning rate of means and of everything deterministic.")
@click.option("--lr-scale", type=float, default=None, help="Learning rate of posterior log-scales.")
@click.option("--lr-group", type=float, default=None, help="Learning rate of group and layer scales.")
@click.option("--kl-warmup", type=float, default=None, metavar="EPOCHS", help="Epochs over which the KL weight rises.")
@click.option("--kl-weight", type=float, default=1.0, help="Final KL weight; 1 is the ELBO.")
@click.option(
    "--kl-schedule",
    type=click.Choice(["uniform", "blundell"]),
    default="uniform",
    help="Share of each minibatch in the KL.",
)
@click.option("--samples", type=click.IntRange(1), default=1, help="Monte Carlo samples per step.")
@click.option("--clip-norm", type=float, default=0.0, help="Scale the gradient down to this norm; 0: never.")
@click.option("--accumulate", type=click.IntRange(1), default=1, help="Parts of a minibatch per step, to save memory.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Of the matrix products in SVI steps.",
)
@click.option("--estimator", type=click.Choice(ESTIMATORS), default=None, help="The default fits the prior.")
@click.option("--guide", type=click.Choice(GUIDES), default="mean-field", help="auto-*: Pyro's AutoGuides.")
@click.option("--init-scale", type=float, default=None, help="Initial posterior standard deviation of a raw weight.")
@click.option(
    "--max-scale",
    type=float,
    default=None,
    help="Bound on the first layer's raw standard deviations; 0: none.",
)
@click.option("--dropout", type=float, default=0.0, help="Before every layer with weights (prior none).")
@click.option("--dropout-input", type=float, default=None, help="At the input, if not as --dropout (prior none).")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="adam", help="sgd: prior none only.")
@click.option("--momentum", type=float, default=0.9, help="Of sgd.")
@click.option("--lr-schedule", type=click.Choice(SCHEDULES), default="late-decay", help="What the rates do.")
@click.option(
    "--pruning", type=click.Choice(["none", *PRUNING]), default="none",
    help="Prune while training (prior none): Han et al. 2015, Zhu & Gupta 2017, Frankle & Carbin 2019.",
)  # fmt: skip
@click.option("--prune-to", type=float, default=0.0, metavar="SPARSITY", help="Where --pruning ends.")
@click.option("--init-range", type=float, default=0.0, help="Uniform start in ±RANGE; 0: torch's default.")
@click.option(
    "--patience",
    type=click.IntRange(0),
    default=0,
    help="Stop after so many epochs without a better NLL; 0: never.",
)
@click.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    help="Compile the SVI step; auto: if it pays.",
)
@click.option("--seed", type=int, default=0)
@device_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Run folder; default runs/DATA-NET-PRIOR-SEED.",
)
@click.option("--force", is_flag=True, help="Replace an existing run folder, drop an unfinished one.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    default=None,
    metavar="RUN",
    help="Go on with the interrupted fit of this run folder; its configuration counts, not other options.",
)
@click.option("--checkpoint-epochs", type=click.IntRange(1), default=5, help="A checkpoint every so many epochs.")
@click.option(
    "--checkpoint-minutes", type=click.FloatRange(0), default=10.0, help="And every so many minutes; 0: never."
)
@click.option("--snapshots", is_flag=True, help="Store the pruned weights of the epochs, for the report's animation.")
def fit(
    out: Path | None, force: bool, download: bool, resume: Path | None, checkpoint_epochs: int,
    checkpoint_minutes: float, snapshots: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a network and write its posterior to a run folder."""
    with one_line_errors():
        from pyro_compress.checkpoint import Interrupted
        from pyro_compress.run import Keeping, fit_run, unfinished_config
        from pyro_compress.types import FitConfig

        options["prior_options"] = dict(options["prior_options"])
        config = unfinished_config(resume) if resume else FitConfig(**options)
        where = resume or out or Path("runs") / default_name(config.data, config.net, config.prior, config.seed)
        keeping = Keeping(checkpoint_epochs, checkpoint_minutes, resume is not None, snapshots)
        try:
            with epoch_printer() as on_epoch:
                run = fit_run(config, where, force, download, on_epoch, keeping)
        except Interrupted:
            click.echo(f"stopped, state kept; go on with: pyro-compress fit --resume {where}", err=True)
            raise click.exceptions.Exit(130) from None
    click.echo(f"{run.path}: posterior of {config.net} on {config.data}; next: pyro-compress compress {run.path}")


def default_name(data: str, net: str, prior: str, seed: int) -> str:
    """Name of a run folder."""
    return f"{Path(data).stem}-{net.replace(':', '.')}-{prior}-{seed}"


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--criterion",
    type=click.Choice(CRITERIA),
    default=None,
    help="Pruning score; the default fits the prior.",
)
@click.option("--sparsity", type=float, default=None, help="Share of the weights to remove, instead of a search.")
@click.option(
    "--tolerance",
    type=float,
    default=0.005,
    help="Validation accuracy that may be lost (0.005: half a point).",
)
@click.option(
    "--nll-tolerance",
    type=float,
    default=None,
    metavar="NATS",
    help="Validation NLL that may be lost; default twice --tolerance, less below 3,000 examples.",
)
@click.option(
    "--target-error", type=click.FloatRange(0, 1), default=None, metavar="SHARE",
    help="Validation error that may be reached (0.02: two points), instead of a tolerance.",
)  # fmt: skip
@click.option(
    "--max-bytes", type=click.IntRange(1), default=None,
    help="Largest file; the best that fits, instead of a tolerance.",
)  # fmt: skip
@click.option(
    "--finetune", type=click.IntRange(1), default=None, metavar="EPOCHS",
    help="Train what is left on as integers, under the price of their bits.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(0), default=None,
    help="Price of a bit in fine-tuning; 1 is the description length. Default: searched for on validation.",
)  # fmt: skip
@click.option(
    "--teacher", type=click.Path(path_type=Path, exists=True, file_okay=False), default=None, metavar="RUN",
    help="Run whose network is distilled into this one while fine-tuning.",
)  # fmt: skip
@click.option(
    "--curve", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="CSV",
    help="Write size against error of every candidate (and a .png beside it, with matplotlib).",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The .pcn file; default RUN/network.pcn.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object and nothing else.")
@data_options
@device_options
def compress(
    run: Path, out: Path | None, force: bool, as_json: bool, data_dir: str, curve: Path | None, **options: Any
) -> None:
    """Prune, round and shrink a run's network into one .pcn file, read back and re-evaluated."""
    with one_line_errors():
        from pyro_compress.compression.curve import write_curve
        from pyro_compress.compression.pipeline import compress_run
        from pyro_compress.compression.target import Trial
        from pyro_compress.run import load_run

        out = out or run / "network.pcn"
        if out.exists() and not force:
            raise ValueError(f"{out} exists; choose another --out, or replace it with --force")
        loaded, trials = load_run(run), list[Trial]()
        splits = loaded.splits(data_dir)
        with search_options(options, as_json) as chosen:
            report = compress_run(loaded.posterior, splits, out, on_candidate=trials.append, **chosen)
        drawn = write_curve(curve, trials) if curve else []
    click.echo(json.dumps(report.as_dict() | {"file": str(out)}) if as_json else report_text(report, out))
    if drawn and not as_json:
        click.echo(f"{len(trials)} candidates: {', '.join(map(str, drawn))}")


@contextmanager
def search_options(options: dict[str, Any], quiet: bool) -> Iterator[dict[str, Any]]:
    """Options of `compress_run` from those of the command line, with the progress display that fits."""
    given = ("sparsity", "target_error", "max_bytes")
    if len(several := [name for name in given if options[name] is not None]) > 1:
        raise ValueError(f"{' and '.join(several)} exclude each other: give one of them")
    epochs, rate, teacher = (options.pop(name) for name in ("finetune", "rate", "teacher"))
    if epochs is None:
        if rate is not None or teacher is not None:
            raise ValueError("--rate and --teacher go with --finetune EPOCHS")
        with trial_printer(quiet) as on_trial:
            yield options | {"on_trial": on_trial}
        return
    from pyro_compress.compression.finetune import FineTune
    from pyro_compress.compression.tuned import Teacher
    from pyro_compress.run import load_run

    if teacher is not None:
        taught = load_run(teacher)
        teacher = Teacher(taught.posterior, taught.config.net)
    with tune_printer(quiet) as on_epoch:
        yield options | {"how": FineTune(epochs=epochs), "rate": rate, "teacher": teacher, "on_epoch": on_epoch}


@main.command()
@click.argument("target", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--data",
    default=None,
    metavar="NAME",
    help="Data set or .npz file; the default is what it was fitted on.",
)
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as one JSON object and nothing else.")
@data_options
@device_options
def evaluate(
    target: Path, data: str | None, split: str, as_json: bool, data_dir: str, device: str, threads: int
) -> None:
    """Score a run folder (its posterior mean) or a .pcn file."""
    with one_line_errors():
        from pyro_compress.evaluation import evaluate_target

        scores, size = evaluate_target(target, data, split, data_dir, device, threads)
    click.echo(json.dumps(vars(scores) | {"examples": size}) if as_json else scores_text(target, scores, size))


@main.command()
@click.argument("study", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Results folder; default studies/NAME.")
@click.option("--jobs", type=click.IntRange(1), default=1, help="Fits at a time, one process each.")
@click.option("--seeds", type=Seeds(), default=None, help="Only these seeds of the study.")
@click.option("--table", is_flag=True, help="Fit nothing: tables of what is there.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON and nothing else.")
@data_options
@device_options
def compare(
    study: Path, out: Path | None, jobs: int, seeds: tuple[int, ...] | None, table: bool, markdown: bool,
    as_json: bool, data_dir: str, device: str, threads: int,
) -> None:  # fmt: skip
    """Fit and prune what a study file names; resumes, and ends in one table (also CSV, JSON, Markdown in --out)."""
    with one_line_errors():
        from dataclasses import replace

        from pyro_compress import compare as comparison
        from pyro_compress import study as studies
        from pyro_compress import tables

        read = studies.read_study(study)
        out = out or Path("studies") / read.name
        read = replace(read, seeds=seeds or read.seeds)
        planned = studies.plan(read, data_dir, device, threads)
        wanted = [one for one in planned if not table or comparison.cached_rows(one, out)]
        if not wanted:
            raise ValueError(f"{out} holds no row of {study}; run it without --table")
        outcomes = comparison.compare(wanted, out, jobs, outcome_line)
        rows = [row for outcome in outcomes for row in outcome.rows]
    text = json.dumps([vars(row) for row in rows]) if as_json else (tables.markdown if markdown else tables.plain)(rows)
    click.echo(text)
    if failed := [outcome for outcome in outcomes if outcome.failure]:
        raise click.ClickException(f"{len(failed)} of {len(planned)} fits failed; the first: {failed[0].failure}")


main.add_command(export)
main.add_command(bench)
main.add_command(inspect_command)
main.add_command(report)
