"""Gradient variance of the three estimators: the same posterior, the same minibatch, fresh noise.

    python scripts/bench_estimators.py [--batch 100] [--draws 200] [--json FILE] [--smoke]

For every prior and estimator: the variance of the gradient of the expected log-likelihood with respect to the
posterior locations of the weights, summed over all of them, relative to local reparameterization. Lower is better.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO

from pyro_compress.bayes.elbo import ElboTerms, closed_form_sites
from pyro_compress.bayes.estimators import ESTIMATORS
from pyro_compress.bayes.fit import fit_posterior
from pyro_compress.bayes.layers import bayes_layers
from pyro_compress.bayes.model import Fit
from pyro_compress.cli.commands import run_script
from pyro_compress.data.splits import load_splits
from pyro_compress.machine import prepare
from pyro_compress.networks.nets import build_net
from pyro_compress.runs.config import resolve
from pyro_compress.settings import FitConfig

PRIORS = ("gaussian", "log-uniform", "normal-jeffreys", "horseshoe")


def gradient_variance(fit: Fit, estimator: str, x: torch.Tensor, y: torch.Tensor, draws: int) -> float:
    """Total variance of the gradient of the negative log-likelihood (nats) over the raw weights' locations."""
    elbo, sites = TraceMeanField_ELBO(), closed_form_sites(fit.guide, fit.model.net)
    parameters = fit.guide.groups(1, 1, 1)[0]["params"]
    first, second = 0.0, 0.0
    with pyro.validation_enabled(False):
        for _ in range(draws):
            with ElboTerms(0.0, sites), ESTIMATORS[estimator](fit.guide.marginal, bayes_layers(fit.model.net), len(y)):
                loss = elbo.differentiable_loss(fit.model, fit.guide, x, y)
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
            first, second = first + gradient, second + gradient.square()
    mean = first / draws
    return float((second / draws - mean.square()).sum() * draws / (draws - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a few draws of one prior")
    options = parser.parse_args()
    priors, draws, epochs = (("gaussian",), 5, 3) if options.smoke else (PRIORS, options.draws, 30)
    prepare("cpu")
    splits, rows = load_splits("digits"), []
    x, y = splits.train.x[: options.batch], splits.train.y[: options.batch]
    print(f"{'prior':<18}" + "".join(f"{name:>12}" for name in ESTIMATORS) + "   (variance relative to local)")
    for prior in priors:
        config = resolve(FitConfig(prior=prior, hidden=(100, 100), epochs=epochs, device="cpu"), len(splits.train))
        torch.manual_seed(config.seed)
        net = build_net("mlp", splits.input_shape, len(splits.classes), config.hidden)
        fit = fit_posterior(net, splits, replace(config, estimator="local"))
        found = {name: gradient_variance(fit, name, x, y, draws) for name in ESTIMATORS}
        rows += [
            {"prior": prior, "estimator": name, "batch": len(y), "variance": value, "relative": value / found["local"]}
            for name, value in found.items()
        ]
        print(f"{prior:<18}" + "".join(f"{found[name] / found['local']:>12.1f}" for name in ESTIMATORS), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
