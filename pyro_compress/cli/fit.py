"""fit: options -> FitConfig -> run folder."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from pyro_compress.cli.commands import echo, one_line_errors
from pyro_compress.cli.console import epoch_printer
from pyro_compress.cli.ignored import FIT, StrictCommand
from pyro_compress.cli.options import (
    announce_code,
    announce_option,
    code_options,
    convert_defaults,
    data_options,
    device_options,
    input_options,
    names_in,
    reading_options,
)
from pyro_compress.cli.values import PriorName, PriorOption, Widths
from pyro_compress.doubts import keep
from pyro_compress.foreign import file_name

PRIORS = names_in("bayes/priors.py", "PRIORS")
ESTIMATORS = names_in("bayes/estimators.py", "ESTIMATORS")
GUIDES = names_in("bayes/guides.py", "GUIDES")
DATASETS = names_in("data/datasets.py", "DATASETS")
AUGMENTATIONS = names_in("data/augment.py", "AUGMENTATIONS")
NETS = names_in("networks/nets.py", "NETS")
OPTIMIZERS = names_in("training/point.py", "OPTIMIZERS")
SCHEDULES = names_in("training/point.py", "SCHEDULES")
LOGS = names_in("training/live.py", "LOGS")
PRUNING = names_in("training/sparse.py", "PRUNING")


def load_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make a TOML file's values the defaults of the command; what stands on the command line wins."""
    if path is not None:
        with one_line_errors():
            from pyro_compress.runs.config import read_config

            options = read_config(path)
            if isinstance(extra := options.get("prior_options"), dict):
                options["prior_options"] = list(extra.items())
            ctx.default_map = convert_defaults(ctx, options, path)


HEADINGS = {
    "--prior": "Prior",
    "--net": "Network",
    "--data": "Data",
    "--epochs": "Training",
    "--estimator": "Posterior",
    "--dropout": "Without a prior (--prior none)",
    "--compile": "Running",
    "--out": "Results",
}


