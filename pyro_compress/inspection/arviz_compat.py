"""ArviZ 0.23 (Python 3.11) and 1.x (3.12 and newer) behind one face; nothing else of this package imports ArviZ.

What changed between them: `from_dict` takes the groups as one argument, `InferenceData` became xarray's `DataTree`,
`elpd_loo` became `elpd`, `psislw` moved into an accessor of `DataArray` and changed
its sign. Arrays have the dimensions
`(chain, draw, ...)`; dimensions named after a coordinate carry its values.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_compress.atomic import written
from pyro_compress.types import Groups

INSTALL = "this needs ArviZ, h5netcdf and matplotlib: pip install 'pyro-compress[inspect]'"
SPARE = 1 << 20
"""Bytes of a NetCDF file beside its arrays, at most."""
HIGH = 0.7
"""Pareto k above which importance weights are not to be trusted (Vehtari et al. 2024, section 3.2.4)."""


@dataclass(frozen=True)
class Loo:
    """PSIS leave-one-out cross-validation (Vehtari et al. 2017).

    Attributes:
        elpd: expected log predictive density of the rows, summed, in nats.
        se: its standard error over the rows.
        p: effective number of parameters, the log-likelihood lost by leaving each row out.
        pareto_k: tail index of every row.
    """

    elpd: float
    se: float
    p: float
    pareto_k: np.ndarray


@functools.cache
def arviz() -> Any:
    """The ArviZ that is installed, imported without its once-a-day notice.

    Raises:
        ValueError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import arviz
            import h5netcdf  # noqa: F401 - read and write NetCDF with it
        except ImportError as error:
            raise ValueError(f"{INSTALL} ({error})") from error
    return arviz


def is_classic() -> bool:
    """Whether this is ArviZ 0.x."""
    return str(arviz().__version__).startswith("0.")


def inference_data(groups: Groups) -> Any:
    """`InferenceData` (0.x) or `DataTree` (1.x) of the groups."""
    known = {"dims": groups.dims, "coords": groups.coords, "attrs": groups.attrs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_classic():
            return arviz().from_dict(**groups.values, **known)
        return arviz().from_dict(groups.values, **(known | {"attrs": {"/": groups.attrs}}))


def write_netcdf(data: Any, path: Path) -> None:
    """Write a file that is whole or not there.

    Raises:
        OSError: it cannot be written.
    """
    size = sum(data[group].nbytes for group in data.groups()) if is_classic() else data.nbytes
    if shutil.disk_usage(path.parent).free < size + SPARE:  # HDF5 may end the process where a disk fills up
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with written(path) as file:
        data.to_netcdf(file.name, engine="h5netcdf")


def read_netcdf(path: Path) -> Any:
    """What `write_netcdf` wrote, under either version."""
    return arviz().from_netcdf(str(path))


def loo(data: Any) -> Loo:
    """PSIS-LOO of `log_likelihood`, its draws taken as independent (they are, from a variational posterior)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a count of high k is part of the result
        found = arviz().loo(data, pointwise=True, reff=1.0)
    names = ("elpd_loo", "se", "p_loo") if is_classic() else ("elpd", "se", "p")
    elpd, se, p = (float(getattr(found, name)) for name in names)
    return Loo(elpd, se, p, np.asarray(found.pareto_k).ravel())


def pareto_k(log_ratios: np.ndarray) -> float:
    """Tail index of importance weights given as log-ratios target - proposal of shape `(draws,)` (k-hat)."""
    import xarray

    centred = np.asarray(log_ratios, float) - np.max(log_ratios)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_classic():
            return float(arviz().psislw(centred)[1])
        import arviz_stats  # noqa: F401 - registers the accessor

        # the accessor is made for leave-one-out: it takes log-likelihoods, and turns them into weights itself
        array = xarray.DataArray(-centred[None], dims=("chain", "draw"))
        return float(array.azstats.psislw(dim=["chain", "draw"])[1])


def rhat_and_ess(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank-normalised r-hat and bulk effective sample size of `(chains, draws, items)`, one number per item."""
    data = inference_data(Groups({"posterior": {"value": values}}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [getattr(arviz(), name)(data)["value"].values for name in ("rhat", "ess")]
    return found[0], found[1]


def compare(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs ranked by the LOO of their common training rows, best first.

    Args:
        runs: name -> inference data with `log_likelihood` of the same rows.

    Returns:
        Per run: name, elpd, se, elpd_diff and dse (against the best).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = arviz().compare(runs, **({} if is_classic() else {"round_to": "none"}))
    elpd = "elpd_loo" if is_classic() else "elpd"
    return [
        {"name": str(name), "elpd": float(row[elpd])} | {key: float(row[key]) for key in ("se", "elpd_diff", "dse")}
        for name, row in table.iterrows()
    ]
