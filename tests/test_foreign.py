"""What comes from elsewhere: TOML, JSON, run folders and results of other people; names that act; code in studies."""

import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save
from stored import stored, stored_posterior
from torch import Tensor, nn

from pyro_compress.bayes.extract import extract
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.marginals import read_marginals, write_marginals
from pyro_compress.cli.commands import echo
from pyro_compress.cli.main import main
from pyro_compress.deploy.arrays import load_runner
from pyro_compress.foreign import cell, code_named_in, fits, from_cell, printable, read_toml, record, toml
from pyro_compress.networks.weights import read_weights
from pyro_compress.runs.config import resolve
from pyro_compress.runs.folder import load_run, stored_config, unfinished
from pyro_compress.runs.posterior_file import read_posterior
from pyro_compress.runs.run import fit_run
from pyro_compress.settings import FitConfig
from pyro_compress.settings.fit import CheckpointConfig
from pyro_compress.studies.plan import read_study
from pyro_compress.studies.results import csv_text, read_results
from pyro_compress.studies.tables import Row, read_csv
from pyro_compress.training.checkpoint import Checkpointer, Interrupted
from pyro_compress.training.history import read_history
from pyro_compress.tuning.plan import read_plan
from pyro_compress.types import Data, Removal, Splits

ROW = Row("digits", "mlp", "SGD", "", 0.5, 0, 0.9, 0.3, 0.01, 2.0, "0123456789ab")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_line(result: Result) -> str:
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2 or result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("value", "hint", "good"),
    [
        (1, int, True), (True, int, False), (1.0, int, False), (1 << 63, int, False), ("1", int, False),
        (1, float, True), (1.5, float, True), (float("nan"), float, False), (float("inf"), float, True),
        (10**400, float, False), (True, float, False), (None, float | None, True), ("", float | None, False),
        ("a", str, True), ("a\x1b[2J", str, False), ("a\n", str, False), ("a\ud800", str, False),
        ("a\u202e", str, False),
        ("Zoë 漢字 \u200d", str, True), ([1, 2], tuple[int, ...], True), ([1, "a"], tuple[int, ...], False),
        (1, tuple[int, ...], False), ({"a": 1}, dict[str, float], True), ({"a": "b"}, dict[str, float], False),
        ({1: 1.0}, dict[str, float], False), ([], dict[str, float], False), (True, bool, True), (1, bool, False),
    ],
)  # fmt: skip
def test_types(value: Any, hint: Any, good: bool) -> None:
    assert fits(value, hint) is good


