"""The device a process computes on."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray


def current() -> torch.device:
    """The GPU of this process (chosen by LOCAL_RANK under torchrun), or the CPU if there is no GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def onto(device: torch.device, values: NDArray[np.generic]) -> torch.Tensor:
    """Copy an array to the device. The copy to a GPU is asynchronous: it does not wait for running kernels."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def hardware() -> str:
    """Name of the GPU, or '' if there is none (metrics then name the CPU)."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
