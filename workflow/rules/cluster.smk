# Functions for jobs: their shell, what they ask for, and how Snakemake and SLURM's queue get along.
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from snakemake.exceptions import WorkflowError

from uic_core.errors import InputError, stage
from uic_core.evaluations import EVALUATIONS
from uic_core.overview import limits

# SLURM signals a stage two minutes before the time limit (workflow/launch.sh).
SIGNAL = "'--signal=USR1@120'"
# The programs in workflow/slurm know only the calls of this version (tests/workflow/test_squeue.py makes them).
PLUGIN, PLUGIN_VERSION = "snakemake-executor-plugin-slurm", "2.8.0"


def quoted(path):
    """Quote a path for the shell, and its braces for Snakemake."""
    return shlex.quote(path).replace("{", "{{").replace("}", "}}")


def integer_of(resources, name):
    """Return an integer of Snakemake's --resources or --default-resources; None if there is none."""
    value = resources[name].value if name in resources and not resources[name].is_evaluable() else None
    return value if isinstance(value, int) else None


def prepare_shell():
    """Let jobs stop at the first error, and find uic_core, no packages of ~/.local and, without conda, our Python."""
    root = str(workflow.basedir)
    # Snakemake's own prefix is replaced, so its strict mode must be said again.
    prefix = f"set -euo pipefail; export PYTHONPATH={quoted(root)} PYTHONNOUSERSITE=1; "
    # Read in uic_core/data/stamps.py; no param, so it reruns nothing.
    prefix += f"export UIC_CHECK_FILES={int(CONFIG.datasets.check_files)}; "
    if not workflow.remote_exec:  # launch.sh: the jobs run beside Snakemake, which may have a total of GPUs
        prefix += f"export UIC_LOCAL={integer_of(workflow.global_resources, 'gpu') or 0}; "
    prefix += f"source {quoted(f'{root}/workflow/launch.sh')}; "
    if not {str(method) for method in workflow.deployment_settings.deployment_method} & {"conda", "apptainer"}:
        prefix += f'export PATH={quoted(os.path.dirname(sys.executable))}:"$PATH"; '
    shell.prefix(prefix)


def longest():
    """Return the most minutes that a job may ask for: `runtime` of the profile's default-resources, or a day."""
    defaults = workflow.resource_settings._parsed_default_resources
    if "runtime" not in defaults:
        return 1440
    limit = integer_of(defaults, "runtime")
    with stage():
        if limit is None or not 1 <= limit <= 43200:
            raise InputError(
                f"default-resources.runtime of the profile: {defaults['runtime'].raw} is no whole number of minutes from 1 "
                "to 43200; write minutes, as 480, or Snakemake's 8h, not 8:00:00"
            )
    return limit


def minutes(amount):
    """Return a job's time: every retry asks for more, up to LONGEST. `amount` may be a function of the wildcards."""

    def asked_for(wildcards, attempt):
        return min(LONGEST, attempt * (amount(wildcards) if callable(amount) else amount))

    return asked_for


def time_of(rule):
    """Return a job's time: what its work takes on slow hardware; at the limit it saves and queues again."""
    names = ("run", "dataset", "split")
    return minutes(
        lambda wildcards: limits.minutes(
            FULL, rule.format(**wildcards), next(wildcards[name] for name in names if name in wildcards.keys())
        )
    )


def megabytes(amount):
    """Return a job's memory: every retry requests more, up to what nodes with GPUs have."""
    return lambda wildcards, attempt: min(amount * attempt, max(amount, 128000))


def asked(evaluation):
    """Return what an evaluation's job requests (uic_core/evaluations)."""
    return EVALUATIONS[evaluation].resources


def memory_of(evaluation):
    """Return its memory, as `megabytes` does."""
    return megabytes(1000 * asked(evaluation).memory)


def gpus(wildcards):
    """GPUs of a training job, on one node."""
    return FULL.runs[wildcards.run].gpus


def cpus(wildcards):
    """CPUs of a training job: 16 per GPU, at most half of a large node's."""
    return min(64, 16 * gpus(wildcards))


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


def look_when_jobs_end():
    """Let Snakemake look for jobs to start when one has ended, and not a second after each look as well.

    Each job that ends begins another series of such looks, which goes on to the end: 200 a second after 200 jobs, for
    the days of a training. A limit of jobs that the user sets stays.
    """
    limiter = workflow.scheduler.job_rate_limiter
    if limiter and (limiter.max_jobs, limiter.timespan) == (100, 1):  # Snakemake's default
        workflow.scheduler.job_rate_limiter = None


def say_why_none_starts():
    """Write into a job's log why SLURM would never start it: workflow/slurm/squeue has noted the reason as its state."""
    if workflow.local_exec:
        return
    executor = workflow.scheduler._executor
    tell = executor.report_job_error

    def explained(info, *message, **more):
        with contextlib.suppress(OSError, ValueError, KeyError):
            states = json.loads(Path(CONFIG.results, ".slurm", f"{executor.run_uuid}.json").read_text())
            reason, _ = states[info.external_jobid]
            if not reason.isupper():
                remedy = "correct slurm_partition, slurm_account, qos or set-resources in the profile"
                if re.search("Time|Wall|Minutes", reason):
                    remedy = "write the site's time limit in the profile, as `runtime` under default-resources"
                for file in map(Path, info.job.log):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with file.open("a") as log:
                        log.write(f"error: SLURM would never start this job ({reason}); {remedy}\n")
        tell(info, *message, **more)

    executor.report_job_error = explained


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
