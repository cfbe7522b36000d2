"""What reads sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces import c, c_text
from pyro_compress.graph.faces.onnx import Builder, Placement
from pyro_compress.graph.operations.sequences import GATES
from pyro_compress.graph.rules.row import Rule
from pyro_compress.pcn.file import dense
from pyro_compress.types import Node, count

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


def _c_place_embedding(planning: c.Planning, node: Node, index: int) -> int:
    codes, step = c.coded(planning.network.tensors[node.parameters["weight"]])
    before, made = (count(planning.shapes[i]) for i in (node.inputs[0], index))
    weights = c.Weights(codes, np.array(step, np.float64), np.zeros(0))
    value, shape = planning.value[node.inputs[0]], (before, 1, made // before)
    return planning.add(c.Loop("embedding", [value], [(before, 1, 1)], shape, weights))


def _c_embedding(tag: str, loop: c.Loop, per: str) -> str:
    """Numbers that the table does not have are taken for the nearest that it has."""
    assert loop.weights is not None
    (rows, features), number = loop.weights.codes.shape, c_text.number(loop.weights.scale.item())
    scaled = "" if number == "1.0f" else f" * {number}"
    return f"""
        for (size_t i = 0; i < {loop.shape[0]}; i++)
        {c.each(per)} {{
        const float v = x[i{per} + l];
        const size_t row = v > 0 ? v < {rows} ? (size_t)v : {rows - 1} : 0;
        for (size_t k = 0; k < {features}; k++)
        y[(i * {features} + k){per} + l] = {tag}_rows[row * {features} + k]{scaled};
        }}"""


def _c_rows(tag: str, loop: c.Loop) -> str:
    assert loop.weights is not None
    codes = loop.weights.codes.reshape(-1)
    return (c_text.floats if codes.dtype.kind == "f" else c_text.integers)(f"{tag}_rows", codes)


def _c_place_recurrent(planning: c.Planning, node: Node, index: int) -> int:
    """What the inputs add to every gate, as a linear layer; then the steps, which call one on the units before."""
    first, gates = node.inputs[0], GATES[node.op]
    p = {role: planning.network.tensors[name] for role, name in node.parameters.items()}
    (into, scale), (across, step) = c.coded(p["weight_ih"]), c.coded(p["weight_hh"])
    rows, units = across.shape
    given, kept = (
        dense(p[role]).astype(np.float64) if role in p else np.zeros(rows) for role in ("bias_ih", "bias_hh")
    )
    apart = np.repeat(np.arange(gates) == 2, units) & (node.op == "gru")  # it is multiplied before it is added
    given, kept = given + np.where(apart, 0, kept), np.where(apart, kept, 0)
    weights = c.Weights(into[..., None, None], np.array(scale, np.float64), given)
    value = planning.linear(planning.value[first], planning.shapes[first], weights)
    weights = c.Weights(across[..., None, None], np.array(step, np.float64), kept)
    inner = c.Loop("linear", [-1], [(units, 1, 1)], (rows, 1, 1), weights, {"positions": 1})
    steps, attributes = planning.shapes[index][0], {"reverse": bool(node.attributes.get("reverse"))}
    shapes: list[c.Shape] = [(steps, 1, rows)]
    made = c.Loop(node.op, [value], shapes, (steps, 1, units), None, attributes, inner=inner, scratch=rows + units)
    return planning.add(made)


C_LOGISTIC = "1 / (1 + {e}(-({})))"
C_STEPS = {
    "lstm": """
        const {kind} take = {0}, keep = {1}, give = {3}, cell = keep * {at}state[i]) + take * {t}({2});
        {at}state[i]) = cell;
        {at}h[i]) = give * {t}(cell);""",
    "gru": """
        const {kind} reset = {0}, keep = {1};
        const {kind} fresh = {t}({from}g[2 * N + i]) + reset * {from}gates[2 * N + i]));
        {at}h[i]) = (1 - keep) * fresh + keep * {from}before[i]);""",
}
"""What becomes of unit `i`, or of a vector of units, given its gates, of `N` numbers each."""


def _c_step(loop: c.Loop, per: str, vectors: bool) -> str:
    words = {"kind": "vector", "at": "AT(&", "from": "FROM(&"} if vectors else {"kind": "float", "at": "(", "from": "("}
    words |= {"e": "vector_exp", "t": "vector_tanh"} if vectors else {"e": "expf", "t": "tanhf"}
    sums = ["{from}g[%d * N + i]) + {from}gates[%d * N + i])" % (k, k) for k in range(4)]  # noqa: UP031
    sums = [one if (loop.op, k) == ("lstm", 2) else C_LOGISTIC.replace("{}", one) for k, one in enumerate(sums)]
    inside = C_STEPS[loop.op]
    for k, one in enumerate(sums):
        inside = inside.replace(f"{{{k}}}", one)
    for name, word in words.items():
        inside = inside.replace(f"{{{name}}}", word)
    return inside.replace("N", f"{loop.shape[2]}{per}")


def _c_recurrent(tag: str, loop: c.Loop, per: str) -> str:
    (steps, _, rows), units = loop.shapes[0], loop.shape[2]
    alone = f"for (; i < {units}; i++) {{\n{_c_step(loop, per, False)}\n}}"
    left = "" if per or units % 8 == 0 else alone
    order, before = (f"{steps - 1} - s", "t + 1") if loop.attributes["reverse"] else ("s", "t - 1")
    return f"""
        float *const gates = y + {steps * units}{per}, *const state = gates + {rows}{per};
        for (size_t i = 0; i < {units}{per}; i++)
        state[i] = 0;
        for (size_t s = 0; s < {steps}; s++) {{
        const size_t t = {order};
        const float *g = x + t * {rows}{per}, *before = s > 0 ? y + ({before}) * {units}{per} : state;
        float *const h = y + t * {units}{per};
        size_t i = 0;
        {tag}_inner{"_lanes" if per else ""}(before, gates);
        for (; i + VECTOR <= {units}{per}; i += VECTOR) {{
        {_c_step(loop, per, True)}
        }}
        {left}
        }}"""


RULES = {
    "embedding": Rule(
        lambda x, p, a: F.embedding(x, p["weight"]),
        {"embedding": _read_embedding},
        onnx=_place_embedding,
        c=c.LoopRule(_c_embedding, _c_place_embedding, _c_rows),
    ),
    "whole": Rule(lambda x, p, a: x.to(torch.int64), onnx=_place_as("INT64"), c=c.Single(lambda a: "truncf(v)")),
    "truth": Rule(lambda x, p, a: x != 0, onnx=_place_as("BOOL"), c=c.Single(lambda a: "v != 0 ? 1 : 0")),
    "lstm": Rule(_runs(_lstm), onnx=_place_recurrent("lstm"), c=c.LoopRule(_c_recurrent, _c_place_recurrent)),
    "gru": Rule(_runs(_gru), onnx=_place_recurrent("gru"), c=c.LoopRule(_c_recurrent, _c_place_recurrent)),
}
