"""Every setting stands once: what is made of it, and a setting that only this test knows."""

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click
import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner

import pyro_compress as pc
from pyro_compress.cli.commands import Command
from pyro_compress.cli.main import main
from pyro_compress.cli.options import given, setting_options
from pyro_compress.compression.pipeline import compress_run
from pyro_compress.runs.identity import config_hash
from pyro_compress.settings import CompressConfig, DataConfig, FineTune, FitConfig, Goal, PosteriorConfig
from pyro_compress.settings.declared import Config, built, declared, flat, having, options_in, setting
from pyro_compress.settings.page import page

ROOT = Path(__file__).parents[1]
ALL = [(of, row) for of in (FitConfig, CompressConfig) for row in declared(of).values()]
IDS = [f"{of.__name__}.{row.name}" for of, row in ALL]


@pytest.mark.parametrize(("of", "row"), ALL, ids=IDS)
def test_a_setting_is_an_option_of_its_command(of: type[Config], row) -> None:
    command = main.commands["fit" if of is FitConfig else "compress"]
    (option,) = [param for param in command.params if param.name == row.name]
    assert row.option in option.opts
    assert option.help
    if not option.multiple and row.setting.kind != "switch":  # what click makes of the default is the default
        shown = option.type_cast_value(click.Context(command), option.default)
        assert (shown or row.default or None) == (row.default or None)


def test_the_page_is_what_the_declarations_say() -> None:
    assert (ROOT / "docs/settings.md").read_text() == page(), "python -m pyro_compress.settings.page > docs/settings.md"


