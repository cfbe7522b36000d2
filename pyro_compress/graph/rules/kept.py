"""What torch runs as it is: the torch side of `graph.operations.kept`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_compress.graph.operations.kept import batch_of, call
from pyro_compress.graph.rules.row import Rule


def _run(*given: Any) -> Tensor:
    *inputs, parameters, attributes = given
    return call(inputs, parameters, attributes, batch_of(inputs, attributes))


RULES = {"aten": Rule(_run)}
