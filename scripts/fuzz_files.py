"""Files, run folders, studies, weights, data as somebody hostile sends them: each must end in a result or in one line.

    python scripts/fuzz_files.py --inputs 100000

Valid inputs are made (`fuzzing/networks.py`, `seeds.py`), changed so that they stay valid (`keeping.py`), field by
field or by bytes (`changes.py`), and written with checksums that fit (`encoding.py`), or nothing would be looked at.
What passes the gate is run by torch and numpy and taken through evaluation and every export, the slow ones for a stated
share (`consumers.py`), under limits of memory and time (`attempts.py`). What ends otherwise goes, the smallest of its
kind, to `--keep`; its number with the same `--seed` makes it again (`--only`). `--smoke` tries 300, in this process,
and nothing that takes a fit.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from fuzzing.attempts import GOOD, Fuzzer, Tried, attempt, folders, tried_all
from fuzzing.kinds import FITTED, KINDS
from fuzzing.seeds import write_plain, write_seeds

from pyro_compress.cli.commands import run_script
from pyro_compress.data.splits import DATASETS, load_splits

SMOKE = 300


class Counts:
    """What became of the inputs, by kind; and how often consumers had a network."""

    def __init__(self) -> None:
        self.by_kind: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
        self.used, self.refused = Counter[str](), Counter[str]()

    def add(self, tried: Tried) -> None:
        """One more input."""
        counts = self.by_kind[tried.kind]
        counts["inputs"] += 1
        counts["passed"] += tried.passed
        good = tried.outcome in GOOD
        counts[tried.outcome if good and tried.passed else "refused" if good else "failed"] += 1
        for name in tried.used:
            self.used[name.lstrip("!")] += 1
            self.refused[name.lstrip("!")] += name.startswith("!")

    @property
    def total(self) -> Counter[str]:
        """Of all kinds."""
        return sum(self.by_kind.values(), Counter[str]())

    def rows(self) -> Iterator[str]:
        """A table for people."""
        yield "| kind | inputs | passed the gate | of these one line later | refused there | anything else |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: |"
        for name, c in {**self.by_kind, "all": self.total}.items():
            if c["inputs"]:
                numbers = (c["inputs"], c["passed"], c["one line"], c["refused"], c["failed"])
                yield f"| {name} | " + " | ".join(f"{n:,}" for n in numbers) + " |"
        yield ""
        yield "| networks and folders went through | times | refused there |"
        yield "| --- | ---: | ---: |"
        for name, times in self.used.most_common():
            yield f"| {name} | {times:,} | {self.refused[name]:,} |"

    def to_dict(self) -> dict[str, object]:
        """JSON values."""
        return {"kinds": self.by_kind, "used": self.used, "refused": +self.refused}


@contextmanager
def prepared(smoke: bool) -> Iterator[Path]:
    """A folder of valid inputs; what the processes need is imported and read, so that none of them has to."""
    digits = DATASETS["digits"]
    DATASETS["digits"] = cache(digits)
    try:
        with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.set_num_threads(1)
            (write_plain if smoke else _write_apart)(Path(name))
            yield Path(name)
    finally:
        DATASETS["digits"] = digits


def _write_apart(seeds: Path) -> None:
    """In another process: torch's gradients and processes that fork do not go together."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401

    load_splits("digits")
    if (child := os.fork()) == 0:
        write_seeds(seeds)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise ValueError("the valid inputs could not be made")


def tried_here(fuzzer: Fuzzer, numbers: range) -> Iterator[Tried]:
    """In this process, without limits."""
    for number in numbers:
        with tempfile.TemporaryDirectory() as place:
            yield attempt(fuzzer, number, Path(place))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="end after so many, however few inputs that are")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, default=None, help="number of the one input to try, its error shown")
    parser.add_argument("--kind", choices=list(KINDS), default="", help="inputs of this kind only")
    parser.add_argument("--keep", type=Path, default=Path("fuzzed"), help="folder for what fails, the smallest each")
    parser.add_argument("--json", type=Path, help="file for the counts")
    parser.add_argument("--smoke", action="store_true", help=f"{SMOKE} inputs")
    options = parser.parse_args()
    with prepared(options.smoke) as seeds:
        kinds = {name: kind for name, kind in KINDS.items() if not options.smoke or name not in FITTED}
        fuzzer = Fuzzer(kinds, seeds, options.keep.resolve(), options.seed, options.kind)
        if options.only is not None:
            print(*shown(fuzzer, options.only), sep="\n")
            return
        numbers = range(options.first, options.first + (SMOKE if options.smoke else options.inputs))
        failed = counted(tried_here(fuzzer, numbers) if options.smoke else tried_all(fuzzer, numbers), options)
    sys.exit(failed > 0)


def shown(fuzzer: Fuzzer, number: int) -> Iterator[object]:
    """One input, tried with its error shown; it stays where it lies."""
    kind, chance = fuzzer.begun(number)
    place = folders(Path(tempfile.mkdtemp()))
    yield f"{kind}: {place}"
    yield from fuzzer.kinds[kind].run(fuzzer.seeds, place, chance)


def counted(outcomes: Iterator[Tried], options: argparse.Namespace) -> int:
    """Count what becomes of all inputs, and say it; how many ended as they must not."""
    counts, started = Counts(), time.perf_counter()
    for tried in outcomes:
        counts.add(tried)
        minutes = (time.perf_counter() - started) / 60
        if tried.outcome not in GOOD:
            print(f"{tried.number} {tried.kind}: {tried.outcome}: {tried.detail}", flush=True)
        if counts.total["inputs"] % 5000 == 0:
            print(f"{counts.total['inputs']:,} inputs, {minutes:.1f} minutes, {dict(counts.total)}", flush=True)
        if minutes > options.minutes:
            break
    print("\n".join(counts.rows()))
    failed, total = counts.total["failed"], counts.total["inputs"]
    used = os.times()
    seconds = used.user + used.system + used.children_user + used.children_system
    took = f"{minutes:.1f} minutes ({seconds:.0f} s of computing)"
    print(f"{total:,} inputs of seed {options.seed} in {took}, {failed} neither a result nor one line")
    if options.json:
        about = {"seed": options.seed, "first": options.first, "inputs": total, "seconds": round(60 * minutes, 1)}
        options.json.write_text(
            json.dumps(about | {"computing": round(seconds, 1)} | counts.to_dict(), indent=1) + "\n"
        )
    return failed


if __name__ == "__main__":
    run_script(main)
