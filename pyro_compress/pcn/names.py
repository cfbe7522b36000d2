"""Names of tensors that come from outside: what they are made of is checked here and nowhere else.

A tensor's name becomes a path of attributes of a torch module, a name in generated code and in an ONNX graph, and a
file's name in an export. So it is letters, digits and underscores, in parts that are separated by points.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

PATTERN = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
MAX_LENGTH, MAX_PARTS = 200, 32
"""Of one name."""
OF_MODULES = frozenset((
    "T_destination", "_apply", "_backward_hooks", "_backward_pre_hooks", "_buffers", "_call_impl",
    "_compiled_call_impl", "_forward_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_get_backward_hooks", "_get_backward_pre_hooks",
    "_get_name", "_is_full_backward_hook", "_load_from_state_dict", "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks", "_maybe_warn_non_full_backward_hook", "_modules", "_named_members",
    "_non_persistent_buffers_set", "_parameters", "_register_load_state_dict_pre_hook", "_register_state_dict_hook",
    "_replicate_for_data_parallel", "_save_to_state_dict", "_slow_forward", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_version", "_wrapped_call_impl", "add_module", "apply", "bfloat16", "buffers",
    "call_super_init", "children", "compile", "cpu", "cuda", "double", "dump_patches", "eval", "extra_repr", "float",
    "forward", "get_buffer", "get_extra_state", "get_parameter", "get_submodule", "half", "ipu", "load_state_dict",
    "modules", "mtia", "named_buffers", "named_children", "named_modules", "named_parameters", "parameters",
    "register_backward_hook", "register_buffer", "register_forward_hook", "register_forward_pre_hook",
    "register_full_backward_hook", "register_full_backward_pre_hook", "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook", "register_module", "register_parameter", "register_state_dict_post_hook",
    "register_state_dict_pre_hook", "requires_grad_", "set_extra_state", "set_submodule", "share_memory", "state_dict",
    "to", "to_empty", "train", "training", "type", "xpu", "zero_grad", "_captured_graph",
))  # fmt: skip
"""Attributes that every torch module has, and the one of `graph.network.Network`: torch gives none of them to a tensor
or a layer either."""


def check_names(names: Iterable[str]) -> None:
    """Check the names of a network's tensors; the one place that does.

    Args:
        names: of all tensors, each once.

    Raises:
        ValueError: a name that is none, that belongs to torch, or that lies inside another one (`a` and `a.b`).

    Examples:
        >>> check_names(["features.0.weight", "class_token"])
        >>> check_names(["../weight"])
        Traceback (most recent call last):
        ValueError: a tensor is called '../weight'; names are letters, digits and underscores, separated by points
    """
    known = list(names)
    for name in known:
        check_name(name)
    inside = {name[:at] for name in known for at in _points(name)}
    if both := inside.intersection(known):
        name = min(both)
        raise ValueError(f"{name!r} is a tensor, and other tensors lie inside of it (named {name}.…)")


def check_name(name: object) -> None:
    """Check one name by itself; see `check_names`."""
    if not isinstance(name, str) or not PATTERN.fullmatch(name):
        raise ValueError(
            f"a tensor is called {shortened(name)}; names are letters, digits and underscores, separated by points"
        )
    parts = name.split(".")
    if len(name) > MAX_LENGTH or len(parts) > MAX_PARTS:
        raise ValueError(f"the name {shortened(name)} is longer than {MAX_LENGTH} characters or {MAX_PARTS} parts")
    if taken := [part for part in parts if part in OF_MODULES or part.startswith("__")]:
        raise ValueError(f"a tensor is called {name!r}; {taken[0]!r} is what torch calls something else")


def shortened(value: object, most: int = 60) -> str:
    """A value from outside as it may stand in a message: on one line, without control characters, short."""
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _points(name: str) -> list[int]:
    return [at for at, letter in enumerate(name) if letter == "."]
