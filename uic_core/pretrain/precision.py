"""bf16 where the hardware gains from it, float32 elsewhere."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch


def resolve(asked: str, device: torch.device) -> torch.dtype:
    """'auto', 'fp32' or 'bf16' -> the type of matrix products on `device`.

    auto: bf16 on GPUs that have it and on CPUs with AMX tiles or AVX-512 bf16 products (there 1.35 times the images
    a second on an AlexNet at 64 pixels); emulated bf16 is slower than float32.
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
    """Autocast to `dtype`; nothing for float32."""
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
