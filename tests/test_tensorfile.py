"""Tensors written one by one are what safetensors writes, and are read back one by one."""

import pytest
import torch
from safetensors.torch import save
from stored import stored

from pyro_compress.tensorfile import KINDS, Later, TensorFile, write_tensors

TENSORS = {f"of {kind}": torch.ones(3).to(dtype) for kind, dtype in KINDS.items()} | {
    'b/\u00e9"x\\': torch.arange(12.0).view(3, 4).T,
    "number": torch.tensor(3.0),
    "empty": torch.zeros(0, 3),
    "last": torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
}
TEXT = '{"x": "\u00e9\n\x1f\x7f"}'


def test_bytes_are_those_of_safetensors() -> None:
    wanted = save({name: tensor.contiguous() for name, tensor in TENSORS.items()}, {"pyro_compress": TEXT})
    later = {name: Later(tuple(t.shape), lambda t=t: t, t.dtype) for name, t in TENSORS.items()}
    assert stored(write_tensors, TENSORS, TEXT) == stored(write_tensors, later, TEXT) == wanted
    found = TensorFile(wanted)
    assert found.metadata == TEXT
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("cut", [0, 7, 9, 100, -1])
def test_damaged_files_are_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"header|announced|Expecting|Unterminated"):
        TensorFile(stored(write_tensors, TENSORS, TEXT)[:cut])
