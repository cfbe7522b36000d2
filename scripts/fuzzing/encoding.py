"""Documents -> .pcn files of every version, as a foreign writer makes them: nothing is checked, the checksum fits."""

import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fuzzing.changes import hurt
from pyro_compress.graph.operations.table import OPERATIONS
from pyro_compress.pcn import codec, file, header, sections
from pyro_compress.pcn.layout import layouts
from pyro_compress.types import Compressed, Graph, Quantized

Tensors = dict[str, Quantized | np.ndarray]
LARGEST = 1 << 14
"""Values of a tensor that is really written."""


def sealed(body: bytes) -> bytes:
    """With a checksum that fits."""
    return body + struct.pack("<I", zlib.crc32(body))


def packed(text: bytes, dictionary: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, 0, dictionary)
    data = packer.compress(text) + packer.flush()
    return codec.varint(len(data)) + data


def own(graph: Graph, document: dict[str, Any], chance: random.Random) -> bytes:
    """The file of a valid network, as this program writes it: by a template, coded in context, in several streams."""
    network = Compressed(graph, tensors_of(document["tensors"], chance), document["meta"])
    try:
        if chance.random() < 0.2:  # as if it were a large one
            return file.written(network, in_context=True, several=True)[0]
        return file.dumps(network, chance.random() < 0.5)[0]
    except ValueError:  # codes that span too much, say
        return foreign(document, 4, chance)


def foreign(told: Any, version: int, chance: random.Random, text: bytes | None = None, broken: bool = False) -> bytes:
    """The file of a document that may be anything.

    Args:
        told: the document.
        version: 1 to 6, 5 excepted; where there are operations that came later, it is 5 or 6.
        chance: draws the values.
        text: what is packed in its place.
        broken: the sections of the tensors are changed, too.
    """
    if text is None and (newer := _newer(told, version)):
        told, version = newer, max(version, header.OF_KINDS)
    text = json.dumps(told).encode() if text is None else text
    try:
        tensors = tensors_of(told["tensors"], chance)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, MemoryError):
        tensors = {}
    dictionary = header.DICTIONARIES.get(version, (header.DICTIONARY,))[0]
    if version == 1:
        body = b"".join(codec.varint(len(part)) + part for part in map(_first, tensors.values()))
        head = packed(text, dictionary)
        reader = codec.Reader(head)
        reader.varint()
        head = reader.rest()
        return sealed(file.MAGIC + b"\x01" + struct.pack("<I", len(head)) + head + body)
    body = _changed_parts(tensors, chance) if broken else sections.write(tensors, {}, False)[0]
    if version == header.OF_STREAMS and chance.random() < 0.3:
        body += b"".join(codec.varint(chance.choice((0, 1, 5, 1 << 34))) for _ in range(chance.randint(1, 3)))
        body += chance.randbytes(chance.randint(0, 30))
    return sealed(file.MAGIC + bytes([version]) + codec.varint(0) + packed(text, dictionary) + body)


def _newer(told: Any, version: int) -> dict[str, Any] | None:
    """A document as version 5 has it, where it has operations that are as new, or is to be newer; None: neither."""
    try:
        names = {node[0] for node in told["graph"]["nodes"]}
        if version < header.OF_KINDS and all(OPERATIONS[name].since <= header.OF_GRAPHS for name in names):
            return None
        return told | {"graph": {"operations": header.OPERATION_SET, "kind": "float32"} | told["graph"]}
    except (TypeError, KeyError, IndexError):
        return None


def template(chance: random.Random, meta: Any) -> bytes:
    """A file that names a template, its sizes right or not."""
    number = chance.choice((1, 1, 2, 3, 3, 0, 4, 1 << 34))
    shape = chance.choice(([1, 8, 8], [1, 16, 16], [3, 17, 16], [64], [], [0], [1, 1 << 20, 1 << 20], [1] * 70))
    widths = [chance.choice((0, 1, 2, 10, 1 << 31)) if chance.random() < 0.2 else chance.randint(1, 10)
              for _ in range(chance.choice((4, 4, 2, 1, 0, 66)))]  # fmt: skip
    sizes = [len(shape), *shape, len(widths), *widths]
    version = chance.choice((2, 3, 4))
    head = b"".join(codec.varint(n) for n in (number, *sizes))
    head += packed(json.dumps(meta).encode(), header.DICTIONARIES[version][1])
    try:
        graph, shapes = header.TEMPLATES[number](tuple(shape), tuple(widths))
        tensors = tensors_of([[name, list(size), 1] for name, size in shapes.items()], chance)
        body = sections.write(tensors, layouts(graph, shapes, version), chance.random() < 0.3)[0]
    except (ValueError, KeyError):
        body = chance.randbytes(chance.randint(0, 40))
    return sealed(file.MAGIC + bytes([version]) + head + body)


# --- values -----------------------------------------------------------------------------------------------------------


