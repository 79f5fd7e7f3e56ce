"""The precision of training steps: bf16 if the hardware is faster with it, else float32."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uic_core.run.tiles import tile


def resolve(asked: str, device: torch.device) -> torch.dtype:
    """Map 'auto', 'fp32' or 'bf16' to the type of matrix products on `device`.

    auto: bf16 on GPUs that support it and on CPUs with AMX tiles or AVX-512 bf16 products (bench/RESULTS.md gives the
    speed-up). Emulated bf16 is slower than float32.
    """
    if asked == "auto":
        has = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else bool({"amx_bf16", "avx512_bf16"} & _cpu_flags())
        )
        asked = "bf16" if has else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[asked]


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to `dtype`; no autocast for float32."""
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def prepare(network: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Optimise a network's layout for training on its device, in place. Parameters and their names stay the same."""
    # Tensor cores and oneDNN both prefer channels last.
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if dtype is torch.bfloat16 and device.type == "cpu" and "amx_bf16" in _cpu_flags():
        tile(network)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
