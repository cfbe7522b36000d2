"""Checkpoints as people have them -> tensors by name. Nothing is unpickled: tensors and containers only.

A file may hold a state dict, or one under other keys beside whatever else was saved with it (an epoch, an optimizer's
state). Names come out with the keys in front of them: `state_dict.module.fc.weight`; `naming.py` knows which part of a
name is the network's.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_compress.foreign import ordinary

DEPTH = 6
"""How deep state dicts lie in a file, at most."""
REPEATED = 1 << 16
"""Values that a tensor may have which repeats few."""
ALONE = "torch.save(net.state_dict(), 'weights.pt')"
FOREIGN = {
    "/models/model.json": ("an exported program", "torch.save(torch.export.load(FILE).state_dict, 'weights.pt')"),
    ".npy": (
        "an archive of numpy arrays",
        "torch.save({name: torch.from_numpy(array) for name, array in np.load(FILE).items()}, 'weights.pt')",
    ),
}
"""Ending of a name in an archive that torch's checkpoints do not have -> what the archive is, and what to do."""


class Entry(NamedTuple):
    """One tensor of a file: where the state dict lies that holds it (keys, with a dot each), its name there, itself."""

    place: str
    name: str
    tensor: Tensor

    @property
    def full(self) -> str:
        """Keys and name."""
        return self.place + self.name


def entries_of(path: Path) -> list[Entry]:
    """Every tensor of a safetensors file or of what torch saved, whatever the file is called.

    Raises:
        ValueError: another kind of file, a damaged one, one that holds no tensors, or more than may be read safely.
    """
    with ordinary(path).open("rb") as stream:
        head = stream.read(9)
    if head[8:] == b"{":  # eight bytes of length, then a JSON object
        found = [Entry("", name, tensor) for name, tensor in _safetensors(path).items()]
    elif head[:2] == b"PK" or head[:1] == b"\x80":
        found = _named(path)
    else:
        raise ValueError(
            f"{path} is no safetensors file, and nothing that torch saved (weights also come as .pcn file, as "
            "torchvision:WEIGHTS, or as a run folder)"
        )
    if not found:
        raise ValueError(f"{path} holds no state dict: tensors by name; save one with {ALONE}")
    return found


def _named(path: Path) -> list[Entry]:
    try:
        return list(_walk(_torch_file(path), ""))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file: {error}") from error
    return found


def _torch_file(path: Path) -> Any:
    _refuse_packed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of the file is in the message, where it fails
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or a foreign file fails in many ways
        raise ValueError(f"{path} {_refused(str(error))}") from error


def _refuse_packed(path: Path) -> None:
    """Refuse what would take more memory than the file has bytes: torch never packs what it saves.

    Raises:
        ValueError: a part of the file is packed, or the file is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path} holds no state dict that can be read (damaged): {error}") from error
    if any("/code/" in part.filename for part in parts):  # its program is packed, its tensors are not
        raise ValueError(f"{path} {_refused('TorchScript')}")
    for ending, (kind, how) in FOREIGN.items():
        if any(part.filename.endswith(ending) for part in parts):
            raise ValueError(f"{path} is {kind}, no state dict: where you trust it, save its tensors alone: {how}")
    whole = sum(part.file_size for part in parts)
    if whole > path.stat().st_size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError(
            f"{path} is packed, {whole:,} bytes in {path.stat().st_size:,}; torch saves tensors as they are"
        )


def _unrolled(tensor: Tensor, name: str) -> Tensor:
    """A tensor of plain values, as large in memory as it says: one that repeats few is none that training leaves."""
    if tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "nested"
        raise ValueError(f"{name} is a {kind} tensor, which holds no plain values; save the weights as float32")
    if tensor.layout is torch.strided and tensor.numel() > max(tensor.untyped_storage().nbytes(), REPEATED):
        raise ValueError(f"{name} of shape {tuple(tensor.shape)} repeats few values; save it with .contiguous()")
    return tensor.detach()


def _refused(reason: str) -> str:
    """Why torch reads no plain tensors from a file, and what to do."""
    if "TorchScript" in reason or "torch.jit" in reason:
        return (
            "is a TorchScript program, no state dict: where you trust it, save its weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')"
        )
    if more := re.search(r"(?:GLOBAL|global:?|class) +(?!GLOBAL)([\w.]+)", reason):
        return (
            f"holds more than tensors ({more.group(1)}), and nothing is unpickled here: where you trust it, load it in "
            f"Python and save its state dict alone: {ALONE}"
        )
    if "weights_only" in reason or "Weights only" in reason:  # torch's advice is to unpickle it
        return (
            "holds more than tensors, or is damaged; nothing is unpickled here: where you trust it, load it and save "
            f"its state dict alone: {ALONE}"
        )
    first = next(iter(reason.strip().splitlines()), "it ends too soon")
    return f"holds no state dict that can be read (damaged, or no file of torch's): {first}"


def _walk(value: Any, place: str, depth: int = 0) -> Iterator[Entry]:
    if isinstance(value, (list, tuple)):  # of dicts; tensors in a row have no names
        value = {index: inner for index, inner in enumerate(value) if not isinstance(inner, Tensor)}
    if not isinstance(value, Mapping) or depth > DEPTH:
        return
    for key, inner in value.items():
        if isinstance(inner, Tensor):
            yield Entry(place, str(key), _unrolled(inner, f"{place}{key}"))
        else:
            yield from _walk(inner, f"{place}{key}.", depth + 1)
