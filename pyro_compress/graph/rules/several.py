"""What several values become together."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces import c, c_moves
from pyro_compress.graph.faces.c_text import number
from pyro_compress.graph.faces.onnx import Builder, Placement, plain
from pyro_compress.graph.rules.layers import product, turned_weight
from pyro_compress.graph.rules.row import Reader, Rule, is_number
from pyro_compress.graph.rules.single import scaled
from pyro_compress.types import Node, count


def _two(op: str) -> Reader:
    """An operation on two values, of which one may be repeated along dimensions other than the batch."""

    def read(call: Call) -> Parsed:
        a, b = call["self"], call["other"]
        if not isinstance(a, torch.fx.Node) or not isinstance(b, torch.fx.Node):
            raise ValueError("supported for two tensors only")
        for value in (a, b):
            if value.name not in call.tensors and value.meta["val"].dim() != len(call.shape):
                raise ValueError("supported for two tensors with as many dimensions only")
        return op, [a, b], {}, {}

    return read


def _read_add(call: Call) -> Parsed:
    return scaled(call, 1, call["other"]) if is_number(call["other"]) else _two("add")(call)


def _read_sub(call: Call) -> Parsed:
    return scaled(call, 1, -call["other"]) if is_number(call["other"]) else _two("subtract")(call)


def _read_rsub(call: Call) -> Parsed:
    if not is_number(call["other"]):
        raise ValueError("supported for a number minus a value only")
    return scaled(call, -1, call["other"])


def _read_mul(call: Call) -> Parsed:
    return scaled(call, call["other"]) if is_number(call["other"]) else _two("multiply")(call)


def _read_div(call: Call) -> Parsed:
    other = call["other"]
    return scaled(call, 1 / other) if is_number(other) and other else _two("divide")(call)


def _read_matmul(call: Call) -> Parsed:
    one, two = call["self"], call["other" if call.has("other") else "mat2"]
    weight, _ = turned_weight(two)
    if weight.name in call.tensors and weight.meta["val"].dim() == 2:
        return product(call, one, two)
    if one.meta["val"].dim() != two.meta["val"].dim() or one.meta["val"].dim() < 3:
        raise ValueError("supported for two values with a batch dimension and as many dimensions only")
    return "matmul", [one, two], {}, {}


def _read_attention(call: Call) -> Parsed:
    if call["attn_mask"] is not None or call["enable_gqa"]:
        raise ValueError("attention is supported without a mask and with as many keys' heads as queries' only")
    values = [call[name] for name in ("query", "key", "value")]
    return "attention", values, {}, {"causal": bool(call["is_causal"]), "scale": call["scale"]}


def _mixture(logits: tuple[Tensor, ...]) -> Tensor:
    """Log of the mean class probability; `deploy.ensemble` makes such nodes, no module is read as one."""
    log_probs = torch.stack([one.log_softmax(1) for one in logits])
    return log_probs.logsumexp(0) - math.log(len(logits))


def _place_mixture(builder: Builder, placement: Placement) -> None:
    axis = builder.constant(np.array([0], np.int64), f"{placement.output}.axis")
    members = [
        builder.node(
            "Unsqueeze",
            [builder.node("LogSoftmax", [name], f"{placement.output}.{place}", axis=1), axis],
            f"{placement.output}.{place}.stacked",
        )
        for place, name in enumerate(placement.inputs)
    ]
    stacked = builder.node("Concat", members, f"{placement.output}.members", axis=0)
    total = builder.node("ReduceLogSumExp", [stacked, axis], f"{placement.output}.sum", keepdims=0)
    log_number = builder.constant(np.array(np.log(len(members)), np.float32), f"{placement.output}.number")
    builder.node("Sub", [total, log_number], placement.output)


def _place_attention(builder: Builder, placement: Placement) -> None:
    """softmax(q kᵀ · scale + mask) v, spelled out: ONNX has had the operation since opset 23 only."""
    q, k, v = placement.inputs
    out, (*_, length, size), keys = placement.output, placement.shapes[0], placement.shapes[1][-2]
    scale = placement.attributes["scale"] if placement.attributes["scale"] is not None else size**-0.5
    axes = [*range(len(placement.shapes[1]) - 1), len(placement.shapes[1]), len(placement.shapes[1]) - 1]
    turned = builder.node("Transpose", [k], f"{out}.keys", perm=axes)
    scores = builder.node("MatMul", [q, turned], f"{out}.scores")
    factor = builder.constant(np.array(scale, np.float32), f"{out}.scale")
    scores = builder.node("Mul", [scores, factor], f"{out}.scaled")
    if placement.attributes["causal"]:
        mask = np.where(np.tri(length, keys, dtype=bool), 0, np.finfo(np.float32).min).astype(np.float32)
        scores = builder.node("Add", [scores, builder.constant(mask, f"{out}.mask")], f"{out}.masked")
    weights = builder.node("Softmax", [scores], f"{out}.weights", axis=-1)
    builder.node("MatMul", [weights, v], out)


def sign(between: str) -> Callable[[str, str], str]:
    """An operator of C."""
    return lambda one, other: f"{one} {between} {other}"


def larger(one: str, other: str) -> str:
    """The larger of two expressions."""
    return f"{one} > {other} ? {one} : {other}"


def smaller(one: str, other: str) -> str:
    """The smaller of two expressions."""
    return f"{one} < {other} ? {one} : {other}"


def _c_place_two(planning: c.Planning, node: Node, index: int) -> int:
    """Neighbouring axes along which both are whole, or the same one is repeated, are one; three of these at most."""
    values, shapes = [planning.value[i] for i in node.inputs], [planning.shapes[i] for i in node.inputs]
    runs: list[list[int]] = []
    for pair in zip(*shapes, strict=True):
        if runs and (pair == (1, 1) or [size == 1 for size in runs[-1]] == [size == 1 for size in pair]):
            runs[-1] = [before * size for before, size in zip(runs[-1], pair, strict=True)]
        elif pair != (1, 1):
            runs.append(list(pair))
    if len(runs) > 3:
        values = [
            planning.moved(value, shape, c_moves.widened(shape, planning.shapes[index]))
            for value, shape in zip(values, shapes, strict=True)
        ]
        runs = [[count(planning.shapes[index])] * 2]
    runs = [[1, 1]] * (3 - len(runs)) + runs
    planes: list[c.Shape] = [(runs[0][k], runs[1][k], runs[2][k]) for k in (0, 1)]
    made = (max(runs[0]), max(runs[1]), max(runs[2]))
    return planning.add(c.Loop(node.op, values, planes, made))


def _c_two(become: Callable[[str, str], str]) -> c.LoopRule:
    """Two values, of which one may be repeated along a dimension where it has size 1."""

    def body(tag: str, loop: c.Loop, per: str) -> str:
        if loop.shapes[0] == loop.shapes[1]:
            return f"for (size_t i = 0; i < {count(loop.shape)}{per}; i++)\ny[i] = {become('x0[i]', 'x1[i]')};"
        channels, height, width = loop.shape
        places = []
        for k, h, w in loop.shapes:
            steps = (h * w if k > 1 else 0, w if h > 1 else 0, 1 if w > 1 else 0)
            places.append(f"(c * {steps[0]} + r * {steps[1]} + q * {steps[2]}){per} + l")
        found = become(*(f"x{index}[{place}]" for index, place in enumerate(places)))
        return f"""
            for (size_t c = 0; c < {channels}; c++)
            for (size_t r = 0; r < {height}; r++)
            for (size_t q = 0; q < {width}; q++)
            {c.each(per)}
            y[((c * {height} + r) * {width} + q){per} + l] = {found};"""

    return c.LoopRule(body, _c_place_two)


def _c_place_matmul(planning: c.Planning, node: Node, index: int) -> int:
    """Products of matrices; where one is for several, it is repeated before."""
    made, values, planes = planning.shapes[index], [], []
    for i in node.inputs:
        shape, value = planning.shapes[i], planning.value[i]
        whole = (*made[:-2], *shape[-2:])
        values.append(planning.moved(value, shape, c_moves.widened(shape, whole)))
        planes.append((count(made[:-2]), shape[-2], shape[-1]))
    return planning.add(c.Loop("matmul", values, planes, (count(made[:-2]), made[-2], made[-1])))


def _c_matmul(tag: str, loop: c.Loop, per: str) -> str:
    (parts, rows, inside), columns = loop.shapes[0], loop.shape[2]
    return f"""
        for (size_t b = 0; b < {parts}; b++, x0 += {rows * inside}{per}, x1 += {inside * columns}{per})
        for (size_t r = 0; r < {rows}; r++) {{
        float *const to = y + (b * {rows} + r) * {columns}{per};
        for (size_t i = 0; i < {columns}{per}; i++)
        to[i] = 0;
        for (size_t k = 0; k < {inside}; k++)
        for (size_t q = 0; q < {columns}; q++)
        {c.each(per)}
        to[q{per} + l] += x0[(r * {inside} + k){per} + l] * x1[(k * {columns} + q){per} + l];
        }}"""


def _c_place_attention(planning: c.Planning, node: Node, index: int) -> int:
    """Heads, one after the other; the shares of one query and the keys of one head lie behind the output."""
    values, shapes = [planning.value[i] for i in node.inputs], [planning.shapes[i] for i in node.inputs]
    planes: list[c.Shape] = [(count(shape[:-2]), shape[-2], shape[-1]) for shape in shapes]
    made = (planes[0][0], planes[0][1], planes[2][2])
    scale = node.attributes["scale"]
    attributes = {"causal": node.attributes["causal"], "scale": planes[0][2] ** -0.5 if scale is None else scale}
    scratch = planes[1][1] * (1 + planes[1][2])
    return planning.add(c.Loop("attention", values, planes, made, attributes=attributes, scratch=scratch))


def _c_attention(tag: str, loop: c.Loop, per: str) -> str:
    (heads, rows, size), (_, keys, _), width = loop.shapes[0], loop.shapes[1], loop.shape[2]
    seen = f"r < {keys} ? r + 1 : {keys}" if loop.attributes["causal"] else str(keys)
    return f"""
        float *const share = y + {count(loop.shape)}{per}, *const turned = share + {keys}{per};
        for (size_t h = 0; h < {heads}; h++) {{
        for (size_t j = 0; j < {keys}; j++)
        for (size_t k = 0; k < {size}; k++)
        {c.each(per)}
        turned[(k * {keys} + j){per} + l] = x1[((h * {keys} + j) * {size} + k){per} + l];
        for (size_t r = 0; r < {rows}; r++) {{
        const size_t seen = {seen};
        const float *const query = x0 + (h * {rows} + r) * {size}{per};
        float *const to = y + (h * {rows} + r) * {width}{per};
        {(_c_shares_lanes if per else _c_shares)(keys, size, number(loop.attributes["scale"]))}
        for (size_t i = 0; i < {width}{per}; i++)
        to[i] = 0;
        for (size_t j = 0; j < seen; j++)
        for (size_t k = 0; k < {width}; k++)
        {c.each(per)}
        to[k{per} + l] += share[j{per} + l] * x2[((h * {keys} + j) * {width} + k){per} + l];
        }}
        }}"""


def _c_shares(keys: int, size: int, scale: str) -> str:
    """Softmax of a query's products with the keys, `VECTOR` keys at once."""
    return f"""
        float most = {number(c.LOWEST)}, sum = 0;
        size_t j = 0;
        for (; j + VECTOR <= seen; j += VECTOR) {{
        vector total = query[0] * FROM(turned + j);
        for (size_t k = 1; k < {size}; k++)
        total += query[k] * FROM(turned + k * {keys} + j);
        AT(share + j) = total * {scale};
        }}
        for (; j < seen; j++) {{
        float total = 0;
        for (size_t k = 0; k < {size}; k++)
        total += query[k] * turned[k * {keys} + j];
        share[j] = total * {scale};
        }}
        for (j = 0; j < seen; j++)
        most = most > share[j] ? most : share[j];
        for (j = 0; j + VECTOR <= seen; j += VECTOR)
        AT(share + j) = vector_exp(FROM(share + j) - most);
        for (; j < seen; j++)
        share[j] = expf(share[j] - most);
        for (j = 0; j < seen; j++)
        sum += share[j];
        for (j = 0; j < seen; j++)
        share[j] /= sum;"""


