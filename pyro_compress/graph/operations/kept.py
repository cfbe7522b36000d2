"""Operations of torch that have no row of their own: kept as torch calls them, and run by torch.

A node `aten` holds the name of a functional ATen operation and its arguments. Nothing but the names in `NAMES` is ever
executed: they make new values from old ones, draw nothing at random, and the shape of what they make follows from the
shapes of what they read. `inferred` runs a call on tensors without values first, so that its size is known before
anything is allocated. torch is imported when a network has such a node; numpy alone cannot run it, nor can C.

Arguments are JSON values: numbers, words, lists of these, and

    {"value": i}                                        the i-th value that the node reads
    {"tensor": role, "kind": "int64", "shape": [...]}   a tensor of the network, as this type and in this shape
    {"literal": [...], "kind": "int64", "shape": [...]} values that the operation is given
    {"batch": times, "plus": number}                    a size: times the number of examples, plus a number
    {"kind": "int64"}                                   a type
    {"number": "inf"}                                   infinity, minus infinity or NaN
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_compress.graph.operations.row import (
    BATCHES,
    INDEX,
    KINDS,
    MAX_INPUTS,
    MAX_RANK,
    MAX_SIZE,
    Attributes,
    Kind,
    Made,
    Operation,
    Roles,
    Shape,
    Value,
    is_number,
    is_whole,
)
from pyro_compress.graph.operations.table import register
from pyro_compress.types import Graph

if TYPE_CHECKING:
    from torch import Tensor

NAMES = frozenset(
    """
    abs.default acos.default acosh.default adaptive_avg_pool1d.default _adaptive_avg_pool2d.default
    adaptive_avg_pool2d.default _adaptive_avg_pool3d.default adaptive_avg_pool3d.default adaptive_max_pool1d.default
    adaptive_max_pool2d.default adaptive_max_pool3d.default add.Scalar add.Tensor addmm.default all.default all.dim
    amax.default amin.default angle.default any.default any.dim any.dims arange.default arange.start
    arange.start_step argmax.default argmin.default argsort.default argsort.stable asin.default asinh.default
    atan.default atan2.default atanh.default avg_pool1d.default avg_pool2d.default avg_pool3d.default
    bitwise_and.Scalar bitwise_and.Tensor bitwise_not.default bitwise_or.Scalar bitwise_or.Tensor bitwise_xor.Scalar
    bitwise_xor.Tensor bmm.default cat.default cdist.default ceil.default clamp.Tensor clamp.default clone.default
    complex.default _conj.default conj.default _conj_physical.default conj_physical.default constant_pad_nd.default
    contiguous.default conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
    conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input convolution.default copy.default
    copysign.Scalar copysign.Tensor cos.default cosh.default cummax.default cummin.default cumprod.default
    cumsum.default diagonal.default digamma.default div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode
    elu.default embedding.default eq.Scalar eq.Tensor erf.default erfc.default erfinv.default exp.default
    exp2.default expand.default expm1.default eye.default eye.m fft_fft.default fft_fft2.default fft_fftn.default
    fft_fftshift.default fft_hfft.default fft_ifft.default fft_ifft2.default fft_ifftn.default fft_ifftshift.default
    fft_ihfft.default fft_irfft.default fft_irfft2.default fft_irfftn.default fft_rfft.default fft_rfft2.default
    fft_rfftn.default fill.Scalar fill.Tensor flatten.using_ints flip.default floor.default floor_divide.default
    fmod.Scalar fmod.Tensor full.default full_like.default gather.default ge.Scalar ge.Tensor gelu.default
    grid_sampler_2d.default grid_sampler_3d.default group_norm.default gru.input gt.Scalar gt.Tensor
    hardsigmoid.default hardswish.default hardtanh.default hypot.default im2col.default imag.default index.Tensor
    index_put.default index_select.default isfinite.default isinf.default isnan.default kthvalue.default
    layer_norm.default le.Scalar le.Tensor leaky_relu.default lgamma.default linalg_cholesky.default
    linalg_det.default linalg_inv.default linalg_matrix_exp.default linalg_solve.default linalg_vector_norm.default
    linear.default linspace.default log.default log10.default log1p.default log2.default _log_softmax.default
    log_softmax.int logcumsumexp.default logical_and.default logical_not.default logical_or.default
    logical_xor.default logsumexp.default lstm.input lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor
    matmul.default matrix_exp.default max.default max.dim max.other max_pool1d.default max_pool2d.default
    max_pool2d_with_indices.default max_pool3d.default maximum.default mean.default mean.dim median.dim min.default
    min.dim min.other minimum.default mish.default mm.default mul.Scalar mul.Tensor
    _native_batch_norm_legit.no_stats _native_batch_norm_legit_no_training.default native_group_norm.default
    native_layer_norm.default ne.Scalar ne.Tensor neg.default new_full.default new_ones.default new_zeros.default
    ones.default ones_like.default permute.default polar.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor
    prelu.default prod.default prod.dim_int quantile.scalar real.default reciprocal.default reflection_pad1d.default
    reflection_pad2d.default reflection_pad3d.default relu.default remainder.Scalar remainder.Tensor repeat.default
    repeat_interleave.self_int replication_pad1d.default replication_pad2d.default replication_pad3d.default
    reshape.default resolve_conj.default rnn_relu.input rnn_tanh.input roll.default round.default rsqrt.default
    rsub.Scalar rsub.Tensor scalar_tensor.default scaled_dot_product_attention.default scatter.src scatter.value
    scatter_add.default scatter_reduce.two select.int select_scatter.default sigmoid.default sign.default
    signbit.default silu.default sin.default sinh.default slice.Tensor slice_scatter.default _softmax.default
    softmax.int softplus.default sort.default special_i0.default special_i0e.default special_i1.default
    special_i1e.default split.Tensor split_with_sizes.default sqrt.default squeeze.default squeeze.dim squeeze.dims
    sub.Scalar sub.Tensor sum.default sum.dim_IntList t.default tan.default tanh.default to.dtype _to_copy.default
    topk.default transpose.int tril.default triu.default trunc.default unbind.int unfold.default
    _unsafe_view.default unsqueeze.default upsample_bicubic2d.vec _upsample_bicubic2d_aa.vec upsample_bilinear2d.vec
    _upsample_bilinear2d_aa.vec upsample_linear1d.vec upsample_nearest1d.vec upsample_nearest2d.vec
    upsample_nearest3d.vec upsample_trilinear3d.vec var.correction var.dim var_mean.correction view.default
    view_as_complex.default view_as_real.default where.self zeros.default zeros_like.default
    """.split()
)
"""Operations that may be kept, with their overloads, as `torch.ops.aten` calls them."""
LEFT_OUT = ("device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "generator", "implicit")
"""Arguments that change no value: they are not kept."""
MANY = 257
"""A batch for which shapes must be what those for `BATCHES` say."""
MOST = 1 << 14
"""Parts that the arguments of one call may have."""
MOST_CALLS = 1 << 11
"""Calls of one network."""
MOST_EXACT = 1 << 24
"""Whole numbers up to it are exact as float32, which is how a network's tensors are stored."""
NUMBERS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
MULTIPLYING = re.compile(r"^(bmm|mm|addmm|baddbmm|matmul|linear\.|conv|scaled_dot|lstm|gru|rnn|bilinear)")
"""Calls that multiply by what they read."""
COSTLY = re.compile(MULTIPLYING.pattern + r"|^(cdist|linalg_(cholesky|det|inv|matrix_exp|solve)|matrix_exp)\.")
"""Calls whose work is a product of sizes."""

