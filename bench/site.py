"""A checkout of this repository on a one-node cluster, with a site's edits: config/paper.yaml and the profile."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bench.one_node_slurm import Cluster

ROOT = Path(__file__).parents[1]
_MADE = (".*", "results", "data", "tests", "docs")  # at the root
_THREADED = (
    "pretrain", "finetune", "linear_probe", "voc_classification", "fewshot", "knn", "proposals", "detection",
    "segmentation",
)  # fmt: skip


class Site:
    """The checkout, in a folder of its own; `snakemake --profile slurm` from its root.

    Args:
        folder: must not exist yet.
        cluster: runs the jobs; None: the jobs run on this machine, under profiles/demo.
        config: replaces config/paper.yaml.
        prepared: another site, whose data sets and indices are copied.
        resources: of single rules, added to the profile.
    """

    def __init__(
        self,
        folder: Path,
        cluster: Cluster | None,
        config: dict[str, Any],
        prepared: Site | None = None,
        **resources: dict[str, Any],
    ) -> None:
        self.folder, self.cluster = folder, cluster
        made = shutil.ignore_patterns(*_MADE)
        # uic_core/data is code.
        shutil.copytree(
            ROOT, folder, symlinks=True, ignore=lambda at, names: made(at, names) if at == str(ROOT) else ()
        )
        if prepared:
            for name in ("data", "results/data", "results/index"):
                shutil.copytree(prepared.folder / name, folder / name)  # with their times
        (folder / "config" / "paper.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        profile = folder / "profiles" / "slurm" / "config.yaml"
        lines = [line for line in profile.read_text().splitlines() if "deployment-method" not in line]
        settings = yaml.safe_load("\n".join(lines))
        # One CPU per job, and memory that the node has.
        settings["default-resources"]["mem_mb"] = 2000
        settings["set-threads"] = dict.fromkeys(_THREADED, 1)
        settings["set-resources"] = {rule: {"mem_mb": 3000} | resources.get(rule, {}) for rule in _THREADED}
        profile.write_text(yaml.safe_dump(settings, sort_keys=False))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Snakemake as a process; stdout has both of its output streams."""
        profile = ["--profile", "slurm"]
        if self.cluster is None:
            profile = ["--profile", "profiles/demo", "--configfile", "config/paper.yaml"]
        environment = self.cluster.environment if self.cluster else {}
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments, *profile],
            cwd=self.folder, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | environment | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, seconds: float = 1800) -> subprocess.CompletedProcess[str]:
        """Run Snakemake to its end.

        Raises:
            subprocess.TimeoutExpired: it did not end and was killed.
        """
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def jobs(self) -> dict[int, str]:
        """Return the states (PENDING, RUNNING …) of the cluster's jobs that have not ended, by number."""
        assert self.cluster is not None
        lines = self.cluster.ask("/usr/bin/squeue", "-h", "-o", "%i %T").splitlines()
        return {int(line.split()[0]): line.split()[1] for line in lines}

    def release(self) -> None:
        """Let pending jobs start at once: SLURM makes a requeued one wait for two minutes."""
        assert self.cluster is not None
        pending = [job for job, state in self.jobs().items() if state == "PENDING"]
        if pending:
            time.sleep(3)  # sooner, the node confuses them with jobs it was just told to end ("credential revoked")
        for job in pending:
            with contextlib.suppress(subprocess.CalledProcessError):
                self.cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    def end_time_of(self, job: int) -> None:
        """Let a running job's time end in 20 to 80 seconds: limits are whole minutes, at least 20 seconds ahead."""
        assert self.cluster is not None
        *days, clock = self.cluster.ask("/usr/bin/squeue", "-h", "-j", str(job), "-o", "%M").strip().split("-")
        assert not days, "a job of days"
        seconds = 0
        for part in clock.split(":"):
            seconds = 60 * seconds + int(part)
        self.cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={-(-(seconds + 20) // 60)}")


def until(true: Callable[[], object], process: subprocess.Popen[str], seconds: float = 600) -> None:
    """Wait until `true()` while Snakemake runs.

    Raises:
        AssertionError: Snakemake ended first, or the time is up; with the end of its output.
    """
    end = time.monotonic() + seconds
    while not true():
        assert process.stdout is not None
        if process.poll() is not None:
            raise AssertionError(f"snakemake ended:\n{process.stdout.read()[-4000:]}")
        if time.monotonic() > end:
            process.kill()
            raise AssertionError(f"nothing in {seconds} s:\n{process.stdout.read()[-4000:]}")
        time.sleep(0.1)
