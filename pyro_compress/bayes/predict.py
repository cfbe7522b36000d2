"""What a fitted posterior predicts: draws of the predictive distribution."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pyro_compress.bayes.model import Fit
from pyro_compress.data.several import task_named


@torch.no_grad()
def predictive(fit: Fit, x: Tensor, draws: int = 10, seed: int = 0) -> Tensor:
    """Class probabilities of networks drawn from the posterior; for regression, their standardised means.

    Args:
        fit: a fitted posterior.
        x: inputs `(n, *input_shape)`.
        draws: number of networks; each is shared by all inputs.
        seed: seeds the draws.

    Returns:
        Probabilities `(draws, n, classes)`, or means `(draws, n, targets)`; their mean over the draws is that of the
        posterior predictive (Blundell et al. 2015, section 3.1), which the posterior-mean network (`extract`)
        approximates.

    Examples:
        >>> import pyro_compress as pc
        >>> splits = pc.load_splits("digits")
        >>> net = pc.build_net("mlp", splits.input_shape, len(splits.classes), (20,))
        >>> config = pc.resolve(pc.FitConfig(prior="log-uniform", epochs=4), len(splits.train))
        >>> fit = pc.fit_posterior(net, splits, config)
        >>> pc.predictive(fit, splits.validation.x, draws=5).shape
        torch.Size([5, 240, 10])
    """
    net, device = fit.model.net, next(fit.guide.parameters()).device
    found = []
    with torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        for _ in range(draws):
            weights = pyro.poutine.trace(fit.guide).get_trace(x[:1].to(device))
            network = pyro.poutine.replay(net.eval(), trace=weights)
            logits = [pyro.poutine.block(network)(part.to(device)) for part in x.split(1000)]
            found.append(task_named(fit.model.likelihood.task).predicted(torch.cat(logits)).cpu())
    return torch.stack(found)
