"""Tables as programs and people write them: how they are read, what is said, what is refused."""

import datetime
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pyro_compress.cli.main import main
from pyro_compress.data import tabular
from pyro_compress.data.splits import load_examples, load_splits, preprocessing
from pyro_compress.settings import ReadConfig
from pyro_compress.types import Column, Quantity

N = 60
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(5, 2, N).round(3)
TARGET = [("bad", "good")[i % 2] for i in range(N)]
READING = ReadConfig(target=("y",))


def csv(path: Path, separator: str = ",", encoding: str = "utf-8", end: str = "\n", **columns: list) -> Path:
    """A table of these columns and the target."""
    named = columns | {"y": TARGET}
    rows = [named, *zip(*named.values(), strict=True)]
    text = end.join(separator.join(str(cell) for cell in row) for row in rows) + end
    path.write_bytes(text.encode(encoding))
    return path


def column(path: Path, reading: ReadConfig = READING) -> torch.Tensor:
    """What the first column becomes, over all rows in the order of the file."""
    splits = load_splits(str(path), reading=reading)
    return load_examples(path, preprocessing(splits), reading).x[:, 0]


WRITTEN = {
    "commas": {},
    "semicolons": {"separator": ";"},
    "tabs": {"separator": "\t", "name": "t.tsv"},
    "tabs in .csv": {"separator": "\t"},
    "bars": {"separator": "|"},
    "byte order mark": {"encoding": "utf-8-sig"},
    "upper case": {"name": "T.CSV"},
    "decimal commas": {"separator": ";", "comma": True},
    "quoted decimal commas": {"comma": True, "quote": True},
    "carriage returns": {"end": "\r"},
    "no-break spaces": {"around": "\u00a0"},
}


@pytest.mark.parametrize("how", WRITTEN)
def test_tables_of_any_country_hold_the_same_numbers(how: str, tmp_path: Path) -> None:
    options = dict(WRITTEN[how])
    comma, quote, around = options.pop("comma", False), options.pop("quote", False), options.pop("around", "")
    cells = [str(v).replace(".", ",") if comma else v for v in NUMBERS]
    cells = [f'"{cell}"' if quote else f"{around}{cell}{around}" for cell in cells]
    path = csv(tmp_path / str(options.pop("name", "t.csv")), a=cells, b=["x"] * N, **options)
    plain = column(csv(tmp_path / "plain.csv", a=list(NUMBERS), b=["x"] * N))
    assert torch.equal(column(path), plain)
    assert abs(float(plain.mean())) < 0.5  # standardised by the training rows


