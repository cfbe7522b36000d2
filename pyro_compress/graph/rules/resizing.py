"""Images and series of another size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from pyro_compress.graph.calls import Call, Parsed
from pyro_compress.graph.faces import c, c_moves, onnx
from pyro_compress.graph.faces.c_text import floats, integers
from pyro_compress.graph.operations.resizing import resampling
from pyro_compress.graph.rules.row import Rule
from pyro_compress.types import Node

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""What torch calls linear interpolation, by the number of dimensions."""


def _read_nearest(call: Call) -> Parsed:
    _whole_scale(call)
    before, after = call.before[2:], call.shape[2:]
    if any(a % b for a, b in zip(after, before, strict=True)):
        raise ValueError(f"nearest neighbours from {list(before)} to {list(after)}: only whole factors are supported")
    return "upsample", [call.first], {}, {"factors": [a // b for a, b in zip(after, before, strict=True)]}


def _read_linear(call: Call) -> Parsed:
    _whole_scale(call)
    return "resize", [call.first], {}, {"sizes": list(call.shape[2:]), "corners": bool(call["align_corners"])}


def _whole_scale(call: Call) -> None:
    """Refuse factors that do not give whole sizes: torch counts places by the factor then, not by the sizes."""
    call.told_by_shape("output_size")
    names = [name for name in ("scale_factors", "scales", "scales_d", "scales_h", "scales_w") if call.has(name)]
    given = [call[name] for name in names]
    factors = [f for one in given if one is not None for f in (one if isinstance(one, list | tuple) else [one])]
    sizes = call.before[2:]
    if factors and any(abs(f * size - round(f * size)) > 1e-6 for f, size in zip(factors, sizes, strict=False)):
        raise ValueError(f"factors {factors} of {list(sizes)} give no whole sizes; name the size instead")


def _upsample(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    factors = [float(times) for times in a["factors"]]
    return F.interpolate(x, scale_factor=factors, mode="nearest")


def _resize(x: Tensor, p: dict[str, Tensor], a: dict[str, Any]) -> Tensor:
    return F.interpolate(x, tuple(a["sizes"]), mode=LINEAR[len(a["sizes"])], align_corners=a["corners"])


def _place_upsample(builder: onnx.Builder, placement: onnx.Placement) -> None:
    factors = [1.0, 1.0, *map(float, placement.attributes["factors"])]
    scales = builder.constant(np.array(factors, np.float32), f"{placement.output}.scales")
    builder.node(
        "Resize", [*placement.inputs, "", scales], placement.output, mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip


def _place_resize(builder: onnx.Builder, placement: onnx.Placement) -> None:
    sizes = placement.attributes["sizes"]
    wanted = builder.constant(np.array(sizes, np.int64), f"{placement.output}.sizes")
    builder.node(
        "Resize", [*placement.inputs, "", "", wanted], placement.output, mode="linear",
        axes=list(range(2, 2 + len(sizes))),
        coordinate_transformation_mode="align_corners" if placement.attributes["corners"] else "half_pixel",
    )  # fmt: skip


def _c_place_resize(planning: c.Planning, node: Node, index: int) -> int:
    """One axis after the other; the places of each become sums of two neighbours."""
    first, a = node.inputs[0], node.attributes
    value, shape = planning.value[first], list(planning.shapes[first])
    for axis, size in enumerate(a["sizes"], 2):
        before, behind = c.around(shape, [axis]), c.around([*shape[: axis - 1], size, *shape[axis:]], [axis])
        attributes = {"corners": a["corners"]}
        value = planning.add(c.Loop("resize", [value], [before], behind, attributes=attributes))
        shape[axis - 1] = size
    return value


def neighbours(loop: c.Loop) -> tuple[np.ndarray, np.ndarray]:
    """Per place, the first of the two that it is made of, and the share of the second."""
    weights = resampling(loop.shapes[0][1], loop.shape[1], loop.attributes["corners"])
    first = weights.argmax(1)
    first = np.where((first > 0) & (weights[range(len(first)), first - 1] > 0), first - 1, first)
    return first, 1 - weights[range(len(first)), first]


def _c_neighbours(tag: str, loop: c.Loop) -> str:
    first, share = neighbours(loop)
    return integers(f"{tag}_first", first) + floats(f"{tag}_share", share)


def _c_resize(tag: str, loop: c.Loop, per: str) -> str:
    rows, size, columns = loop.shape
    before = loop.shapes[0][1]
    return f"""
        for (size_t o = 0; o < {rows}; o++)
        for (size_t r = 0; r < {size}; r++) {{
        const float *const p = x + (o * {before} + {tag}_first[r]) * {columns}{per};
        const float *const q = {tag}_share[r] > 0 ? p + {columns}{per} : p;
        for (size_t i = 0; i < {columns}{per}; i++)
        y[(o * {size} + r) * {columns}{per} + i] = p[i] + (q[i] - p[i]) * {tag}_share[r];
        }}"""


RULES = {
    "upsample": Rule(
        _upsample,
        {f"upsample_nearest{rank}d": _read_nearest for rank in (1, 2, 3)},
        onnx=_place_upsample,
        c=c_moves.moving(c_moves.enlarged),
    ),
    "resize": Rule(
        _resize,
        {f"upsample_{LINEAR[rank]}{rank}d": _read_linear for rank in (1, 2, 3)},
        onnx=_place_resize,
        c=c.LoopRule(_c_resize, _c_place_resize, _c_neighbours),
    ),
}
