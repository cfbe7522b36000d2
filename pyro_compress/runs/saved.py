"""What Python programs inferred, as a run folder: `inspect`, `compress`, `evaluate`, `export` take it as one of `fit`.

Data that have no name lie beside it in the folder, `examples.npz`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyro_compress.atomic import appended, write_atomically, written
from pyro_compress.data.preprocessing import preprocessing
from pyro_compress.data.tabular import raw_targets
from pyro_compress.inputs import unpacked
from pyro_compress.kinds import EXAMPLES
from pyro_compress.metrics import SPLITS, examples_of
from pyro_compress.placing import located
from pyro_compress.runs.config import absolute, config_toml
from pyro_compress.runs.folder import Run, new_folder
from pyro_compress.runs.posterior_file import write_posterior
from pyro_compress.settings import FitConfig
from pyro_compress.training.history import Epoch
from pyro_compress.types import LayerShape, Posterior, Splits


class Sites(NamedTuple):
    """What of a posterior is drawn from again.

    Attributes:
        marginals: a guide, or what else knows `families` and `marginal(site)`.
        shapes: tensors that its sites make up.
    """

    marginals: Any
    shapes: Sequence[LayerShape]


def write_run(
    out: Path, posterior: Posterior, config: FitConfig, splits: Splits, sites: Sites | None = None,
    history: Sequence[Epoch] = (), force: bool = False,
) -> Run:  # fmt: skip
    """Write a run folder.

    Args:
        out: the folder.
        posterior: moments of every weight, and the network.
        config: what determined it.
        splits: its data.
        sites: the posterior's own parameters; None: it has no spread.
        history: one entry per epoch.
        force: replace an existing one.

    Raises:
        ValueError: something else lies there.
        OSError: it cannot be written.
    """
    config = config if sites else replace(config, prior="none")
    with new_folder(out, force) as folder:
        if not splits.origin.get("data"):
            with written(folder / EXAMPLES) as file:
                np.savez(file, **_arrays(splits))  # type: ignore[arg-type]
            where, series = str(located(out).absolute() / EXAMPLES), examples_of(splits, SPLITS[0]).x.ndim == 3
            config = replace(config, data=where, series=series, tokens=splits.tokens)
            posterior = replace(posterior, provenance=posterior.provenance.but(config.provenance))
        config = _placed(config)
        write_atomically(folder / "config.toml", config_toml(config, splits).encode())
        if history:
            with appended(folder / "history.jsonl") as add:
                for epoch in history:
                    add(json.dumps(epoch.to_dict()))
        if sites is not None:
            from pyro_compress.bayes.marginals import write_sites

            with written(folder / "guide.safetensors") as file:
                write_sites(file, sites.shapes, sites.marginals)
        with written(folder / "posterior.safetensors") as file:  # with it the run is complete
            write_posterior(file, posterior)
    return Run(out, config, posterior, splits.sizes, stored=preprocessing(splits))


def _placed(config: FitConfig) -> FitConfig:
    """A configuration whose paths are absolute."""
    paths: dict[str, Any] = absolute(config)
    return replace(config, **paths)


def _arrays(splits: Splits) -> dict[str, np.ndarray]:
    """Splits as arrays of a `.npz` file, which reads as the same."""
    found: dict[str, np.ndarray] = {}
    for split, part in zip(SPLITS, ("train", "val", "test"), strict=True):
        data = examples_of(splits, split)
        x, y = data.x[:].numpy(), data.y.numpy()
        several = unpacked(x, splits.inputs) if splits.inputs else {}
        found |= {f"x_{part}.{name}": array for name, array in several.items()} or {f"x_{part}": x}
        found[f"y_{part}"] = raw_targets(y, splits.targets) if splits.targets else y
    return found | ({"classes": np.array(splits.classes)} if splits.classes else {})
