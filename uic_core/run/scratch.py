"""Large matrices that a stage needs for a while: on its device, in memory, or in a file that no name outlives."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from uic_core.errors import InputError, is_full

EXACT = 1 << 28
"""Bytes of float32 up to which a matrix has that precision."""


def matrix(rows: int, width: int, short: torch.dtype, folder: Path, most: int, device: torch.device) -> Tensor:
    """Return an uninitialised matrix [rows, width], of float32 if it is small (see EXACT), else of `short`.

    It lies on a GPU if it takes less than half of what is free there; else in memory if it is small or takes at most
    `most` bytes; else in an unnamed file, which disappears with the tensor or the process, however that ends.

    Args:
        short: a type of two bytes; float32, for a matrix that must be exact, lies in no file.
        folder: for the file.
        device: where it may lie, besides the CPU's memory.

    Raises:
        InputError: the disk is full.
    """
    dtype = torch.float32 if 4 * rows * width <= EXACT else short
    size = dtype.itemsize * rows * width
    if device.type == "cuda" and 2 * size < torch.cuda.mem_get_info(device)[0]:
        return torch.empty(rows, width, dtype=dtype, device=device)
    if dtype is torch.float32 or size <= most:
        return torch.empty(rows, width, dtype=dtype)
    descriptor, name = tempfile.mkstemp(dir=folder)
    try:
        os.posix_fallocate(descriptor, 0, size)  # else a full disk would end the process by a signal, at some write
        mapped = torch.from_file(name, shared=True, size=rows * width, dtype=dtype)
    except OSError as error:
        if is_full(error):
            raise InputError(
                f"{folder}: the disk is full; {size / 1e9:.1f} GB are needed there while labels are made: free some "
                "space and run the same command again"
            ) from error
        raise
    finally:
        os.close(descriptor)
        os.unlink(name)
    return mapped.view(rows, width)