@pytest.mark.parametrize(
    "data",
    [b"a = [" * 5000, b"a = " + b"[" * 5000, b"\xff", b"a = " + b"1" * 5000, b"a", b"a = 1979-02-30", b"#" * (1 << 21)],
    ids=range(7),
)
def test_toml_is_none(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^a\.toml (is no valid TOML|holds more than)"):
        toml(data, "a.toml")
    (tmp_path / "a.toml").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.toml"):
        read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize("name", [field.name for field in fields(FitConfig)])
def test_every_option_of_a_run_has_its_type(name: str, tmp_path: Path) -> None:
    """No value of a wrong kind gets through for any field, whether in a run folder or as --config."""
    good, refused = getattr(FitConfig(), name), 0
    for value in (True, -1, 1.5, "\x1b[2J", [[1]], {"a": {"b": 1}}, [{"a": 1}]):
        number = isinstance(value, int | float)
        if type(value) is type(good) or (number and (good is None or isinstance(good, float))):
            continue
        if number and value is not True and isinstance(good, tuple):  # a list of one
            continue
        path = tmp_path / "config.toml"
        path.write_text(tomli_w.dumps({"fit": {name: value}}))
        with pytest.raises(ValueError, match=f"{name} .*: (give|it must|allowed|widths)"):
            stored_config(path)
        assert name in one_line(invoke("fit", "--config", path, "--out", tmp_path / "out"))
        refused += 1
    assert refused >= 3


STUDY: dict[str, Any] = {
    "name": "small", "datasets": ["digits"], "networks": ["mlp"], "sparsities": [0.5], "seeds": [0],
    "fit": {"epochs": 1, "hidden": [4]}, "methods": [{"name": "SGD", "prior": "none"}],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../elsewhere"}, {"name": "/elsewhere"}, {"name": "a\x1b[2J"}, {"name": ""}, {"name": "-x"},
        {"name": 3},
        {"seeds": ["a"]}, {"seeds": [1.5]}, {"seeds": [True]}, {"datasets": [1]}, {"networks": [["mlp"]]},
        {"sparsities": ["a"]}, {"methods": ["SGD"]}, {"methods": [{"name": 1}]}, {"methods": [{"name": "a\nb"}]},
        {"methods": [{"name": "a", "choose": {"lr": ["b"]}}]}, {"methods": [{"name": "a", "epochs": "b"}]},
        {"methods": [{"name": "a", "choose": ["lr"]}]}, {"fit": {"hidden": "4"}}, {"fit": ["epochs"]},
        {"out-of-domain": ["digits"]}, {"choose-by": 3}, {"seeds": list(range(2000)), "datasets": ["digits"] * 2000},
    ],
    ids=str,
)  # fmt: skip
def test_studies_of_others(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(STUDY))
    assert read_study(path).name == "small"
    path.write_text(tomli_w.dumps(STUDY | change))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_study(path)


SEARCH: dict[str, Any] = {"trials": 1, "fit": {"data": "digits", "prior": "none", "hidden": [4], "epochs": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../elsewhere"}, {"name": "a/b"}, {"trials": True}, {"trials": 1 << 70}, {"bound": "a"},
        {"minutes": "a"},
        {"fidelities": "3"}, {"fidelities": [True]}, {"fidelities": [1 << 40]}, {"layer-wise": "yes"}, {"seed": 1.5},
        {"space": []}, {"space": {"fit": 3}}, {"space": {"fit": {"lr": ["a"]}}}, {"space": {"fit": {"hidden": [[4]]}}},
        {"space": {"compress": {"kept": {"low": True, "high": 1}}}}, {"compress": {"sparsity": "a"}},
        {"compress": {"criterion": 3}}, {"reference": [{"name": "a"}]}, {"sampler": 3}, {"objective": []},
        {"reference": [{"name": "a", "error": "b", "bytes": 1}]}, {"fit": {"epochs": "a"}},
        {"space": {"compress": {"kept": {"low": 0.1, "high": float("inf")}}}},
    ],
    ids=str,
)  # fmt: skip
def test_searches_of_others(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text(tomli_w.dumps(SEARCH | change))
    with pytest.raises(ValueError, match=r".+"):
        read_plan(path)


def test_a_compress_table_says_neither_where_to_write_nor_anything_of_a_wrong_kind(tmp_path: Path) -> None:
    path = tmp_path / "best.toml"
    for table, told in (
        ({"curve": "elsewhere.csv"}, "unknown option 'curve'"),
        ({"folder": "elsewhere"}, "unknown option 'folder'"),
        ({"no_code": False}, "unknown option 'no_code'"),
        ({"tolerance": [0.1]}, "tolerance"),
        ({"finetune_svi": [1]}, "finetune_svi"),
        ({"lambda": "0.5"}, "lambda"),
        ({"sparsity": ["\x1b"]}, "sparsity"),
    ):
        path.write_text(tomli_w.dumps({"compress": table}))
        assert told in one_line(invoke("compress", "--config", path))


def test_records() -> None:
    told = {"epoch": 1, "widths_before": [2], "widths_after": [1], "parameters_before": 2, "parameters_after": 1}
    assert record(Removal, told, "here") == Removal(1, [2], [1], 2, 1)
    for change in ({"epoch": "a"}, {"more": 1}, {"widths_before": 3}):
        with pytest.raises(ValueError, match=r"^here: "):
            record(Removal, told | change, "here")
    with pytest.raises(ValueError, match="missing 'epoch'"):
        record(Removal, {name: told[name] for name in told if name != "epoch"}, "here")


@pytest.mark.parametrize(
    "line", ["3", "[]", '{"epoch": "a"}', '{"seconds": []}', "{", "[" * 5000, '{"phase": "\\u001b"}']
)
def test_a_history_of_others(line: str, tmp_path: Path) -> None:
    assert read_history(tmp_path) == ()
    (tmp_path / "history.jsonl").write_text('{"epoch": 1, "validation_nll_nats": NaN, "of_later": 1}\n' + line)
    with pytest.raises(ValueError, match=r"history\.jsonl:2"):
        read_history(tmp_path)
    (tmp_path / "history.jsonl").write_text('{"epoch": 1, "validation_nll_nats": NaN, "of_later": 1}\n')
    assert read_history(tmp_path)[0]["epoch"] == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two layers and four examples, without a command."""
    folder = tmp_path_factory.mktemp("foreign") / "run"
    folder.mkdir()
    data = Data(torch.randn(20, 4), torch.arange(20) % 2)
    splits = Splits(data, data, data, ("a", "b"))
    config = resolve(FitConfig(prior="horseshoe", epochs=1, pretrain_epochs=0, batch_size=10, device="cpu"), 20)
    fit = fit_posterior(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), splits, config)
    (folder / "guide.safetensors").write_bytes(stored(write_marginals, fit.model.net, fit.guide))
    (folder / "posterior.safetensors").write_bytes(stored_posterior(extract(fit)))
    (folder / "config.toml").write_text(tomli_w.dumps({"fit": {"prior": "horseshoe", "device": "cpu"}}))
    return folder


def altered(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None], out: Path) -> Path:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["pyro_compress"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(told, tensors)
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    out.write_bytes(save(kept, {"pyro_compress": json.dumps(told)}))
    return out


def _cyclic(told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    told["graph"]["nodes"][1]["inputs"] = [2]


def _put(value: Any, *path: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        for key in path[:-1]:
            told = told[key]
        told[path[-1]] = value

    return change


def _tensor(name: str, new: Callable[[Tensor], Tensor | None]) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if (found := new(tensors.pop(name))) is not None:
            tensors[name] = found

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cyclic, "may read nodes before it only"),
        (_put([], "graph", "nodes"), "first node must be the input"),
        (_put(3, "graph"), "graph: 3: give a table"),
        (_put("a", "graph", "input_shape"), "input_shape 'a'"),
        (_put({"0.weight": 3}, "layers"), "layers"),
        (_put({"0.weight": "all"}, "layers"), "with grouping 'all'"),
        (_put({"absent": "input"}, "layers"), "absent has no mean"),
        (_put([1], "provenance"), "the metadata are list"),
        (_put("translation", "provenance", "task"), "task is 'translation'"),
        (_put(-1.0, "provenance", "noise"), "noise is -1.0"),
        (_put([{}], "removals"), "removals"),
        (_put("f.forward", "graph", "nodes", 1, "parameters", "weight"), "does not hold"),
        (_put(1 << 40, "graph", "input_shape", 0), "input|values"),
        (_put("tangent", "graph", "nodes", 2, "op"), "unknown operation 'tangent'"),
        (_put({"slope": 1}, "graph", "nodes", 2, "attributes"), "no such operation has the attribute 'slope'"),
        (_tensor("dense/0.bias", lambda t: torch.zeros(7)), "a bias of shape"),
        (_put("absent", "graph", "nodes", 1, "parameters", "weight"), "does not hold: 'absent'"),
        (_tensor("mean/0.weight", lambda t: None), "has no mean"),
        (_tensor("mean/0.weight", lambda t: t * float("nan")), "not finite"),
        (_tensor("dense/0.bias", lambda t: t * float("inf")), "not finite"),
        (_tensor("std/0.weight", lambda t: -t), "is negative"),
        (_tensor("std/0.weight", lambda t: t[:1]), "it must be"),
        (_tensor("mean/0.weight", lambda t: t.double()), "float64"),
        (_tensor("unit_mean/0.weight", lambda t: None), "without the other"),
        (_tensor("unit_std/0.weight", lambda t: t.T), "it must be"),
        (_tensor("dense/0.bias", lambda t: t[:0]), "float32 is wanted"),
    ],
)
def test_a_posterior_of_others(change: Callable[..., None], message: str, run: Path, tmp_path: Path) -> None:
    path = altered(run / "posterior.safetensors", change, tmp_path / "posterior.safetensors")
    with pytest.raises(ValueError, match=f"is no posterior of this program: .*{message}"):
        read_posterior(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put({}, "shapes"), "is missing, or none of the prior's"),
        (_put(3, "shapes"), "shapes 3"),
        (_put([[3, 4]], "shapes", "0.weight"), "no tensor of the network"),
        (_put([[30, 40], "input"], "shapes", "0.weight"), "no tensor of the network"),
        (_put([[3, 4], "all"], "shapes", "0.weight"), "grouping 'all'"),
        (_put("Cauchy", "families", "0.weight.raw"), "family 'Cauchy'"),
        (_put("Normal", "families", "0.weight.more"), "needs a loc and a scale"),
        (_tensor("loc/0.weight.raw", lambda t: None), "needs a loc and a scale"),
        (_tensor("loc/0.weight.raw", lambda t: t * float("nan")), "not finite"),
        (_tensor("scale/0.weight.raw", lambda t: t * 0), "is not positive"),
        (_tensor("scale/0.weight.raw", lambda t: t[:1]), "of one shape"),
    ],
)
def test_a_guide_of_others(change: Callable[..., None], message: str, run: Path, tmp_path: Path) -> None:
    path = altered(run / "guide.safetensors", change, tmp_path / "guide.safetensors")
    posterior = read_posterior(run / "posterior.safetensors")
    with pytest.raises(ValueError, match=f"holds no marginals of this program: .*{message}"):
        read_marginals(path, FitConfig(prior="horseshoe"), posterior)
    assert read_marginals(run / "guide.safetensors", FitConfig(prior="horseshoe"), posterior).sites
    with pytest.raises(ValueError, match="unknown prior 'none'"):
        read_marginals(run / "guide.safetensors", FitConfig(prior="none"), posterior)


def test_a_run_is_one_thing(run: Path, tmp_path: Path) -> None:
    assert load_run(run).posterior.layers
    for name in ("posterior.safetensors", "guide.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "config.toml").write_text('[fit]\ntask = "regression"\ndevice = "cpu"\n')
    with pytest.raises(ValueError, match=r"config\.toml says regression, its posterior classification"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"config_hash": "../../elsewhere"}, {"config_hash": ""}, {"sparsity": 2.0}, {"seed": "a"}, {"accuracy": None},
        {"method": "a\x1b[2J"}, {"more": 1}, {"ensemble": 3},
    ],
    ids=str,
)  # fmt: skip
def test_results_of_others(change: dict[str, Any], tmp_path: Path) -> None:
    document = {"runs": {"a": {"rows": [vars(ROW)], "versions": {}, "machine": {}}}, "failures": {}}
    (tmp_path / "study.json").write_text(json.dumps(document))
    assert read_results(tmp_path) == [ROW]
    document["runs"]["a"]["rows"] = [vars(ROW) | change]
    (tmp_path / "study.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="no results folder of compare"):
        read_results(tmp_path)


def test_cells_are_no_formulas() -> None:
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "''-x", "SGD", "", "'quoted'"):
        shown = cell(text)
        assert not re.match(r"[=+\-@\t\r]", shown)
        assert from_cell(shown) == text
    assert cell(-1.5) == -1.5
    row = Row(**(vars(ROW) | {"method": "=cmd|' /C calc'!A0", "variant": "-", "nll_nats": -0.5}))
    text = csv_text([row])
    assert "'=cmd" in text
    assert ",-0.5," in text
    assert read_csv(text) == [row]


def test_what_is_printed_does_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for letter in ("\x1b", "\x9b", "\x07", "\r", "\u202e", "\ud800", "\x00", "\u2028"):
        assert printable(letter) == letter.encode("unicode-escape").decode()
        echo(f"a{letter}b")
        echo(f"a{letter}b", err=True)
    assert printable("Zoë\t漢\n") == "Zoë\t漢\n"
    assert not re.search("[\x00\x07\x1b\r\x9b\u202e\ud800]", "".join(capsys.readouterr()))
    for arguments in (("evaluate", tmp_path / "\x1b[2Jabsent"), ("\x1b[2J",), ("fit", "--\x1b[2J"), ("export", "\x1b")):
        assert "\x1b" not in one_line(invoke(*arguments))
    (folder := tmp_path / "\x1b[2J").mkdir()
    assert "\x1b" not in one_line(invoke("compress", folder))


CODE = "from pathlib import Path\nPath('EXECUTED').touch()\ndef net():\n    raise ValueError('made')\n"


@pytest.mark.parametrize(
    ("command", "document"),
    [
        (["fit", "--out", "out", "--config"], {"net": "foreign_code:net"}),
        (["compress", "--out", "a.pcn", "--config"], {"compress": {
            "net": "foreign_code:net", "init": "a.pt", "data": "digits"}}),
        (["compare", "--out", "out"], STUDY | {"networks": ["mlp", "foreign_code:net"]}),
        (["tune", "--out", "out"], SEARCH | {"fit": SEARCH["fit"] | {"net": "foreign_code:net"}}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_code_is_named_before_it_is_imported_and_can_be_refused(
    command: list[str], document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_code", raising=False)
    Path("foreign_code.py").write_text(CODE)
    Path("a.toml").write_text(tomli_w.dumps(document))
    for refusing in (["--no-code"], []):
        told = invoke(command[0], *refusing, *command[1:], "a.toml", "--threads", "1").stderr.splitlines()[0]
        assert "foreign_code:net" in told
        assert "--no-code refuses it" in told
        assert ("is now imported" in told) is not bool(refusing)
        assert Path("EXECUTED").exists() is not bool(refusing)
    assert not os.environ.get("PYRO_COMPRESS_NO_CODE")


def test_code_on_the_command_line_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "refuses" in one_line(invoke("fit", "--net", "foreign_code:net", "--no-code", "--out", "out"))
    monkeypatch.setenv("PYRO_COMPRESS_NO_CODE", "1")
    assert "refuses" in one_line(invoke("fit", "--net", "foreign_code:net", "--out", "out"))


def test_names_of_code() -> None:
    document = {
        "networks": ["mlp", "a:b", "torchvision:resnet18", "c:d.pcn"],
        "fit": {"net": "e:f"},
        "x": [{"net": "a:b"}],
    }
    assert code_named_in(document) == ["a:b", "e:f"]


def test_weights_take_no_more_memory_than_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1 << 20)}, path)
    assert read_weights(str(path))["a"].numel() == 1 << 20
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for part in given.infolist():
            packed.writestr(part.filename, given.read(part))
    with pytest.raises(ValueError, match="is packed"):
        read_weights(str(tmp_path / "b.pt"))
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)
    with pytest.raises(ValueError, match="repeats few values"):
        read_weights(str(path))


def test_an_export_of_others_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match="not the program that this version writes"):
        load_runner(tmp_path)


def test_a_checkpoint_of_others(tmp_path: Path) -> None:
    """Whatever of it is wrong or missing is one line, and the fit can be begun anew."""
    config = FitConfig(prior="none", data="digits", limit=60, hidden=(4,), epochs=2, device="cpu", threads=1)
    real = Checkpointer.after_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "after_step", lambda self, *rest: (self.stop.set(), real(self, *rest)))
        with pytest.raises(Interrupted):
            fit_run(config, tmp_path / "run")
    (path,) = unfinished(tmp_path / "run").glob("checkpoint-*")
    whole = path.read_bytes()
    changes: list[Callable[..., None]] = [
        *(_tensor(name, lambda t: None) for name in ("net/1.weight", "feed/order", "feed/generator", "random/cpu")),
        *(_tensor("feed/order", new) for new in (lambda t: t * 0, lambda t: t[:3], lambda t: t.float())),
        *(_tensor(name, lambda t: t[:1]) for name in ("net/1.weight", "optimizer/0/exp_avg", "random/cpu")),
        _put({"seconds": 0.0, "history": [], "step": 1}, "numbers"), _put("svi", "phase"),
        _put(99, "numbers", "position"), _put([{"epoch": "a"}], "numbers", "history"),
    ]  # fmt: skip
    for change in changes:
        path.write_bytes(whole)
        altered(path, change, path)
        with pytest.raises(ValueError, match=r"not of this fit|none of this optimizer's|remembers"):
            fit_run(config, tmp_path / "run", checkpointing=CheckpointConfig(resume=True))
    path.write_bytes(whole)
    assert fit_run(config, tmp_path / "run", checkpointing=CheckpointConfig(resume=True)).posterior