# --- what a file may say


def _fits(value: Any, depth: int = 0) -> int:
    """How many parts an argument has.

    Raises:
        ValueError: it is none.
    """
    if depth > 4:
        raise ValueError
    if isinstance(value, list):
        return 1 + sum(_fits(one, depth + 1) for one in value)
    if isinstance(value, dict):
        return _special(value)
    words = isinstance(value, str) and len(value) <= 64 and bool(re.fullmatch(r"[A-Za-z_., >-]*", value))
    if value is None or isinstance(value, bool) or is_number(value) or words:
        return 1
    if type(value) is int and abs(value) < 1 << 63:  # to the end of an axis
        return 1
    raise ValueError


def _special(value: dict[str, Any]) -> int:
    keys = set(value)
    kind = value.get("kind", "float32") in KINDS
    shape = value.get("shape", [])
    shaped = isinstance(shape, list) and len(shape) <= MAX_RANK + 1 and all(is_whole(size, 1) for size in shape)
    fits = {
        "value": lambda: keys == {"value"} and is_whole(value["value"]),
        "tensor": lambda: keys <= {"tensor", "kind", "shape"} and isinstance(value["tensor"], str),
        "batch": lambda: keys <= {"batch", "plus"} and all(_size(value.get(key, 0)) for key in ("batch", "plus")),
        "number": lambda: keys == {"number"} and value["number"] in ("inf", "-inf", "nan"),
        "literal": lambda: keys == {"literal", "kind", "shape"} and _literal(value["literal"], value["shape"]),
        "kind": lambda: keys == {"kind"},
    }
    first = next((name for name in fits if name in keys), None)
    if first is None or not kind or not shaped or not fits[first]():
        raise ValueError
    return 1 + len(value.get("literal", ()))


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_SIZE


