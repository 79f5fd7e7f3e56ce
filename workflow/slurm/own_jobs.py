"""The jobs in SLURM's queue that belong to this results folder: who submitted them, and their last known states.

Shared by the programs in this folder, which come before SLURM's own on Snakemake's PATH (watch_jobs in
rules/cluster.smk). In the folder UIC_SLURM_JOBS, each Snakemake has three files with the name of its jobs:
    <name>.jobs   the numbers of its jobs, one per line, written by sbatch
    <name>.json   job -> [state, time of the last change], written by squeue
    <name>.told   the jobs whose end has been reported to Snakemake

Must run on Python 3.8 and later: a job's PATH may run these programs with the system's Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

OWN = Path(__file__).resolve().parent
_TIMEOUT = 20.0  # seconds


def folder() -> Path:
    """The folder of these files."""
    return Path(os.environ.get("UIC_SLURM_JOBS", ".snakemake/slurm_jobs"))


def real(program: str) -> str | None:
    """Path of SLURM's own program, not the one in this folder. None: it is not there."""
    folders = [each for each in os.environ.get("PATH", "").split(os.pathsep) if Path(each or ".").resolve() != OWN]
    return shutil.which(program, path=os.pathsep.join(folders))


def replace_by(program: str, arguments: list[str]) -> None:
    """Replace this process by the real program."""
    path = real(program)
    if path is None:
        raise SystemExit(f"{program}: not on this machine")
    os.execv(path, [path, *arguments])


def ask(program: str, *arguments: str, seconds: float = _TIMEOUT) -> list[list[str]] | None:
    """Run a program and return the fields of each line. None: it is missing, fails or takes longer than `seconds`."""
    path = real(program)
    if path is None:
        return None
    try:
        process = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line.split("|") for line in process.stdout.splitlines() if "|" in line]


def cancel(jobs: list[str]) -> str:
    """Cancel jobs with scancel. Returns its error message."""
    try:
        process = subprocess.run(
            [real("scancel") or "scancel", *jobs], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return process.stderr.strip()


def submitted(name: str) -> list[str]:
    """The job numbers of one Snakemake."""
    try:
        return (folder() / f"{name}.jobs").read_text().split()
    except OSError:
        return []


def names() -> list[str]:
    """The job names of all Snakemakes with files here."""
    return sorted({path.stem for suffix in ("jobs", "json") for path in folder().glob(f"*.{suffix}")})


def forget(name: str) -> None:
    """Delete the files of a Snakemake whose jobs have all ended."""
    for suffix in ("jobs", "json", "told"):
        (folder() / f"{name}.{suffix}").unlink(missing_ok=True)