def tensors_of(declared: list[Any], chance: random.Random) -> Tensors:
    """Values of the shapes that a document declares."""
    draw = np.random.default_rng(chance.randrange(1 << 30))
    kind = chance.choices(list(CODES), [6, 1, 1, 1, 1])[0]
    step = 0.25 if chance.random() < 0.6 else chance.choice((2.0**-25, 1.0, 2.0**-126, 1e-30, 1e30, 2.0**110, 0.1, 3.0))
    found: Tensors = {}
    for name, shape, quantised in declared:
        size = int(np.prod([min(int(n), 1 << 20) for n in shape], dtype=float))
        if not 0 <= size <= LARGEST:
            raise ValueError(f"{size} values")
        codes = CODES[kind](draw, tuple(shape))
        if quantised:
            found[str(name)] = Quantized(codes.astype(np.int32), float(np.float32(step)))
        else:
            found[str(name)] = FLOATS[kind](draw, tuple(shape)).astype(np.float32)
    return found


Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
CODES: dict[str, Draw] = {
    "small": lambda draw, shape: draw.integers(-3, 4, shape),
    "none": lambda draw, shape: np.zeros(shape, int),
    "sparse": lambda draw, shape: draw.integers(-3, 4, shape) * (draw.random(shape) < 0.1),
    "large": lambda draw, shape: draw.integers(-16000, 16000, shape),
    "one": lambda draw, shape: np.ones(shape, int),
}
FLOATS: dict[str, Draw] = {
    "small": lambda draw, shape: abs(draw.integers(-3, 4, shape)) / 4,
    "none": lambda draw, shape: np.zeros(shape),
    "sparse": lambda draw, shape: draw.standard_normal(shape),
    "large": lambda draw, shape: draw.choice([3.4e38, -3.4e38, 1e-45, 0.0, -0.0, 1.0], shape),
    "one": lambda draw, shape: np.ones(shape),
}


def _first(tensor: Quantized | np.ndarray) -> bytes:
    if isinstance(tensor, Quantized):
        return struct.pack("<f", tensor.step) + codec.encode(tensor.codes)
    return tensor.astype("<f4").tobytes()


# --- sections ---------------------------------------------------------------------------------------------------------

STEPS = (0.0, -1.0, float("nan"), float("inf"), 1e-45, 2.0**110, 2.0**111, 3e38)


def _changed_parts(tensors: Tensors, chance: random.Random) -> bytes:
    """All tensors, one or two of them with another descriptor, length or content than belongs to them."""
    parts = [list(_part(tensor)) for tensor in tensors.values()]
    for _ in range(chance.randint(1, 2)):
        if parts:
            part = chance.choice(parts)
            chance.choice(PART_CHANGES)(part, chance)
    if len(parts) > 1 and chance.random() < 0.1:
        parts[0], parts[1] = parts[1], parts[0]
    alone = [part for part in parts if part[0][0] == 255 or (part[0][0] % 2 == 0)]
    stream = chance.randbytes(chance.randint(0, 30)) if len(alone) < len(parts) or chance.random() < 0.05 else b""
    return b"".join(part[0] for part in parts) + b"".join(codec.varint(p[1]) + p[2] for p in alone) + stream


def _part(tensor: Quantized | np.ndarray) -> tuple[bytes, int, bytes]:
    """Descriptor, length and content of a tensor that stands alone."""
    if isinstance(tensor, Quantized):
        content = codec.encode(tensor.codes)
        return bytes([240]) + struct.pack("<f", tensor.step), len(content), content
    content = tensor.astype("<f4").tobytes()
    return b"\xff", len(content), content


def _descriptor(part: list[Any], chance: random.Random) -> None:
    part[0] = (
        bytes([chance.choice((0, 1, 99, 200, 201, 238, 239, 240, 241, 242, 254, 255, chance.randrange(256)))])
        + part[0][1:]
    )


def _step(part: list[Any], chance: random.Random) -> None:
    part[0] = bytes([chance.choice((240, 241))]) + struct.pack("<f", chance.choice(STEPS))


def _length(part: list[Any], chance: random.Random) -> None:
    part[1] = max(0, part[1] + chance.choice((-1, 1, 5, -part[1], 1 << 34)))


def _content(part: list[Any], chance: random.Random) -> None:
    part[2] = hurt(part[2], chance, 0) if part[2] else b"\x01"
    part[1] = len(part[2])


def _floats(part: list[Any], chance: random.Random) -> None:
    part[0], at = b"\xff", 4 * chance.randint(0, max(0, len(part[2]) // 4 - 1))
    part[2] = part[2][:at] + struct.pack("<f", chance.choice(STEPS)) + part[2][at + 4 :]
    part[1] = len(part[2])


def _block(part: list[Any], chance: random.Random) -> None:
    """A block of the static coder, made by hand."""
    mask = chance.randbytes(chance.randint(0, 3))
    number = codec.varint(chance.choice((0, 1, 2, 9, 1 << 14, (1 << 15) - 1, 1 << 15, (1 << 16) - 1, 1 << 16, 1 << 34)))
    kind = chance.randrange(10)
    if kind % 4 == 1:
        counts = [chance.choice((0, 1, 5, 1 << 34)) for _ in range(chance.randint(1, 9))]
        front = (
            codec.varint(chance.choice((0, 1, 6, 1 << 18)))
            + codec.varint(len(counts))
            + b"".join(map(codec.varint, counts))
        )
    else:
        front = bytes([chance.choice((0, 1, 128, 255)), chance.choice((0, 1, 255))]) + number
    part[2] = bytes([kind]) + (mask if kind & 4 else b"") + front + chance.randbytes(chance.randint(0, 20))
    part[1] = len(part[2])


PART_CHANGES = (_descriptor, _step, _length, _content, _floats, _block, _block)
