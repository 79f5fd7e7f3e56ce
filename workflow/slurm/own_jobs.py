"""The jobs in SLURM's queue that are this results folder's: who submitted them, and what is known of them.

Shared by the programs beside it, which stand before SLURM's own on the PATH of Snakemake (watch_jobs in
rules/cluster.smk). In the folder that UIC_SLURM_JOBS names, each Snakemake has three files under its jobs' name:
    <name>.jobs   the numbers of its jobs, a line each, written by sbatch
    <name>.json   job -> [state, since when], written by squeue
    <name>.told   the jobs whose end Snakemake has been told of

Runs on any Python from 3.8: a job's PATH may lead here with the system's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

OWN = Path(__file__).resolve().parent
_TIMEOUT = 20.0  # seconds


def folder() -> Path:
    """Where the files are."""
    return Path(os.environ.get("UIC_SLURM_JOBS", ".snakemake/slurm_jobs"))


def real(program: str) -> str | None:
    """The program behind the one here on the PATH."""
    folders = [each for each in os.environ.get("PATH", "").split(os.pathsep) if Path(each or ".").resolve() != OWN]
    return shutil.which(program, path=os.pathsep.join(folders))


def replace_by(program: str, arguments: list[str]) -> None:
    """Become the real program."""
    path = real(program)
    if path is None:
        raise SystemExit(f"{program}: not on this machine")
    os.execv(path, [path, *arguments])


def ask(program: str, *arguments: str, seconds: float = _TIMEOUT) -> list[list[str]] | None:
    """The fields of each line it prints. None: it is not there, failed or takes longer than so many seconds."""
    path = real(program)
    if path is None:
        return None
    try:
        process = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [line.split("|") for line in process.stdout.splitlines() if "|" in line]


def cancel(jobs: list[str]) -> str:
    """scancel them; what it complains of."""
    try:
        process = subprocess.run(
            [real("scancel") or "scancel", *jobs], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return process.stderr.strip()


def submitted(name: str) -> list[str]:
    """The jobs of one Snakemake, by their numbers."""
    try:
        return (folder() / f"{name}.jobs").read_text().split()
    except OSError:
        return []


def names() -> list[str]:
    """Of every Snakemake that left files here."""
    return sorted({path.stem for suffix in ("jobs", "json") for path in folder().glob(f"*.{suffix}")})


def forget(name: str) -> None:
    """Its jobs have all ended."""
    for suffix in ("jobs", "json", "told"):
        (folder() / f"{name}.{suffix}").unlink(missing_ok=True)
