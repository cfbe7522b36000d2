"""What the fuzzer found and what others sent, once more; and what the fuzzer makes."""

import random
from pathlib import Path

import pytest
from fuzzing import consumers
from fuzzing.encoding import foreign
from fuzzing.keeping import keep, passed
from fuzzing.networks import NETWORKS, listed, made_up

from pyro_compress.data.splits import load_splits
from pyro_compress.data.streaming import ArrayFile
from pyro_compress.foreign import LINE, one_line
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.networks.weights import read_weights
from pyro_compress.pcn import file
from pyro_compress.settings import ReadConfig

CORPUS = Path(__file__).parent / "corpus"
FOUND = {
    "bomb-chain.pcn": "a header of more than 262144 lists and objects",
    "bomb-padding.pcn": "node 1 (pad): 160006400138 values held at a time, more than the 4194304 allowed",
    "ends-too-soon.pt": "holds no state dict that can be read (damaged, or no file of torch's): it ends too soon",
    "header-cut.npy": "is no readable .npy file: ",
    "header-cut.npz": "is no readable .npz file: ",
    "huge-whole-number.pcn": "node 1 (clip): its high is 1000000000000000000000000000000, not a finite number",
    "long-cell.csv": "25 of 26 values are numbers, but not '[[[",
    "name-is-a-path.pcn": "a tensor is called '../ESCAPED'; names are letters",
    "name-runs-code.pcn": "names are letters, digits and underscores",
    "names-of-torch.pcn": "'forward' is what torch calls something else",
    "no-array.npz": "has no array x_train; it holds y_train, x_test, y_test",
    "no-letters.npz": "y_train: 1 characters are none (damaged)",
    "of-several-disks.pt": "holds no state dict that can be read (damaged): zipfiles that span multiple disks",
    "pickle.pt": "holds more than tensors (posix.system), and nothing is unpickled here",
    "statistics-as-slopes.pcn": "",
    "subnormal-exponent.pcn": "node 12 (power): its exponent is 1e-45, not a finite number, 0 or at least 1.2e-38",
    "unread-operation.pcn": "",
    "whole-numbers.pcn": "",
}
"""Hostile input -> the line that refuses it; empty where it is a network like any other."""
QUICK = [name for name, (_, share) in consumers.CONSUMERS.items() if share == 1.0 or name == "--net and --init"]


def opened(path: Path, out: Path) -> None:
    if path.suffix == ".pcn":
        read = consumers.read(path, out)
        for name in QUICK:
            consumers.CONSUMERS[name][0](read)
    elif path.suffix == ".npy":
        ArrayFile(path)
    elif path.suffix == ".pt":
        read_weights(str(path))
    else:
        load_splits(str(path), reading=ReadConfig(target=("b",) if path.suffix == ".csv" else ()))


def test_the_corpus_is_told_of() -> None:
    assert sorted(FOUND) == sorted(path.name for path in CORPUS.iterdir())
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 300_000


@pytest.mark.parametrize("name", FOUND)
def test_found_inputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    told = ""
    try:
        opened(CORPUS / name, tmp_path)
    except ValueError as error:
        told = one_line(str(error))
    assert FOUND[name] in told
    assert bool(told) == bool(FOUND[name])
    assert "\n" not in told
    assert len(told) <= LINE + 5
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("number", [*range(len(NETWORKS)), "made up"])
def test_changes_that_keep_a_network_valid_do(number: int | str) -> None:
    for seed in range(12):
        chance = random.Random(seed)
        document = made_up(chance) if isinstance(number, str) else listed(number)
        keep(document, chance, 5)
        graph, _ = passed(document)
        assert file.loads(foreign(document, 1 + seed % 4, chance)).graph.nodes == graph.nodes


def test_every_operation_is_made_up() -> None:
    made = {node[0] for seed in range(900) for node in made_up(random.Random(seed))["graph"]["nodes"]}
    assert made >= set(OPERATIONS), set(OPERATIONS) - made
