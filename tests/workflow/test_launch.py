"""launch.sh as jobs run it: real shells, locks and signals. SLURM, nvidia-smi and the stage are stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "workflow" / "launch.sh"

STAGE = """
import os, signal, sys, time

def told(*_):
    if sys.argv[1] == "True":
        open(os.environ["UIC_SAVED"], "w").close()
    sys.exit(75)

signal.signal(signal.SIGUSR1, told)
open("ready", "w").close()
time.sleep(60)
"""


class Machine:
    """A machine with stand-ins on its PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        # The stage writes what it sees, and stays for as long as the file `stay` is there.
        self.has(
            "python",
            'echo "$UIC_GPUS|${CUDA_VISIBLE_DEVICES-unset}|$*" >>stages; while [[ -e stay ]]; do sleep .05; done',
        )

    def has(self, program: str, script: str) -> None:
        path = self.folder / "bin" / program
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def gpus(self, count: int) -> None:
        lines = [f"GPU {number}: NVIDIA H200 (UUID: GPU-{number}{number})" for number in range(count)]
        self.has("nvidia-smi", "cat <<'END'\n" + "\n".join(lines) + "\nEND")

    def start(self, arguments: str = "1 1 '' uic_core.pretrain", **variables: str) -> subprocess.Popen[str]:
        """A job's shell, with the prefix of the rules."""
        known = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "TMPDIR": str(self.folder)}
        return subprocess.Popen(
            ["bash", "-c", f"set -euo pipefail; source '{LAUNCH}'; launch {arguments}; echo went on"],
            cwd=self.folder, env=known | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def job(self, arguments: str = "1 1 '' uic_core.pretrain", **variables: str) -> tuple[int, str]:
        """Its exit status and what it printed."""
        process = self.start(arguments, **variables)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def stages(self) -> list[list[str]]:
        """What each stage saw: UIC_GPUS, CUDA_VISIBLE_DEVICES, its arguments."""
        path = self.folder / "stages"
        return [line.split("|") for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_fault_40_a_stage_knows_how_many_gpus_it_must_see(machine: Machine) -> None:
    """Under SLURM those of its job; elsewhere those that nvidia-smi lists; none where there are none."""
    assert machine.job("1 2 '' m", SLURM_JOB_ID="7")[0] == 0
    assert machine.job("1 0 gpu:a100:4 m", SLURM_JOB_ID="7")[0] == 0
    assert machine.job("1 1 '' m")[0] == 0
    machine.gpus(1)
    assert machine.job("1 1 '' m")[0] == 0
    assert machine.job("1 1 '' m", CUDA_VISIBLE_DEVICES="")[0] == 0  # hidden on purpose: the CPUs work
    assert [(given, visible) for given, visible, _ in machine.stages()] == [
        ("2", "unset"), ("4", "unset"), ("", "unset"), ("1", "GPU-00"), ("", ""),
    ]  # fmt: skip


def test_fault_40_gpus_that_nvidia_smi_fails_to_list_are_not_passed_over(
    machine: Machine, seen: Callable[[object], None]
) -> None:
    """The CPUs would begin what takes them months. `compgen` looks for the devices, here a stand-in."""
    devices = {"BASH_FUNC_compgen%%": "() { [[ $2 == '/dev/nvidia[0-9]*' ]]; }"}
    machine.has("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; echo more; exit 18")
    status, said = machine.job(**devices)
    seen(said)
    assert (status, said) == (
        2,
        "launch: nvidia-smi: Failed to initialize NVML: Driver/library version mismatch; reboot, or set "
        "CUDA_VISIBLE_DEVICES= to train on the CPUs\n",
    )
    assert not machine.stages()
    assert machine.job(**devices, CUDA_VISIBLE_DEVICES="")[0] == 0  # the remedy
    assert machine.job("1 0 '' m", **devices)[0] == 0  # asks for none
    assert machine.job(CUDA_VISIBLE_DEVICES="-1", **devices)[0] == 0
    assert machine.job(**{"BASH_FUNC_compgen%%": "() { false; }"})[0] == 0  # has none
    machine.has("nvidia-smi", "exit 127")  # not in the container: the stage looks for the GPUs itself
    assert machine.job("1 2 '' m", **devices)[0] == 0
    assert [(given, visible) for given, visible, _ in machine.stages()] == [
        ("", ""), ("", ""), ("", "-1"), ("", "unset"), ("2", "unset"),
    ]  # fmt: skip


@pytest.mark.parametrize("saves", [True, False])
def test_fault_41_only_a_stage_that_saved_is_queued_again(
    machine: Machine, saves: bool, seen: Callable[[object], None]
) -> None:
    machine.has("scontrol", 'echo "$*" >>requeued; exit 1')
    stale = machine.folder / ".snakemake" / "saved.7"  # of an attempt that was killed
    stale.parent.mkdir()
    stale.touch()
    (machine.folder / "stage.py").write_text(STAGE)
    machine.has("python", f"exec {sys.executable} -S stage.py {saves}")
    process = machine.start(SLURM_JOB_ID="7")
    machine.until((machine.folder / "ready").exists)
    child = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    for pid in (process.pid, *map(int, child)):  # SLURM signals every process of a job
        os.kill(pid, signal.SIGUSR1)
    said, _ = process.communicate(timeout=60)
    seen(said)
    assert process.returncode == 75
    assert (machine.folder / "requeued").exists() == saves
    assert ("goes back into the queue" in said) == saves


def test_fault_41_a_stage_that_misses_the_warning_is_told_again(machine: Machine) -> None:
    """It is still importing. 30 seconds later TERM follows: `sleep` is a stand-in."""
    machine.has("scontrol", 'echo "$*" >>requeued; exit 1')
    machine.has("sleep", 'echo "$*" >>slept; exec /bin/sleep 0.5')
    told_late = STAGE.replace("signal.signal(signal.SIGUSR1, told)", "signal.signal(signal.SIGTERM, told)")
    (machine.folder / "stage.py").write_text(told_late)
    machine.has("python", f"exec {sys.executable} -S stage.py True")
    process = machine.start(SLURM_JOB_ID="7")
    machine.until((machine.folder / "ready").exists)
    os.kill(process.pid, signal.SIGUSR1)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert (machine.folder / "slept").read_text() == "30\n"
    assert (machine.folder / "requeued").read_text() == "requeue 7\n"
    assert "goes back into the queue" in said


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_fault_41_a_signal_as_a_stage_ends_does_not_change_its_status(machine: Machine, name: str) -> None:
    machine.has("sleep", "exec /bin/sleep 0.1")
    machine.has("python", f"trap '' TERM; /bin/sleep 0.2; kill -{name} $PPID; exit $STATUS")
    for status in (0, 3) * 3:
        assert machine.job(SLURM_JOB_ID="7", STATUS=str(status)) == (status, "" if status else "went on\n")


def test_fault_43_local_jobs_have_a_gpu_each_and_wait_for_one(machine: Machine) -> None:
    machine.gpus(2)
    stay = machine.folder / "stay"
    stay.touch()
    jobs = [machine.start() for _ in range(3)]
    machine.until(lambda: len(machine.stages()) == 2)
    time.sleep(0.3)
    assert sorted(visible for _, visible, _ in machine.stages()) == ["GPU-00", "GPU-11"]
    stay.unlink()
    for job in jobs:
        assert job.wait(60) == 0
    assert len(machine.stages()) == 3


def test_fault_43_two_jobs_that_want_all_gpus_take_turns(machine: Machine) -> None:
    machine.gpus(2)
    jobs = [machine.start("1 2 '' m"), machine.start("1 2 '' m"), machine.start()]
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    assert sorted(len(visible.split(",")) for _, visible, _ in machine.stages()) == [1, 2, 2]


def test_fault_43_a_gpu_is_free_again_when_its_job_was_killed(machine: Machine) -> None:
    machine.gpus(1)
    machine.has("python", "exec sleep 60")
    first = machine.start()
    locks = machine.folder / f"uic_gpus.{os.getuid()}"
    machine.until((locks / "GPU-00.0").exists)
    time.sleep(0.2)
    children = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
    for pid in (first.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    machine.has("python", "exit 0")
    assert machine.job() == (0, "went on\n")


def test_fault_43_more_gpus_than_there_are_is_one_line(machine: Machine, seen: Callable[[object], None]) -> None:
    machine.gpus(2)
    status, said = machine.job("1 8 '' uic_core.evaluate.linear_probe")
    seen(said)
    assert (status, said.count("\n")) == (2, 1)
    assert "linear_probe asks for 8 GPUs, and this machine has 2; write set-resources: {linear_probe: {gpu: 2}}" in said
    assert not machine.stages()
    assert machine.job("1 2 '' m")[0] == 0  # the remedy


def test_fault_43_jobs_share_a_gpu_where_snakemake_is_told_so(machine: Machine) -> None:
    """--resources gpu=2 on a machine with one, as the demo does."""
    machine.gpus(1)
    (machine.folder / "stay").touch()
    jobs = [machine.start(UIC_LOCAL="2") for _ in range(3)]
    machine.until(lambda: len(machine.stages()) == 2)
    time.sleep(0.3)
    assert len(machine.stages()) == 2
    (machine.folder / "stay").unlink()
    assert [job.wait(60) for job in jobs] == [0, 0, 0]


def test_fault_43_only_gpus_that_the_user_shows_are_taken(machine: Machine) -> None:
    machine.gpus(4)
    assert machine.job("1 2 '' m", CUDA_VISIBLE_DEVICES="3,1")[0] == 0
    assert machine.job("1 0 '' m")[0] == 0  # a job that asked for none
    assert [visible for _, visible, _ in machine.stages()] == ["GPU-33,GPU-11", ""]
    assert machine.job("1 3 '' m", CUDA_VISIBLE_DEVICES="3,1")[0] == 2


@pytest.mark.parametrize("uuids", [True, False])
def test_fault_43_a_gpu_has_one_lock_whatever_it_is_called(machine: Machine, uuids: bool) -> None:
    """By its number, by its UUID, or not at all; also where nvidia-smi tells no UUIDs."""
    machine.gpus(1)
    if not uuids:
        machine.has("nvidia-smi", "echo 'GPU 0: NVIDIA H200'")
    stay = machine.folder / "stay"
    stay.touch()
    jobs = [machine.start(CUDA_VISIBLE_DEVICES=" 0")]
    machine.until(lambda: len(machine.stages()) == 1)
    jobs += [machine.start(), machine.start(CUDA_VISIBLE_DEVICES="GPU-00" if uuids else "0,")]
    time.sleep(0.5)
    assert len(machine.stages()) == 1
    stay.unlink()
    assert [job.wait(60) for job in jobs] == [0, 0, 0]
    assert [visible for _, visible, _ in machine.stages()] == ["GPU-00" if uuids else "0"] * 3


@pytest.mark.parametrize("named", ["0,0", "1, GPU-11", "GPU-11,,1,"])
def test_fault_43_a_gpu_that_is_named_twice_counts_once(
    machine: Machine, named: str, seen: Callable[[object], None]
) -> None:
    machine.gpus(2)
    status, said = machine.job("1 2 '' m", CUDA_VISIBLE_DEVICES=named)
    seen(said)
    assert (status, said) == (
        2,
        "launch: m asks for 2 GPUs, and CUDA_VISIBLE_DEVICES names 1; write set-resources: {m: {gpu: 1}} into the "
        "profile\n",
    )
    assert not machine.stages()
    assert machine.job("1 1 '' m", CUDA_VISIBLE_DEVICES=named)[0] == 0  # the remedy
    assert machine.job("1 2 '' m", CUDA_VISIBLE_DEVICES="1,0,1")[0] == 0
    assert [visible for _, visible, _ in machine.stages()] == [
        "GPU-00" if named == "0,0" else "GPU-11",
        "GPU-11,GPU-00",
    ]


def test_fault_43_a_part_of_a_gpu_is_taken_by_its_name(machine: Machine) -> None:
    """Of MIG; older drivers have names with slashes."""
    machine.gpus(1)
    parts = "MIG-GPU-00/1/0,MIG-GPU-00/2/0,MIG-5f"
    stay = machine.folder / "stay"
    stay.touch()
    jobs = [machine.start(CUDA_VISIBLE_DEVICES=parts) for _ in range(4)]
    machine.until(lambda: len(machine.stages()) == 3)
    time.sleep(0.3)
    assert sorted(visible for _, visible, _ in machine.stages()) == sorted(parts.split(","))
    stay.unlink()
    assert [job.wait(60) for job in jobs] == [0, 0, 0, 0]


@pytest.mark.parametrize("broken", ["squeue", "scontrol"])
def test_fault_45_a_job_ends_where_slurm_does_not_name_its_nodes(
    machine: Machine, broken: str, seen: Callable[[object], None]
) -> None:
    machine.has("squeue", "echo 'node[1-2]'")
    machine.has("scontrol", "echo node1; echo node2")
    machine.has("srun", 'echo "$*" >srun')
    assert machine.job("2 2 '' m", SLURM_JOB_ID="7")[0] == 0
    assert "--rdzv-endpoint node1:20007" in (machine.folder / "srun").read_text()
    (machine.folder / "srun").unlink()
    machine.has(broken, "exit 1")
    status, said = machine.job("2 2 '' m", SLURM_JOB_ID="7")
    seen(said)
    assert (status, said.count("\n")) == (1, 1)
    assert "squeue or scontrol does not name the nodes of job 7" in said
    assert not (machine.folder / "srun").exists()


def test_fault_45_a_stage_that_fails_ends_its_job(machine: Machine) -> None:
    machine.has("python", "exit 3")
    assert machine.job() == (3, "")
    assert machine.job(SLURM_JOB_ID="7") == (3, "")
