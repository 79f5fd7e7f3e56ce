"""End the jobs of a results folder that are still in SLURM's queue, and wait until they are gone.

They belong to an earlier Snakemake that was killed, or to one that ends before them (Ctrl-C). They would run beside
their replacements, remove declared outputs when they fail, or finish a training that is then started again. A stage
saves its state on TERM; the new job resumes it.
"""

from __future__ import annotations

import sys
import time

from own_jobs import ask, cancel, forget, names, real

WAIT = 600  # seconds to wait for jobs to end
_AGAIN = 60  # seconds until scancel is called again, for a job that SLURM has just requeued


def main() -> None:
    """End the jobs and print what is done. Exits with 1 if a job stays in the queue."""
    left = names()
    if not left or real("squeue") is None:
        return
    said, cancelled, complaint = False, float("-inf"), ""
    started = time.monotonic()
    while True:
        queue = ask("squeue", "--noheader", "--format=%i|%T|%k", "--name", ",".join(left))
        if queue is None and "--local" in sys.argv:  # the results may come from a cluster
            print("SLURM does not answer; what an earlier Snakemake submitted may still be in its queue", flush=True)
            return
        if queue is None:  # nothing can be submitted either, so wait
            if not said:
                print("SLURM does not answer; waiting for it, to end what an earlier Snakemake left there", flush=True)
            said, started = True, time.monotonic()
            time.sleep(10)
            continue
        if not queue:
            break
        now = time.monotonic()
        if cancelled < 0:
            print("ending jobs that are left in the queue; they save where they are:", flush=True)
            for job, state, *what in queue:
                print(f"  {job} {state} {'|'.join(what)}", flush=True)
        if now - cancelled > _AGAIN:
            complaint = cancel([job for job, *_ in queue])
            cancelled = now
        if now - started > WAIT:
            jobs = " ".join(job for job, *_ in queue)
            sys.exit(f"still in the queue: {jobs} {complaint}\nscancel {jobs}")
        time.sleep(1)
    for name in left:
        forget(name)


if __name__ == "__main__":
    main()
