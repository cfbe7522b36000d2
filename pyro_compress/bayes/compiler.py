"""Functions of tensors as graphs of torch's operations, and graphs as machine code.

Tracing runs nothing: tensors stand for themselves as shapes (torch's fake tensors), so it takes no memory, draws no
random number and changes nothing. Compiling does not run the graph either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from pyro_compress.bayes.elementary import ELEMENTARY

OPTIONS: dict[str, Any] = {
    "fallback_random": True,  # whatever is still drawn inside is ATen's
    "cpp.enable_floating_point_contract_flag": "fast",  # a * b + c in one instruction
    "size_asserts": False,  # how much a recurrent layer keeps for its gradient, only its kernel knows
    "alignment_asserts": False,
    "realize_opcount_threshold": 8,  # what is used twice is worked out once; it halves compile time
    "pattern_matcher": False,  # it adds a KL's gradient to a product's through memory, instead of where both are used
}


_FORWARD, _BACKWARD = torch.ops.aten.mkldnn_rnn_layer.default, torch.ops.aten.mkldnn_rnn_layer_backward.default


def _schema(operation: Any) -> str:
    """Arguments and results of an operation, without its name."""
    text = str(operation._schema)
    return text[text.index("(") :]


@torch.library.custom_op("pyro_compress::recurrent_layer", mutates_args=(), schema=_schema(_FORWARD))
def recurrent_layer(*arguments: Any) -> tuple[Tensor, ...]:
    """ATen's LSTM on a CPU, with what its gradient needs: that it gives only where gradients are on.

    A compiled graph holds gradients as operations, and runs with them off.
    """
    with torch.enable_grad():
        found: tuple[Tensor, ...] = _FORWARD(*arguments)
    return found


@torch.library.custom_op("pyro_compress::recurrent_layer_gradient", mutates_args=(), schema=_schema(_BACKWARD))
def recurrent_layer_gradient(*arguments: Any) -> tuple[Tensor, ...]:
    """Its gradient, which takes values to lie as its forward pass wants them; a compiler lays them as it likes."""
    found: tuple[Tensor, ...] = _BACKWARD(*[one.contiguous() if isinstance(one, Tensor) else one for one in arguments])
    return found


recurrent_layer.register_fake(lambda *arguments: _FORWARD(*arguments))
recurrent_layer_gradient.register_fake(lambda *arguments: _BACKWARD(*arguments))
REPLACED = {_FORWARD: recurrent_layer, _BACKWARD: recurrent_layer_gradient}
"""Operation -> what stands in its place in a graph."""


def traced(function: Callable[..., Any], inputs: tuple[Any, ...]) -> fx.GraphModule:
    """The operations of a function on inputs like these (tensors, or lists of them)."""
    graph = make_fx(function, decomposition_table=REPLACED, tracing_mode="fake")(*inputs)
    _fold_scalars(graph)
    return graph


def compiled(graph: fx.GraphModule, inputs: tuple[Any, ...]) -> Callable[..., Any]:
    """A graph through inductor, for inputs like these; called with their tensors one after the other.

    Nothing is checked at a call: shapes, types and devices must be those of `inputs`.
    """
    from torch._inductor import compile as inductor

    # it warns where a CUDA toolkit is installed without a device
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    graph.graph.set_codegen(fx.graph.CodeGen())  # flat arguments instead of lists
    graph.recompile()
    tensors: list[Any] = tree_leaves(inputs)
    with torch.no_grad():
        graph = make_fx(graph, decomposition_table=ELEMENTARY, tracing_mode="fake")(*tensors)
        function: Callable[..., Any] = inductor(graph, tensors, options=OPTIONS)
    return function


def _fold_scalars(graph: fx.GraphModule) -> None:
    """Write constant scalars (a prior's own numbers) as such, so that the compiler can do away with `x / 1`."""
    for node in list(graph.graph.nodes):
        if node.op != "get_attr" or (constant := getattr(graph, node.target)).numel() != 1:
            continue
        with graph.graph.inserting_before(node):
            options = {"dtype": constant.dtype, "device": constant.device}
            value = graph.graph.call_function(
                torch.ops.aten.full.default, (list(constant.shape), constant.item()), options
            )
        node.replace_all_uses_with(value)
        graph.graph.erase_node(node)
        delattr(graph, node.target)
    graph.graph.eliminate_dead_code()
    graph.recompile()
