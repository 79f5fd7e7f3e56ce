"""Matrices in memory and in files: what is written is there, and no file outlives its process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from uic_core.errors import InputError
from uic_core.run import scratch

CPU = torch.device("cpu")


@pytest.mark.parametrize("most", [0, 1 << 20])
@pytest.mark.parametrize("short", [torch.float16, torch.bfloat16])
def test_what_is_written_is_there_and_no_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, short: torch.dtype
):
    monkeypatch.setattr(scratch, "EXACT", 4 * 300 * 7 - 1)
    found = scratch.matrix(300, 7, short, tmp_path, most, CPU)
    values = torch.arange(2100.0).view(300, 7) / 64
    for first in range(0, 300, 70):
        found[first : first + 70] = values[first : first + 70]
    assert found.dtype == short
    assert torch.equal(found, values.to(short))
    assert not list(tmp_path.iterdir())
    mapped = any(f"{tmp_path}/" in line for line in Path("/proc/self/maps").read_text().splitlines())
    assert mapped == (most == 0)


def test_a_small_one_is_exact_and_in_memory(tmp_path: Path):
    assert scratch.matrix(300, 7, torch.float16, tmp_path / "none", 0, CPU).dtype == torch.float32


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(scratch, "EXACT", 0)
    monkeypatch.setattr(scratch.os, "posix_fallocate", refuse)
    with pytest.raises(
        InputError, match=r"the disk is full; 2\.0 GB are needed there while labels are made: free some"
    ):
        scratch.matrix(1_000_000, 1000, torch.float16, tmp_path, 0, CPU)
    assert not list(tmp_path.iterdir())
