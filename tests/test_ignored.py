"""An option that is given and would be ignored is an error of one line, on every command."""

import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from test_readme import commands

from pyro_compress.bayes.layers import check_keep
from pyro_compress.cli.ignored import StrictCommand, refuse_ignored
from pyro_compress.cli.main import main
from pyro_compress.data.table_files import SUFFIXES
from pyro_compress.networks.nets import build_net

REFUSED = [
    ("fit --resume run --epochs 30", "--epochs cannot change with --resume: the run's own configuration counts"),
    ("fit --resume run --out other --seed 3", "--seed, --out cannot change with --resume"),
    ("fit --prior none --prior-option tau0=1", "--prior-option goes with a prior; with --prior none leave it out"),
    ("fit --prior none --kl-weight 0.1 --samples 3", "--kl-weight, --samples goes with a prior"),
    ("fit --prior none --compile on", "--compile goes with a prior"),
    ("fit --prior none --clip-norm 1", "--clip-norm goes with a prior"),
    ("fit --prior none --keep 5", "--keep goes with a prior"),
    ("fit --prior none --momentum 0.5", "--momentum goes with --prior none --optimizer sgd"),
    ("fit --momentum 0.5", "--momentum goes with --prior none --optimizer sgd"),
    ("fit --natural-lr 0.1 --natural-beta1 0.5", "--natural-lr, --natural-beta1 goes with --optimizer natural"),
    ("fit --net lenet-300-100 --hidden 20", "--hidden goes with --net mlp"),
    ("fit --init w.pt --init-range 0.1", "--init-range goes without --init"),
    ("fit --data table.csv --download", "--download goes with a data set by name: digits"),
    ("fit --data mine.npz --data-dir data", "--data-dir goes with a data set by name: digits"),
    ("fit --data mine.npz --workers 3", "--workers goes with a folder as --data"),
    ("fit --in-memory-mib 9", "--in-memory-mib goes with a folder as --data"),
    ("fit --prior log-uniform --lr-group 0.1", "--lr-group goes with a prior that has more than raw weights"),
    ("fit --data digits --image-size 32", "--image-size goes with a folder of images"),
    ("fit --data digits --series", "--series goes with arrays of your own"),
    ("compress run --net mlp", "--net stands for a network that is no run: leave RUN or it out"),
    ("compress run --hidden 500,500", "--hidden goes with --net, without a run folder"),
    ("compress run --seed 0", "--seed goes with --net, without a run folder"),
    ("compress run --posterior laplace --validation 0.2", "--validation, --posterior goes with --net"),
    ("compress --net lenet-300-100 --init w.pt --data digits --hidden 20", "--hidden goes with --net mlp"),
    ("compress --net mlp --init w.pt --data a.csv --data-dir data", "--data-dir goes with a data set by name: digits"),
    ("compress --net mlp --init w.pt --data digits --workers 3", "--workers goes with a folder as --data"),
    ("compress run --rounding compensated --bits 4 --criterion snr", "--criterion, --bits goes without --rounding"),
    ("compress run --rounding smallest --sparsity 0.9", "--sparsity goes without --rounding smallest"),
    ("compress run --rounding nearest --repair 3", "--repair goes with --rounding compensated or smallest"),
    (
        "compress --net mlp --init w.pt --data digits --repair 3 --finetune 4",
        "--repair goes with --rounding compensated",
    ),
    ("compress run --target-error 0.1 --tolerance 0.1", "--tolerance and --target-error exclude each other"),
    (
        "compress run --max-bytes 9000 --nll-tolerance 0.1 --tolerance 0.1",
        "--tolerance, --nll-tolerance and --max-bytes exclude each other",
    ),
    ("compress run --finetune 3 --temperature 2", "--temperature goes with --teacher RUN"),
    *(
        (f"evaluate run --data mine{suffix} --split train", "--split goes without a file as --data")
        for suffix in (".npz", *SUFFIXES)
    ),
    ("predict run digits --force", "--force goes with --csv: nothing else is written"),
    ("predict run photos --data-dir data", "--data-dir goes with a data set by name as DATA"),
    ("inspect run run --restarts --rows 9 --netcdf n.nc", "--rows, --netcdf goes without --restarts"),
    ("inspect run --force", "--force goes with --netcdf"),
    ("report results --draws 100", "--draws goes with a run; this folder holds the results of compare"),
    ("inspect run --rows 9 --all-rows", "--rows goes without --all-rows"),
    ("export file.pcn -o model.onnx --int8 --int8-dynamic", "--int8 and --int8-dynamic exclude each other"),
    ("export file.pcn -o model.onnx --seed 3", "--seed goes with --ensemble K"),
    ("compare study.toml --table --jobs 2", "--jobs goes without --table"),
    ("compare study.toml --rows --jobs 2", "--jobs goes without --rows, --row and --submit: who starts"),
    (
        "compare study.toml --row 12ab --elpd",
        "--elpd goes without --rows, --row and --submit: give it to",
    ),
    ("compare study.toml --rows --row 12ab", "--row and --rows exclude each other"),
    ("compare study.toml --rows --json", "--json goes without --rows and --submit"),
    ("compare study.toml --submit --jobs 2", "--jobs goes without --rows, --row and --submit"),
    ("compare study.toml --slurm partition=gpu", "--slurm goes with --submit"),
    ("tune study.toml --slurm partition=gpu", "--slurm goes with --submit"),
    ("tune study.toml --worker --submit", "--submit and --worker exclude each other"),
    ("tune study.toml --submit --json", "--json goes without --submit: give it to tune --resume"),
    ("compare study.toml --table --rows", "--rows goes without --table"),
    ("compare study.toml --markdown --json", "--markdown and --json exclude each other"),
    ("tune study.toml --worker --json", "--json goes without --worker"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED, ids=[command for command, _ in REFUSED])
def test_an_option_that_would_be_ignored_is_refused(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "results"):
        Path(folder).mkdir()
    for name in ("file.pcn", "study.toml", "results/study.json"):
        Path(name).write_text("")
    result = CliRunner().invoke(main, shlex.split(command))
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [one for one in commands() if one.startswith("pyro-compress ")])
def test_no_command_of_the_docs_is_refused(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    _, name, *arguments = shlex.split(command)
    known = main.commands[name]
    if isinstance(known, StrictCommand):
        refuse_ignored(known.make_context(name, arguments, resilient_parsing=True), known.ignored)


@pytest.mark.parametrize("command", ["compress run --repair 3", "fit --prior soft-weight-sharing --lr-group 0.01"])
def test_an_option_that_the_default_way_or_prior_has_is_taken(command: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    name, *arguments = shlex.split(command.replace(" run", f" {tmp_path / 'run'}"))
    known = main.commands[name]
    refuse_ignored(known.make_context(name, arguments, resilient_parsing=True), known.ignored)  # type: ignore[attr-defined]


@pytest.mark.parametrize("arguments", ["--grace 90", "--grace 90 --worker", "--grace 90 --storage url"])
def test_an_option_that_counts_is_not_refused(arguments: str) -> None:
    """Whoever keeps silent is given up after --grace, with a journal as with a data base."""
    context = main.commands["tune"].make_context("tune", ["study", *arguments.split()], resilient_parsing=True)
    refuse_ignored(context, main.commands["tune"].ignored)  # type: ignore[attr-defined]


def test_rows_name_parameters_that_there_are() -> None:
    for command in main.commands.values():
        assert isinstance(command, click.Command)
        names = {parameter.name for parameter in command.params}
        for row in getattr(command, "ignored", ()):
            assert set(row.names) <= names


def test_values_of_a_file_are_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's own config.toml holds every option, whatever its prior."""
    (tmp_path / "c.toml").write_text('[fit]\nprior = "none"\nmomentum = 0.5\nkl_weight = 1.0\nnet = "no.such:net"\n')
    result = CliRunner().invoke(main, ["fit", "--config", str(tmp_path / "c.toml"), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "goes with" not in result.stderr


@pytest.mark.parametrize(("keep", "refused"), [("haed*", True), ("5", False), ("[13]", False), ("1.weight", True)])
def test_a_pattern_that_matches_no_layer_is_refused(keep: str, refused: bool) -> None:
    net = build_net("mlp", (1, 8, 8), 10, (20, 12))
    if not refused:
        check_keep(net, (keep,))
        return
    with pytest.raises(ValueError, match=r"matches no layer; the layers are 1, 3, 5"):
        check_keep(net, (keep,))
