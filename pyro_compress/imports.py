"""Code of the user's, `package.module:function`: the one place where it gets in."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from pyro_compress.foreign import NO_CODE


def imported(name: str, what: str) -> Any:
    """What `package.module:name` stands for; the working directory counts as a place to look.

    Args:
        name: `package.module:name`.
        what: it is wanted as, for messages: `network`, `prior`.

    Raises:
        ValueError: `--no-code` refuses it, or it cannot be imported.
    """
    module, _, inside = name.partition(":")
    if os.environ.get(NO_CODE):
        raise ValueError(f"{what} {name!r} is code to import, which --no-code ({NO_CODE}) refuses")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), inside)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} {name!r} cannot be imported: {error}") from error
