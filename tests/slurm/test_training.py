"""A pretraining that outlives its job: whatever ends it, it goes on, and ends with an undisturbed run's bytes."""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench.site import Site, until
from bench.small_dag import small_config

TARGET = "results/runs/uic_3k/checkpoint.safetensors"
OUTPUTS = ("checkpoint.safetensors", "labels.npy", "history.jsonl")


def config(epochs: int) -> dict:
    config = small_config()
    config["runs"]["uic_3k"]["epochs"] = epochs
    return config


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, prepared):
    """What a run of so many epochs leaves on this machine without a cluster."""
    known: dict[int, list[bytes]] = {}

    def outputs(epochs: int) -> list[bytes]:
        if epochs not in known:
            site = Site(tmp_path_factory.mktemp("local") / "site", None, config(epochs), prepared)
            process = site.run(TARGET)
            assert process.returncode == 0, process.stdout
            known[epochs] = left(site)
        return known[epochs]

    return outputs


def left(site: Site) -> list[bytes]:
    """The run's files; nothing of its state is left beside them."""
    folder = site.folder / "results/runs/uic_3k"
    names = {path.name for path in folder.iterdir()} - {".checkpoint.finished"}
    assert not [name for name in names if name.startswith(("state", "interrupted", "owner", "."))]
    return [(folder / name).read_bytes() for name in OUTPUTS]


def log(site: Site) -> str:
    path = site.folder / "results/logs/uic_3k/pretrain.log"
    return path.read_text() if path.exists() else ""


def until_training(site: Site, process: subprocess.Popen[str]) -> int:
    """Wait until the run has had a random number of epochs; its job."""
    until(lambda: log(site).count("\nepoch ") > random.randint(1, 8), process)
    (job,) = [job for job, state in site.jobs().items() if state == "RUNNING"]
    return job


def finish(process: subprocess.Popen[str], seconds: float = 600) -> str:
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output[-6000:]
    return output


def processes_of(job: int) -> list[int]:
    """Every process of a job on this machine, its step managers too."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
                if f"SLURM_JOB_ID={job}".encode() in environment or f"slurmstepd: [{job}.".encode() in command:
                    found.append(int(entry.name))
    return found


def test_a_run_longer_than_its_job_may_last_goes_back_into_the_queue_and_on(cluster, tmp_path, undisturbed, prepared):
    """FAULTS row 24: SLURM's own signal before a limit of a minute, set once training is under way."""
    site = Site(tmp_path / "site", cluster, config(120), prepared, pretrain={"slurm_extra": "'--signal=USR1@60'"})
    process = site.start(TARGET)
    job = until_training(site, process)
    site.end_time_of(job)
    until(lambda: site.jobs().get(job) == "PENDING", process)
    assert "goes back into the queue" in log(site)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    site.release()
    until(lambda: site.jobs().get(job) == "RUNNING", process)
    assert "Trying to restart" not in finish(process)  # no retry is spent
    assert "going on from" in log(site)
    assert left(site) == undisturbed(120)


def test_a_cancelled_job_is_started_again_and_goes_on(cluster, tmp_path, undisturbed, prepared):
    site = Site(tmp_path / "site", cluster, config(20), prepared)
    process = site.start(TARGET)
    cluster.ask("scancel", str(until_training(site, process)))
    assert "Trying to restart" in finish(process)
    assert "going on from" in log(site)
    assert left(site) == undisturbed(20)


def test_a_preempted_job_comes_back_and_goes_on(cluster, tmp_path, undisturbed, prepared):
    site = Site(tmp_path / "site", cluster, config(60), prepared)
    process = site.start(TARGET)
    job = until_training(site, process)
    cluster.ask("sbatch", "--partition", "urgent", "--exclusive", "--wrap", "sleep 5", "--output", "/dev/null")
    until(lambda: site.jobs().get(job) == "PENDING", process)
    while process.poll() is None:
        site.release()
        time.sleep(1)
    assert "Trying to restart" not in finish(process)
    assert left(site) == undisturbed(60)


def test_a_dead_node_costs_its_job_no_more_than_the_time(cluster, tmp_path, undisturbed, prepared):
    site = Site(tmp_path / "site", cluster, config(20), prepared)
    process = site.start(TARGET)
    job = until_training(site, process)
    cluster.kill("slurmd")
    for pid in processes_of(job):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(20)  # SLURM lets a job that began less than 20 s ago begin late; no node reboots as fast
    cluster.start_node()
    until(lambda: site.jobs().get(job) != "RUNNING", process)
    while process.poll() is None:
        site.release()
        time.sleep(1)
    finish(process)
    assert left(site) == undisturbed(20)


def test_a_second_snakemake_is_refused_and_the_first_goes_on(cluster, tmp_path, undisturbed, prepared):
    """FAULTS row 21."""
    site = Site(tmp_path / "site", cluster, config(60), prepared)
    process = site.start(TARGET)
    job = until_training(site, process)
    second = site.run(TARGET)
    assert second.returncode != 0
    assert "works in it; wait for its end" in second.stdout
    assert site.jobs() == {job: "RUNNING"}
    finish(process)
    assert left(site) == undisturbed(60)


