"""Where to compute: device, threads, memory allocator."""

from __future__ import annotations

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30


def prepare(device: str = "auto", threads: int = 0) -> str:
    """Set threads and allocator, and resolve `auto`.

    Args:
        device: `auto` (CUDA where there is one), `cpu` or `cuda`.
        threads: CPU threads of torch; 0 leaves its default.

    Raises:
        ValueError: another device, or CUDA asked for and absent.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; allowed: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch finds no CUDA device; use --device cpu or auto")
    if threads:
        torch.set_num_threads(threads)
    # Adam's second moments of dead weights sink into denormal numbers, which are ten times slower
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    return "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")


def _keep_freed_memory() -> None:
    """Tell glibc to keep freed megabytes: it would give every step's temporaries back and fault them in again."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
            mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
