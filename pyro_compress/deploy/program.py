"""`run.py` of a folder export: the numpy side of every operation, and `standalone`, in one file for numpy alone."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from functools import cache

from pyro_compress.deploy import standalone
from pyro_compress.graph.operations import (
    fits,
    layers,
    moves,
    norms,
    pools,
    reductions,
    resizing,
    row,
    sequences,
    several,
    single,
    table,
)

OWN = (row, fits, layers, single, norms, pools, moves, resizing, reductions, sequences, several, table)
"""Modules in the order in which they read each other; no name stands in two of them."""

Imports = dict[str, set[str]]
"""Module -> names that are imported from it; a whole statement -> nothing."""


def program(operations: Iterable[str] = ()) -> str:
    """The source of `run.py`.

    Args:
        operations: that the network uses; of those that were registered from elsewhere the modules come along.

    Raises:
        ValueError: one comes from a module that needs more than numpy.
    """
    used, own = set(operations), [module.__name__ for module in OWN]
    homes = {op: known.run.__module__ for op, known in table.OPERATIONS.items() if op in used}
    foreign = {op: home for op, home in homes.items() if home not in own}
    imports: Imports = {}
    parts = [_body(name, imports) for name in dict.fromkeys([*own, *foreign.values()])]
    parts += [f"OPERATIONS[{op!r}] = {_variable(op, home)}\n" for op, home in foreign.items()]
    parts.append(_body(standalone.__name__, imports))
    own_last = sorted(imports, key=lambda origin: (origin.startswith(("numpy", "import numpy")), origin))
    import_lines = [f"from {o} import {', '.join(sorted(imports[o]))}" if imports[o] else o for o in own_last]
    return f'"""{standalone.__doc__}"""\n\n' + "\n".join(import_lines) + "\n\n\n" + "\n\n".join(parts)


def _body(name: str, imports: Imports) -> str:
    """The source of a module without its docstring and its imports, of which those of other packages are collected."""
    text, statements = _parts(inspect.getsource(sys.modules[name]))
    for node in statements:
        _collect(node, name, imports)
    return text


@cache
def _parts(source: str) -> tuple[str, tuple[ast.Import | ast.ImportFrom, ...]]:
    """A module's source without its docstring and its imports, and these; parsed once for all exports."""
    lines, statements = source.splitlines(keepends=True), []
    for node in ast.parse(source).body:
        if _is_docstring(node) or isinstance(node, ast.Import | ast.ImportFrom):
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or 0) - node.lineno + 1)
        if isinstance(node, ast.Import | ast.ImportFrom):
            statements.append(node)
    return "".join(lines).strip("\n") + "\n", tuple(statements)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and node.lineno == 1


def _collect(node: ast.Import | ast.ImportFrom, module: str, imports: Imports) -> None:
    """Note an import; nothing of our own modules, which are in the same file."""
    origin = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    if origin.startswith("pyro_compress.graph.operations") or origin == "__future__":
        return
    roots = {alias.name.partition(".")[0] for alias in node.names} if not origin else {origin.partition(".")[0]}
    if needed := roots - {"numpy", *sys.stdlib_module_names}:
        raise ValueError(
            f"an operation of the network comes from {module}, which imports {sorted(needed)[0]}; a folder runs with "
            "numpy alone: keep the operation's row in a module that imports nothing else"
        )
    if origin:
        imports.setdefault(origin, set()).update(alias.name for alias in node.names)
    else:
        imports[ast.unparse(node)] = set()


def _variable(op: str, home: str) -> str:
    """Under what name a module has the row of an operation."""
    names = [name for name, value in vars(sys.modules[home]).items() if value is table.OPERATIONS[op]]
    if not names:
        raise ValueError(f"operation {op!r}: {home} has no variable that is its row; give it one")
    return names[0]
