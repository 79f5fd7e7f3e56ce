# One Snakemake at a time in a results folder, and what an earlier one has left: processes, files, times.
import os
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

from uic_core.errors import InputError
from uic_core.files import hold, holder
from uic_core.run import finished, processes

STARTED = time.time()
# What may be called while another Snakemake works in the same results.
READS = {"partial", "--report", "--lint", "--summary", "-S", "--detailed-summary", "-D", "--list-rules", "--list", "-l"}
READS |= {"--dag", "--rulegraph", "--filegraph", "--d3dag", "--list-changes", "--list-untracked", "--archive"}
HELD = False  # True once this Snakemake holds the lock of the results folder


def mark_jobs():
    """Mark our jobs' processes, so that the next Snakemake finds those that outlive this one."""
    if workflow.is_main_process:
        processes.mark(Path(CONFIG.results))


def refuse_second_start():
    """Say who works in the results folder, before Snakemake advises to remove its lock."""
    reads = READS & set(sys.argv) or workflow.output_settings.dryrun or not workflow.is_main_process
    if not reads and (told := holder(Path(CONFIG.results))):
        raise WorkflowError(
            f"{CONFIG.results}: {told} works in it; wait for its end, or stop it, or name another folder under `results` "
            "in the config; --unlock would harm it"
        )


def take_over():
    """Lock the results folder for this Snakemake, then end what an earlier one has left running."""
    global HELD
    needed = list(workflow.dag.needrun_jobs())
    if all(job.rule.name == "partial" for job in needed):
        return  # rule `partial` writes nothing that a running Snakemake writes
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
    elif end_jobs(*(["--local"] if workflow.local_exec else [])):
        raise WorkflowError("jobs of an earlier Snakemake are still in the queue; see above")
    try:
        processes.end_orphans(Path(CONFIG.results), lambda line: print(line, file=sys.stderr))
    except InputError as error:
        raise WorkflowError(str(error)) from None
    late = [job for job in needed if made_meanwhile(job)]
    if late:
        file = late[0].output[0]
        raise WorkflowError(f"{file}: made just now by a job of an earlier Snakemake; start again, and it is kept")
    forget_finished(needed)
    mend_times()


def made_meanwhile(job):
    """Return whether another process has completed a job's files since this Snakemake began."""
    if not job.output or not all(os.path.exists(file) for file in job.output):
        return False
    missed = workflow.dag.reason(job).missing_output
    return any(file in missed or STARTED < os.path.getmtime(file) <= time.time() for file in job.output)


def forget_finished(jobs):
    """Let jobs that the user forces to make whole results again not take those of an earlier process.

    Of other jobs they stay: they are of other settings, which may be put back, or of the very ones that are asked for.
    """
    for job in jobs:
        forced = workflow.dag.reason(job).forced and not any(JUDGED.get(file) for file in job.output)
        if forced and all(os.path.exists(file) for file in job.output):
            for file in job.output:
                finished.forget(Path(file))


def mend_times():
    """Give files of the future the present time. Snakemake refuses, and removes, what a job has made from them."""
    now, left = time.time(), []
    files = {str(file) for job in workflow.dag.jobs for file in (*job.input, *job.output) if os.path.exists(file)}
    ahead = sorted(file for file in files if os.path.getmtime(file) > now + 1)
    for file in ahead:
        try:
            os.utime(file, (now, now))
        except OSError:
            left.append(file)
    if ahead:
        print(
            f"{len(ahead)} files had times in the future, {ahead[0]} among them: they come from another machine, or this "
            "one's clock was set back. They have the present time now",
            file=sys.stderr,
        )
    if left:
        print(f"but {len(left)} are not yours, and jobs that read them fail: touch {' '.join(left)}", file=sys.stderr)
