"""What makes the CPU wait for a GPU, refused: on a CPU it costs nothing, so that only a test sees it come back."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
# Numbers that are read from a tensor, and results whose size depends on values.
_READS = {
    _ATEN._local_scalar_dense,
    _ATEN.is_nonzero,
    _ATEN.equal,
    _ATEN.nonzero,
    _ATEN.masked_select,
    _ATEN.unique_dim,
}
_BY_MASK = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_}


_CODE = {"uic_core", "mmcv", "mmdet", "mmengine", "mmseg"}


def _ours() -> bool:
    """Whether the innermost code that is not torch's is this suite's. OpenMMLab waits in every step, by design.

    torch's loader draws a number of its own at the beginning of a pass, on the CPU.
    """
    frame: FrameType | None = sys._getframe()
    while (frame := frame.f_back if frame else None) is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("torch.utils.data"):
            return False
        if (package := module.partition(".")[0]) in _CODE:
            return package == "uic_core"
    return False


class _Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = args[1] if func.overloadpacket in _BY_MASK else ()
        masked = any(mask is not None and mask.dtype is torch.bool for mask in masks)
        if func.overloadpacket in _READS or masked:
            assert not _ours(), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def never() -> Iterator[None]:
    """Fail if this suite's code reads a tensor's values in this block."""

    def watched(copy: Any) -> Any:
        def read(tensor: Tensor) -> Any:
            assert not _ours(), "a tensor is copied to the CPU, which waits for the device"
            return copy(tensor)

        return read

    with pytest.MonkeyPatch.context() as patched, _Refusing():
        for name in ("tolist", "cpu"):  # of a tensor on the CPU they are no operator
            patched.setattr(Tensor, name, watched(getattr(Tensor, name)))
        yield
