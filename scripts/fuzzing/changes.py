"""Changes that may hurt: of documents field by field, of bytes, of safetensors, TOML, zip archives and text."""

import contextlib
import io
import json
import random
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import safe_open

from fuzzing.attempts import ESCAPED

TEXTS = (
    "", "a", "head.weight", "forward", "a..b", "../../x", ESCAPED, "\x1b[2J", "=1+1", "a\nb", "\ud800", "__class__",
    "x" * 300, 'w"+str(__import__("os").system("touch EXECUTED"))+"', "linear", "conv2d", "reshape", "digits", "none",
    "nan", "%s", "{0}", "mlp", "<script>", "*/", "training", "0", "head", "a\x00b", "regression", "input",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 5, 7, 8, 10, 64, 255, 1 << 20, 1 << 31, 1 << 40, 1 << 63, 10**30, 10**400, 0.0, -1.5, 0.5,
    1e-45, 1e300, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a document lie."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*before, key)
        yield from paths(inner, (*before, key))


def value_for(old: Any, chance: random.Random) -> Any:
    """What takes a value's place: often something near it."""
    if type(old) is int and chance.random() < 0.6:
        return old + chance.choice((-2, -1, 1, 2, old))
    pools: tuple[Callable[[], Any], ...] = (
        lambda: chance.choice(NUMBERS), lambda: chance.choice(TEXTS), lambda: chance.choice((None, True, False)),
        lambda: chance.choice(([], {}, [[]], [0], [None], {"a": 1}, [1, 2, 3], [old], [[1, 1], [1, 1]])),
    )  # fmt: skip
    near = {int: 0, float: 0, str: 1, bool: 2, list: 3, dict: 3}.get(type(old), 0)
    return pools[near if chance.random() < 0.6 else chance.randrange(4)]()


def changed(told: Any, chance: random.Random) -> None:
    """Change a document in one to three places."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(paths(told))
        if not places:
            return
        *way, key = chance.choice(places)
        parent = told
        for step in way:
            parent = parent[step]
        kind = chance.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[chance.choice(TEXTS)] = parent.pop(key)
        elif kind == 2 and isinstance(parent, list):
            parent.insert(key, parent[chance.randrange(len(parent))])
        elif kind == 3 and isinstance(parent, list) and len(parent) > 1:
            other = chance.randrange(len(parent))
            parent[key], parent[other] = parent[other], parent[key]
        else:
            parent[key] = value_for(parent[key], chance)


def hurt(data: bytes, chance: random.Random, after: int = 8) -> bytes:
    """Change bytes: flip, replace, cut, insert; a cut leaves the first ones."""
    body = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, kind = chance.randrange(max(1, len(body))), chance.randrange(5)
        if kind == 0:
            body[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            body[at : at + 1] = bytes([chance.choice((0, 1, 127, 128, 240, 241, 254, 255))])
        elif kind == 2:
            del body[max(at, after) :]
        elif kind == 3:
            body[at:at] = bytes([255] * chance.randint(1, 5) + [chance.randrange(128)])  # a huge number
        else:
            body[at : at + chance.randint(1, 20)] = chance.randbytes(chance.randint(1, 20))
    return bytes(body)


SNIPPETS = (b"[" * 2000, b'{"a":' * 500, b"1e999", b"-" * 3, b"9" * 5000, b'"a":1,"a":2,', b"\xff\xfe", b"\\ud800",
            b"NaN", b"Infinity", b"null", b"true", b",", b"]", b"}", b'"', b"\x00", b"\xef\xbb\xbf", b"/*")  # fmt: skip


def hurt_text(data: bytes, chance: random.Random) -> bytes:
    """Change the text of a document: what no writer of JSON or CSV writes."""
    at = chance.randrange(max(1, len(data)))
    end = at + chance.choice((0, 0, 1, 5))
    return data[:at] + chance.choice(SNIPPETS) + data[end:] if chance.random() < 0.7 else hurt(data, chance)


def changed_tensors(path: Path, chance: random.Random, key: str | None = "pyro_compress") -> None:
    """Change what a safetensors file says or holds."""
    from safetensors.torch import save

    if chance.random() < 0.15:
        path.write_bytes(hurt(path.read_bytes(), chance))
        return
    with safe_open(path, "pt") as source:
        tensors = {name: source.get_tensor(name) for name in source.keys()}
        told = json.loads(source.metadata()[key]) if key else {}
    if key and chance.random() < 0.6:
        changed(told, chance)
    else:
        name = chance.choice(sorted(tensors))
        new = changed_tensor(tensors.pop(name), chance)
        new_name = name if chance.random() < 0.8 else chance.choice(TEXTS[:-4]).encode("ascii", "ignore").decode()
        if new is not None:
            tensors[new_name] = new.contiguous()
    path.write_bytes(save(tensors, {key: json.dumps(told)} if key else None))


def changed_tensor(old: torch.Tensor, chance: random.Random) -> torch.Tensor | None:
    """What takes a tensor's place."""
    return chance.choice((
        lambda: None, lambda: old * float("nan"), lambda: old * float("inf"), lambda: -old.abs(), lambda: old * 0,
        lambda: old.double(), lambda: old.to(torch.int64), lambda: old.flatten(), lambda: old[..., :1],
        lambda: old[:0],
        lambda: old[None], lambda: old.bool(), lambda: old * 1e30,
        lambda: old.T.contiguous() if old.dim() == 2 else old + 1,
        lambda: torch.zeros(0, 1 << 40), lambda: old.half(), lambda: torch.cat([old, old]) if old.dim() else old,
    ))()  # fmt: skip


def changed_toml(path: Path, chance: random.Random) -> None:
    """Change a TOML file."""
    if chance.random() < 0.1:
        path.write_bytes(hurt(path.read_bytes(), chance))
        return
    told = tomllib.loads(path.read_text())
    changed(told, chance)
    with contextlib.suppress(TypeError, ValueError, AttributeError, RecursionError):
        path.write_bytes(tomli_w.dumps(told).encode("utf-8", "surrogatepass"))


def changed_archive(path: Path, chance: random.Random) -> None:
    """Change a part of a zip archive, its checksum made right; or its name, its packing, how often it is there."""
    with zipfile.ZipFile(path) as archive:
        parts = [[name, archive.read(name), zipfile.ZIP_STORED] for name in archive.namelist()]
    part = chance.choice(parts)
    kind = chance.randrange(8)
    if kind == 0:
        part[0] = chance.choice((*TEXTS[:11], "data.pkl", "x_train.npy")) or "y"
    elif kind == 1:
        part[2] = zipfile.ZIP_DEFLATED
    elif kind == 2:
        parts.append(list(part))
    elif kind == 3:
        parts.remove(part)
    elif kind == 4:
        part[1] = part[1].replace(b"(", b"(9999999", 1) if b"(" in part[1] else bytes(1 << 16)
    else:
        part[1] = hurt(part[1], chance)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data, method in parts:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    path.write_bytes(content.getvalue())
