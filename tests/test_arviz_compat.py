"""Both ArviZ majors through one face. Needs neither torch nor Pyro: `scripts/test.sh` runs it on a second interpreter.

`PYRO_COMPRESS_NETCDF` names a file that the other interpreter wrote.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from pyro_compress.inspection import arviz_compat
from pyro_compress.inspection.arviz_compat import Groups

RNG = np.random.default_rng(0)
DRAWS, ROWS = 400, 30


def sampled(loc: float = 0.0) -> Groups:
    """Draws of a normal mean with known variance: y ~ N(mu, 1), `mu` from its posterior."""
    rng = np.random.default_rng(1)
    y = np.linspace(-1, 1, ROWS)
    mu = rng.normal(loc, ROWS**-0.5, size=(1, DRAWS, 1))
    likelihood = -0.5 * (y - mu) ** 2 - 0.5 * np.log(2 * np.pi)
    return Groups(
        values={
            "posterior": {"1.weight.element": rng.normal(size=(1, DRAWS, 4)).astype(np.float32), "mu": mu[..., 0]},
            "prior": {"1.weight.element": rng.normal(size=(1, 50, 4)).astype(np.float32)},
            "sample_stats": {"elbo": rng.normal(size=(1, DRAWS))},
            "log_likelihood": {"y": likelihood},
            "posterior_predictive": {"y": rng.normal(mu, 1, size=(1, DRAWS, ROWS))},
            "observed_data": {"y": y},
        },
        dims={"1.weight.element": ["1.weight.index"], "y": ["row"]},
        coords={"1.weight.index": ["0,0", "0,1", "1,0", "1,1"], "row": np.arange(ROWS) * 3},
        attrs={"prior": "gaussian", "seed": 3},
    )


def exact_loo() -> float:
    """Leave-one-out density of a normal mean with a flat prior: N(mean of the others, 1 + 1 / (n - 1))."""
    y = np.linspace(-1, 1, ROWS)
    means = (y.sum() - y) / (ROWS - 1)
    variance = 1 + 1 / (ROWS - 1)
    return float(np.sum(-0.5 * (y - means) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)))


def test_netcdf_keeps_everything(tmp_path: Path) -> None:
    groups = sampled()
    arviz_compat.write_netcdf(arviz_compat.inference_data(groups), tmp_path / "a.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]
    data = arviz_compat.read_netcdf(tmp_path / "a.nc")
    for group, variables in groups.values.items():
        for name, values in variables.items():
            np.testing.assert_array_equal(data[group][name].values, values)
    assert list(data["posterior"]["1.weight.element"].coords["1.weight.index"].values) == ["0,0", "0,1", "1,0", "1,1"]
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    assert data.attrs["prior"] == "gaussian"


def test_loo_is_exact_where_the_truth_is_known() -> None:
    """The posterior is exact, so PSIS-LOO must be: 400 draws give it to a few hundredths of a nat."""
    found = arviz_compat.loo(arviz_compat.inference_data(sampled()))
    assert found.elpd == pytest.approx(exact_loo(), abs=0.15)
    assert found.pareto_k.shape == (ROWS,)
    assert found.pareto_k.max() < arviz_compat.HIGH
    assert 0 < found.p < 2


@pytest.mark.parametrize("k", [0.3, 0.6, 1.0])
def test_pareto_k_of_pareto_weights(k: float) -> None:
    """Weights u^-k have tail index k; with 4,000 draws (190 in the tail) its standard error is about (1 + k) / 14."""
    log_ratios = -k * np.log(np.random.default_rng(5).uniform(size=4000))
    assert arviz_compat.pareto_k(log_ratios) == pytest.approx(k, abs=4 * (1 + k) / 14)
    assert arviz_compat.pareto_k(log_ratios + 1e4) == pytest.approx(arviz_compat.pareto_k(log_ratios), abs=1e-6)
    assert arviz_compat.pareto_k(-log_ratios) < 0.1  # bounded weights: the sign matters


def test_rhat_and_ess_tell_chains_apart() -> None:
    values = np.random.default_rng(2).normal(size=(3, 200, 2))
    values[0, :, 1] += 3
    rhat, ess = arviz_compat.rhat_and_ess(values)
    assert rhat[0] < 1.05 < 1.3 < rhat[1]
    assert ess[1] < 20 < 300 < ess[0]


def test_compare_ranks_the_better_fit_first() -> None:
    data = {"off": arviz_compat.inference_data(sampled(0.8)), "right": arviz_compat.inference_data(sampled())}
    rows = arviz_compat.compare(data)
    assert [row["name"] for row in rows] == ["right", "off"]
    assert rows[0]["elpd"] == pytest.approx(exact_loo(), abs=0.15)
    assert rows[1]["dse"] > 0


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; from pyro_compress.inspection import arviz_compat; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pyro", "arviz", "matplotlib"} & set(modules)


@pytest.mark.skipif(not os.environ.get("PYRO_COMPRESS_NETCDF"), reason="no file of another interpreter to read")
def test_a_run_written_elsewhere(tmp_path: Path) -> None:
    """A session as a user would have it: plain ArviZ and plain xarray, on a file of the other major."""
    import matplotlib as mpl

    mpl.use("Agg")
    path = Path(os.environ["PYRO_COMPRESS_NETCDF"])
    import xarray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        az = arviz_compat.arviz()
        data = az.from_netcdf(str(path))
        assert np.isfinite(arviz_compat.loo(data).elpd)
        names = [name for name in data["posterior"].data_vars if str(name).endswith("unit_norm")]
        assert len(az.summary(data, var_names=names[-1:])) == 10
        az.plot_forest(data, var_names=names[-1:])
        az.plot_trace(data, var_names=names[-1:])
    with xarray.open_dataset(path, group="log_likelihood", engine="h5netcdf") as likelihood:
        assert likelihood["y"].dims == ("chain", "draw", "row")
