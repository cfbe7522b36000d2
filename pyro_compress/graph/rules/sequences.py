"""What reads sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces.onnx import Builder, Placement
from pyro_compress.graph.operations.sequences import GATES
from pyro_compress.graph.rules.row import Rule
from pyro_compress.pcn.file import dense

ORDERS = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""Gates in the order in which ONNX has them."""


def _read_embedding(call: Call) -> Parsed:
    call.without_effect("padding_idx", "scale_grad_by_freq", "sparse")
    return "embedding", [call["indices"]], {"weight": call["weight"]}, {}


def parameters_of(p: dict[str, Tensor]) -> list[Tensor]:
    """Weights of a recurrent layer, on its inputs and on its outputs, and both biases or none."""
    biases = [p[role] for role in ("bias_ih", "bias_hh") if role in p]
    if len(biases) == 1:
        biases = [p.get(role, torch.zeros_like(biases[0])) for role in ("bias_ih", "bias_hh")]
    return [p["weight_ih"], p["weight_hh"], *biases]


def _runs(run: Callable[[Tensor, Tensor, list[Tensor]], Tensor]) -> Callable[..., Tensor]:
    """A recurrent layer that begins with zeros, forwards or backwards."""

    def recurrent(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
        start = x.new_zeros(1, x.shape[0], p["weight_hh"].shape[1])
        found = run(x.flip(1) if a.get("reverse") else x, start, parameters_of(p))
        return found.flip(1) if a.get("reverse") else found

    return recurrent


def _lstm(x: Tensor, start: Tensor, p: list[Tensor]) -> Tensor:
    return torch.lstm(x, (start, start), p, len(p) > 2, 1, 0.0, False, False, True)[0]


def _gru(x: Tensor, start: Tensor, p: list[Tensor]) -> Tensor:
    return torch.gru(x, start, p, len(p) > 2, 1, 0.0, False, False, True)[0]


def _place_embedding(builder: Builder, placement: Placement) -> None:
    builder.node(
        "Gather", [builder.tensor(placement.parameters["weight"]), *placement.inputs], placement.output, axis=0
    )


def _place_as(kind: str) -> Callable[[Builder, Placement], None]:
    """Values in another type."""

    def place(builder: Builder, placement: Placement) -> None:
        from onnx import TensorProto

        builder.node("Cast", placement.inputs, placement.output, to=getattr(TensorProto, kind))

    return place


def _place_recurrent(op: str) -> Callable[[Builder, Placement], None]:
    """ONNX has time in front of the batch, gates in another order, and both biases in one tensor."""

    def place(builder: Builder, placement: Placement) -> None:
        def ordered(role: str) -> np.ndarray:
            if role not in placement.parameters:
                return np.zeros(len(dense(builder.network.tensors[placement.parameters["weight_hh"]])), np.float32)
            blocks = np.split(dense(builder.network.tensors[placement.parameters[role]]), GATES[op])
            return np.concatenate([blocks[place] for place in ORDERS[op]])

        out = placement.output
        weights = [builder.constant(ordered(role)[None], f"{out}.{role}") for role in ("weight_ih", "weight_hh")]
        biases = np.concatenate([ordered("bias_ih"), ordered("bias_hh")])[None]
        turned = builder.node("Transpose", placement.inputs, f"{out}.turned", perm=[1, 0, 2])
        direction = "reverse" if placement.attributes.get("reverse") else "forward"
        more = {"linear_before_reset": 1} if op == "gru" else {}
        inputs = [turned, *weights, builder.constant(biases, f"{out}.bias")]
        units = weights and dense(builder.network.tensors[placement.parameters["weight_hh"]]).shape[1]
        ran = builder.node(op.upper(), inputs, f"{out}.ran", hidden_size=units, direction=direction, **more)
        axis = builder.constant(np.array([1], np.int64), f"{out}.axis")
        builder.node("Transpose", [builder.node("Squeeze", [ran, axis], f"{out}.squeezed")], out, perm=[1, 0, 2])

    return place


RULES = {
    "embedding": Rule(
        lambda x, p, a: F.embedding(x, p["weight"]), {"embedding": _read_embedding}, onnx=_place_embedding
    ),
    "whole": Rule(lambda x, p, a: x.to(torch.int64), onnx=_place_as("INT64")),
    "truth": Rule(lambda x, p, a: x != 0, onnx=_place_as("BOOL")),
    "lstm": Rule(_runs(_lstm), onnx=_place_recurrent("lstm")),
    "gru": Rule(_runs(_gru), onnx=_place_recurrent("gru")),
}
