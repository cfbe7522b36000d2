"""Tables by hand, the paired test against scipy."""

import numpy as np
import pytest
from scipy import stats

from pyro_compress.studies.results import csv_text
from pyro_compress.studies.tables import Row, exceeds_noise, markdown, plain, read_csv, t_quantile, winner


def row(method: str, seed: int, accuracy: float, sparsity: float = 0.9, variant: str = "") -> Row:
    return Row("digits", "mlp-5", method, variant, sparsity, seed, accuracy, 0.5, 0.01, 60.0, f"{method}{seed}")


def test_quantiles() -> None:
    for freedom in (1, 2, 9, 10, 11, 30, 1000):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom))


def test_noise_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    told = 0
    for seeds in (2, 3, 5, 10):
        for _ in range(50):
            a = rng.normal(0.8, 1, seeds)
            b = a - rng.normal(0.7, 0.5, seeds)
            test = stats.ttest_rel(a, b)
            assert exceeds_noise(dict(enumerate(a)), dict(enumerate(b))) == (test.pvalue < 0.05 and a.mean() > b.mean())
            told += test.pvalue < 0.05
    assert 40 < told < 190  # both answers occur
    assert not exceeds_noise({0: 9.0}, {0: 1.0})
    assert not exceeds_noise({0: 9.0, 1: 9.0}, {2: 1.0, 3: 1.0})


def test_bold_only_where_every_other_row_is_beaten() -> None:
    clear, close = {0: 98.0, 1: 98.2}, {0: 97.99, 1: 98.25}
    assert winner({"a": clear, "b": {0: 90.0, 1: 90.1}}) == "a"
    assert winner({"a": clear, "b": {0: 90.0, 1: 90.1}, "c": close}) is None
    assert winner({"a": clear}) is None


def test_table() -> None:
    rows = [row("BBB", seed, accuracy, variant="faithful") for seed, accuracy in enumerate((0.98, 0.982))]
    rows += [row("SGD", seed, accuracy) for seed, accuracy in enumerate((0.90, 0.901))]
    rows += [row("SGD", 0, 0.5, sparsity=0.98)]
    assert markdown(rows).split("\n")[2:] == [
        "| method | 90 % | 98 % | seeds | minutes |",
        "| --- | --- | --- | --- | --- |",
        "| BBB (faithful) | **98.10 ± 0.14** |  | 0, 1 | 1.0 |",
        "| SGD | 90.05 ± 0.07 | 50.00 | 0, 1 | 1.0 |",
    ]
    assert "98.10 ± 0.14 *" in plain(rows)


def test_csv_comes_back() -> None:
    rows = [row("BBB", 0, 0.98, variant="a, b")]
    text = csv_text(rows)
    assert text.split("\n")[0] == (
        "dataset,network,method,variant,sparsity,seed,accuracy,nll_nats,ece,train_seconds,config_hash"
    )
    assert read_csv(text) == rows
    with pytest.raises(ValueError, match="columns a, b; expected: dataset"):
        read_csv("a,b\n1,2\n")
