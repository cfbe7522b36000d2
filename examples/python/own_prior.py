"""A prior of one's own on the digits: a Laplace on the weights of the first layer, a horseshoe on the last.

python examples/python/own_prior.py
"""

import pyro
from pyro.distributions import Laplace

import pyro_compress as pc


def laplace(shape, name, scale=0.1):
    """A prior is a Pyro function of a shape and a name; what else it takes is an option."""
    return pyro.sample(name, Laplace(0.0, scale).expand(shape).to_event(len(shape)))


fitted = pc.fit(
    "mlp", "digits", hidden=(30,), prior={"1": laplace, "3": "horseshoe"}, prior_options={"scale": 0.05},
    epochs=30, seed=1,
)  # fmt: skip
print(fitted)
compressed = fitted.compress(tolerance=0.01)
print(compressed)
compressed.save("digits.pcn", force=True)
