"""Train a network as a Pyro program, keep what its posterior is sure about, ship the rest as nothing.

The library, imported name by name when first used::

    import pyro_compress as pc

    splits = pc.load_splits("digits")
    net = pc.build_net("mlp", splits.input_shape, len(splits.classes), (100,))
    config = pc.resolve(pc.FitConfig(prior="horseshoe", epochs=30), len(splits.train))
    posterior = pc.extract(pc.fit_posterior(net, splits, config))
    network, sparsity = pc.compress(posterior, splits)
    pc.save(Path("network.pcn"), network, splits)
    module = pc.load("network.pcn")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_compress.bayes.extract import extract as extract
    from pyro_compress.bayes.fit import fit_posterior as fit_posterior
    from pyro_compress.bayes.layers import bayesianize as bayesianize
    from pyro_compress.bayes.own_guides import bring_guide as bring_guide
    from pyro_compress.bayes.own_priors import bring as bring
    from pyro_compress.bayes.predict import predictive as predictive
    from pyro_compress.bayes.priors import PRIORS as PRIORS
    from pyro_compress.compression.order import reordered as reordered
    from pyro_compress.compression.pipeline import load as load
    from pyro_compress.compression.pipeline import save as save
    from pyro_compress.compression.search import compress as compress
    from pyro_compress.data.sources import Shapes as Shapes
    from pyro_compress.data.sources import splits_from as splits_from
    from pyro_compress.data.splits import load_splits as load_splits
    from pyro_compress.deploy.bench import bench as bench
    from pyro_compress.deploy.export import export as export
    from pyro_compress.graph.capture import capture as capture
    from pyro_compress.graph.packing import pack as pack
    from pyro_compress.inspection.report import report as report
    from pyro_compress.inspection.summary import inspect as inspect
    from pyro_compress.networks.attention import split_attention as split_attention
    from pyro_compress.networks.nets import build_net as build_net
    from pyro_compress.runs.config import resolve as resolve
    from pyro_compress.runs.doctor import doctor as doctor
    from pyro_compress.runs.evaluation import evaluate as evaluate
    from pyro_compress.runs.in_memory import fit as fit
    from pyro_compress.runs.info import info as info
    from pyro_compress.runs.opened import load_run as load_run
    from pyro_compress.runs.opened import resume as resume
    from pyro_compress.runs.own_loops import posterior as posterior
    from pyro_compress.runs.own_loops import program as program
    from pyro_compress.runs.own_loops import save_run as save_run
    from pyro_compress.runs.prediction import predict as predict
    from pyro_compress.runs.trained import trained as trained
    from pyro_compress.runs.trainers import AfterTraining as AfterTraining
    from pyro_compress.settings import CompressConfig as CompressConfig
    from pyro_compress.settings import FineTune as FineTune
    from pyro_compress.settings import FitConfig as FitConfig
    from pyro_compress.settings import Goal as Goal
    from pyro_compress.studies.study import compare as compare
    from pyro_compress.training.callbacks import Callback as Callback
    from pyro_compress.training.display import ProgressBar as ProgressBar
    from pyro_compress.tuning.search import tune as tune
    from pyro_compress.types import Data as Data
    from pyro_compress.types import Splits as Splits

_HOMES = {
    "AfterTraining": "runs.trainers",
    "Callback": "training.callbacks",
    "CompressConfig": "settings",
    "Data": "types",
    "FineTune": "settings",
    "FitConfig": "settings",
    "Goal": "settings",
    "PRIORS": "bayes.priors",
    "ProgressBar": "training.display",
    "Shapes": "data.sources",
    "Splits": "types",
    "bayesianize": "bayes.layers",
    "bench": "deploy.bench",
    "bring": "bayes.own_priors",
    "bring_guide": "bayes.own_guides",
    "build_net": "networks.nets",
    "capture": "graph.capture",
    "compare": "studies.study",
    "compress": "compression.search",
    "doctor": "runs.doctor",
    "evaluate": "runs.evaluation",
    "export": "deploy.export",
    "extract": "bayes.extract",
    "fit": "runs.in_memory",
    "fit_posterior": "bayes.fit",
    "info": "runs.info",
    "inspect": "inspection.summary",
    "load": "compression.pipeline",
    "load_run": "runs.opened",
    "load_splits": "data.splits",
    "pack": "graph.packing",
    "posterior": "runs.own_loops",
    "predict": "runs.prediction",
    "predictive": "bayes.predict",
    "program": "runs.own_loops",
    "reordered": "compression.order",
    "report": "inspection.report",
    "resolve": "runs.config",
    "resume": "runs.opened",
    "save": "compression.pipeline",
    "save_run": "runs.own_loops",
    "split_attention": "networks.attention",
    "splits_from": "data.sources",
    "trained": "runs.trained",
    "tune": "tuning.search",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What completion offers."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
