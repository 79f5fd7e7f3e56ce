"""The error exit."""

import errno
import os
import re
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import torch

from uic_core.errors import InputError, stage
from uic_core.files import write_text


@pytest.fixture
def ended(seen, capsys):
    """What a stage says that ends with status 1 in what it does: one line."""

    def line(does, *arguments):
        with pytest.raises(SystemExit) as stop, stage():
            does(*arguments)
        err = capsys.readouterr().err
        seen(err)
        assert stop.value.code == 1
        assert err.count("\n") == 1
        return err

    return line


def fail(error):
    raise error


def test_a_stage_turns_a_users_mistake_into_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, stage():
        raise InputError("data/x: is not there; look again")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: data/x: is not there; look again\n"


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
POOL = """
import time
from uic_core.errors import stage
from uic_core.run import cpus

with stage(), cpus.pool(2) as pool:
    list(pool.map(time.sleep, [0, 0]))
    print("ready", flush=True)
    list(pool.map(time.sleep, [0.5] * 200))
"""


def test_fault_38_ctrl_c_in_a_stage_without_state_is_one_line(seen):
    """As index, cache and proposals work. Their processes leave it to the stage."""
    process = subprocess.Popen(
        [sys.executable, "-c", POOL], cwd=Path(__file__).parents[1], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    seen(err)
    assert process.returncode == 128 + signal.SIGINT
    assert err == "interrupted: SIGINT; what was saved before is kept, run the same command again\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokenProcessPool("A process terminated abruptly"), "a process of this stage was killed; give the job more"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. \nMore."),
            "a decoding process ended (DataLoader worker (pid 7) is killed by signal: Bus error): ",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "a disk, or /dev/shm: is full"),  # no semaphore fits
        *((OSError(each, os.strerror(each), "/scratch/x"), "/scratch/x: is full") for each in FULL),
        (OSError("1000 requested and 512 written"), "a disk, or /dev/shm: is full"),  # numpy's
    ],
)
def test_fault_46_a_machine_that_is_too_small_is_one_line(error, said, ended):
    assert ended(fail, error).startswith(f"error: {said}")


@pytest.mark.parametrize("allocate", [lambda: np.empty(10**14), lambda: torch.empty(10**14)], ids=["numpy", "torch"])
def test_a_full_memory_is_one_line(allocate, ended):
    line = r"error: memory is full \(.*\); give the job more memory \(mem_mb\), or let it .*\n"
    assert re.fullmatch(line, ended(allocate))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory is full; give the job more memory (mem_mb)"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory is full ([Errno 12] Cannot allocate memory); give"),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 8 GiB. Including more, much."
            ),
            "the GPU's memory is full (CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 8 GiB); lower batch_size "
            "in the recipe or protocol; a training, linear_probe, detection or segmentation may get more GPUs",
        ),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCompile with …"),
            "the GPU's memory is full (CUDA error: o",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "the GPU's memory",
        ),
    ],
)
def test_a_memory_that_is_full_names_the_remedy_that_helps(error, said, ended):
    assert ended(fail, error).startswith(f"error: {said}")


def test_a_sign_that_the_output_cannot_take_is_escaped():
    """A ± or × under PYTHONIOENCODING=ascii, or in a locale of its own, would end a stage after its work."""
    code = "from uic_core.errors import stage\nwith stage():\n    print('50 ± 1')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], env=os.environ | {"PYTHONIOENCODING": "ascii"},
        text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == "50 \\xb1 1\n"


REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ESTALE,
    errno.ELOOP, errno.EEXIST,
)  # fmt: skip


@pytest.mark.parametrize("number", REFUSED, ids=errno.errorcode.get)
def test_fault_50_what_the_system_refuses_is_one_line(number, seen, capsys):
    with pytest.raises(SystemExit) as stop, stage():
        raise OSError(number, os.strerror(number), "/scratch/x")
    err = capsys.readouterr().err
    seen(err)
    assert stop.value.code == 2
    assert re.fullmatch(rf"error: /scratch/x: {os.strerror(number)}; .+\n", err)


@pytest.mark.parametrize("place", ["file/x", "loop/x", "dead/x", "folder"])
def test_fault_50_a_result_that_the_system_will_not_take_is_one_line(place, tmp_path, seen, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dead").symlink_to("purged")
    with pytest.raises(SystemExit) as stop, stage():
        write_text(tmp_path / place, "x")
    err = capsys.readouterr().err
    seen(err)
    assert stop.value.code == 2
    assert err.startswith(f"error: {tmp_path}")
    assert err.count("\n") == 1


def test_errors_of_ours_stay_errors():
    for error in (RuntimeError("a bug"), FileNotFoundError(errno.ENOENT, "a bug", "x"), OSError(errno.EIO, "a bug")):
        with pytest.raises(type(error), match="a bug"), stage():
            raise error
