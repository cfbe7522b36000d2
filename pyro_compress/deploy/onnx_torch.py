"""ONNX of a network that has operations of torch: torch's own exporter writes it, with float32 weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyro_compress.compression.candidates import to_module
from pyro_compress.deploy.onnx_model import IR_VERSION, OPSET, checked
from pyro_compress.deploy.refusals import kept_of, named_in, reason, standing
from pyro_compress.graph.packing import parts_of, with_inputs
from pyro_compress.types import Compressed

if TYPE_CHECKING:
    import onnx


def has_kept(network: Compressed) -> bool:
    """Whether a network has operations that torch alone runs."""
    return any(node.op == "aten" for node in network.graph.nodes)


def build_by_torch(network: Compressed, card: Mapping[str, Any]) -> onnx.ModelProto:
    """The network as a checked ONNX model with a free batch dimension.

    Args:
        network: what to export.
        card: `pyro_compress.deploy.card.card`.

    Raises:
        ValueError: the exporter's package is missing, or an operation has no counterpart in ONNX.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ValueError(
            "ONNX of a network with operations of torch needs one more package; pip install onnxscript"
        ) from None
    graph = network.graph
    module: torch.nn.Module = to_module(network)
    names, batch = [card["input"]["name"]], {0: torch.export.Dim("batch")}
    examples = {names[0]: torch.zeros(2, *graph.input_shape, dtype=getattr(torch, graph.kind))}
    if graph.inputs:
        module, examples = with_inputs(module, graph.inputs), parts_of(examples[names[0]], graph.inputs)
        names = list(examples)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):  # as it is taken apart: its strides are these
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                module, tuple(examples.values()), input_names=names, output_names=[card["output"]],
                dynamic_shapes=tuple(batch for _ in names), dynamo=True, opset_version=OPSET, verbose=False,
            )  # fmt: skip
    except Exception as error:  # whatever the exporter says of an operation
        index = named_in(error, graph)
        what = f"the network, which has {kept_of(graph)}" if index is None else standing(graph, index)
        raise ValueError(
            f"torch's exporter to ONNX refuses {what}: {_reason(error)}; export to .pt2 (torch)"
        ) from error
    finally:
        logging.disable(disabled)
    assert made is not None
    model = made.model_proto
    if fixed := [one.name for one in model.graph.input if not one.type.tensor_type.shape.dim[0].dim_param]:
        raise ValueError(f"torch's exporter to ONNX fixes the number of examples of {fixed[0]!r}; nothing was written")
    model.ir_version = min(model.ir_version, IR_VERSION + 1)
    return checked(model, card)


def _reason(error: BaseException) -> str:
    """What the exporter says at the root of its errors, which names the operation."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)
