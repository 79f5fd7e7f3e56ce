# How Snakemake and its jobs in SLURM's queue get along.
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from snakemake.exceptions import WorkflowError

from uic_core.errors import InputError
from uic_core.files import hold

# SLURM tells a stage two minutes before the end of its time (workflow/launch.sh).
SIGNAL = "'--signal=USR1@120'"
# The programs in workflow/slurm know the calls of this version alone (tests/workflow/test_squeue.py makes them).
PLUGIN, PLUGIN_VERSION = "snakemake-executor-plugin-slurm", "2.8.0"
STARTED = time.time()
HELD = False  # whether this Snakemake alone works in the results folder


def outlive_time_limits():
    """SLURM's USR1 goes to all processes of a job: Snakemake, waiting for the stage within it, must not die of it."""
    signal.signal(signal.SIGUSR1, lambda *_: None)  # not SIG_IGN, which the stage's shell would inherit


def watch_jobs():
    """Snakemake submits its jobs and asks for them through workflow/slurm, which sees every one of them end."""
    own = str(Path(workflow.basedir, "workflow", "slurm"))
    os.environ.update(UIC_SLURM_JOBS=os.path.abspath(f"{CONFIG.results}/.slurm"))
    if shutil.which("squeue") and own not in os.get_exec_path():
        refuse_other_plugin()
        # Its programs find the Python that runs Snakemake, not an older one of the system.
        os.environ.update(PATH=os.pathsep.join([own, os.path.dirname(sys.executable), *os.get_exec_path()]))


def refuse_other_plugin():
    """Another version of the plugin may call SLURM in a way that the programs in workflow/slurm do not know."""
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


def take_over():
    """This Snakemake alone works in the results folder; what an earlier one left in SLURM's queue ends first."""
    global HELD
    needed = list(workflow.dag.needrun_jobs())
    if all(job.rule.name == "partial" for job in needed):
        return  # writes nothing that a running Snakemake does
    try:
        HELD = hold(Path(CONFIG.results))
    except InputError as error:
        raise WorkflowError(f"{error}; or name another folder under `results` in the config") from None
    if not HELD:
        print(
            f"{CONFIG.results}: its file system has no locks. See to it that no other Snakemake works in it, and that "
            "squeue shows no job of an earlier one: they are not looked for",
            file=sys.stderr,
        )
        return
    if end_jobs(*(["--local"] if workflow.local_exec else [])):
        raise WorkflowError("jobs of an earlier Snakemake are still in the queue; see above")
    late = [file for job in needed for file in job.output if os.path.exists(file) and os.path.getmtime(file) > STARTED]
    if late:
        raise WorkflowError(f"{late[0]}: made just now by a job of an earlier Snakemake; start again, and it is kept")


def end_jobs(*options):
    """End what is in SLURM's queue for this results folder: an earlier Snakemake's jobs, or ours when it is interrupted.

    The plugin cancels its jobs on Ctrl-C, but none while it asks for their states.
    """
    program = Path(workflow.basedir, "workflow", "slurm", "end_orphans.py")
    return subprocess.run([sys.executable, str(program), *options]).returncode if HELD else 0
