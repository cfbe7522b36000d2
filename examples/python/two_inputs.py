"""A network with two inputs, its data in a DataLoader, and a callback that ends the fit.

python examples/python/two_inputs.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader

import pyro_compress as pc


class Prices(nn.Module):
    """Reads numbers and words; its parameters are called as the inputs are."""

    def __init__(self):
        super().__init__()
        self.numbers, self.words, self.end = nn.Linear(4, 16), nn.Embedding(6, 4), nn.Linear(24, 3)

    def forward(self, numbers, words):
        """Logits of three classes."""
        return self.end(torch.cat([self.numbers(numbers).tanh(), self.words(words).flatten(1)], 1))


torch.manual_seed(0)
numbers, words = torch.randn(1500, 4), torch.randint(0, 6, (1500, 2))
labels = (numbers[:, 0] > 0).long() + (words[:, 0] > 2).long()
rows = [({"numbers": n, "words": w}, int(y)) for n, w, y in zip(numbers, words, labels, strict=True)]


def good_enough(epoch):
    """Returning True ends the fit, whose result is used."""
    return epoch.phase == "svi" and epoch.validation_accuracy > 0.97


loader = DataLoader(rows, batch_size=50, shuffle=True)
fitted = pc.fit(Prices(), loader, prior="log-uniform", epochs=80, callbacks=[good_enough, pc.ProgressBar()])
print(fitted)
print(fitted.compress(tolerance=0.01).save("prices.pcn", force=True))
