"""Where and how precisely to compute."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from pathlib import Path

import torch
from torch import nn

from lidiv_backend.errors import BadRequestError

#: glibc's names in malloc.h: how many allocations have pages of their own, and how much has to be
#: free before it is handed back; -1 for never.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device of a name; without one the GPU if there is one, else the CPU.

    Raises
    ------
    BadRequestError
        If there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadRequestError(
            f"There is no device '{name}' here: {reason}", remedy="Use cpu or cuda."
        ) from error
    return device


def place(module: nn.Module, device: torch.device) -> None:
    """Move a module to a device, its convolutions laid out with the channels last."""
    module.to(device)
    module.to(memory_format=torch.channels_last)


def keep_freed_memory() -> None:
    """Let this process keep the memory that it has freed, for what it allocates next.

    A training on a CPU frees and allocates tensors of tens of MB all the time. glibc hands those
    back to the system at once, which then clears every page of the next one: a quarter of the time.
    With another C library nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def best_precision(device: torch.device) -> str:
    """``bfloat16`` where the device has units for it, else ``float32``.

    Without them bfloat16 is slower than float32.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def machine() -> str:
    """Name what times depend on: the processor, the GPU if there is one, threads, and torch."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
