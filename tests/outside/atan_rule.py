"""What torch makes of the arctangent: the second file."""

import torch

from pyro_compress.graph.faces.onnx import plain
from pyro_compress.graph.rules.single import pointwise

ATAN = pointwise("atan", torch.atan, plain("Atan"), "atanf(v)")
