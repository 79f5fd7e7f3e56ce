"""The device a process computes on."""

from __future__ import annotations

import os
import re
import subprocess
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from uic_core.errors import InputError

LEAST_DRIVER, LEAST_CAPABILITY = 580, (7, 5)
"""NVIDIA driver and GPU (Turing) that torch's build for CUDA 13 needs."""


def current() -> torch.device:
    """The GPU of this process (chosen by LOCAL_RANK under torchrun), or the CPU if there is no GPU.

    Raises:
        InputError: torch sees fewer GPUs than the job was given (UIC_GPUS, see workflow/launch.sh), or an older one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old driver, which the message below names
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local, given = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("UIC_GPUS", "0"))
    if there < given or 0 < there <= local:
        raise InputError(_unseen(max(given, local + 1), there))
    if not there:
        return torch.device("cpu")
    capability = torch.cuda.get_device_capability(local)
    if capability < LEAST_CAPABILITY:
        raise InputError(
            f"{torch.cuda.get_device_name(local)}: has compute capability {'.'.join(map(str, capability))}, and this "
            f"torch needs {'.'.join(map(str, LEAST_CAPABILITY))} (Turing) or newer; use another GPU"
        )
    return torch.device("cuda", local)


def _unseen(given: int, there: int) -> str:
    """Say why torch sees fewer GPUs than the job was given, and the remedy."""
    driver = _driver()
    what = f"this job has {given} GPU(s), and torch sees {there} of them"
    facts = f"NVIDIA driver: {driver or 'none found'}; torch {torch.__version__} is for CUDA {torch.version.cuda}"
    if not torch.version.cuda:
        remedy = "install the torch of envs/lock.txt: make setup"
    elif not driver:
        remedy = "install the driver on this node, or let the container see it (apptainer: --nv)"
    elif driver.partition(".")[0].isdigit() and int(driver.partition(".")[0]) < LEAST_DRIVER:
        remedy = f"install driver {LEAST_DRIVER} or newer"
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        remedy = f"CUDA_VISIBLE_DEVICES='{os.environ['CUDA_VISIBLE_DEVICES']}' hides GPUs: unset it"
    else:
        remedy = "look at nvidia-smi on this node, and start no more processes than it has GPUs"
    return f"{what} ({facts}); {remedy}, or ask for no GPU (set-resources in the profile, gpu: 0)"


def _driver() -> str:
    """Version of NVIDIA's driver, '' if there is none."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
        return found[0] if found else ""
    except OSError:
        pass
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.strip().partition("\n")[0]


def onto(device: torch.device, values: NDArray[np.generic]) -> torch.Tensor:
    """Copy an array to the device. The copy to a GPU is asynchronous: it does not wait for running kernels."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def like(values: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Copy to another tensor's device, then to its type: torch alone converts on the CPU, and copies what that made."""
    return values.to(other.device).to(other.dtype)


def hardware() -> str:
    """Name of the GPU, or '' if there is none (metrics then name the CPU)."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
