"""The device that a process computes on."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray


def current() -> torch.device:
    """The accelerator of this process (by LOCAL_RANK under torchrun), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def onto(device: torch.device, values: NDArray[np.generic]) -> torch.Tensor:
    """An array on the device. A GPU fetches it when it comes to it: the process does not wait for what runs there."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def hardware() -> str:
    """Name of the GPU, or '' (metrics then name the CPU)."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
