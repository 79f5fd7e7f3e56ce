# One Snakemake at a time in a results folder, and what an earlier one has left: processes, files, times.
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

from uic_core.errors import InputError
from uic_core.files import hold, holder

STARTED = time.time()
# What may be called while another Snakemake works in the same results.
READS = {"partial", "--report", "--lint", "--summary", "-S", "--detailed-summary", "-D", "--list-rules", "--list", "-l"}
READS |= {"--dag", "--rulegraph", "--filegraph", "--d3dag", "--list-changes", "--list-untracked", "--archive"}
HELD = False  # True once this Snakemake holds the lock of the results folder


def mark_jobs():
    """Mark the processes of our jobs, so that the next Snakemake finds those that outlive this one."""
    if workflow.is_main_process:
        os.environ["UIC_SNAKEMAKE"] = f"{this_process()}:{os.path.abspath(CONFIG.results)}"


def this_process():
    """Return this process's host, number and start, by which no other process is meant."""
    return f"{socket.gethostname()}:{os.getpid()}:{started(os.getpid())}"


def started(pid):
    """Return when a process of this machine began, in its clock's ticks; None if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError):
        return None


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
        return
    if end_jobs(*(["--local"] if workflow.local_exec else [])):
        raise WorkflowError("jobs of an earlier Snakemake are still in the queue; see above")
    end_local_jobs()
    late = [job for job in needed if made_meanwhile(job)]
    if late:
        file = late[0].output[0]
        raise WorkflowError(f"{file}: made just now by a job of an earlier Snakemake; start again, and it is kept")
    mend_times()


def made_meanwhile(job):
    """Return whether another process has completed a job's files since this Snakemake began."""
    if not job.output or not all(os.path.exists(file) for file in job.output):
        return False
    missed = workflow.dag.reason(job).missing_output
    return any(file in missed or STARTED < os.path.getmtime(file) <= time.time() for file in job.output)


def end_local_jobs():
    """End the jobs on this machine whose Snakemake was killed, and wait until they have saved where they are."""
    told, deadline = set(), time.time() + 600
    while left := list(orphans()):
        stages = {pid for pid, _, arguments in left if any(each.startswith("uic_core.") for each in arguments)}
        for pid, parent, arguments in left:
            if pid in stages - told and parent not in stages:  # torchrun and decoding processes end with the first
                print(
                    f"ending process {pid} of a killed Snakemake; it saves where it is: {' '.join(arguments)}",
                    file=sys.stderr,
                )
                told.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        if time.time() > deadline:
            pids = " ".join(str(pid) for pid, _, _ in left)
            raise WorkflowError(f"jobs of a killed Snakemake still run after ten minutes: end them (kill -9 {pids})")
        time.sleep(0.2)


def orphans():
    """Yield (number, parent, arguments) of the processes here that work in our results for a Snakemake that is gone."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            marks = [os.fsdecode(each) for each in environment if each.startswith(b"UIC_SNAKEMAKE=")]
            arguments = os.fsdecode((folder / "cmdline").read_bytes()).split("\0")[:-1]
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # ended meanwhile, or of another user
        for mark in marks:
            host, pid, start, results = mark.partition("=")[2].split(":", 3)
            here = host == socket.gethostname() and results == os.path.abspath(CONFIG.results)
            if here and str(started(pid)) != start:
                yield int(folder.name), parent, arguments


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