def test_a_newline_in_quotes_belongs_to_the_cell(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", a=[('"two\nlines"', "one")[i % 3 == 0] for i in range(N)])
    splits = load_splits(str(path), reading=READING)
    assert splits.columns[0].categories == ("one", "two\nlines")
    assert sum(splits.sizes.values()) == N


@pytest.mark.parametrize(
    ("cells", "categories"),
    [
        (["NA", "EU", "AS"], ("AS", "EU", "NA")),
        (["null", "nan", "None"], ("None", "nan", "null")),
        (["0", "1", "3+"], ("0", "1", "3+")),
        (["true", "yes", "no"], ("no", "true", "yes")),
        (["10 %", "20 %", "30 %"], ("10 %", "20 %", "30 %")),
    ],
)
def test_words_are_categories(cells: list[str], categories: tuple[str, ...], tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        splits = load_splits(str(csv(tmp_path / "t.csv", a=[cells[i % 3] for i in range(N)])), reading=READING)
    assert splits.columns[0].categories == categories
    assert splits.input_shape == (3,)
    assert ("is taken as a category" in caplog.text) == ("NA" in cells or "nan" in cells)
    assert ("40 of 60 values are numbers; all are taken as categories" in caplog.text) == ("3+" in cells)
    assert ("60 of 60 values are numbers; all are taken as categories" in caplog.text) == ("10 %" in cells)


def mixed(word: str) -> list:
    return [*NUMBERS[:-3], word, word, NUMBERS[-1]]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (mixed("unknown"), r"column 'a': 58 of 60 values are numbers, but not 'unknown' \(row 58\); write every value"),
        (mixed("?"), "but not '\\?'"),
        (mixed("12 or so"), "but not '12 or so'"),
        (mixed("NA"), "column 'a': 2 values are missing, NaN or infinite, the first in row 58"),
        (mixed(""), "2 values are missing, .* row 58"),
        (mixed("inf"), "2 values are missing, NaN or infinite, the first in row 58"),
        ([f'"{v:,.0f}"' for v in NUMBERS * 1000], "60 of 60 values are numbers, but not "),
        ([f"{v} kg" for v in NUMBERS], "60 of 60 values are numbers, but not '.* kg'"),
        ([f"${v}" for v in NUMBERS], "plain number such as 1234.5"),
        ([f"{v} %" for v in NUMBERS], "plain number such as 1234.5"),
        ([""] * N, "column 'a' is empty|60 values are missing"),
        (["NA"] * N, "is empty: every value is missing"),
        (["2020-01-01"] * N, "holds date32.*columns must be numbers or names"),
    ],
)
def test_what_only_looks_like_numbers_is_refused(cells: list, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_splits(str(csv(tmp_path / "t.csv", a=cells, b=list(NUMBERS))), reading=READING)


def test_codes_are_no_numbers(tmp_path: Path) -> None:
    """Two digits and a letter, sixty different ones: an identifier perhaps, but no broken number."""
    cells = [f"{10 + i}{'abc'[i % 3]}" for i in range(N)]
    assert len(load_splits(str(csv(tmp_path / "t.csv", a=cells)), reading=READING).columns[0].categories) > 20


@pytest.mark.parametrize(
    ("name", "first", "kept"), [("", 0, False), ("Unnamed: 0", 1, False), ("", 5, False), ("id", 0, True)]
)
def test_the_number_of_the_row_is_no_input(name: str, first: int, kept: bool, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        rows = RNG.permutation(np.arange(first, first + N)) if first == 5 else np.arange(first, first + N)
        path = csv(tmp_path / "t.csv", **{name: list(rows), "a": list(NUMBERS)})
        splits = load_splits(str(path), reading=READING)
    assert [column.name for column in splits.columns] == ([name, "a"] if kept else ["a"])
    assert ("leave it out" if kept else "numbers the rows and is left out") in caplog.text
    without = csv(tmp_path / "u.csv", a=list(NUMBERS))
    if not kept:
        assert torch.equal(load_examples(without, preprocessing(splits), READING).x, load_examples(
            path, preprocessing(splits), READING).x)  # fmt: skip


@pytest.mark.parametrize(
    ("values", "std"),
    [
        (np.full(N, 0.1), 1.0),
        (np.where(np.arange(N) % 2, 0.3, 0.1 + 0.2), 1.0),
        (np.full(N, 1000.0), 1000.0),
        (np.full(N, 0.1, np.float32), 1.0),
        (np.where(np.arange(N) % 2, np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(1))), 1.0),
        (np.zeros(N), 1.0),
        (np.arange(N) % 2 * 1e-9, 5e-10),
        (1.7e9 + np.arange(N) % 2, 0.5),
    ],
)
def test_a_constant_is_not_divided_by_its_rounding(values: np.ndarray, std: float) -> None:
    table = {"a": values, "y": np.array(TARGET)}
    (found,) = tabular.columns_of(table, ("y",), np.arange(N), Path("t.csv"))
    assert found.std == pytest.approx(std)
    later = {"a": values + 0.1 * std}
    assert np.abs(tabular.inputs_of(later, (found,), Path("t.csv"))).max() < 2


def test_numbers_too_large_for_a_spread_are_refused() -> None:
    for values in ([0.0, 1e300], [1e300, 0.0]):
        with pytest.raises(ValueError, match=r"t.csv: column 'a': row \d is too far from the training rows"):
            tabular.inputs_of({"a": np.array(values)}, (Column("a", 0.5, 0.25),), Path("t.csv"))
    with pytest.raises(ValueError, match="targets: row 1 is too far from the training rows"):
        tabular.standardized(np.array([[1e300]]), (Quantity("t", 0.0, 0.5),))
    with pytest.raises(ValueError, match=r"^target a: values up to 1e\+300 are too large to be standardised"):
        tabular.moments(np.array([1e300, -1e300] * 30), "target a")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([i % 2 for i in range(N)], "0 1"),
        ([(3, 7)[i % 2] for i in range(N)], "3 7"),
        ([f"{i % 2}.0" for i in range(N)], "0 1"),
        ([("true", "false")[i % 2] for i in range(N)], "False True"),
        ([("01067", "10115")[i % 2] for i in range(N)], "01067 10115"),
        ([("NA", "EU")[i % 2] for i in range(N)], "EU NA"),
        ([(2**60, 2**60 + 1)[i % 2] for i in range(N)], f"{2**60} {2**60 + 1}"),
        ([(1.5, 10.5)[i % 2] for i in range(N)], "1.5 10.5"),
        ([f"A{i % 30:02}" if i % 3 == 0 else 100 + i % 30 for i in range(N)], None),
    ],
)
def test_labels_of_tables(labels: list, classes: str | None, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "".join(f"{v},{label}\n" for v, label in zip([*NUMBERS] * 10, labels * 10, strict=True)))
    splits = load_splits(str(path), reading=READING)
    assert " ".join(splits.classes) == (classes or " ".join(sorted({str(label) for label in labels})))
    again = load_examples(path, preprocessing(splits), READING)
    order = {label: place for place, label in enumerate(sorted(set(labels), key=str if classes is None else None))}
    assert again.y.tolist() == [order[label] for label in labels] * 10


