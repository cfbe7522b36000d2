"""A captured network held against its module: on random inputs, of several batch sizes, in evaluation and training."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from pyro_compress.graph import recurrence_shapes
from pyro_compress.graph.changes import described
from pyro_compress.graph.ir import tables
from pyro_compress.graph.network import finite_buffers
from pyro_compress.graph.packing import inputs_in, random_rows
from pyro_compress.graph.reading import Read
from pyro_compress.types import Graph, Node

BATCHES = (3, 1)
"""Batch sizes of the comparison; `torch.export` saw 2."""
CLOSE = 1e-4
"""Largest difference, relative to the largest output, that is rounding."""

RunNode = Callable[[Node, list[Tensor], dict[str, Tensor]], Tensor]


def refuse_unsupported(net: nn.Module) -> None:
    """Refuse what `torch.export` has no clear word for.

    Raises:
        ValueError: parameters that are not float32 or have no shape yet, attention with one bare parameter.
    """
    for path, module in net.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            raise ValueError(
                f"{path or 'the network'}: torch.nn.MultiheadAttention keeps its projections in one bare parameter; "
                "replace it first with pyro_compress.split_attention(net), which computes the same"
            )
    for name, parameter in net.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet; call the network once on an example first")
        if parameter.dtype != torch.float32 and not parameter.is_complex():
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is {kind}; networks are float32 here: call net.float() first")
    for name, tensor in chain(net.named_parameters(), net.named_buffers()):
        if not is_lazy(tensor) and tensor.is_complex():
            raise ValueError(
                f"{name} is complex; hold real and imaginary parts as one real tensor (..., 2), read it by "
                "torch.view_as_complex"
            )


def exported(net: nn.Module, input_shape: tuple[int, ...], kind: str = "float32") -> torch.export.ExportedProgram:
    """A network in evaluation mode as `torch.export` reads it.

    Args:
        net: the network.
        input_shape: shape of one example.
        kind: type of its values.

    Raises:
        ValueError: it cannot; its first line of reasons.
    """
    with evaluating(net), _quiet_torch(), recurrence_shapes.shapes_only():
        try:
            batch = ({0: torch.export.Dim.DYNAMIC},)
            example = torch.zeros(2, *input_shape, dtype=getattr(torch, kind), device=_device(net))
            return torch.export.export(net, (example,), dynamic_shapes=batch)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            if "data-dependent" in reason:
                reason = "what it computes depends on the values of its input (an if on a tensor, say)"
            takes = ", ".join(f"{one.name} {one.shape} {one.kind}" for one in inputs_in(net)) or f"{input_shape} inputs"
            message = f"the network cannot be captured by torch.export on {takes}: {reason}"
            raise ValueError(message) from error


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """A network in evaluation mode; every module gets its mode back."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without what torch logs and prints of an error before it raises it: the message says it."""
    talkative = ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes", "export")
    loggers = [logging.getLogger(f"torch.{name}") for name in talkative]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _device(net: nn.Module) -> torch.device:
    return next(iter(net.parameters()), torch.zeros(())).device


def examples(net: nn.Module, graph: Graph, batch: int) -> Tensor:
    """Random inputs, the same every time; whole numbers are those that every table has that they are looked up in."""
    generator, shape = torch.Generator().manual_seed(batch), (batch, *graph.input_shape)
    if inputs := inputs_in(net):
        least = min((len(held_tensors(net)[name]) for name in tables(graph)), default=2)
        return random_rows(inputs, batch, least, generator).to(_device(net))
    if graph.kind != "float32":
        most = min((len(held_tensors(net)[name]) for name in tables(graph)), default=2)
        return torch.randint(0, most, shape, generator=generator).to(_device(net))
    return torch.randn(shape, generator=generator).to(_device(net))


