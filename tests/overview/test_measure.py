"""What `make plan MEASURE=1` measures fits into the memory there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from tests.recipes import recipe
from uic_core.errors import InputError
from uic_core.methods import METHODS
from uic_core.overview import measure

GB = 10**9


@pytest.mark.parametrize(
    ("free", "processes", "images"),
    [
        (100 * GB, 2, 256),
        (9 * GB, 1, 256),  # two do not fit: one after the other
        (3 * GB, 1, 81),  # nor does a whole batch
    ],
)
def test_fault_68_as_many_processes_as_memory_holds(
    free: int, processes: int, images: int, seen: Callable[[object], None]
) -> None:
    paper = recipe(image_size=224, resize=256, batch_size=256, classes=3000)
    found = measure.fitting(paper, free, 2)
    seen(f"{free / GB:.0f} GB: {found[0]} process(es), batches of {found[1]}")
    assert found == (processes, pytest.approx(images, abs=5))


def test_a_batch_of_several_views_takes_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = recipe(image_size=224, resize=256, batch_size=256, classes=3000)
    assert measure.fitting(paper, 9 * GB, 2) == (1, 256)
    monkeypatch.setitem(METHODS, "uic", replace(METHODS["uic"], views_per_image=4))
    fixed, view = measure._training_bytes(paper)
    assert measure.fitting(paper, 9 * GB, 2) == (1, (9 * GB - fixed) // (4 * view))
    assert 4 * view * 256 > 9 * GB - fixed


def test_fault_68_too_little_memory_is_named(seen: Callable[[object], None]) -> None:
    with pytest.raises(
        InputError, match=r"training alexnet takes 2\.\d GB at least, and 1\.0 GB are free; free some"
    ) as error:
        measure.fitting(recipe(image_size=224, resize=256, batch_size=256, classes=3000), GB, 2)
    seen(error.value)


def _peak(images: int) -> tuple[int, int]:
    """Bytes that a training process takes, and those it is thought to take."""
    measure._SECONDS = 0.0
    small = recipe(image_size=64, batch_size=images)
    measure._training_rate(small, images, "fp32", 0)
    fixed, image = measure._training_bytes(small)
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss begins with the parent's
    assert peak
    return 1024 * int(peak[1]), fixed + image * images


def test_a_process_takes_no_more_memory_than_is_thought() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        taken, thought = pool.submit(_peak, 64).result()
    assert taken < thought


def test_a_rate_is_measured_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh process lets cuDNN use it and no training does: label passes would seem faster than they are."""
    monkeypatch.setattr(measure, "_SECONDS", 0.0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    measure._training_rate(recipe(image_size=64, batch_size=2), 2, "fp32", 0)
    assert not torch.backends.cudnn.allow_tf32


def test_free_memory_is_at_most_the_machine_s() -> None:
    assert 0 < measure.free_memory() < 2**50
