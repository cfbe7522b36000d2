"""Whether the fuzzer sees how inputs end, and keeps those that end as they must not."""

import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from fuzzing import attempts
from fuzzing.attempts import Fuzzer, Share, Tried, tried_all

NUMBER = 40


def _fails(error: BaseException) -> Callable[[], NoReturn]:
    def run() -> NoReturn:
        raise error

    return run


def _computes() -> None:
    while True:
        pass


ENDS = {
    "nothing": (lambda: None, "result"),
    "one line": (_fails(ValueError("what is wrong, and what to do")), "one line"),
    "no words": (_fails(ValueError("")), "message"),
    "a fault": (_fails(KeyError("weight")), "traceback"),
    "memory": (lambda: np.ones(1 << 40), "memory"),
    "time": (_computes, "timeout"),
    "a crash": (lambda: os.kill(os.getpid(), 11), "crash"),
    "an escape": (lambda: Path("x").write_text("x"), "escaped"),
    "a file too many": (lambda: Path("../y").write_text("x"), "escaped"),
}


def kind(act: Callable[[], object]) -> Share:
    def run(seeds: Path, place: Path, chance: random.Random) -> Iterator[str | None]:
        (place / "in" / "a").write_text("input")
        yield None
        act()
        yield "consumer"

    return Share(run, 1)


def try_all(folder: Path) -> list[Tried]:
    """In a process that has no threads, as it forks."""
    attempts.SECONDS = 0.05
    kinds = {name: kind(act) for name, (act, _) in ENDS.items()}
    return list(tried_all(Fuzzer(kinds, folder, folder / "kept"), range(NUMBER)))


def test_it_sees_how_inputs_end(tmp_path: Path) -> None:
    """Every way, in a process of its own or the next one; after each of them the next inputs are tried."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        tried = pool.apply_async(try_all, (tmp_path,)).get(timeout=300)
    assert [one.number for one in tried] == list(range(NUMBER))
    assert {one.kind for one in tried} == set(ENDS)
    for one in tried:
        assert one.outcome == ENDS[one.kind][1], one
        assert one.used == (("consumer",) if one.kind in ("nothing", "an escape", "a file too many") else ())
        assert one.passed == (one.kind != "a crash")
    told = [path.read_text() for path in (tmp_path / "kept").rglob("WHAT")]
    assert {text.partition(",")[0] for text in told} >= {"no words", "a fault", "time", "an escape"}
