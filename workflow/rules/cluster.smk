# Snakemake and its jobs in SLURM's queue: time limits, job states, jobs of an earlier Snakemake.
import os
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from snakemake.exceptions import WorkflowError

# SLURM signals a stage two minutes before the time limit (workflow/launch.sh).
SIGNAL = "'--signal=USR1@120'"
# The programs in workflow/slurm know only the calls of this version (tests/workflow/test_squeue.py makes them).
PLUGIN, PLUGIN_VERSION = "snakemake-executor-plugin-slurm", "2.8.0"


def outlive_time_limits():
    """Ignore SLURM's USR1: it goes to all processes of a job, also to the Snakemake that waits there for the stage."""
    signal.signal(signal.SIGUSR1, lambda *_: None)  # not SIG_IGN, which the stage's shell would inherit


def watch_jobs():
    """Put workflow/slurm on Snakemake's PATH, so that its programs submit the jobs and report the end of each one."""
    own = str(Path(workflow.basedir, "workflow", "slurm"))
    os.environ.update(UIC_SLURM_JOBS=os.path.abspath(f"{CONFIG.results}/.slurm"))
    if shutil.which("squeue") and own not in os.get_exec_path():
        refuse_other_plugin()
        # The programs must find the Python that runs Snakemake, not an older one of the system.
        os.environ.update(PATH=os.pathsep.join([own, os.path.dirname(sys.executable), *os.get_exec_path()]))


def refuse_other_plugin():
    """Refuse other versions of the plugin: the programs in workflow/slurm may not know their calls to SLURM."""
    try:
        installed = metadata.version(PLUGIN)
    except metadata.PackageNotFoundError:
        return  # no profile that submits jobs can be in use
    if installed != PLUGIN_VERSION:
        raise WorkflowError(
            f"{PLUGIN} {installed} is installed, and workflow/slurm is made for {PLUGIN_VERSION}: make setup installs "
            "it. To go on with another version, change PLUGIN_VERSION in workflow/rules/cluster.smk once `make "
            "test-slurm` and tests/workflow/test_squeue.py pass with it"
        )


def end_jobs(*options):
    """End the jobs of this results folder in SLURM's queue: an earlier Snakemake's, or our own after an interrupt.

    The plugin cancels its jobs on Ctrl-C, but not while it asks for their states.
    """
    program = Path(workflow.basedir, "workflow", "slurm", "end_orphans.py")
    return subprocess.run([sys.executable, str(program), *options]).returncode if HELD else 0
