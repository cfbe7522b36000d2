"""Names that a registry has, read off the source of its module: `--help` and checks import no torch."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Names:
    """The keys of a registry, read off the source of its module, which is not imported.

    Attributes:
        module: path of the module in this package.
        registry: name of a dict literal in it.
        more: names that are allowed beside them.
    """

    module: str
    registry: str
    more: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[str]:
        """The names, those that were added to the registry at run time among them."""
        loaded = sys.modules.get(f"pyro_compress.{self.module.removesuffix('.py').replace('/', '.')}")
        return iter((*self.more, *(getattr(loaded, self.registry, None) or names_in(self.module, self.registry))))


@functools.cache
def names_in(module: str, registry: str) -> tuple[str, ...]:
    """Keys of a registry (a dict literal) in a module of this package, without importing it."""
    source = (Path(__file__).parents[1] / module).read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == registry:
            assert isinstance(statement, ast.AnnAssign)
            assert isinstance(statement.value, ast.Dict)
            return tuple(ast.literal_eval(key) for key in statement.value.keys if key is not None)
    raise ValueError(f"no registry {registry} in {module}")