@click.command(cls=StrictCommand, ignored=FIT, headings=HEADINGS)
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), callback=load_config, is_eager=True,
    expose_value=False, help="TOML file with the same options (a run's config.toml, say); the command line wins.",
)  # fmt: skip
@code_options
@click.option(
    "--prior",
    type=PriorName(PRIORS),
    default="horseshoe",
    help="Of the weights; none: a deterministic baseline; MODULE:FUNCTION: a Pyro function of yours (docs/priors.md).",
)
@click.option(
    "--prior-option",
    "prior_options",
    type=PriorOption(),
    multiple=True,
    help="Option of the prior, e.g. tau0=1e-5. Repeatable.",
)
@click.option(
    "--grouping", type=click.Choice(["weight", "input", "output", "filter"]), default=None,
    help="Weights that share a scale; default: input for horseshoe and normal-jeffreys, else weight (none do). filter: "
    "output channels of convolutions and inputs of linear layers, as in the paper of these two priors.",
)  # fmt: skip
@click.option(
    "--bias-prior",
    type=click.Choice(["none", "same"]),
    default="none",
    help="none: biases are point estimates; same: that of the weights.",
)
@click.option(
    "--net",
    default="mlp",
    metavar="NAME",
    help=f"{', '.join(NETS)}, torchvision:NAME, package.module:function, or a .pcn file's architecture.",
)
@click.option("--hidden", type=Widths(), default="500,500", help="Widths of the hidden layers of mlp.")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Layers without a prior, by dotted path (head*, say). Repeatable.",
)
@click.option(
    "--init",
    default="",
    show_default=False,
    metavar="WEIGHTS",
    help="Trained weights to start from: a checkpoint, a .pcn file, torchvision:WEIGHTS, or a run folder.",
)
@click.option("--new-head", is_flag=True, help="With --init: the last layer starts anew, for other classes than its.")
@input_options
@click.option(
    "--init-range",
    type=float,
    default=0.0,
    metavar="RANGE",
    help="Weights start uniform in ±RANGE; 0: as torch starts them.",
)
@click.option(
    "--data", default="digits", metavar="NAME",
    help=f"{', '.join(DATASETS)}, a .npz, .csv, .tsv or .parquet file, or a folder of images or arrays.",
)  # fmt: skip
@data_options
@click.option("--download", is_flag=True, help="Fetch a missing data set into --data-dir.")
@reading_options
@click.option(
    "--validation", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=None,
    help="Share of the training set held out; default a tenth, or more where that is under 240 rows.",
)  # fmt: skip
@click.option(
    "--class-weights",
    type=click.Choice(["none", "balanced"]),
    default="none",
    help="Of the likelihood; balanced: every class counts alike.",
)
@click.option(
    "--augment",
    type=click.Choice(["none", *AUGMENTATIONS]),
    default="none",
    help="How training images are changed every time they are seen.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=None,
    help="Passes over the data; default: 30, up to 100 for small data sets.",
)
@click.option(
    "--pretrain-epochs",
    type=click.IntRange(0),
    default=None,
    help="How many of --epochs train point weights first; the default fits the prior.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=None,
    help="Examples per step; default: 128, or 64 below 10,000 examples.",
)
@click.option(
    "--lr",
    type=float,
    default=None,
    help="Learning rate of means and of everything deterministic; the default fits the prior.",
)
@click.option(
    "--lr-scale", type=float, default=None, help="Learning rate of posterior log-scales; the default fits the prior."
)
@click.option(
    "--lr-group", type=float, default=None, help="Learning rate of group and layer scales; the default fits the prior."
)
@click.option(
    "--lr-schedule",
    type=click.Choice(SCHEDULES),
    default="late-decay",
    help="Learning rates over training.",
)
@click.option(
    "--kl-warmup",
    type=float,
    default=None,
    metavar="EPOCHS",
    help="Epochs, after pretraining, over which the KL weight rises; the default fits the prior.",
)
@click.option("--kl-weight", type=float, default=1.0, help="Final KL weight; 1 is the ELBO.")
@click.option(
    "--kl-schedule",
    type=click.Choice(["uniform", "blundell"]),
    default="uniform",
    help="Share of each minibatch in the KL: the same, or falling (Blundell et al. 2015).",
)
@click.option("--samples", type=click.IntRange(1), default=1, help="Monte Carlo samples per step.")
@click.option("--clip-norm", type=float, default=0.0, help="Scale the gradient down to this norm; 0: never.")
@click.option("--accumulate", type=click.IntRange(1), default=1, help="Parts of a minibatch per step, to save memory.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Precision of the matrix products in SVI steps.",
)
@click.option(
    "--batch-norm",
    type=click.Choice(["update", "frozen"]),
    default="update",
    help="Statistics in SVI steps: they run along, or stay those of the first weights.",
)
@click.option(
    "--patience",
    type=click.IntRange(0),
    default=0,
    help="After so many epochs without a better validation NLL, let the rates fall over as many and end; 0: never.",
)
@click.option(
    "--estimator",
    type=click.Choice(ESTIMATORS),
    default=None,
    help="How the gradient is estimated; the default fits the prior.",
)
@click.option(
    "--guide",
    type=click.Choice(GUIDES),
    default="mean-field",
    help="Family of the posterior; auto-*: Pyro's AutoGuides.",
)
@click.option(
    "--shrink-every", type=click.IntRange(0), default=0, metavar="EPOCHS",
    help="Remove dead units after every so many-th epoch of the posterior, to fit faster; 0: never.",
)  # fmt: skip
@click.option(
    "--init-scale",
    type=float,
    default=None,
    help="Initial posterior standard deviation of a raw weight; the default fits the prior.",
)
@click.option(
    "--max-scale",
    type=float,
    default=None,
    help="Bound on the first layer's raw standard deviations; 0: none; the default fits the prior.",
)
@click.option("--dropout", type=float, default=0.0, help="Rate before every layer with weights.")
@click.option("--dropout-input", type=float, default=None, help="Rate at the input; default: --dropout.")
@click.option(
    "--optimizer", type=click.Choice(OPTIMIZERS), default="adam", help="Default rates: 1e-3 for adam, 0.1 for sgd."
)
@click.option("--momentum", type=float, default=0.9, help="Momentum of sgd.")
@click.option("--weight-decay", type=float, default=0.0, help="Weight decay; with adam decoupled from its steps.")
@click.option(
    "--pruning", type=click.Choice(["none", *PRUNING]), default="none",
    help="Prune while training: Han et al. 2015, Zhu & Gupta 2017, Frankle & Carbin 2019.",
)  # fmt: skip
@click.option(
    "--prune-to", type=float, default=0.0, metavar="SHARE", help="Share of the weights that --pruning ends without."
)
@click.option(
    "--compile",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    help="Compile the SVI step; auto: if it pays.",
)
@click.option(
    "--nan-policy", type=click.Choice(["stop", "rewind"]), default="stop",
    help="When the loss is NaN or explodes: stop, or back to a checkpoint with half the rates, three times at most.",
)  # fmt: skip
@click.option("--deterministic", is_flag=True, help="Refuse CUDA operations that are not deterministic.")
@click.option("--seed", type=int, default=0, help="Seeds start, shuffling and sampling.")
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
    "--checkpoint-minutes",
    type=click.FloatRange(0),
    default=10.0,
    help="And whenever so many minutes have passed; 0: never.",
)
@click.option("--snapshots", is_flag=True, help="Store the pruned weights of the epochs, for the report's animation.")
@click.option("--log", type=click.Choice(LOGS), default=None, help="Watch the fit: scalars and histograms in RUN/LOG.")
def fit(
    out: Path | None, force: bool, download: bool, resume: Path | None, checkpoint_epochs: int,
    checkpoint_minutes: float, snapshots: bool, log: str | None, **options: Any,
) -> None:  # fmt: skip
    """Train a network and write its posterior to a run folder."""
    with one_line_errors():
        from pyro_compress.runs.config import never_shrinks
        from pyro_compress.runs.folder import unfinished_config
        from pyro_compress.runs.run import Keeping, ended_run, fit_run
        from pyro_compress.settings import FitConfig
        from pyro_compress.training.callbacks import Callback
        from pyro_compress.training.checkpoint import Interrupted
        from pyro_compress.training.history import read_history
        from pyro_compress.training.settled import unsettled
        from pyro_compress.world import joined

        announce_option(click.get_current_context())
        announce_option(click.get_current_context(), "prior")
        options["prior_options"] = dict(options["prior_options"])
        keeping = Keeping(checkpoint_epochs, checkpoint_minutes, resume is not None, snapshots, log or "")
        with joined(options["device"]) as world:
            run = ended_run(resume, force, world) if resume else None
            config = run.config if run else unfinished_config(resume, world) if resume else FitConfig(**options)
            if resume and not run:
                announce_code({"net": config.net, "prior": config.prior}, f"{resume}, an unfinished fit,")
            where = resume or out or Path("runs") / default_name(config.data, config.net, config.prior, config.seed)
            try:
                with epoch_printer() if world.first else nullcontext(Callback()) as shown:
                    run = run or fit_run(config, where, force, download, shown.on_epoch, keeping, world)
            except Interrupted:
                if world.first:
                    again = f"{where} --force" if force else f"{where}"
                    echo(f"stopped, state kept; go on with: pyro-compress fit --resume {again}", err=True)
                raise click.exceptions.Exit(130) from None
    if world.first:
        echo(f"{run.path}: posterior of {config.net} on {config.data}; next: pyro-compress compress {run.path}")
        keep(unsettled(read_history(run.path), config.kl_weight))
        keep(never_shrinks(run.config))


def default_name(data: str, net: str, prior: str, seed: int) -> str:
    """Name of a run folder; a compressed file counts by its own name."""
    network = Path(net).stem if net.endswith(".pcn") else net.replace(":", ".")
    return file_name(f"{Path(data).stem}-{network}-{prior.replace(':', '.')}-{seed}", "the run folder's default name")