def test_a_controller_that_is_down_for_a_while_is_waited_for(cluster, tmp_path, undisturbed, prepared):
    """FAULTS row 23: when a job is submitted, and while it runs. Neither costs a retry."""
    site = Site(tmp_path / "site", cluster, config(60), prepared)
    cluster.kill("slurmctld")
    process = site.start(TARGET)
    until(lambda: list(site.folder.glob("results/.slurm/*.jobs")), process)
    time.sleep(15)
    assert process.poll() is None
    cluster.start_controller()
    until_training(site, process)
    cluster.kill("slurmctld")
    time.sleep(15)
    assert process.poll() is None
    cluster.start_controller()
    assert "Trying to restart" not in finish(process)
    assert left(site) == undisturbed(60)


def test_programs_that_fail_ten_times_running_cost_no_retry(cluster, tmp_path, monkeypatch, undisturbed, prepared):
    """FAULTS row 23, where the controller is well: squeue and sacct fail, and Snakemake hears nothing new."""
    failing, asked = tmp_path / "failing", tmp_path / "asked"
    for name in ("squeue", "sacct"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\n[ -e {failing} ] || exec /usr/bin/{name} "$@"\necho {name} >>{asked}\nexit 1\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    site = Site(tmp_path / "site", cluster, config(60), prepared)
    process = site.start(TARGET)
    until_training(site, process)
    failing.touch()
    until(lambda: asked.exists() and min(asked.read_text().count(name) for name in ("squeue", "sacct")) >= 10, process)
    assert process.poll() is None
    failing.unlink()
    assert "Trying to restart" not in finish(process)
    assert left(site) == undisturbed(60)


def test_a_killed_snakemake_is_started_again_and_ends_its_orphan_first(cluster, tmp_path, undisturbed, prepared):
    """FAULTS row 20, with a job that runs on in the queue: the new one takes its place from where it saved."""
    site = Site(tmp_path / "site", cluster, config(60), prepared)
    process = site.start(TARGET)
    orphan = until_training(site, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = site.run(TARGET)
    assert again.returncode != 0
    assert "--unlock" in again.stdout
    assert site.run("--unlock").returncode == 0
    assert site.jobs() == {orphan: "RUNNING"}
    done = log(site).count("\nepoch ")
    again = site.start(TARGET)
    until(lambda: set(site.jobs()) - {orphan}, again)
    assert orphan not in site.jobs()
    output = finish(again)
    assert f"  {orphan} RUNNING rule_pretrain_wildcards_uic_3k" in output
    went_on = re.search(r"going on from .*epoch (\d+)", log(site))
    assert went_on, log(site)
    assert int(went_on[1]) >= done
    assert left(site) == undisturbed(60)
    assert site.jobs() == {}


def test_an_interrupted_snakemake_leaves_no_job_in_the_queue(cluster, tmp_path, prepared):
    """Ctrl-C, which it hears while it waits for squeue's answer: its plugin then cancels nothing."""
    site = Site(tmp_path / "site", cluster, config(200), prepared)
    process = site.start(TARGET)
    until_training(site, process)
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert site.jobs() == {}, output[-4000:]
    assert list((site.folder / "results/runs/uic_3k").glob("state.*"))


def test_what_an_orphan_finished_before_snakemake_is_started_again_is_kept(cluster, tmp_path, undisturbed, prepared):
    site = Site(tmp_path / "site", cluster, config(20), prepared)
    process = site.start(TARGET)
    until(lambda: "\nepoch " in log(site), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 120
    while site.jobs() and time.monotonic() < end:
        time.sleep(0.2)
    assert site.run("--unlock").returncode == 0
    again = site.run(TARGET)
    assert again.returncode == 0, again.stdout[-6000:]
    assert "Nothing to be done" in again.stdout
    assert left(site) == undisturbed(20)


def test_a_failing_rule_runs_retries_and_one_times_and_shows_its_log(cluster, tmp_path, prepared):
    """FAULTS row 25."""
    site = Site(tmp_path / "site", cluster, config(1), prepared)
    index = site.folder / "results/index/imagenet_train.npz"
    assert site.run("results/index/imagenet_train.npz", "results/runs/uic_3k/recipe.yaml").returncode == 0
    # As a disk that loses bytes: neither file is made again, for nothing says that it should be.
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2])
    process = site.run(TARGET, "--rerun-triggers", "mtime")
    assert process.returncode != 0
    assert len(list((site.folder / ".snakemake/slurm_logs/rule_pretrain/uic_3k").glob("*.log"))) == 3
    assert process.stdout.count("Trying to restart job") == 2
    assert "imagenet_train.npz" in process.stdout.split("Logfile")[-1]
