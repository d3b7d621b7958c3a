"""Where and how precisely to compute."""

from __future__ import annotations

import torch
from torch import nn


def place(module: nn.Module, device: torch.device) -> None:
    """Move a module to a device, its convolutions laid out with the channels last."""
    module.to(device)
    module.to(memory_format=torch.channels_last)


def best_precision(device: torch.device) -> str:
    """``bfloat16`` where the device has matrix units for it, else ``float32``.

    Without them bfloat16 is slower than float32.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"
