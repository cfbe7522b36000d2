"""Where to compute: device, threads, memory allocator, and whether there is memory enough."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_compress.foreign import unknown

FORCE = "PYRO_COMPRESS_IGNORE_MEMORY"
"""Environment variable that lets a command begin whose estimate is too large."""
GIB = 1 << 30
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30
LARGE_BYTES = 8 << 20
"""A tensor that is large: what freed ones leave behind between others adds up."""


def prepare(device: str = "auto", threads: int = 0, deterministic: bool = False) -> str:
    """Set threads and allocator, and resolve `auto`.

    Args:
        device: `auto` (CUDA where there is one), `cpu` or `cuda`.
        threads: CPU threads of torch; 0 leaves its default.
        deterministic: torch refuses operations whose result depends on the order of parallel additions.

    Raises:
        ValueError: another device, or CUDA asked for and absent.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise unknown("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch finds no CUDA device; use --device cpu or auto")
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    # Adam's second moments of dead weights sink into denormal numbers, which are ten times slower
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    return "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")


SLOW_BFLOAT16 = (
    "this processor computes no products in bfloat16 (AVX512-BF16, AMX or ARM's BF16 would): --precision {} is "
    "likely slower here than float32"
)


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies matrices in bfloat16 itself; elsewhere torch converts back and forth.

    Of a CPU only newer releases of torch say so; it counts as able where torch is older.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told: Any = getattr(torch.cpu, "get_capabilities", None)
    flags = told() if told else {"bf16": True}
    return any(flags.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """Images, or a convolution's weight, with their channels last in memory: a CPU convolves up to twice as fast so."""
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed megabytes: it would give every step's temporaries back and fault them in again."""
    _set_thresholds(_KEEP_BYTES)


def _set_thresholds(size: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_TRIM_THRESHOLD, min(size, _KEEP_BYTES))
            mallopt(_M_MMAP_THRESHOLD, min(size, _KEEP_BYTES))


def give_back(largest: int, least: int = LARGE_BYTES) -> None:
    """Tell glibc to give freed tensors of a large network back to the system: where nothing is trained, or for memory.

    What `prepare` keeps for the next step stays behind in pieces here, where every candidate has other shapes. Giving
    memory back costs time; small networks go on as they are.

    Args:
        largest: bytes of the network's largest tensor.
        least: of which a network is large.
    """
    if largest >= least:
        _set_thresholds(largest // 2)


def available_bytes(device: str) -> int | None:
    """Memory that a device has left; None where the system does not say."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    limit = _left_in_group(Path("/sys/fs/cgroup"))
    return free if limit is None else min(free, limit)


def _left_in_group(group: Path) -> int | None:
    """What a container's limit leaves; file pages that the kernel would drop count as free."""
    try:
        most, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or no limit ("max")
        return None
    return most - used + int(stat.get("inactive_file", 0))


def require(
    needed: Mapping[str, int], device: str, what: str, remedy: str, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse what does not fit.

    Raises:
        ValueError: the estimate exceeds what the device has left.
    """
    available = available_bytes(device)
    if available is None or sum(needed.values()) <= available or environment.get(FORCE):
        return
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in needed.items())
    raise ValueError(
        f"{what} needs about {sum(needed.values()) / GIB:.1f} GiB ({parts}), {device} has "
        f"{available / GIB:.1f} left: {remedy} ({FORCE}=1 tries all the same)"
    )