def test_parquet_of_every_type(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "ints": pa.array(range(0, 3 * N, 3), pa.int16()),
        "bools": pa.array([i % 2 == 0 for i in range(N)]),
        "halves": pa.array(np.arange(N).astype(np.float16)),
        "decimals": pa.array(range(N)).cast(pa.decimal128(30, 2)),
        "categories": pa.array([("x", "z")[i % 2] for i in range(N)]).dictionary_encode(),
        "long": pa.array(["u"] * N, pa.large_string()),
        "y": pa.array(TARGET).dictionary_encode(),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.PARQUET")
    splits = load_splits(str(tmp_path / "t.PARQUET"), reading=READING)
    assert splits.classes == ("bad", "good")
    assert splits.input_shape == (4 + 2 + 1,)
    assert splits.train.x.abs().max() < 3
    later = {"dates": pa.array([datetime.date(2020, 1, 1)] * N), "bytes": pa.array([b"\xff"] * N)}
    for name, hint in (("dates", "convert it"), ("bytes", "save the text in UTF-8")):
        parquet.write_table(pa.table(columns | {name: later[name]}), tmp_path / "u.parquet")
        with pytest.raises(ValueError, match=f"column '{name}' holds .*{hint}"):
            load_splits(str(tmp_path / "u.parquet"), reading=READING)


def test_a_pandas_index_is_no_input(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": NUMBERS, "c": pandas.Categorical(["u", "v"] * 30), "y": TARGET})
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "t.csv")
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        splits = load_splits(str(tmp_path / name), reading=READING)
        assert [column.name for column in splits.columns] == ["a", "c"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_named(encoding: str, tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", encoding=encoding, größe=list(NUMBERS))
    with pytest.raises(ValueError, match="text must be in UTF-8; save it so"):
        load_splits(str(path), reading=READING)


def test_a_file_of_numbered_classes_is_evaluated_on_its_table(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{v},0.1,{int(v > 5)}\n" for v in NUMBERS]
    Path("t.csv").write_text("a,c,y\n" + "".join(rows))
    Path("later.csv").write_text("a,c,y\n" + "".join(rows).replace(",0.1,", ",0.2,"))
    Path("new.csv").write_text("a,c,y\n5.0,0.1,2\n")
    options = ("--prior", "none", "--hidden", "8", "--epochs", "20", "--device", "cpu", "--threads", "1")
    commands = [
        ("fit", *options, "--data", "t.csv", "--target", "y", "--out", "r"),
        ("compress", "r", "--sparsity", "0.1", "--threads", "1"),
        ("evaluate", "r/network.pcn", "--data", "t.csv", "--json"),
        ("evaluate", "r", "--data", "later.csv", "--json"),
        ("evaluate", "r/network.pcn", "--data", "new.csv"),
    ]
    results = [CliRunner().invoke(main, command) for command in commands]
    assert [one.exit_code for one in results] == [0, 0, 0, 0, 1]
    same, later = (json.loads(one.stdout) for one in results[2:4])
    assert later["nll_nats"] < 2 * same["nll_nats"] + 1
    said = "all 60 rows were scored, and it is what the network was fitted on: training rows are among them"
    assert f"t.csv: {said}" in " ".join(results[2].stderr.split())
    assert "rows were scored" not in results[3].stderr  # another table
    Path("copy.csv").write_bytes(Path("t.csv").read_bytes())
    Path("elsewhere").mkdir()
    Path("t.csv").rename("elsewhere/t.csv")
    copied, moved = (CliRunner().invoke(main, ("evaluate", "r/network.pcn", "--data", name, "--json"))
                     for name in ("copy.csv", "elsewhere/t.csv"))  # fmt: skip
    assert "rows were scored" not in copied.stderr  # the fit's own is gone, and of a copy the name says nothing
    assert "all 60 rows were scored; if it is t.csv of the fit, training rows are among them" in " ".join(
        moved.stderr.split()
    )
    Path("elsewhere/t.csv").rename("t.csv")
    copied = CliRunner().invoke(main, ("evaluate", "r", "--data", "copy.csv", "--json"))
    assert f"copy.csv: {said}" in " ".join(copied.stderr.split())
    assert json.loads(copied.stdout)["examples"] == 60
    own = CliRunner().invoke(main, ("evaluate", "r", "--json"))  # its test part
    assert json.loads(own.stdout)["examples"] == 12
    assert "rows were scored" not in own.stderr
    assert "new.csv: column 'y' holds class '2' (row 1); the network knows 0, 1" in results[4].output


def two(path: Path, names: str) -> Path:
    """A column of names, one of numbers."""
    return csv(path, kind=list(names) * 20, size=[float(i) for i in range(20 * len(names))])


def test_rows_that_training_never_showed_are_said(tmp_path: Path, caplog) -> None:
    """Names that the training rows lack, a test table that is the training table."""
    train, test = two(tmp_path / "a.csv", "abc"), two(tmp_path / "b.csv", "abz")
    reading = ReadConfig("regression", ("size",))
    with caplog.at_level(logging.WARNING):
        load_splits(str(train), reading=replace(reading, test_data=str(test)))
    assert "b.csv: column 'kind': 20 of 60 rows hold names that training never showed, the first 'z'" in caplog.text
    caplog.clear()
    load_splits(str(train), reading=replace(reading, test_data=f"{tmp_path}/../{tmp_path.name}/a.csv"))
    assert "a.csv is its own --test-data: test scores are those of rows that were fitted" in caplog.text


def test_a_target_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target 'size' is named twice"):
        load_splits(str(two(tmp_path / "a.csv", "abc")), reading=ReadConfig("regression", ("size", "size")))


@pytest.mark.parametrize(
    ("cells", "inputs"),
    [
        ([str(v) for v in NUMBERS], 1),
        ([f"0{i:04}" for i in range(N)], N - N // 5 - 16),
        (["1", "2", "3"] * 20, 3),
    ],
)
def test_numbers_that_parquet_holds_as_text(cells: list[str], inputs: int, tmp_path: Path) -> None:
    """Numbers, where there are many; codes with leading zeros and a few different numbers are categories."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": cells, "y": TARGET}), tmp_path / "t.parquet")
    splits = load_splits(str(tmp_path / "t.parquet"), reading=READING)
    assert splits.input_shape == (inputs,)


def test_a_number_beyond_all_floats_is_none(tmp_path: Path) -> None:
    cells = [f" \u00a0{v}" for v in NUMBERS]
    cells[3] = " \u00a01e999"
    with pytest.raises(ValueError, match=r"column 'a': 1 values are missing, NaN or infinite, the first in row 4"):
        load_splits(str(csv(tmp_path / "t.csv", a=cells)), reading=READING)


@pytest.mark.parametrize(
    ("table", "target", "hint"),
    [
        ("a b y\n1 2 0\n", "y", "it holds a b y; that is one column: put commas"),
        ("a:b:y\n1:2:0\n", "y", "that is one column"),
        ("a, y\n1, 0\n", "y", "did you mean ' y'\\?"),
        ("a,Y\n1,0\n", "y", r"did you mean Y\?"),
        ("a,b\n1,0\n", "y", "it holds a, b$"),
    ],
)
def test_a_column_that_is_not_found_gets_a_hint(table: str, target: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(ValueError, match=hint):
        load_splits(str(tmp_path / "t.csv"), reading=ReadConfig(target=(target,)))