def _literal(values: Any, shape: Any) -> bool:
    numbers = isinstance(values, list) and all(isinstance(one, bool) or is_number(one) for one in values)
    return numbers and isinstance(shape, list) and len(values) == math.prod(shape)


def _are_arguments(value: Any, of: type[list[Any]] | type[dict[str, Any]]) -> bool:
    if not isinstance(value, list | dict) or not isinstance(value, of):
        return False
    parts = value if isinstance(value, list) else list(value.values())
    named = isinstance(value, list) or all(isinstance(key, str) and key.isidentifier() for key in value)
    try:
        return named and sum(map(_fits, parts)) <= MOST
    except ValueError:
        return False


CALL = Kind(lambda value: isinstance(value, str) and value in NAMES, "a functional operation of torch that may be kept")
ARGUMENTS = Kind(lambda value: _are_arguments(value, list), "a list of arguments")
KEYWORDS = Kind(lambda value: _are_arguments(value, dict), "arguments by name")

# --- what it does


def call(inputs: Sequence[Tensor], parameters: Mapping[str, Tensor], attributes: Attributes, batch: int) -> Tensor:
    """Run one operation.

    Args:
        inputs: the values that it reads.
        parameters: tensors of the network by role, float32.
        attributes: of the node.
        batch: number of examples.

    Raises:
        ValueError: it gives something else than tensors.
    """
    import torch

    floating = [one.dtype for one in (*inputs, *parameters.values()) if one.is_floating_point()]
    working = max(floating, key=lambda kind: kind.itemsize, default=torch.float32)  # double where a network is
    device = next((one.device for one in (*inputs, *parameters.values())), torch.device("cpu"))

    def value(argument: Any) -> Any:
        if isinstance(argument, list):
            return [value(one) for one in argument]
        if not isinstance(argument, dict):
            return argument
        if "value" in argument:
            found = inputs[argument["value"]]
            return found.to(working) if found.is_floating_point() else found
        if "batch" in argument:
            return argument["batch"] * batch + argument.get("plus", 0)
        if "number" in argument:
            return NUMBERS[argument["number"]]
        kind = getattr(torch, argument.get("kind", "float32"))
        kind = working if kind is torch.float32 else kind
        if "literal" in argument:
            return torch.tensor(argument["literal"], dtype=kind, device=device).reshape(argument["shape"])
        if "tensor" not in argument:
            return kind
        found = parameters[argument["tensor"]].to(kind)
        return found.reshape(argument["shape"]) if "shape" in argument else found

    operation, overload = attributes["call"].split(".")
    if operation in ("view", "_unsafe_view"):  # what lies in memory otherwise than when it was read is copied
        operation = "reshape"
    function = getattr(getattr(torch.ops.aten, operation), overload)
    keywords = {name: value(one) for name, one in attributes.get("keywords", {}).items()}
    if any(argument.name == "device" for argument in function._schema.arguments):
        keywords["device"] = device
    arguments, alone = value(attributes["arguments"]), False
    if operation == "scaled_dot_product_attention" and arguments[0].dim() == 3:  # ONNX wants a dimension of heads
        alone, arguments = True, [_with_a_head(one) for one in arguments]
        keywords = {name: _with_a_head(one) for name, one in keywords.items()}
    try:
        found: Any = function(*arguments, **keywords)
        found = found[:, 0] if alone else found
    except (IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError | NotImplementedError):
            raise
        raise ValueError(f"{attributes['call']}: {' '.join(str(error).split())[:120]}") from error
    part = attributes.get("part")
    results: dict[int | None, Any] = dict(enumerate(found)) if isinstance(found, tuple | list) else {None: found}
    if part not in results:
        raise ValueError(f"{attributes['call']} has no result {part}")
    found = results[part]
    if not isinstance(found, torch.Tensor):
        raise ValueError(f"{attributes['call']} gives no tensor")
    return found


