"""What the package streams to files, as bytes to be compared."""

import io
from collections.abc import Callable

from pyro_compress.runs.posterior_file import write_posterior
from pyro_compress.types import Posterior


def stored(write: Callable[..., None], *what: object) -> bytes:
    """What a function writes to the open file that is its first argument."""
    file = io.BytesIO()
    write(file, *what)
    return file.getvalue()


def stored_posterior(posterior: Posterior) -> bytes:
    """A run's posterior.safetensors."""
    return stored(write_posterior, posterior)
