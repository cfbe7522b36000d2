"""Looking at a run: what its posterior learned and how far to trust it, as numbers with their readings."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_compress.bayes.diagnostics import AUTO, LARGE, Diagnosis, Size, diagnose
from pyro_compress.bayes.marginals import networks, read_marginals
from pyro_compress.compression.prune import THRESHOLDS, kept, mean_signal_to_noise
from pyro_compress.compression.shrink import shrink
from pyro_compress.graph.network import Network
from pyro_compress.inspection import arviz_compat
from pyro_compress.inspection.arviz_compat import HIGH
from pyro_compress.machine import give_back, prepare
from pyro_compress.metrics import evaluate, evaluate_mixture
from pyro_compress.pcn import file
from pyro_compress.runs.command_budget import check_command
from pyro_compress.runs.folder import Run, load_run
from pyro_compress.scores import Quality
from pyro_compress.training.history import read_history
from pyro_compress.types import Posterior, nonzero

PREDICTIVE_DRAWS = 20
"""Networks that the posterior predictive of validation and test rows averages."""


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a posterior.

    Attributes:
        name: its weight tensor.
        weights: their number.
        kept: how many score above the criterion's threshold.
        mean_snr: mean of |mean| / std over the weights; infinite for a deterministic layer.
        kl_nats: KL(posterior ‖ prior); None without a prior. Up to a constant where the prior is improper.
        kl_se_nats: its standard error, where it is a mean over draws; 0 where nothing of it is sampled.
        inputs: inputs that anything reads once the weights below the threshold are gone.
        outputs: units that are left then: a rule of thumb, no search.
        width: units of the uncompressed layer.
        in_file: inputs that are read, and units that are there, in the run's compressed file; None without one.
    """

    name: str
    weights: int
    kept: int
    mean_snr: float
    kl_nats: float | None
    inputs: int
    outputs: int
    width: int
    in_file: tuple[int, int] | None = None
    kl_se_nats: float = 0.0

    @property
    def bits_per_weight(self) -> float | None:
        """KL in bits per weight: what a coder with the prior as its model would have to spend (bits-back)."""
        return None if self.kl_nats is None else self.kl_nats / math.log(2) / self.weights

    @property
    def bits_se_per_weight(self) -> float:
        """Standard error of that."""
        return self.kl_se_nats / math.log(2) / self.weights


@dataclass(frozen=True)
class Sampled:
    """What draws from the posterior say.

    Attributes:
        draws: their number.
        k_hat: Pareto k of the whole posterior against its target.
        elbo_sd: standard deviation of the ELBO's integrand over the draws, in nats; 0 for an exact posterior.
        negative_elbo_nats: -ELBO by draws of whole weights: KL less the mean log-likelihood of the training set.
        negative_elbo_se_nats: its standard error, over draws and over the rows that stand for all; of the KL too, where
            that is a mean over the draws.
        elbo_rows: training rows that the target's likelihood was computed from, scaled up to all.
        rows: training rows of the leave-one-out estimate.
        elpd_loo: PSIS-LOO log predictive density of those rows, in nats per row.
        elpd_loo_se: its standard error.
        p_loo: effective number of parameters of those rows.
        high_k: rows with Pareto k above 0.7.
        validation_scores: scores of the posterior predictive.
        test_scores: as above, on the test split.
    """

    draws: int
    k_hat: float
    elbo_sd: float
    negative_elbo_nats: float
    negative_elbo_se_nats: float
    elbo_rows: int
    rows: int
    elpd_loo: float
    elpd_loo_se: float
    p_loo: float
    high_k: int
    validation_scores: Quality
    test_scores: Quality


@dataclass(frozen=True, repr=False)
class Inspection:
    """A run, looked at. `sampled` is None for a deterministic network.

    Attributes:
        run: the run folder.
        layers: in network order.
        criterion: the pruning criterion and the score from which a weight counts as kept.
        history: one entry per epoch, as in `history.jsonl`.
        training_rows: size of the training split.
        validation_scores: scores of the posterior-mean network.
        test_scores: as above, on the test split.
        sampled: what draws say.
    """

    run: Run
    layers: tuple[LayerSummary, ...]
    criterion: tuple[str, float]
    history: tuple[dict[str, Any], ...]
    training_rows: int
    validation_scores: Quality
    test_scores: Quality
    sampled: Sampled | None

    def __repr__(self) -> str:
        """A line per layer, and what draws say."""
        lines = [f"{self.run.path}: {self.run.config.prior} posterior, {self.training_rows:,} training rows"]
        for layer in self.layers:
            spread = f" ± {layer.kl_se_nats:,.1f}" if layer.kl_se_nats else ""
            kl = "" if layer.kl_nats is None else f", KL {layer.kl_nats:,.1f}{spread} nats"
            lines.append(
                f"  {layer.name}: {layer.kept:,} of {layer.weights:,} weights above {self.criterion[1]:g} by "
                f"{self.criterion[0]}, mean SNR {layer.mean_snr:.2f}{kl}"
            )
        scores = {"posterior mean": self.test_scores} | ({"draws": self.sampled.test_scores} if self.sampled else {})
        for what, found in scores.items():
            lines.append(f"  test by {what}: " + ", ".join(f"{name} {cell}" for name, cell in found.cells.items()))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "run": str(self.run.path),
            "prior": self.run.config.prior,
            "criterion": self.criterion[0],
            "threshold": self.criterion[1],
            "layers": [asdict(layer) | _bits(layer) for layer in self.layers],
            "negative_elbo_nats": [entry["negative_elbo_nats"] for entry in self.history],
            "training_rows": self.training_rows,
            "validation_scores": asdict(self.validation_scores),
            "test_scores": asdict(self.test_scores),
            "sampled": None if self.sampled is None else asdict(self.sampled),
        }