def _with_a_head(argument: Any) -> Any:
    return argument[:, None] if getattr(argument, "ndim", 0) == 3 else argument


def inferred(attributes: Attributes, inputs: Sequence[Value], parameters: Roles) -> tuple[Value, int, int]:
    """What a call makes, its work per example, and what it holds beside, without running it.

    Raises:
        ValueError: torch refuses the call.
    """
    if highest(attributes) >= len(inputs) or roles_of(attributes) != set(parameters):
        raise ValueError(f"{attributes['call']}: its arguments are not the values and tensors that it reads")
    counts = any("batch" in one for one in _specials(attributes))
    place = attributes.get("batch")
    if counts != (place is not None) or (place is not None and (place >= len(inputs) or inputs[place].rows != 1)):
        raise ValueError(f"{attributes['call']}: no value that it reads has a row for every example, to count them by")
    return _inferred(json.dumps(attributes), tuple(inputs), tuple(parameters.items()))


@functools.lru_cache(maxsize=1 << 13)
def _inferred(
    written: str, inputs: tuple[Value, ...], parameters: tuple[tuple[str, Shape], ...]
) -> tuple[Value, int, int]:
    attributes = json.loads(written)
    try:
        import torch
    except ImportError:
        raise ValueError(f"{attributes['call']} is run by torch alone, which is not installed") from None
    shapes, kind = list[Shape](), "float32"
    for batch in (*BATCHES, MANY):
        try:
            with torch.no_grad():
                given = [(one.for_batch(batch), one.kind) for one in inputs]
                found = _without_values(torch, attributes, given, parameters, batch)
        except Exception as error:  # whatever torch says of a call that is none
            reason = " ".join(str(error).split("\n")[0].split())[:120]
            raise ValueError(f"{attributes['call']} is refused by torch: {ascii(reason)[1:-1]}") from None
        shapes.append(tuple(map(int, found.shape)))
        kind = str(found.dtype).removeprefix("torch.")
    value = Value((shapes[0], shapes[1]), kind)
    if len({len(shape) for shape in shapes}) > 1 or value.for_batch(MANY) != shapes[2]:
        raise ValueError(f"{attributes['call']}: its shape depends on the batch in another way than a multiple of it")
    if kind not in KINDS:
        raise ValueError(f"{attributes['call']} computes in {kind}; values are {', '.join(KINDS)}")
    read = [math.prod(one.at[0]) for one in inputs] + [math.prod(shape) for _, shape in parameters]
    made, most = math.prod(shapes[0]), max(read, default=0)
    work = made * most if COSTLY.match(attributes["call"]) else 16 * (made + sum(read))
    return value, work // BATCHES[0], made + sum(read)


