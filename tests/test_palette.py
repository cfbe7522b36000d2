"""One look per method: the same everywhere, unlike every other."""

import pytest

from pyro_compress.inspection.palette import METHODS, SAME, looks
from pyro_compress.tuning.published import PUBLISHED


def test_a_method_looks_the_same_wherever_it_is_drawn() -> None:
    beside = ["one", "log-uniform (own recipe)", "two", "horseshoe"]
    assert looks(beside)["horseshoe"] == looks(["horseshoe"])["horseshoe"] == METHODS["horseshoe"]
    assert looks(beside)["log-uniform (own recipe)"] == METHODS["log-uniform"]
    assert looks(["BC-GHS"])["BC-GHS"] == METHODS["horseshoe"]


def test_a_variant_has_its_methods_colour_and_marker() -> None:
    found = looks(["SGD (Adam)", "SGD (momentum)", "SGD (momentum, converged)"])
    assert {(look.colour, look.marker) for look in found.values()} == {(METHODS["SGD"].colour, "o")}
    assert len({(look.dash, look.hollow) for look in found.values()}) == 3


def test_looks_differ() -> None:
    names = [*METHODS, *(f"new {i}" for i in range(48))]
    own = [(look.colour, look.marker) for look in METHODS.values()]
    assert [pair for pair in own if own.count(pair) > 1] == [(METHODS["pyro-compress"].colour, "o")] * 2
    strangers = [(look.colour, look.marker) for name, look in looks(names).items() if name not in METHODS]
    assert len(set(strangers)) == 48


def test_other_names_are_of_methods_that_are_there() -> None:
    assert set(SAME.values()) <= METHODS.keys()


@pytest.mark.parametrize("name", sorted({point.name for points in PUBLISHED.values() for point in points}))
def test_papers_have_looks_of_their_own(name: str) -> None:
    method = name.partition(" (")[0]
    assert SAME.get(method, method) in METHODS