@torch.no_grad()
def outputs_of(net: nn.Module, x: Tensor, when: str) -> Tensor:
    """What a network returns for `x`; the random number generator stays where it is.

    Raises:
        ValueError: it fails, or returns something else than one float32 tensor with a row per example.
    """
    try:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            found: Any = net(x.clone())
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{when} the network fails: {type(error).__name__}: {reason}") from error
    if not isinstance(found, Tensor):
        raise ValueError(f"{when} the network returns a {type(found).__name__}; it must return one tensor")
    if found.dtype != torch.float32 or found.dim() == 0 or len(found) != len(x):
        kind = str(found.dtype).removeprefix("torch.")
        raise ValueError(
            f"{when} the network returns {kind} of shape {tuple(found.shape)} for {len(x)} examples; it must return "
            f"float32 of shape ({len(x)}, ...)"
        )
    return found


def compare(net: nn.Module, found: Read, run: RunNode, outputs: tuple[int, ...] | None) -> None:
    """Hold what was read against the module, in evaluation mode.

    Args:
        net: the module.
        found: what was read from it.
        run: runs one operation.
        outputs: shape of one example's that the data ask for; None: any.

    Raises:
        ValueError: they differ, or the output has another shape than the data ask for.
    """
    tensors = {name: tensor.detach() for name, tensor in held_tensors(net).items()}
    for batch in BATCHES:
        x = examples(net, found.graph, batch)
        with evaluating(net):
            wanted = outputs_of(net, x, f"in evaluation mode, on a batch of {batch},")
        if outputs is not None and tuple(wanted.shape) != (batch, *outputs):
            raise ValueError(
                f"the network gives outputs of shape {tuple(wanted.shape[1:])}, the data ask for {outputs}"
            )
        values = [x]
        with torch.no_grad():
            for node in found.graph.nodes[1:]:
                parameters = {role: tensors[name] for role, name in node.parameters.items()}
                values.append(run(node, [values[i] for i in node.inputs], parameters))
        if not close(values[-1], wanted):
            where = _first_difference(found, tensors, x, values)
            raise ValueError(f"what was read of the network computes something else on a batch of {batch}: {where}")
        with evaluating(net):
            alone = outputs_of(net, x[-1:], "in evaluation mode, on a batch of 1,")
        if not close(alone, wanted[-1:]):
            raise ValueError("what it gives for one example depends on the others of its batch, in evaluation mode too")


def held_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are shared under all of their names; buffers without infinities."""
    return dict(net.named_parameters(remove_duplicate=False)) | finite_buffers(net)


def close(got: Tensor, wanted: Tensor) -> bool:
    """Whether two values differ by rounding alone."""
    if got.shape != wanted.shape:
        return False
    size = float(wanted.nan_to_num(0, 0, 0).abs().max()) if wanted.numel() else 0.0
    return torch.allclose(got, wanted, CLOSE, CLOSE * size + 1e-30, equal_nan=True)


def _first_difference(found: Read, tensors: dict[str, Tensor], x: Tensor, values: list[Tensor]) -> str:
    """The first operation of the program whose value is not that of its node."""
    signature = found.program.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    there: dict[str, Any] = {}
    for node in found.program.graph.nodes:
        if node.op == "placeholder":
            there[node.name] = tensors[names[node.name]].clone() if node.name in names else x.clone()
        elif node.op == "call_function":
            arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda n: there[n.name])
            with torch.no_grad():
                there[node.name] = node.target(*arguments, **keywords)
            place = found.places.get(node.name)
            if place is not None and not close(values[place], there[node.name]):
                return described(node)
    return "it depends on more than its input (random numbers, a counter, the size of the batch)"


def trial(net: nn.Module) -> nn.Module:
    """A copy in training mode that may be run without trace: it shares the parameters and nothing else."""
    return copy.deepcopy(net, {id(parameter): parameter for parameter in net.parameters()}).train()


def compare_training(net: nn.Module, graph: Graph) -> None:
    """Run a network in training mode, and hold the shape of its output against that in evaluation mode.

    Raises:
        ValueError: it fails, or returns something else.
    """
    x = examples(net, graph, BATCHES[0])
    with evaluating(net):
        wanted = outputs_of(net, x, "in evaluation mode")
    found = outputs_of(trial(net), x, "in training mode")
    if found.shape != wanted.shape:
        shapes = f"outputs of shape {tuple(found.shape[1:])}, in evaluation mode of {tuple(wanted.shape[1:])}"
        raise ValueError(f"in training mode the network gives {shapes}; they must be the same")