def _bits(layer: LayerSummary) -> dict[str, float | None]:
    return {"bits_per_weight": layer.bits_per_weight, "bits_se_per_weight": layer.bits_se_per_weight}


def inspect_run(
    path: Path, data_dir: str = "", size: Size | None = None, seed: int = 0, all_rows: bool = False, threads: int = 0,
    data: str = "",
) -> tuple[Inspection, Diagnosis | None]:  # fmt: skip
    """Look at a run folder.

    Args:
        path: the run folder.
        data_dir: folder of the torchvision data sets.
        size: how much is drawn.
        seed: seeds the draws.
        all_rows: compute k-hat from every training row instead of the stored subset.
        threads: CPU threads; 0 leaves torch's default.
        data: where the run's data lie now; empty: where they lay.

    Returns:
        The numbers, and the draws behind them (None for a deterministic network).

    Raises:
        ValueError: no run folder, one without `guide.safetensors`, missing data, ArviZ not installed.
    """
    prepare("cpu", threads)
    check_command("inspect", path)
    run = load_run(path, data)
    give_back(run.posterior.largest_bytes)
    splits = run.splits(data_dir)
    diagnosis, sampled, kl, errors = None, None, dict[str, float](), dict[str, float]()
    if run.config.prior != "none":
        arviz_compat.arviz()  # refuses before any time is spent
        marginals = read_marginals(path / "guide.safetensors", run.config, run.posterior)
        size = size or Size()
        if size.draws == AUTO:
            large = run.posterior.parameters_total > LARGE
            size = replace(size, draws=80, prior_draws=min(size.prior_draws, 20)) if large else replace(size, draws=200)
        diagnosis = diagnose(run.posterior, marginals, splits.train, size, seed, all_rows)
        kl, errors = diagnosis.kl_nats, diagnosis.kl_se_nats
        drawn = networks(run.posterior, marginals, PREDICTIVE_DRAWS, seed)
        scores = evaluate_mixture(drawn, splits, ("validation", "test"), run.posterior.noise)
        sampled = _sampled(diagnosis, len(splits.train), *scores)
        del marginals, drawn
    noise = run.posterior.noise
    mean = Network(run.posterior.graph, run.posterior.tensors, own=True).eval()
    return Inspection(
        run=run,
        layers=summaries(run.posterior, kl, compressed_tensors(path / "network.pcn"), errors),
        criterion=(run.posterior.criterion, THRESHOLDS[run.posterior.criterion]),
        history=read_history(path),
        training_rows=len(splits.train),
        validation_scores=evaluate(mean, splits, "validation", noise=noise),
        test_scores=evaluate(mean, splits, "test", noise=noise),
        sampled=sampled,
    ), diagnosis


def inspect(path: str | Path, draws: int = AUTO, seed: int = 0, data: str = "") -> Inspection:
    """What a run's posterior learned and how far to trust it.

    Args:
        path: the run folder, of `fit` or of `save_run`.
        draws: networks drawn from the posterior; 0: as many as go with its size.
        seed: seeds them.
        data: where the run's data lie now; empty: where they lay.

    Raises:
        ValueError: as `inspect_run`.

    Examples:
        >>> inspect("missing")
        Traceback (most recent call last):
        ValueError: missing is no run folder (it needs config.toml and posterior.safetensors, as fit writes them)
    """
    return inspect_run(Path(path), size=Size(draws), seed=seed, data=data)[0]


def save_netcdf(diagnosis: Diagnosis | None, path: Path) -> None:
    """Write the draws for ArviZ.

    Raises:
        ValueError: there are none, or the folder does not exist.
    """
    if diagnosis is None:
        raise ValueError("a deterministic network has no draws to write; fit it with a prior")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder; make it first, or choose another name")
    arviz_compat.write_netcdf(arviz_compat.inference_data(diagnosis.groups), path)


