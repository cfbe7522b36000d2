"""Text and tokens: windows that no two splits share, vocabularies that travel in the file, every command."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.cli.main import main
from pyro_compress.data.splits import load_splits
from pyro_compress.data.text import STRETCHES, UNKNOWN
from pyro_compress.graph import recurrence_shapes
from pyro_compress.graph.capture import capture
from pyro_compress.graph.checked import exported
from pyro_compress.networks.nets import build_net
from pyro_compress.networks.outputs import with_columns
from pyro_compress.pcn import file
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig, ReadConfig
from pyro_compress.types import Data, Splits

WORDS = ("the", "weights", "of", "a", "network", "are", "drawn", "from", "its", "posterior", "näher", "\n")


def text(words: int, seed: int = 0) -> str:
    """Words one after the other, each deciding which two may follow it."""
    generator, found, word = np.random.default_rng(seed), [], 0
    for _ in range(words):
        found.append(WORDS[word])
        word = (2 * word + 1 + int(generator.integers(2))) % len(WORDS)
    return " ".join(found)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(text(1500), encoding="utf-8")
    return path


@pytest.mark.parametrize("vocabulary", ["bytes", "characters"])
def test_windows_are_stretches_of_the_text_and_no_two_splits_share_one(story: Path, vocabulary: str) -> None:
    reading = ReadConfig("next-token", vocabulary=vocabulary, context=12)
    splits = load_splits(str(story), reading=reading)
    whole = story.read_text(encoding="utf-8") if vocabulary == "characters" else story.read_bytes()
    seen = []
    for part in (splits.train, splits.validation, splits.test):
        assert part.x.dtype == torch.int64
        assert part.x.shape == part.y.shape == (len(part), 12)
        assert torch.equal(part.x[:, 1:], part.y[:, :-1])
        found = [[*row, last[-1]] for row, last in zip(part.x.tolist(), part.y.tolist(), strict=True)]
        seen.append(
            ["".join(splits.classes[i] for i in row) if vocabulary == "characters" else bytes(row) for row in found]
        )
    for windows in seen:
        assert all(window in whole for window in windows)  # type: ignore[operator]
    held = len(splits.validation) + len(splits.test)
    assert held == pytest.approx(2 * len(splits.train) / 8, rel=0.05)
    assert sum(map(len, seen)) * 12 <= len(whole)
    assert (splits.kind, splits.output_shape) == ("int64", (len(splits.classes), 12))
    assert splits.classes[0] == ("0" if vocabulary == "bytes" else UNKNOWN)
    again = load_splits(str(story), reading=reading)
    assert torch.equal(again.test.x, splits.test.x)


def test_a_folder_is_read_without_links_doubles_and_what_is_no_text(story: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_bytes(story.read_bytes())
    (folder / "more" / "b.txt").write_bytes(b"z" * 700)
    (folder / "twice.txt").write_bytes(story.read_bytes())
    (folder / "link").symlink_to(folder / "a.txt")
    (folder / "program").write_bytes(b"\0\1\2" * 900)
    reading = ReadConfig("next-token", context=8)
    found, alone = load_splits(str(folder), reading=reading), load_splits(str(story), reading=reading)
    assert sum(found.sizes.values()) == pytest.approx(sum(alone.sizes.values()) + 700 / 8, abs=STRETCHES)
    assert not any((part.x == 1).any() for part in (found.train, found.validation, found.test))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"short", {}, "too few"),
        (b"", {}, "is empty"),
        (b"\xff\xfe" * 9000, {"vocabulary": "characters"}, "no UTF-8"),
        (b"word " * 9000, {"in_memory_mib": 0.1}, "--in-memory-mib"),
    ],
)
def test_texts_that_cannot_be_read_say_why(
    content: bytes, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_splits(str(tmp_path / "a.txt"), reading=ReadConfig("next-token", **options))  # type: ignore[arg-type]


def test_tokens_of_arrays_are_named_as_such(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(1, 9, (60, 7))
    x[:, 5:] = 0
    np.savez(tmp_path / "a.npz", x_train=x[:40], x_test=x[40:])
    splits = load_splits(str(tmp_path / "a.npz"), reading=ReadConfig("next-token", tokens=9, pad=0))
    assert splits.train.x.shape[1] == 6
    assert (splits.tokens, splits.outputs) == (9, 9)
    assert (splits.train.y[:, 4:] == -100).all()
    assert (splits.train.y[:, :4] > 0).all()
    with pytest.raises(ValueError, match="tokens from 0 to 8, but --tokens 8"):
        load_splits(str(tmp_path / "a.npz"), reading=ReadConfig("next-token", tokens=8))


NETS = [("lstm", (6,), 9, 30), ("gru", (6,), 30, 30), ("gpt", (6,), 30, 30), ("gru", (3, 6), 4, 0)]


@pytest.mark.parametrize(("name", "shape", "classes", "vocabulary"), NETS)
def test_built_in_networks_give_classes_before_positions(
    name: str, shape: tuple[int, ...], classes: int, vocabulary: int
) -> None:
    plain = build_net(name, shape, classes, (), vocabulary)
    kind = "int64" if vocabulary else "float32"
    net = with_columns(plain, shape, (classes, 6), kind)
    capture(net, shape, (classes, 6), kind=kind)
    x = torch.randint(0, vocabulary, (2, 6)) if vocabulary else torch.randn(2, *shape)
    assert torch.equal(net(x), plain(x).movedim(-1, 1))
    if name == "gpt":
        assert plain.head.weight is plain.tokens.weight
        other = x.clone()
        other[:, 4:] = 3
        assert torch.allclose(plain(x)[:, :4], plain(other)[:, :4], atol=1e-5)  # what comes later is not seen


def test_positions_and_classes_that_are_as_many_cannot_be_told_apart() -> None:
    with pytest.raises(ValueError, match="choose another --context"):
        with_columns(build_net("gru", (6,), 6, (), 6), (6,), (6, 6), "int64")


@pytest.mark.parametrize("vocabulary", ["bytes", pytest.param("characters", marks=pytest.mark.slow)])
def test_a_language_model_goes_through_every_command(story: Path, vocabulary: str, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "a.pcn"
    common = ("fit", "--task", "next-token", "--data", str(story), "--context", "12", "--vocabulary", vocabulary)
    how = (
        "--net",
        "gru",
        "--prior",
        "log-uniform",
        "--epochs",
        "2",
        "--lr",
        "1e-2",
        "--limit",
        "200",
        "--device",
        "cpu",
    )
    runner = CliRunner()

    def called(*arguments: str) -> str:
        result = runner.invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    called(*common, *how, "--out", str(run))
    assert f"bits per {vocabulary[:-1]}" in called("compress", str(run), "--sparsity", "0.5", "--out", str(path))
    meta = file.read(path).meta
    assert (meta["task"], meta["vocabulary"], meta["context"]) == ("next-token", vocabulary, 12)
    assert ("classes" in meta) is (vocabulary == "characters")
    own = called("evaluate", str(path))
    other = tmp_path / "other.txt"
    other.write_text(text(200, seed=1) + "\u0416", encoding="utf-8")
    whole = called("evaluate", str(path), "--data", str(other))
    assert f"bits per {vocabulary[:-1]}" in own
    assert (
        f"on {(len(other.read_bytes() if vocabulary == 'bytes' else other.read_text(encoding='utf-8')) - 1) // 12} "
        in whole
    )
    refused = runner.invoke(main, ["evaluate", str(path), "--data", str(other), "--split", "train"])
    assert refused.exit_code == 1
    assert refused.stderr == f"Error: {other} is scored as a whole: it has no train split; leave --split out\n"
    if vocabulary == "characters":
        assert "bits per character" in called("inspect", str(run), "--draws", "50", "--rows", "20")


@pytest.mark.slow
def test_the_compiled_step_of_a_recurrent_layer_descends_as_the_eager_one() -> None:
    """What its gradient needs only its kernel knows; the two draw noise of their own, hardly any here."""
    x = torch.randint(0, 9, (60, 8), generator=torch.Generator().manual_seed(0))
    data, found = Data(x[:, :-1], x[:, 1:]), {}
    splits = Splits(data, data, data, tuple("012345678"), task="next-token", tokens=9)
    for mode in ("on", "off"):
        torch.manual_seed(0)
        net = build_net("lstm", (7,), 9, (), 9)
        config = FitConfig(
            prior="gaussian", compile=mode, epochs=3, pretrain_epochs=0, batch_size=20, lr=3e-3, init_scale=1e-5,
            device="cpu", task="next-token",
        )  # fmt: skip
        fit = fit_posterior(net, splits, resolve(config, 60))
        found[mode] = fit.history[-1].expected_log_likelihood_nats or 0.0
    assert found["on"] == pytest.approx(found["off"], rel=2e-3)
    assert found["on"] > -60 * 7 * math.log(9)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"batch_first": True}])
def test_shapes_of_recurrent_layers_are_told_without_their_steps(options: dict[str, Any]) -> None:
    """A layer over a million steps is captured as fast as any; what is told is what torch computes."""
    x = torch.randn(3, 4, 5)
    for layer in (nn.LSTM(5, 6, **options), nn.LSTM(5, 6, proj_size=2, **options), nn.GRU(5, 6, **options)):
        outputs, states = layer(x)
        with FakeTensorMode(allow_non_fake_inputs=True), recurrence_shapes.shapes_only():
            told, told_states = layer(torch.empty(x.shape))
        assert told.shape == outputs.shape
        if isinstance(states, tuple):
            assert [state.shape for state in told_states] == [state.shape for state in states]
        else:
            assert told_states.shape == states.shape
        assert torch.equal(layer(x)[0], outputs)
    net = nn.Sequential(Recurrent(1, 3), nn.Linear(3, 2))
    exported(net, (1_000_000, 1))


class Recurrent(nn.Module):
    """The outputs of an LSTM."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(inputs, units, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_numbers_and_tokens_are_not_taken_for_each_other(kind: str, tmp_path: Path) -> None:
    """A network of the one, data of the other, in the same shape: one line from everybody who brings them together."""
    net = nn.Sequential(
        *([nn.Embedding(9, 2), nn.Flatten()] if kind == "int64" else [nn.Linear(4, 8)]), nn.Linear(8, 2)
    )
    graph = capture(net, (4,), kind=kind)
    tensors = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    path = tmp_path / "network.pcn"
    x = np.random.default_rng(0).integers(0, 9, (40, 4))
    x = x if kind == "float32" else x.astype(np.float32)
    data = tmp_path / "data.npz"
    np.savez(data, x_train=x, y_train=np.arange(40) % 2, x_test=x, y_test=np.arange(40) % 2)
    tokens = ("tokens (whole numbers)", "numbers")
    message = "data.npz: examples are {}; this network reads {}".format(
        *(tokens if kind == "float32" else tokens[::-1])
    )
    meta = {"parameters_total": 38, "tokens": 9} if kind == "float32" else {"parameters_total": 38}
    path.write_bytes(file.dumps(file.Compressed(graph, tensors, meta))[0])
    for command in (("evaluate", path, "--data", data), ("export", path, "--data", data, "-o", tmp_path / "x.onnx")):
        result = CliRunner().invoke(main, [str(argument) for argument in command])
        assert result.exit_code == 1
        assert message in result.output