def _c_shares_lanes(keys: int, size: int, scale: str) -> str:
    """The same for `VECTOR` examples at once."""
    return f"""
        for (size_t l = 0; l < LANES; l += VECTOR) {{
        const vector zero = {{0}};
        float most[VECTOR];
        vector sum = zero;
        for (size_t i = 0; i < VECTOR; i++)
        most[i] = {number(c.LOWEST)};
        for (size_t j = 0; j < seen; j++) {{
        float *const to = share + j * LANES + l;
        vector total = zero;
        for (size_t k = 0; k < {size}; k++)
        total += FROM(query + k * LANES + l) * FROM(turned + (k * {keys} + j) * LANES + l);
        AT(to) = total * {scale};
        for (size_t i = 0; i < VECTOR; i++)
        most[i] = most[i] > to[i] ? most[i] : to[i];
        }}
        for (size_t j = 0; j < seen; j++) {{
        float *const to = share + j * LANES + l;
        AT(to) = vector_exp(FROM(to) - FROM(most));
        sum += FROM(to);
        }}
        for (size_t j = 0; j < seen; j++)
        AT(share + j * LANES + l) /= sum;
        }}"""


def _c_mixture(tag: str, loop: c.Loop, per: str) -> str:
    """Log of the mean of the members' class probabilities."""
    members, classes = len(loop.shapes), loop.shape[0]
    names = ", ".join(f"x{i}" for i in range(members))
    return f"""
        const float *const members[{members}] = {{{names}}};
        {c.each(per)} {{
        float total[{members}];
        for (size_t m = 0; m < {members}; m++) {{
        float most = members[m][l], sum = 0;
        for (size_t i = 0; i < {classes}; i++)
        most = most > members[m][i{per} + l] ? most : members[m][i{per} + l];
        for (size_t i = 0; i < {classes}; i++)
        sum += expf(members[m][i{per} + l] - most);
        total[m] = most + logf(sum);
        }}
        for (size_t i = 0; i < {classes}; i++) {{
        float most = members[0][i{per} + l] - total[0], sum = 0;
        for (size_t m = 1; m < {members}; m++)
        most = most > members[m][i{per} + l] - total[m] ? most : members[m][i{per} + l] - total[m];
        for (size_t m = 0; m < {members}; m++)
        sum += expf(members[m][i{per} + l] - total[m] - most);
        y[i{per} + l] = most + logf(sum) - {number(math.log(members))};
        }}
        }}"""