def counted(inspection: Inspection, network: Path) -> Inspection:
    """The same, with the units of this compressed file beside those above the threshold."""
    found = compressed_tensors(network) or {}
    layers = [replace(one, in_file=(_live(found, one.name, 0), _live(found, one.name, 1))) for one in inspection.layers]
    return replace(inspection, layers=tuple(layers))


def compressed_tensors(path: Path) -> dict[str, Tensor] | None:
    """Tensors of a compressed file; None without one."""
    if not path.is_file():
        return None
    return {name: torch.from_numpy(file.dense(tensor)) for name, tensor in file.read(path).tensors.items()}


def summaries(
    posterior: Posterior,
    kl_nats: dict[str, float],
    compressed: dict[str, Tensor] | None = None,
    kl_se_nats: dict[str, float] | None = None,
) -> tuple[LayerSummary, ...]:
    """One row per layer with weights.

    Args:
        posterior: moments of every weight, and the network.
        kl_nats: KL by tensor; layers without an entry have no prior.
        compressed: tensors of its file, if there is one.
        kl_se_nats: standard errors of those that are sampled.
    """
    keep = kept(posterior.layers, posterior.criterion)
    pruned = {name: torch.where(keep[name], layer.mean, 0.0) for name, layer in posterior.layers.items()}
    counts = {name: nonzero(mask) for name, mask in keep.items()}
    names, tensors = set(pruned), posterior.tensors | pruned
    del keep, pruned
    _, small = shrink(posterior.graph, tensors, names)
    return tuple(
        LayerSummary(
            name=name,
            weights=layer.mean.numel(),
            kept=counts[name],
            mean_snr=mean_signal_to_noise(layer),
            kl_nats=kl_nats.get(name),
            kl_se_nats=(kl_se_nats or {}).get(name, 0.0),
            inputs=_live(small, name, 0),
            outputs=_live(small, name, 1),
            width=layer.mean.shape[0],
            in_file=None if compressed is None else (_live(compressed, name, 0), _live(compressed, name, 1)),
        )
        for name, layer in posterior.layers.items()
    )


def _live(tensors: dict[str, Tensor], name: str, axis: int) -> int:
    """Inputs (axis 0) or outputs (axis 1) of a weight that are not all zero; 0 if the layer is gone."""
    if name not in tensors:
        return 0
    used = tensors[name].flatten(2).any(2) if tensors[name].dim() > 2 else tensors[name]
    return int(used.any(axis).sum())


def weight_draw_elbo(diagnosis: Diagnosis, training_rows: int) -> tuple[float, float]:
    """-ELBO in nats and its standard error, the log-likelihood by draws of whole weights.

    `KL(q ‖ p) - E_q[log p(y | w)]` (Blundell et al. 2015, eq. 1) with one weight for all rows and all positions of a
    row, as the posterior is defined. Local reparameterization draws another one at every position, which is another
    objective for convolutions and sequences. Rows and draws are two independent samples: their variances add up. A KL
    that only draws tell is the mean over the same draws: draw by draw it is taken off the likelihood.
    """
    values = diagnosis.groups.values
    drawn, rows = values["sample_stats"]["expected_log_likelihood"][0], values["log_likelihood"]["y"][0].mean(0)
    sampled = [name in diagnosis.kl_se_nats for name in diagnosis.kl_nats]
    drawn = drawn - values["sample_stats"]["kl"][0][:, sampled].sum(1)
    exact = sum(kl for name, kl in diagnosis.kl_nats.items() if name not in diagnosis.kl_se_nats)
    variance = drawn.var(ddof=1) / len(drawn)
    if diagnosis.ratio_rows < training_rows:
        variance += training_rows**2 * rows.var(ddof=1) / len(rows)
    return exact - float(drawn.mean()), math.sqrt(variance)


def _sampled(diagnosis: Diagnosis, training_rows: int, validation: Quality, test: Quality) -> Sampled:
    loo = arviz_compat.loo(arviz_compat.inference_data(diagnosis.groups))
    draws, rows = diagnosis.groups.values["log_likelihood"]["y"].shape[1:]
    elbo, error = weight_draw_elbo(diagnosis, training_rows)
    return Sampled(
        draws=draws,
        k_hat=arviz_compat.pareto_k(diagnosis.log_ratios),
        elbo_sd=float(diagnosis.log_ratios.std()),
        negative_elbo_nats=elbo,
        negative_elbo_se_nats=error,
        elbo_rows=diagnosis.ratio_rows,
        rows=rows,
        elpd_loo=loo.elpd / rows,
        elpd_loo_se=loo.se / rows,
        p_loo=loo.p,
        high_k=int((loo.pareto_k > HIGH).sum()),
        validation_scores=validation,
        test_scores=test,
    )
