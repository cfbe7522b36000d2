"""Pyro's AutoNormal, fitted by an SVI loop written by hand, and compressed into a file.

python examples/python/own_svi.py
"""

from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam

import pyro_compress as pc

torch.manual_seed(0)
pyro.clear_param_store()
splits = pc.load_splits("digits")
net = pc.build_net("mlp", splits.input_shape, splits.outputs, (20,))
model, guide = pc.program(net, splits, prior="gaussian", prior_options={"scale": 0.3}, guide=AutoNormal)

epochs, batch = 30, 100
svi = SVI(model, guide, ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / (12 * epochs))}), Trace_ELBO())
for epoch in range(epochs):
    rows = torch.randperm(len(splits.train)).split(batch)
    loss = sum(svi.step(splits.train.x[part], splits.train.y[part]) for part in rows) / len(rows)
    if epoch % 10 == 9:
        print(f"epoch {epoch + 1}: -ELBO {loss:,.0f} nats")

posterior = pc.posterior(model, guide)
network, removed = pc.compress(posterior, splits, pc.Goal(tolerance=0.01))
pc.save(Path("svi.pcn"), network, splits)
module = pc.load("svi.pcn")
right = (module(splits.validation.x).argmax(1) == splits.validation.y).float().mean()
print(f"svi.pcn: {Path('svi.pcn').stat().st_size:,} bytes, {removed:.0%} of the weights removed, {right:.1%} right")
