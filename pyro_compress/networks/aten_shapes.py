"""Readers of operations that compute nothing: shapes, parts, axes (see `pyro_compress.networks.aten`)."""

from __future__ import annotations

from pyro_compress.networks.calls import Call, Reading


def reshaped(call: Call) -> Reading:
    """The same values in another shape."""
    call.told_by_shape("size", "shape", "dim", "sizes", "start_dim", "end_dim")
    shape, before = call.shape, call.before
    if any(not isinstance(size, int) for size in shape[1:]) or str(shape[:1]) != str(before[:1]):
        raise ValueError("it moves the batch dimension, which is not supported")
    return "reshape", [call.first], {}, {"shape": list(shape[1:])}


def permuted(call: Call) -> Reading:
    """Axes in another order, the batch first."""
    return _moved(call, [axis % len(call.before) for axis in call["dims"]])


def transposed(call: Call) -> Reading:
    """Two axes that change places."""
    axes = list(range(len(call.before)))
    one, two = (int(call[name]) % len(axes) for name in ("dim0", "dim1"))
    axes[one], axes[two] = axes[two], axes[one]
    return _moved(call, axes)


def _moved(call: Call, axes: list[int]) -> Reading:
    if axes[0] != 0:
        raise ValueError("it moves the batch dimension, which is not supported")
    return "permute", [call.first], {}, {"axes": axes[1:]}


def selected(call: Call) -> Reading:
    """One entry of an axis."""
    axis = call.axis(call["dim"])
    return "select", [call.first], {}, {"axis": axis, "index": int(call["index"]) % call.before[axis]}


def sliced(call: Call) -> Reading:
    """A part of an axis, or all of it."""
    ends = [call[name] for name in ("start", "end", "step")]
    if call.before == call.shape:
        call.told_by_shape("dim")
        return "identity", [call.first], {}, {}
    axis = call.axis(call["dim"])
    return _part(call, axis, *slice(*ends).indices(call.before[axis]))


def _part(call: Call, axis: int, start: int, stop: int, step: int = 1) -> Reading:
    attributes = {"axis": axis, "start": start, "stop": stop} | ({"step": step} if step != 1 else {})
    return "slice", [call.first], {}, attributes


def part_of_split(call: Call, part: int) -> Reading:
    """One of several parts of an axis."""
    call.told_by_shape("chunks", "split_size", "split_sizes")
    axis = call.axis(call["dim"])
    sizes = [value.shape[axis] for value in call.node.meta["val"]]
    return _part(call, axis, sum(sizes[:part]), sum(sizes[: part + 1]))


def part_of_unbound(call: Call, part: int) -> Reading:
    """One of all entries of an axis."""
    return "select", [call.first], {}, {"axis": call.axis(call["dim"]), "index": part}


def joined(call: Call) -> Reading:
    """Several values along an axis."""
    return "concat", list(call["tensors"]), {}, {"axis": call.axis(call["dim"])}


def expanded(call: Call) -> Reading:
    """A parameter that is repeated for every example; its node repeats it anyway."""
    call.told_by_shape("size")
    if call.first.name not in call.tensors or call.before[1:] != call.shape[1:]:
        raise ValueError("supported for parameters that are repeated along the batch only")
    return "identity", [call.first], {}, {}


def padded(call: Call) -> Reading:
    """More entries at the ends of axes."""
    mode, sizes = call["mode"], list(call["pad"])
    if mode == "constant" and (call["value"] or 0) != 0:
        raise ValueError("padding with a constant other than 0 is not supported")
    call.without_effect("value")
    if min(sizes, default=0) < 0:
        raise ValueError(f"padding by {sizes}: less than nothing is not supported; take a part of the value")
    return "pad", [call["self"]], {}, {"sizes": sizes, "mode": mode}