def _without_values(
    torch: Any, attributes: Attributes, inputs: list[tuple[Shape, str]], parameters: Any, batch: int
) -> Tensor:
    """A call on tensors that have a shape and a type and nothing else."""

    def run() -> Tensor:
        values = [torch.empty(shape, dtype=getattr(torch, kind), device="meta") for shape, kind in inputs]
        tensors = {role: torch.empty(shape, device="meta") for role, shape in parameters}
        return call([*values, torch.empty(0, device="meta")], tensors, attributes, batch)

    try:
        return run()
    except NotImplementedError:  # no kernel for such tensors: slower, as torch.export does it
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            return run()


def multiplies(call: str) -> bool:
    """Whether a call multiplies by what it reads, or looks rows up in it."""
    return bool(MULTIPLYING.match(call)) or call.startswith(("embedding.", "index_select."))


def attends(attributes: Attributes, shapes: Sequence[Shape]) -> bool:
    """Whether a call is attention to which all heads are alike: what it reads beside them is the same for each.

    Args:
        attributes: of its node.
        shapes: of an example of what it reads: queries, keys, values, perhaps a mask.
    """
    first = [{"value": place} for place in range(3)]
    if attributes["call"] != "scaled_dot_product_attention.default" or attributes["arguments"][:3] != first:
        return False
    if attributes.get("keywords", {}).get("enable_gqa") or not all("value" in one for one in _specials(attributes)):
        return False
    masks = shapes[3:]
    return all(len(one) == len(shapes[0]) and all(size == 1 for size in one[:-2]) for one in masks)


def roles_of(attributes: Attributes) -> set[str]:
    """Roles of the tensors that the arguments of a call name."""
    return {one["tensor"] for one in _specials(attributes) if "tensor" in one}


def whole_tensors(graph: Graph) -> set[str]:
    """Names of a network's tensors that hold whole numbers, or truth values: they are never rounded."""
    kept = (node for node in graph.nodes if node.op == "aten")
    return {node.parameters[role] for node in kept for role in _whole(node.attributes)}


def _whole(attributes: Attributes) -> set[str]:
    return {
        one["tensor"] for one in _specials(attributes) if one.get("kind", "float32") != "float32" and "tensor" in one
    }


def highest(attributes: Attributes) -> int:
    """Largest index of a value that the arguments of a call name; -1: none."""
    return max((one["value"] for one in _specials(attributes) if "value" in one), default=-1)


def _specials(attributes: Attributes) -> list[dict[str, Any]]:
    found, waiting = [], [attributes["arguments"], *attributes.get("keywords", {}).values()]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            found.append(one)
    return found


def _run(*arguments: Any) -> np.ndarray:
    """By torch, between arrays."""
    *inputs, parameters, attributes = arguments
    try:
        import torch
    except ImportError:
        raise ValueError(f"{attributes['call']} is run by torch alone, which is not installed") from None
    values = [torch.from_numpy(np.asarray(one, order="C")) for one in inputs]
    tensors = {role: torch.from_numpy(np.asarray(one, order="C")) for role, one in parameters.items()}
    with torch.no_grad():
        found = call(values, tensors, attributes, batch_of(values, attributes))
    return np.asarray(found.numpy())


def batch_of(values: Sequence[Any], attributes: Attributes) -> Any:
    """Number of examples: the length of the value that a call is given to tell it; 1 where nobody asks."""
    place = attributes.get("batch")
    return 1 if place is None else values[place].shape[0]  # len() would fix it when torch traces this


def _shape(x: Sequence[Shape], p: Roles, a: Attributes) -> Made:
    raise ValueError(f"{a['call']} is an operation of torch: its shape is inferred by torch")


register("aten", Operation(
    _run, _shape, (0, MAX_INPUTS), may=tuple(f"t{i}" for i in range(64)),
    attributes={"call": CALL, "arguments": ARGUMENTS},
    options={"keywords": KEYWORDS, "part": INDEX, "batch": INDEX}, since=5,
))  # fmt: skip
