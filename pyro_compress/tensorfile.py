"""Tensors in safetensors' format, written and read one at a time: a file never stands in memory beside its tensors.

What `write_tensors` writes is byte by byte what safetensors' own `save` returns, which holds two copies of everything.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pyro_compress.foreign import ordinary

KINDS = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "U32": torch.uint32,
    "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16, "U16": torch.uint16, "I16": torch.int16,
    "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What safetensors calls a type, in the order in which it lays tensors out."""
LONGEST_HEADER = 100_000_000
"""Bytes; safetensors' own bound."""
_CODES = {dtype: code for code, dtype in KINDS.items()}
_RANKS = {code: rank for rank, code in enumerate(KINDS)}


@dataclass(frozen=True)
class Later:
    """A tensor that is worked out when its turn to be written comes.

    Attributes:
        shape: of what it will be.
        give: works it out.
        dtype: of what it will be.
        own: what this process holds of it, where several work it out together; None: nothing is said.
    """

    shape: tuple[int, ...]
    give: Callable[[], Tensor]
    dtype: torch.dtype = torch.float32
    own: Tensor | None = None


Given = Tensor | Later


def in_order(tensors: Mapping[str, Given]) -> list[str]:
    """Names in the order in which their tensors are written."""
    return sorted(tensors, key=lambda name: (_RANKS[_CODES[tensors[name].dtype]], name))


def write_tensors(file: IO[bytes], tensors: Mapping[str, Given], metadata: str) -> None:
    """Write tensors, wherever they live, to an open file.

    Args:
        file: open for writing.
        tensors: by name.
        metadata: text under the one key `pyro_compress`; safetensors would write several in random order.
    """
    assert sys.byteorder == "little"
    names = in_order(tensors)
    header: dict[str, Any] = {"__metadata__": {"pyro_compress": metadata}}
    end = 0
    for name in names:
        shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        given = tensors[name]
        tensor = given.give() if isinstance(given, Later) else given
        assert (tuple(tensor.shape), tensor.dtype) == (tuple(given.shape), given.dtype)
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)


class TensorFile(Mapping[str, Tensor]):
    """Tensors of a file, each read when it is asked for and kept by nobody.

    Args:
        source: the file, or its bytes.

    Attributes:
        metadata: the text that was written with them.

    Raises:
        ValueError: no such file, or a damaged one.
        OSError: it cannot be read.
    """

    def __init__(self, source: Path | bytes):
        self.source = source
        with self._opened() as file:
            self.metadata, self._places, self._start = _header(file)

    def _opened(self) -> IO[bytes]:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else ordinary(self.source).open("rb")

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape, start = self._places[name]
        with self._opened() as file:
            file.seek(self._start + start)
            tensor = torch.empty(shape, dtype=dtype)
            room = tensor.reshape(-1).view(torch.uint8).numpy().data
            if file.readinto(room) != len(room):  # type: ignore[attr-defined]
                raise ValueError(f"truncated in tensor {name}")
        return tensor

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, of tensors that nobody has read."""
        return {name: shape for name, (_, shape, _) in self._places.items()}

    @property
    def codes(self) -> dict[str, str]:
        """Name -> what safetensors calls its type."""
        return {name: _CODES[dtype] for name, (dtype, _, _) in self._places.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _header(file: IO[bytes]) -> tuple[str, dict[str, tuple[torch.dtype, tuple[int, ...], int]], int]:
    """Metadata, name -> (type, shape, start), and where the first tensor starts; everything must fit the file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, LONGEST_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    found: dict[str, tuple[torch.dtype, tuple[int, ...], int]] = {}
    try:
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__")["pyro_compress"]
        places = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        end = 0
        for name, entry in places:
            dtype, shape, (start, stop) = KINDS[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, start, stop))
            if not whole or start != end or stop - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"the place of tensor {name} does not fit its shape")
            found[name], end = (dtype, shape, start), stop
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no header of this program: {type(error).__name__}: {error}") from error
    if not isinstance(metadata, str) or end != size - 8 - length:
        raise ValueError(f"{size - 8 - length} bytes of tensors, {end} announced")
    return metadata, found, 8 + length
