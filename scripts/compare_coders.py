"""The same integers under several coders: ours, and general-purpose compressors at their best settings.

    python scripts/compare_coders.py docs/results/records/*.pcn

General-purpose compressors get the integers as one byte each (two if they do not fit), and as a bit mask of the
non-zeros followed by their values; the smaller counts. The last column is the whole file.
"""

import argparse
import bz2
import lzma
import zlib
from pathlib import Path

import numpy as np
import zstandard

from pyro_compress.cli.commands import run_script
from pyro_compress.pcn import codec, file
from pyro_compress.types import Quantized

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "pb": 0}]
PACKERS = {
    "zlib": lambda data: len(zlib.compress(data, 9)),
    "bzip2": lambda data: len(bz2.compress(data, 9)),
    "zstd": lambda data: len(zstandard.ZstdCompressor(level=22).compress(data)),
    "xz": lambda data: len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=XZ)),
}


def sizes(path: Path) -> dict[str, int]:
    """Bytes of a file's integers under every coder."""
    network = file.read(path)
    codes = [tensor.codes for tensor in network.tensors.values() if isinstance(tensor, Quantized)]
    kind = np.int8 if max(int(np.abs(one).max(initial=0)) for one in codes) < 128 else np.int16
    plain = b"".join(one.astype(kind).tobytes() for one in codes)
    masks = b"".join(np.packbits(one != 0).tobytes() for one in codes)
    masked = masks + b"".join(one[one != 0].astype(kind).tobytes() for one in codes)
    found = {name: min(pack(plain), pack(masked)) for name, pack in PACKERS.items()}
    found["static tables"] = sum(len(codec.encode(one)) for one in codes)
    _, parts = file.dumps(network)
    found["file without header"] = sum(size for name, size in parts.items() if name not in ("frame", "header"))
    return found | {"file": path.stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--smoke", action="store_true", help="the small files of the tests")
    options = parser.parse_args()
    rows = {path.name: sizes(path) for path in (sorted(GOLDEN.glob("*.pcn")) if options.smoke else options.files)}
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"| file | {' | '.join(columns)} |\n{'| --- ' * (len(columns) + 1)}|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[column]:,}' for column in columns)} |")


if __name__ == "__main__":
    run_script(main)
