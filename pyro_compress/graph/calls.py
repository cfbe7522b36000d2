"""A call of an ATen operation: its arguments by their names in the schema, and which of them anybody looked at.

What a reader does not look at must be the schema's default, or the call is refused: an argument that is passed over
would be another network.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

Parsed = tuple[str, list[torch.fx.Node], dict[str, torch.fx.Node | None], dict[str, Any]]
"""Operation, the values it reads, its tensors by role, its attributes."""


class Mixes(ValueError):
    """An operation makes of one example something else in every batch: it is not read in parts either."""


class Call:
    """One operation of an exported program.

    Args:
        node: the call.
        tensors: names of the values that are tensors of the network.
    """

    def __init__(self, node: torch.fx.Node, tensors: Collection[str] = ()):
        self.node, self.tensors = node, tensors
        arguments = node.target._schema.arguments  # type: ignore[union-attr]
        self._defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
        self._given = dict(zip((a.name for a in arguments), node.args, strict=False)) | dict(node.kwargs)
        self._looked_at: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """An argument as it was given, or its default; it counts as looked at.

        Raises:
            LookupError: the operation has none of this name.
        """
        self._looked_at.add(name)
        return self._given[name] if name in self._given else self._defaults[name]

    def has(self, name: str) -> bool:
        """Whether the operation has an argument of this name."""
        return name in self._given or name in self._defaults

    def told_by_shape(self, *names: str) -> None:
        """These arguments say nothing that the shape of the output does not; those that are missing do not matter."""
        self._looked_at.update(names)

    without_effect = told_by_shape
    """These arguments change no value."""

    @property
    def first(self) -> torch.fx.Node:
        """The first argument, or the first of several in it."""
        name = next(iter(self._given))
        found = self[name]
        found = found[0] if isinstance(found, list | tuple) else found
        assert isinstance(found, torch.fx.Node)
        return found

    @property
    def shape(self) -> tuple[Any, ...]:
        """Shape of the output, or of the first of several; the batch may be a symbol."""
        value = self.node.meta["val"]
        return tuple((value[0] if isinstance(value, tuple | list) else value).shape)

    @property
    def before(self) -> tuple[Any, ...]:
        """Shape of the first argument."""
        return tuple(self.first.meta["val"].shape)

    def axis(self, given: Any) -> int:
        """An axis of the first argument, counted from the front, the batch being 0.

        Raises:
            ValueError: it is the batch.
        """
        found = int(given) % len(self.before)
        if found == 0:
            raise ValueError("it works across the batch dimension, which is not supported")
        return found

    def refuse_unread(self) -> None:
        """Refuse arguments that nobody looked at and that are not the schema's defaults.

        Raises:
            ValueError: there are some; they are named.
        """
        unread = [
            f"{name}={value}"
            for name, value in self._given.items()
            if name not in self._looked_at
            and not (name in self._defaults and self._defaults[name] == value)
            and value is not torch.float32  # what everything is
        ]
        if unread:
            raise ValueError(f"{', '.join(unread)} is not supported")


def axes_of(node: torch.fx.Node) -> list[int] | None:
    """The order in which a transposition reads axes; None: it is none."""
    rank = node.meta["val"].dim() if isinstance(node.meta.get("val"), Tensor) else 0
    given: list[Any] = list(node.args)
    if node.target is torch.ops.aten.permute.default:
        return [int(axis) % rank for axis in given[1]]
    if node.target is not torch.ops.aten.transpose.int:
        return None
    axes, one, two = list(range(rank)), int(given[1]) % rank, int(given[2]) % rank
    axes[one], axes[two] = axes[two], axes[one]
    return axes
