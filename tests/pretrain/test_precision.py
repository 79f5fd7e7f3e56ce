"""Which type `auto` takes, and that it reaches the matrix products."""

import pytest
import torch

from uic_core.pretrain import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "amx_bf16"}, torch.bfloat16),
        ({"avx2", "avx512_bf16"}, torch.bfloat16),
        ({"avx2", "avx512f"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_auto_follows_what_the_processor_says(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    assert precision.resolve("auto", CPU) is expected
    assert precision.resolve("fp32", CPU) is torch.float32
    assert precision.resolve("bf16", CPU) is torch.bfloat16


def test_autocast_changes_matrix_products_and_float32_changes_nothing() -> None:
    x = torch.randn(4, 4)
    for dtype in (torch.float32, torch.bfloat16):
        with precision.autocast(dtype, CPU):
            assert (x @ x).dtype is dtype
    assert (x @ x).dtype is torch.float32