REFUSED = [
    ({"epochs": 0}, "epochs 0: it must be positive"),
    ({"epochs": 1 << 30}, "epochs 1073741824: at most 16777216"),
    ({"epochs": 2.5}, "epochs 2.5: give a whole number"),
    ({"epochs": True}, "epochs True: give a whole number"),
    ({"lr": float("nan")}, "lr nan: it must be finite"),
    ({"lr": float("inf")}, "lr inf: it must be"),
    ({"lr": "fast"}, "lr 'fast': give a number"),
    ({"hidden": [10, -1]}, "hidden -1: it must be positive"),
    ({"hidden": []}, r"hidden \(\): give a width"),
    ({"momentum": 1.0}, "momentum 1.0: allowed are values from 0 and below 1"),
    ({"validation": 0.0}, "validation 0.0: allowed are values above 0 and below 1"),
    ({"context": 1}, "context 1: allowed are values from 2"),
    ({"augment": "shfit"}, "unknown augment 'shfit'; allowed: none, shift, crop-flip, affine; did you mean shift?"),
    ({"task": "regresion"}, "did you mean regression?"),
    ({"estimator": "lokal"}, "unknown estimator 'lokal'; allowed: weight, local, flipout; did you mean local?"),
    ({"prior_options": {"tau0": "a"}}, "prior_options .*: give a table, each value a number"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[str(values) for values, _ in REFUSED])
def test_one_check_for_python_files_and_the_command_line(values: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        FitConfig(**values)
    (name, value) = next(iter(values.items()))
    path = tmp_path / "c.toml"
    path.write_text(tomli_w.dumps(values))
    told = CliRunner().invoke(main, ["fit", "--config", str(path), "--out", str(tmp_path / "run")])
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1
    assert "c.toml" in told.stderr or name == "hidden"
    if name != "hidden":
        assert re.search(message, told.stderr) or value != value  # a file's not-a-number is no number
    if isinstance(value, int | float) and not isinstance(value, bool) and value != 2.5:
        said = CliRunner().invoke(main, ["fit", f"--{name.replace('_', '-')}", str(value)])
        assert re.search(message, said.stderr)


def test_names_that_were_meant() -> None:
    with pytest.raises(TypeError, match=r"FitConfig: unknown setting .epoch.; .*did you mean epochs\?"):
        FitConfig(epoch=3)  # type: ignore[call-arg]
    for asked, meant in (
        (lambda: options_in({"kl-wieght": 1.0}, FitConfig, "c.toml"), "c.toml: .*did you mean kl_weight"),
        (lambda: pc.build_net("lenet-300", (1, 8, 8), 10), "did you mean lenet-300-100"),
        (lambda: pc.load_splits("mnits"), "did you mean mnist"),
        (lambda: pc.resolve(FitConfig(prior="horsehoe", device="cpu"), 100), "did you mean horseshoe"),
        (lambda: Goal(criterion="srn"), "did you mean snr"),
        (lambda: CompressConfig.of({"tolerence": 1}), "^unknown setting 'tolerence'; did you mean tolerance.$"),
    ):
        with pytest.raises(ValueError, match=meant):
            asked()
    assert "Did you mean" in CliRunner().invoke(main, ["fit", "--epoch", "3"]).stderr
    assert "Did you mean" in CliRunner().invoke(main, ["comprss"]).stderr


def test_values_as_people_have_them() -> None:
    config = FitConfig(hidden=[20, 10], lr=np.float64(0.1), epochs=np.int64(3), data=Path("a") / "b", keep=[Path("c")])
    assert config == FitConfig(hidden=(20, 10), lr=0.1, epochs=3, data="a/b", keep=("c",))
    assert config.part(DataConfig) == DataConfig(data="a/b")
    assert CompressConfig(lam=0.1, bits=np.int64(4)) == CompressConfig(lam=(0.1,), bits=(4,))
    assert options_in({"hidden": 8}, FitConfig, "c.toml") == {"hidden": (8,)}
    for wrong, told in (
        ({"bits": 4.5}, "bits 4.5: give a whole number, or a list of such"),
        ({"bits": True}, "bits True: give a whole number"),
        ({"bits": 1}, "bits 1: allowed are"),
    ):
        with pytest.raises(ValueError, match=told):
            CompressConfig(**wrong)
    assert asdict(config)["hidden"] == (20, 10)


def test_a_compression_has_flat_names_and_parts() -> None:
    config = CompressConfig.of(
        {"finetune": 3, "finetune_lr": 1e-4, "finetune_lambda": 2.0, "sparsity": {"1.weight": 0.5}}
    )
    assert config == CompressConfig(
        finetuning=FineTune(epochs=3, lr=1e-4), finetune_lambda=2.0, sparsity={"1.weight": 0.5}
    )
    assert built(CompressConfig, flat(config)) == config
    assert set(flat(CompressConfig())) == {"tolerance", "rule"}
    for options, message in (
        ({"finetune_lr": 1e-4}, "--finetune-lr goes with --finetune EPOCHS"),
        ({"finetune_lambda": 1.0}, "go with --finetune"),
        ({"sparsity": 0.5, "max_bytes": 9}, "--sparsity and --max-bytes exclude each other"),
        ({"finetune": 1, "bits": (4,)}, "--bits and --lambda go without --finetune"),
    ):
        with pytest.raises(ValueError, match=message):
            CompressConfig.of(options)


def test_a_fits_parts_are_disjoint_and_whole() -> None:
    names = [one.name for part in FitConfig.__bases__ for one in fields(part)]
    assert sorted([*names, "deterministic"]) == sorted(one.name for one in fields(FitConfig))
    assert "kl_weight" in having(PosteriorConfig)


# --- a setting that only this test knows: a field, and nothing else


@dataclass(frozen=True)
class Mine(FitConfig):
    """A fit with one more setting."""

    sharpness: float = setting(0.5, "How sharp it is.", least=0, below=1, unit="SHARE", group="Training", former="edge")


@click.command(cls=Command)
@setting_options(Mine)
def mine(**options: object) -> None:
    """Print what was given."""
    click.echo(repr(Mine(**given(click.get_current_context(), Mine)).sharpness))


def test_a_new_setting_needs_its_field_alone() -> None:
    asked = CliRunner().invoke(mine, ["--sharpness", "0.75", "--epochs", "3"])
    assert asked.stdout == "0.75\n"
    assert CliRunner().invoke(mine, ["--sharpness", "1"]).stderr == (
        "Error: sharpness 1.0: allowed are values from 0 and below 1\n"
    )
    told = CliRunner().invoke(mine, ["--help"], terminal_width=200).stdout
    section = told.partition("Training:")[2].partition("\n\n")[0]
    assert re.search(r"--sharpness SHARE +How sharp it is\. +\[default: 0\.5; 0<=x<1\]", section)
    assert options_in({"sharpness": 0.25}, Mine, "c.toml") == {"sharpness": 0.25}
    with pytest.raises(ValueError, match=r"c\.toml: sharpness -1: allowed"):
        options_in({"sharpness": -1}, Mine, "c.toml")
    with pytest.raises(ValueError, match=r"c\.toml: unknown option 'sharpnes'; .*did you mean sharpness"):
        options_in({"sharpnes": 0.5}, Mine, "c.toml")
    assert config_hash(Mine(sharpness=0.25)) != config_hash(Mine())
    assert "sharpness" in having(Mine, searched=True)
    assert "| `sharpness` | number, `0<=x<1` | `0.5` | How sharp it is. |" in page(fit=Mine)


def test_an_earlier_name_is_understood_and_shown_nowhere() -> None:
    for words in (["--edge", "0.75"], ["--edge=0.75"], ["--epochs", "3", "--edge", "0.25", "--edge", "0.75"]):
        assert CliRunner().invoke(mine, words).stdout == "0.75\n"
    assert "edge" not in CliRunner().invoke(mine, ["--help"]).stdout + page(fit=Mine)
    both = CliRunner().invoke(mine, ["--sharpness", "0.5", "--edge=0.75"])
    assert (both.exit_code, both.stderr) == (1, "Error: --edge and --sharpness are one option: give --sharpness\n")
    assert options_in({"edge": 0.25}, Mine, "c.toml") == built_of(edge=0.25) == {"sharpness": 0.25}
    with pytest.raises(ValueError, match=r"^c\.toml: sharpness and edge are one setting: sharpness$"):
        options_in({"sharpness": 0.5, "edge": 0.25}, Mine, "c.toml")
    with pytest.raises(TypeError, match=r"Mine: 'edge' is called 'sharpness'$"):
        Mine(edge=0.25)  # type: ignore[call-arg]


def built_of(**options: float) -> dict[str, float]:
    return {"sharpness": built(Mine, options).sharpness}


def test_earlier_names_of_a_compression(fitted_run, tmp_path: Path) -> None:
    """On the command line, in a file and in Python: the same bytes."""
    given = {"sparsity": 0.8, "relative_step": 0.5, "lambda": [0.1], "reorder": 0}
    former = {"relative_step": "coarseness", "lambda": "bit-price"}
    found = set[bytes]()
    for index, names in enumerate(({}, former)):
        told = {names.get(name, name.replace("_", "-")): value for name, value in given.items()}
        words = [word for n, v in told.items() for word in (f"--{n}", str(v[0] if isinstance(v, list) else v))]
        (tmp_path / "c.toml").write_text(tomli_w.dumps({"compress": told}))
        for ask in (words, ["--config", str(tmp_path / "c.toml")]):
            out = tmp_path / f"{index}.pcn"
            done = CliRunner().invoke(main, ["compress", str(fitted_run.path), "--out", str(out), "--force", *ask])
            assert done.exit_code == 0, done.output
            found.add(out.read_bytes())
    assert len(found) == 1
    config = CompressConfig(sparsity=0.8, relative_step=0.5, lam=(0.1,), reorder=0)
    assert CompressConfig.of({"sparsity": 0.8, "coarseness": 0.5, "bit_price": (0.1,), "reorder": 0}) == config
    assert CompressConfig.of({"finetune": 1, "rate": 2.0}).finetune_lambda == 2.0


def test_a_compress_config_says_how(fitted_run, digits, tmp_path: Path) -> None:
    """Whoever takes a goal does all of what a configuration asks for, or refuses it."""
    posterior, config = fitted_run.posterior, CompressConfig(sparsity=0.5, bits=(4,), reorder=0)
    coarse, _ = pc.compress(posterior, digits, config)
    assert {abs(one.codes).max() <= 7 for name, one in coarse.tensors.items() if "weight" in name} == {True}
    report = compress_run(posterior, digits, tmp_path / "a.pcn", config)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    tuned = CompressConfig(sparsity=0.5, finetuning=FineTune(epochs=1, masked_epochs=0), finetune_lambda=1.0, reorder=0)
    with pytest.raises(ValueError, match="fine-tuning and compensation go another way"):
        pc.compress(posterior, digits, tuned)
    assert compress_run(posterior, digits, tmp_path / "b.pcn", tuned).finetuned.epochs == 1


# --- what would be done


SMALL = ["--hidden", "8", "--epochs", "3", "--device", "cpu", "--threads", "1", "--limit", "200"]


@pytest.mark.parametrize("prior", ["log-uniform", "none"])
def test_a_configuration_is_printed_as_it_is_read(prior: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(main, ["fit", *SMALL, "--prior", prior, "--print-config"])
    (tmp_path / "c.toml").write_text(first.stdout)
    again = CliRunner().invoke(main, ["fit", "--config", "c.toml", "--print-config"])
    assert first.stdout == again.stdout != ""
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


def test_a_compression_is_printed_as_it_is_read(fitted_run, tmp_path: Path) -> None:
    run, path = str(fitted_run.path), tmp_path / "c.toml"
    for options in ([], ["--finetune", "3", "--finetune-lr", "0.001"], ["--rounding", "compensated"]):
        first = CliRunner().invoke(main, ["compress", run, *options, "--print-config"])
        path.write_text(first.stdout)
        again = CliRunner().invoke(main, ["compress", run, "--config", str(path), "--print-config"])
        assert first.stdout == again.stdout != ""


@pytest.mark.parametrize("prior", ["log-uniform", "none"])
def test_a_dry_run_tells_and_writes_nothing(prior: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["fit", *SMALL, "--prior", prior, "--dry-run"])
    assert done.exit_code == 0
    phases = "3 point" if prior == "none" else r"\d point and \d svi"
    assert re.search(rf"steps: 3 epochs \({phases}\) of 4 steps of 64 examples, 12 in all", done.stdout)
    assert re.search(r"memory: about 0\.\d+ GiB .*\ntime: \S+ s an epoch .*\nnothing was written\n$", done.stdout)
    assert "610 parameters" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_what_the_fit_would(fitted_run) -> None:
    done = CliRunner().invoke(main, ["fit", *SMALL, "--dry-run", "--out", str(fitted_run.path)])
    assert done.exit_code == 1
    assert "is not empty" in done.stderr


def test_numbers_per_channel() -> None:
    done = CliRunner().invoke(main, ["fit", *SMALL, "--input-mean", "0.1307,0.2", "--dry-run"])
    assert "give one number, or one per channel (1)" in done.stderr
