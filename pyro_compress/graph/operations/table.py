"""The table: every operation that a network may have, by name."""

from pyro_compress.graph.operations.layers import LAYERS
from pyro_compress.graph.operations.moves import MOVES
from pyro_compress.graph.operations.norms import NORMS, STATISTICS_ROLES
from pyro_compress.graph.operations.pools import POOLS
from pyro_compress.graph.operations.reductions import REDUCTIONS
from pyro_compress.graph.operations.resizing import RESIZING
from pyro_compress.graph.operations.row import Channels, Operation
from pyro_compress.graph.operations.sequences import SEQUENCES
from pyro_compress.graph.operations.several import SEVERAL
from pyro_compress.graph.operations.single import SINGLE

OPERATIONS: dict[str, Operation] = LAYERS | SINGLE | NORMS | POOLS | MOVES | RESIZING | SEVERAL | REDUCTIONS | SEQUENCES


def register(name: str, row: Operation) -> None:
    """Add an operation from outside of this package.

    Raises:
        ValueError: there is one of that name.
    """
    if name in OPERATIONS:
        raise ValueError(f"there is an operation {name!r} already; give this one another name")
    OPERATIONS[name] = row


def is_weighted(op: str) -> bool:
    """Whether an operation is a layer with weights."""
    return op in OPERATIONS and OPERATIONS[op].channels is Channels.MADE


def is_last(op: str) -> bool:
    """Whether a layer's channels lie along the last axis."""
    return op in OPERATIONS and OPERATIONS[op].last


def is_flattening(op: str) -> bool:
    """Whether an operation gives values another shape."""
    return op in OPERATIONS and OPERATIONS[op].channels is Channels.FLATTENED


def has_statistics(op: str) -> bool:
    """Whether an operation keeps running statistics, as batch norm does."""
    return op in OPERATIONS and set(STATISTICS_ROLES) <= set(OPERATIONS[op].roles)


def weighted() -> list[str]:
    """The layers with weights."""
    return [op for op in OPERATIONS if is_weighted(op)]
