"""What Snakemake is told of its SLURM jobs, in states that a healthy cluster cannot show (FAULTS row 23).

squeue, sacct and scancel are stand-ins on the PATH; tests/slurm asks real ones.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OWN = Path(__file__).parents[2] / "workflow" / "slurm"


class Cluster:
    """Stand-ins that say what a test wants them to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").symlink_to(sys.executable)
        self.patience = "0"

    def says(self, program: str, text: str = "", status: int = 0) -> None:
        path = self.folder / "bin" / program
        path.write_text(
            f"#!/bin/sh\necho {program} \"$@\" >> '{self.folder}/calls'\n/bin/cat <<'END'\n{text}\nEND\nexit {status}\n"
        )
        path.chmod(0o755)

    def asked(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(arguments), cwd=self.folder, capture_output=True, text=True, check=False,
            env={"PATH": f"{OWN}:{self.folder}/bin", "UIC_SQUEUE_PATIENCE": self.patience},
        )  # fmt: skip

    def told(self) -> dict[str, str]:
        """What the plugin's question is answered with."""
        process = self.asked("squeue", "--format=%i|%T", "--states=all", "--noheader", "--name", "run")
        assert process.returncode == 0, process.stderr
        return dict(line.split("|") for line in process.stdout.splitlines())

    def calls(self) -> str:
        return (self.folder / "calls").read_text()


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


def test_states_that_the_plugin_knows_pass_as_they_are(cluster):
    cluster.says("squeue", "1|RUNNING|None\n2|PENDING|Priority\n3|COMPLETED|None\n4|OUT_OF_MEMORY|OutOfMemory")
    assert cluster.told() == {"1": "RUNNING", "2": "PENDING", "3": "COMPLETED", "4": "OUT_OF_MEMORY"}


def test_a_preempted_job_that_does_not_come_back_has_failed(cluster):
    cluster.says("squeue", "1|PREEMPTED|None")
    cluster.patience = "60"
    assert cluster.told() == {"1": "PREEMPTED"}
    cluster.patience = "0"
    assert cluster.told() == {"1": "FAILED"}


def test_a_preempted_job_that_comes_back_is_waited_for(cluster):
    cluster.patience = "60"
    for state in ("PREEMPTED", "PENDING", "RUNNING", "PREEMPTED", "COMPLETED"):
        cluster.says("squeue", f"1|{state}|None")
        assert cluster.told() == {"1": state}


def test_a_job_of_a_dead_node_that_nobody_starts_again_has_failed(cluster):
    cluster.says("squeue", "1|NODE_FAIL|None")
    cluster.told()
    assert cluster.told() == {"1": "FAILED"}


def test_a_job_that_could_not_be_launched_has_failed(cluster):
    cluster.says("squeue", "1|LAUNCH_FAILED|None")
    assert cluster.told() == {"1": "FAILED"}


def test_a_job_held_after_its_launch_failed_is_cancelled_and_has_failed(cluster):
    cluster.says("squeue", "1|PENDING|launch failed requeued held\n2|RUNNING|None")
    cluster.says("scancel")
    assert cluster.told() == {"1": "FAILED", "2": "RUNNING"}
    assert "scancel 1\n" in cluster.calls()


def test_accounting_answers_where_the_controller_does_not(cluster):
    cluster.says("squeue", status=1)
    cluster.says("sacct", "1|CANCELLED by 0\n2|COMPLETED")
    assert cluster.told() == {"1": "CANCELLED", "2": "COMPLETED"}


def test_the_plugins_question_to_sacct_is_answered_the_same_way(cluster):
    cluster.says("squeue", "1|RUNNING|None")
    process = cluster.asked("sacct", "-X", "--noheader", "--format=JobIdRaw,State", "--name", "run")
    assert process.stdout == "1|RUNNING\n"


def test_where_nobody_answers_the_plugin_is_told_to_ask_again(cluster):
    cluster.says("squeue", status=1)
    for _ in range(10):
        process = cluster.asked("squeue", "--format=%i|%T", "--name", "run")
        assert process.returncode == 1
        assert "neither squeue nor sacct answers" in process.stderr


def test_a_job_that_ended_unseen_is_told_by_accounting(cluster):
    cluster.says("squeue", "1|RUNNING|None\n2|RUNNING|None")
    cluster.told()
    cluster.says("squeue", "2|RUNNING|None")
    cluster.says("sacct", "1|TIMEOUT")
    assert cluster.told() == {"1": "TIMEOUT", "2": "RUNNING"}


def test_a_job_that_everybody_forgot_is_taken_for_ended_after_a_while(cluster):
    """UNKNOWN: the plugin takes it for done, and Snakemake looks whether its files are there."""
    cluster.patience = "60"
    cluster.says("squeue", "1|RUNNING|None")
    cluster.told()
    cluster.says("squeue")
    assert cluster.told() == {"1": "RUNNING"}
    cluster.patience = "0"
    assert cluster.told() == {"1": "UNKNOWN"}


def test_an_end_that_was_seen_stays(cluster):
    cluster.says("squeue", "1|COMPLETED|None")
    cluster.told()
    cluster.says("squeue")
    assert cluster.told() == {"1": "COMPLETED"}


def test_a_damaged_memory_is_started_afresh(cluster):
    cluster.says("squeue", "1|RUNNING|None")
    cluster.told()
    (cluster.folder / ".snakemake/slurm_jobs/run.json").write_text("{")
    assert cluster.told() == {"1": "RUNNING"}


def test_any_other_question_goes_to_the_real_program(cluster):
    cluster.says("squeue", "vm")
    assert cluster.asked("squeue", "-h", "-j", "7", "-o", "%N").stdout == "vm\n"
    assert cluster.calls() == "squeue -h -j 7 -o %N\n"


def test_a_program_that_is_not_there_is_named(cluster):
    process = cluster.asked("sacct", "-j", "1")
    assert process.returncode != 0
    assert "sacct: not on this machine" in process.stderr


def test_the_programs_keep_their_names_on_the_path():
    assert os.access(OWN / "squeue", os.X_OK)
    assert (OWN / "sacct").resolve() == OWN / "squeue"
