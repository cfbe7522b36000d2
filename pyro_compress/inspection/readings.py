"""What the numbers of an inspection say, and what they cannot say, in plain language."""

from __future__ import annotations

from collections.abc import Iterable

from pyro_compress.bayes.assignment import assigned
from pyro_compress.inspection.arviz_compat import HIGH
from pyro_compress.inspection.restarts import Agreement
from pyro_compress.inspection.summary import Inspection, LayerSummary, Sampled
from pyro_compress.training.settled import drift

MANY = 1000
"""Weights from which on a high k-hat is the rule."""


def readings(inspection: Inspection) -> dict[str, str]:
    """Topic -> a sentence or two."""
    if inspection.sampled is None:
        return {"posterior": "A deterministic network: it has no posterior, so there is nothing to diagnose."}
    texts = {
        "convergence": convergence(inspection),
        "-ELBO": elbo(inspection, inspection.sampled),
        "k-hat": k_hat(inspection),
        "leave-one-out": leave_one_out(inspection.sampled),
        "prediction": prediction(inspection),
    }
    if not assigned(inspection.run.config).proper:
        texts["prior"] = (
            f"The {inspection.run.config.prior} prior is improper: KL is counted from an arbitrary zero, bits per "
            "weight compare layers of this run and no other prior, and the exact posterior that k-hat speaks of "
            "does not exist."
        )
    return texts


def convergence(inspection: Inspection) -> str:
    """Whether the ELBO still moved at the end, at full KL weight."""
    found = drift(inspection.history, inspection.run.config.kl_weight)
    if not inspection.history:
        return "No epochs ran here, so there is no course of -ELBO to speak of convergence."
    if found.fell is None:
        return "Fewer than four epochs ran at full KL weight: too few to speak of convergence."
    return (
        f"Over the last {found.epochs} epochs -ELBO changed by {-100 * found.fell:+.1f} %: it {found.verdict}. The "
        "learning rate falls to zero by then: a flat end says that training stopped, not that nothing better exists."
    )


def elbo(inspection: Inspection, sampled: Sampled) -> str:
    """The objective by draws of whole weights, beside what the fit noted."""
    config, noted = inspection.run.config, [e["negative_elbo_nats"] for e in inspection.history][-1:]
    rows = "" if sampled.elbo_rows == inspection.training_rows else f", likelihood from {sampled.elbo_rows:,} rows"
    drawn = (
        f"{sampled.negative_elbo_nats:,.0f} ± {sampled.negative_elbo_se_nats:,.0f} nats by draws of whole weights"
        f" (standard error; {sampled.draws} draws{rows})"
    )
    if not noted or noted[0] is None:
        return f"{drawn}."
    text = f"{drawn}; the fit noted {noted[0]:,.0f} over its last epoch."
    if config.estimator != "local":
        return text
    return (
        f"{text} Local reparameterization draws noise of its own at every position of a convolution or a sequence: "
        "where a layer has several positions, what the fit noted is of that objective, not of this one."
    )


def k_hat(inspection: Inspection) -> str:
    """The whole posterior against its target."""
    assert inspection.sampled is not None
    sampled, weights = inspection.sampled, sum(layer.weights for layer in inspection.layers)
    scaled = f" (likelihood from {sampled.elbo_rows:,} rows, scaled up)"
    rows = "" if sampled.elbo_rows == inspection.training_rows else scaled
    if sampled.k_hat <= HIGH:
        return (
            f"k-hat {sampled.k_hat:.2f}{rows} is below 0.7: draws can be reweighted towards the exact posterior, "
            "and the approximation is close."
        )
    usual = f", as it nearly always is for an approximation over {weights:,} weights" if weights >= MANY else ""
    return (
        f"k-hat {sampled.k_hat:.1f}{rows} is above 0.7{usual}: the draws cannot be reweighted into the exact "
        "posterior, and spreads and correlations of single weights must not be read as those of the exact posterior. "
        "Predictions can be good all the same; judge them on held-out rows."
    )


def leave_one_out(sampled: Sampled) -> str:
    """PSIS-LOO of training rows."""
    share = sampled.high_k / sampled.rows
    if sampled.high_k == 0:
        trust = "no row has a Pareto k above 0.7: the estimate is stable"
    else:
        trust = (
            f"{sampled.high_k} of {sampled.rows} rows ({100 * share:.0f} %) have a Pareto k above 0.7: for these the "
            "draws do not cover what leaving the row out would change"
            + (", so don't use this estimate" if share > 0.1 else "")
        )
    return (
        f"Leaving each of {sampled.rows} training rows out in turn is estimated to give {sampled.elpd_loo:.3f} ± "
        f"{sampled.elpd_loo_se:.3f} nats per row; {trust}. The estimate takes this posterior for the exact "
        "one; it is about rows that were fitted, not about new ones."
    )


def prediction(inspection: Inspection) -> str:
    """The posterior predictive beside the posterior-mean network, on test rows."""
    assert inspection.sampled is not None
    mean, mixed = -inspection.test_scores.nll_nats, -inspection.sampled.test_scores.nll_nats
    gain = mixed - mean
    verdict = "no better than" if abs(gain) < 1e-3 else "better than" if gain > 0 else "worse than"
    return (
        f"Log predictive density of the test rows is {mixed:.4f} nats per row averaged over draws, {verdict} the "
        f"{mean:.4f} of the posterior-mean network, which is what gets compressed."
    )


def restarts(found: list[Agreement]) -> str:
    """What r-hat across independent fits means."""
    worst = max(found, key=lambda agreement: agreement.median_rhat)
    agree = "agree" if worst.median_rhat < 1.05 else "differ"
    return (
        f"Each fit counts as one chain. Draws within a fit are independent by construction, so r-hat within one fit is "
        f"1.00 and says nothing; across fits it says whether restarts end in the same place. Here they {agree} "
        f"(worst: {worst.quantity}, median r-hat {worst.median_rhat:.2f}). An ESS far below the number of draws means "
        "that the fits, not the draws, are the units that count."
    )


def layer_rows(layers: Iterable[LayerSummary]) -> list[tuple[str, ...]]:
    """Head and rows of the table of layers."""
    layers = tuple(layers)
    head = ["layer", "weights", "kept", "mean SNR", "KL (nats)", "bits/weight", "units above"]
    filed = [layer.in_file for layer in layers if layer.in_file]
    rows: list[tuple[str, ...]] = [(*head, *(["units in file"] if filed else []))]
    for layer in layers:
        kl, bits = layer.kl_nats, layer.bits_per_weight
        rows.append(
            (
                layer.name,
                f"{layer.weights:,}",
                f"{layer.kept:,} ({100 * layer.kept / layer.weights:.1f} %)",
                f"{layer.mean_snr:.2f}",
                "-" if kl is None else f"{kl:,.0f}{_error(layer.kl_se_nats, 0)}",
                "-" if bits is None else f"{bits:.2f}{_error(layer.bits_se_per_weight, 2)}",
                f"{layer.inputs} -> {layer.outputs} of {layer.width}",
                *(f"{one[0]} -> {one[1]}" for one in [layer.in_file] if one),
            )
        )
    return rows


def _error(error: float, digits: int) -> str:
    """A standard error behind its number; nothing where there is none."""
    return f" ± {error:,.{digits}f}" if error else ""
