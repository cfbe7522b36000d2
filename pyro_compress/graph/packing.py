"""A module with several named inputs as one of a single input: what they lie in is `pyro_compress.inputs`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_compress.inputs import Input, packed, size_of, slices
from pyro_compress.inputs import inputs_in as inputs_of_arrays


def parts_of(rows: Tensor, inputs: Sequence[Input]) -> dict[str, Tensor]:
    """The inputs that lie in rows `(n, values)`, by name, each in its own shape and type."""
    return {
        one.name: rows[:, where].reshape(-1, *one.shape).to(getattr(torch, one.kind))
        for one, where in zip(inputs, slices(inputs), strict=True)
    }


def in_one_row(given: Mapping[str, Tensor], inputs: Sequence[Input]) -> Tensor:
    """Rows `(n, values)` of inputs `(n, *shape)` by name: the other way round, where gradients may flow."""
    return torch.cat([given[one.name].flatten(1).float() for one in inputs], 1)


def pack(arrays: Mapping[str, Tensor | np.ndarray]) -> tuple[Tensor, tuple[Input, ...]]:
    """Several inputs as one tensor, for `Data`, and what lies in it, for `Splits`.

    Whole numbers are tokens, bytes (uint8) are numbers that are divided by 255, everything else is taken as it is.

    Args:
        arrays: `(n, *shape)` by the name of the parameter of `forward` that takes it.

    Returns:
        `(n, values)` float32, and the inputs in the order of their names.

    Raises:
        ValueError: names that are none, different numbers of examples, whole numbers beyond 2^24.

    Examples:
        >>> x, inputs = pack({"tokens": np.array([[1, 2], [3, 4]]), "price": np.array([[0.5], [1.5]])})
        >>> x.tolist(), [one.name for one in inputs]
        ([[0.5, 1.0, 2.0], [1.5, 3.0, 4.0]], ['price', 'tokens'])
    """
    inputs = inputs_of_arrays(plain := _plain(arrays))
    return torch.from_numpy(packed(plain, inputs)), inputs


def pack_for(arrays: Mapping[str, Tensor | np.ndarray], inputs: Sequence[Input], what: str) -> Tensor:
    """The same for a network that takes these inputs, whole numbers divided by their own scales.

    Args:
        arrays: `(n, *shape)` by name.
        inputs: what the network takes.
        what: names the arrays in messages.

    Raises:
        ValueError: as `pyro_compress.inputs.packed`.
    """
    return torch.from_numpy(packed(_plain(arrays), inputs, what))


def _plain(arrays: Mapping[str, Tensor | np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in arrays.items()}


def with_one_input(net: nn.Module, inputs: Sequence[Input]) -> nn.Module:
    """A network that takes rows in which its inputs lie; without inputs, or where it does so already, itself.

    Args:
        net: called with one tensor per input, by name; it stays as it is, the result shares its tensors.
        inputs: what lies in a row.
    """
    if not inputs or inputs_in(net):
        return net
    _check_names(net, inputs)
    plain: type[nn.Module] = type(net)

    def forward(self: nn.Module, rows: Tensor) -> Any:
        return plain.forward(self, **parts_of(rows, inputs))

    whole = copy.copy(net)
    whole.__class__ = type(f"Packed{plain.__name__}", (plain,), {"forward": forward, "packed_inputs": tuple(inputs)})
    return whole


def _check_names(net: nn.Module, inputs: Sequence[Input]) -> None:
    """Refuse inputs that forward does not take, and a forward that takes others.

    Raises:
        ValueError: as said.
    """
    parameters = inspect.signature(net.forward).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        return
    taken = {one.name: one.default is inspect.Parameter.empty for one in parameters}
    given = {one.name for one in inputs}
    if given - taken.keys() or any(needed and name not in given for name, needed in taken.items()):
        raise ValueError(
            f"the data have inputs {', '.join(sorted(given))}; forward of {type(net).__name__} takes "
            f"{', '.join(taken)}: their names must be the same"
        )


def inputs_in(net: nn.Module) -> tuple[Input, ...]:
    """The inputs that lie in a row that a network takes; none, where it takes one input."""
    found: tuple[Input, ...] = getattr(net, "packed_inputs", ())
    return found


def random_rows(inputs: Sequence[Input], examples: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Rows of random numbers, tokens from 0 to below a bound, yes and no."""
    rows = torch.randn(examples, size_of(inputs), generator=generator)
    for one, where in zip(inputs, slices(inputs), strict=True):
        if one.kind != "float32":
            most = 2 if one.kind == "bool" else tokens
            rows[:, where] = torch.randint(0, most, (examples, one.size), generator=generator).float()
    return rows


def with_inputs(net: nn.Module, inputs: Sequence[Input]) -> nn.Module:
    """The other way round: a network that takes rows as one that takes its inputs, by their names."""
    names = [one.name for one in inputs]
    taken = inspect.Signature([inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names])
    plain: type[nn.Module] = type(net)

    def forward(self: nn.Module, *args: Tensor, **given: Tensor) -> Any:
        return plain.forward(self, in_one_row(taken.bind(*args, **given).arguments, inputs))

    forward.__signature__ = taken.replace(  # type: ignore[attr-defined]
        parameters=[inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *taken.parameters.values()]
    )
    parted = copy.copy(net)
    parted.__class__ = type(f"Parted{plain.__name__}", (plain,), {"forward": forward})
    return parted
