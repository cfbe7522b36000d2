"""Fifty weights by the No-U-Turn Sampler: a run folder, and what `inspect` says of it.

python examples/python/nuts.py
"""

import pyro
import torch
from pyro.infer import MCMC, NUTS
from torch import nn

import pyro_compress as pc

torch.manual_seed(0)
x = torch.randn(300, 3)
y = (x[:, 0] * x[:, 1] > 0).long()
splits = pc.splits_from((x, y))

pyro.clear_param_store()
net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))  # 40 weights, 10 biases
model, _ = pc.program(net, splits, prior="gaussian", bias_prior="same")
mcmc = MCMC(NUTS(model, max_tree_depth=5), num_samples=60, warmup_steps=60, disable_progbar=True)
mcmc.run(splits.train.x, splits.train.y)

run = pc.save_run("nuts", model, mcmc, force=True)
print(pc.inspect(run.path))
print("next: pyro-compress compress nuts")