RULES = {
    "add": Rule(lambda x, y, p, a: x + y, {"add": _read_add}, onnx=plain("Add"), c=_c_two(sign("+"))),
    "subtract": Rule(
        lambda x, y, p, a: x - y, {"sub": _read_sub, "rsub": _read_rsub}, onnx=plain("Sub"), c=_c_two(sign("-"))
    ),
    "multiply": Rule(lambda x, y, p, a: x * y, {"mul": _read_mul}, onnx=plain("Mul"), c=_c_two(sign("*"))),
    "divide": Rule(lambda x, y, p, a: x / y, {"div": _read_div}, onnx=plain("Div"), c=_c_two(sign("/"))),
    "maximum": Rule(
        lambda x, y, p, a: torch.maximum(x, y), {"maximum": _two("maximum")}, onnx=plain("Max"), c=_c_two(larger)
    ),
    "minimum": Rule(
        lambda x, y, p, a: torch.minimum(x, y), {"minimum": _two("minimum")}, onnx=plain("Min"), c=_c_two(smaller)
    ),
    "mixture": Rule(lambda *given: _mixture(given[:-2]), onnx=_place_mixture, c=c.LoopRule(_c_mixture)),
    "matmul": Rule(
        lambda x, y, p, a: x @ y, {"matmul": _read_matmul, "bmm": _read_matmul}, onnx=plain("MatMul"),
        c=c.LoopRule(_c_matmul, _c_place_matmul),
    ),
    "attention": Rule(
        lambda q, k, v, p, a: F.scaled_dot_product_attention(q, k, v, is_causal=a["causal"], scale=a["scale"]),
        {"scaled_dot_product_attention": _read_attention},
        onnx=_place_attention,
        c=c.LoopRule(_c_attention, _c_place_attention),
    ),
}  # fmt: skip
