"""What the coder is about to spend on a tensor, as a differentiable number of bits.

The coder predicts whether a value is zero from how many values of its row, its column and the pixels around were not,
and its magnitude from those of the layer. So does this: a weight costs less where others already are, which draws the
survivors together. The tables follow the current integers and carry no gradient; between two integers the cost is
interpolated.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.pcn.layout import Layout
from pyro_compress.types import CACHED

LARGEST = 63
REFRESH = 10
"""Steps between two looks at the integers."""


class CodeLength:
    """Bits of one tensor with a given layout, from its values in units of the step.

    Args:
        layout: of the tensor.
        places: flat indices of the values that are given; None for all. The others are zero and stay so.
    """

    def __init__(self, layout: Layout, places: Tensor | None = None):
        self.layout, self.calls = layout, 0
        self.places = torch.arange(math.prod(layout)) if places is None else places
        self.zero, self.one, self.more = torch.zeros(()), torch.zeros(()), torch.zeros(())

    def __call__(self, values: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Bits of the given values, or of draws around them, summed; the tables follow the values."""
        size = values.abs().clamp(max=LARGEST)
        if self.calls % REFRESH == 0:
            codes = torch.zeros(math.prod(self.layout)).scatter(0, self.places, torch.round(size.detach()))
            self.look(codes.view(self.layout[0], -1))
        self.calls += 1
        size = size if drawn is None else drawn.abs().clamp(max=LARGEST)
        whole = size.detach().floor().long().clamp(max=LARGEST - 1)
        slope = torch.where(whole == 0, self.one - self.zero, self.more[whole + 1] - self.more[whole])
        base = torch.where(whole == 0, self.zero, self.one + self.more[whole])
        return (base + slope * (size - whole)).sum()

    def look(self, codes: Tensor) -> None:
        """Renew the tables from magnitudes `(rows, columns)`."""
        self.zero = self.one = torch.zeros(())  # the old ones make room
        there = codes > 0
        first, more = magnitudes(codes[there]) if there.any() else (torch.zeros(()), torch.zeros(LARGEST))
        chance = self.chances(there.float()).flatten()[self.places]
        self.zero = (1 - chance).log2_().neg_()
        self.one = chance.log2_().neg_().add_(1).add_(first)
        self.more = torch.cat([torch.zeros(1), more])

    def chances(self, there: Tensor) -> Tensor:
        """Probability that a value is not zero, from its row, its column and the pixels around."""
        rows, planes, height, width = self.layout
        overall = (there.mean() + 1e-4).clamp(max=0.99)
        row = (there.sum(1, keepdim=True) + 4 * overall) / (there.shape[1] + 4)
        column = there.sum(0, keepdim=True)
        if min(height, width) > 2:  # a pixel and its eight neighbours, which count half
            image = column.view(planes, 1, height, width)
            near = F.conv2d(image, torch.ones(1, 1, 3, 3), padding=1) - image
            column = (column + 0.5 * near.view(1, -1)) / 5
        column = (column + 2 * overall) / (rows + 2)
        logits = torch.logit(row, 1e-5) + torch.logit(column, 1e-5)
        return logits.sub_(torch.logit(overall, 1e-5)).sigmoid_().clamp_(1e-4, 0.9)


def magnitudes(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Bits of magnitude 1, and how many more those from 1 to `LARGEST` take; never falling.

    Half of it is the smoothed histogram, half a geometric law of the same mean: where a histogram has its peak above 1
    it knows no reason to become smaller, but together its members would save by doing so.
    """
    counts = [torch.bincount(part.long(), minlength=LARGEST + 1) for part in sizes.split(CACHED)]
    histogram = torch.stack(counts).sum(0).float()
    padded = torch.cat([histogram[1:2], histogram[1:], torch.zeros(1)])
    smooth = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:] + 0.02
    counted = -torch.log2(smooth / smooth.sum())
    ratio = (sizes.mean() - 0.9) / (sizes.mean() + 0.1)
    geometric = -torch.log2(1 - ratio) - torch.log2(ratio) * torch.arange(LARGEST)
    bits = 0.5 * (torch.cummax(counted, 0).values + geometric)
    return bits[0], bits - bits[0]
