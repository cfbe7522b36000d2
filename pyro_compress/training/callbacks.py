"""Who is told of a running fit and of a running search, and may end it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pyro_compress.training.history import Epoch, Iteration, OnStep


class Callback:
    """What may be told; a subclass overrides what it wants to hear.

    A method that returns True ends what is running there. What was reached by then is the result: of a fit the
    posterior as it is, of a search the best candidate so far.
    """

    def on_begin(self, what: str) -> None:
        """Something begins: `fit` or `compress`."""

    def on_step(self, step: Iteration) -> object:
        """After every step of a fit."""

    def on_epoch(self, epoch: Epoch) -> object:
        """After every epoch of a fit."""

    def on_candidate(self, candidate: Any) -> object:
        """After every candidate of a search, a `pyro_compress.compression.target.Trial`."""

    def on_search(self, done: int, total: int) -> None:
        """After every part of a search."""

    def on_end(self, what: str) -> None:
        """It has ended, well or not."""


class Callbacks(Callback):
    """Several of them as one; a plain function is told of epochs.

    Args:
        given: callbacks, objects with some of their methods, or functions of an `Epoch`; or one of these; or None.

    Raises:
        ValueError: something that can be told nothing.

    Examples:
        >>> told = Callbacks([lambda epoch: epoch.epoch >= 2])
        >>> told.on_epoch(Epoch(epoch=1)), told.on_epoch(Epoch(epoch=2))
        (False, True)
    """

    def __init__(self, given: Iterable[Any] | Any):
        single = callable(given) or isinstance(given, Callback)
        self.given = [given] if single else list(given or ())
        self.methods: dict[str, list[Callable[..., object]]] = {
            name: [] for name in vars(Callback) if name[:3] == "on_"
        }
        for one in self.given:
            found = {name: getattr(one, name) for name in self.methods if callable(getattr(one, name, None))}
            if not found and callable(one):
                found = {"on_epoch": one}
            if not found:
                raise ValueError(
                    f"a {type(one).__name__} is no callback: give a function of an epoch, or an object with any of "
                    f"{', '.join(self.methods)}"
                )
            for name, method in found.items():
                if getattr(method, "__func__", None) is not getattr(Callback, name):
                    self.methods[name].append(method)

    def _call(self, name: str, *arguments: Any) -> bool:
        return any([method(*arguments) is True for method in self.methods[name]])  # all of them are told

    def on_step(self, step: Iteration) -> bool:
        """Whether any wants to end it."""
        return self._call("on_step", step)

    def on_epoch(self, epoch: Epoch) -> bool:
        """Whether any wants to end it."""
        return self._call("on_epoch", epoch)

    def on_candidate(self, candidate: Any) -> bool:
        """Whether any wants to end it."""
        return self._call("on_candidate", candidate)

    def on_search(self, done: int, total: int) -> None:
        """Tell all of them."""
        self._call("on_search", done, total)

    @property
    def steps(self) -> OnStep | None:
        """What a fit calls after every step; None where nobody wants to hear of them."""
        return self.on_step if self.methods["on_step"] else None

    @property
    def candidates(self) -> Callable[[Any], object] | None:
        """What a search calls with every candidate; None where nobody wants to hear of them."""
        return self.on_candidate if self.methods["on_candidate"] else None

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Tell of the beginning, and of the end, however it comes."""
        with ExitStack() as stack:
            for end in self.methods["on_end"]:
                stack.callback(end, what)
            self._call("on_begin", what)
            yield
