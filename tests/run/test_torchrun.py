"""torchrun as launch.sh starts it, told to end: real processes, whose stage is a stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

# torch gives processes that were told to end 30 seconds: here 1.
TORCHRUN = """
import sys
from torch.distributed.elastic.multiprocessing.api import PContext
from uic_core.run import torchrun

PContext.close.__defaults__ = (None, 1)
torchrun.main(["--standalone", "--nproc-per-node", "2", "stage.py", *sys.argv[1:]])
"""

STAGE = """
import sys, time
from pathlib import Path

import torch

from uic_core.errors import Interrupted
from uic_core.run.parallel import group
from uic_core.run.signals import Signals

with group(torch.device("cpu")) as ranks, Signals() as signals:
    Path(f"ready.{ranks.rank}").touch()
    while not ranks.any(signals.caught is not None):
        time.sleep(0.05)
    if not ranks.rank:
        time.sleep(float(sys.argv[1]))
        Path("saved").touch()
    elif sys.argv[2] == "fails":
        sys.exit(1)
    ranks.barrier()
    raise Interrupted("saved")
"""


def told_to_end(folder: Path, seconds: float, rank_1: str) -> tuple[int, str]:
    """The status of a torchrun that is told three times, as by launch.sh and SLURM, and what was printed."""
    (folder / "stage.py").write_text(STAGE)
    process = subprocess.Popen(
        [sys.executable, "-c", TORCHRUN, str(seconds), rank_1],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    while len(list(folder.glob("ready.*"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    said, _ = process.communicate(timeout=30)
    return process.returncode, said


def test_processes_have_more_than_torchs_time_to_save(tmp_path: Path) -> None:
    assert told_to_end(tmp_path, 3, "waits") == (128 + signal.SIGTERM, "interrupted: saved\n")
    assert (tmp_path / "saved").exists()


def test_once_a_process_has_ended_the_others_have_torchs_time(tmp_path: Path) -> None:
    """With a GPU they would wait for it."""
    assert told_to_end(tmp_path, 60, "fails") == (128 + signal.SIGTERM, "")
    assert not (tmp_path / "saved").exists()
