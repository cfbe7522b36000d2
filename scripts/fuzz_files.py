"""Hostile .pcn files: truncated, bit-flipped, forged sizes and streams; each must decode or be one ValueError.

    python scripts/fuzz_files.py --inputs 100000

Starts from the corpus in `tests/golden/`, changes it at random (with a checksum that fits, or nothing would be looked
at), and adds whatever breaks the rule to `--keep`. `--smoke` tries a few hundred inputs.
"""

import argparse
import random
import struct
import sys
import time
import zlib
from pathlib import Path

from pyro_compress.cli.options import run_script
from pyro_compress.pcn import file
from pyro_compress.pcn.gate import Limits

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
LIMITS = Limits(1 << 16, 1 << 24)
SECONDS = 5.0
"""More than this for one small input counts as a failure."""


def sealed(body: bytes) -> bytes:
    """With a checksum that fits."""
    return body + struct.pack("<I", zlib.crc32(body))


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One hostile relative of a file."""
    body = bytearray(data[:-4])
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(4, len(body))
        kind = chance.randrange(6)
        if kind == 0:
            body[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            body[at] = chance.choice((0, 1, 127, 128, 240, 241, 254, 255))
        elif kind == 2:
            del body[max(at, 8) :]
        elif kind == 3:
            body[at:at] = bytes([255] * chance.randint(1, 5) + [chance.randrange(128)])  # a huge number
        elif kind == 4:
            body[at : at + chance.randint(1, 20)] = chance.randbytes(chance.randint(1, 20))
        else:
            body += chance.randbytes(chance.randint(1, 50))
        if len(body) < 9:
            break
    return sealed(bytes(body)) if chance.random() < 0.95 else bytes(body)


def attempt(data: bytes) -> str:
    """What became of an input: `decoded`, `refused`, or what was wrong."""
    started = time.perf_counter()
    try:
        file.loads(data, LIMITS)
        outcome = "decoded"
    except ValueError as error:
        outcome = "refused" if str(error) else "an error without a message"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    return outcome if seconds < SECONDS else f"took {seconds:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=GOLDEN.parent / "hostile", help="where failures are stored")
    parser.add_argument("--smoke", action="store_true", help="a few hundred inputs")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    corpus = [path.read_bytes() for path in sorted([*GOLDEN.glob("*.pcn"), *options.keep.glob("*.pcn")])]
    counts = {"decoded": 0, "refused": 0}
    failures = 0
    for _ in range(300 if options.smoke else options.inputs):
        data = mutated(chance.choice(corpus), chance)
        outcome = attempt(data)
        if outcome in counts:
            counts[outcome] += 1
            continue
        failures += 1
        options.keep.mkdir(parents=True, exist_ok=True)
        path = options.keep / f"{zlib.crc32(data):08x}.pcn"
        path.write_bytes(data)
        print(f"{path}: {outcome}")
    tried = sum(counts.values()) + failures
    print(f"{tried} inputs: {counts['decoded']} decoded, {counts['refused']} refused, {failures} failed")
    sys.exit(failures > 0)


if __name__ == "__main__":
    run_script(main)
