"""The error exit."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from uic_core.errors import InputError, stage


def test_a_stage_turns_a_users_mistake_into_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, stage():
        raise InputError("data/x: is not there; look again")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: data/x: is not there; look again\n"


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
        (OSError(errno.ENOSPC, "No space left on device", "/scratch/x"), "/scratch/x: is full"),
    ],
)
def test_fault_46_a_machine_that_is_too_small_is_one_line(error, said, seen, capsys):
    with pytest.raises(SystemExit) as stop, stage():
        raise error
    err = capsys.readouterr().err
    seen(err)
    assert stop.value.code == 1
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_errors_of_ours_stay_errors():
    with pytest.raises(RuntimeError, match="a bug"), stage():
        raise RuntimeError("a bug")
