"""A job that was given a GPU either sees it or ends in one line that says why not."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from uic_core.errors import InputError
from uic_core.run import devices


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with this driver (nvidia-smi is a stand-in) and this many GPUs that torch sees."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def has(driver: str, gpus: int = 0, capability: tuple[int, int] = (9, 0), **variables: str) -> None:
        smi = tmp_path / "nvidia-smi"
        smi.write_text(f"#!/bin/sh\necho {driver}\n" if driver else "#!/bin/sh\nexit 9\n")
        smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Tesla V100")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return has


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="the machine's own driver would be named")
@pytest.mark.parametrize(
    ("driver", "gpus", "variables", "remedy"),
    [
        ("535.104.05", 0, {"UIC_GPUS": "1"}, "install driver 580 or newer"),
        ("", 0, {"UIC_GPUS": "1"}, "install the driver on this node, or let the container see it"),
        ("580.65.06", 0, {"UIC_GPUS": "1", "CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides GPUs: unset it"),
        ("580.65.06", 2, {"UIC_GPUS": "4"}, "look at nvidia-smi on this node"),
        ("580.65.06", 1, {"LOCAL_RANK": "1"}, "start no more processes than it has GPUs"),
    ],
)
def test_fault_40_a_gpu_that_is_not_seen_stops_the_job(
    machine: Callable[..., None], seen: Callable[[object], None], driver: str, gpus: int, variables: dict[str, str],
    remedy: str,
) -> None:  # fmt: skip
    machine(driver, gpus, **variables)
    with pytest.raises(InputError) as error:
        devices.current()
    said = str(error.value)
    seen(said)
    assert "\n" not in said
    assert f"NVIDIA driver: {driver or 'none found'}" in said
    assert f"torch {torch.__version__} is for CUDA {torch.version.cuda}" in said
    assert f"and torch sees {gpus} of them" in said
    assert remedy in said


def test_fault_40_a_gpu_that_is_too_old_stops_the_job(
    machine: Callable[..., None], seen: Callable[[object], None]
) -> None:
    machine("580.65.06", 1, (7, 0), UIC_GPUS="1")
    with pytest.raises(InputError, match=r"Tesla V100: has compute capability 7\.0, .* needs 7\.5 \(Turing\)") as error:
        devices.current()
    seen(error.value)


def test_what_was_given_and_is_seen_is_used(machine: Callable[..., None]) -> None:
    machine("580.65.06", 2, UIC_GPUS="2", LOCAL_RANK="1")
    assert devices.current() == torch.device("cuda", 1)
    machine("", 0, UIC_GPUS="0", LOCAL_RANK="1")  # processes on CPUs
    assert devices.current() == torch.device("cpu")
