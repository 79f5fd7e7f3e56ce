"""End the jobs of a results folder that are left in SLURM's queue, and wait for it.

They are those of an earlier Snakemake that was killed, or of one that ends before they do (Ctrl-C). They would work
beside the ones that take their place, remove declared outputs when they fail, or finish a training that is then started
again. A stage that is told to end (TERM) saves its state; the new job goes on from it.
"""

from __future__ import annotations

import sys
import time

from own_jobs import ask, cancel, forget, names, real

WAIT = 600  # seconds for jobs to go
_AGAIN = 60  # seconds until scancel is called again, for a job that SLURM has just put back into the queue


def main() -> None:
    """Print what is done; exit status 1 where a job stays."""
    left = names()
    if not left or real("squeue") is None:
        return
    said, cancelled, complaint = False, float("-inf"), ""
    started = time.monotonic()
    while True:
        queue = ask("squeue", "--noheader", "--format=%i|%T|%k", "--name", ",".join(left))
        if queue is None and "--local" in sys.argv:  # results that came from a cluster, perhaps
            print("SLURM does not answer; what an earlier Snakemake submitted may still be in its queue", flush=True)
            return
        if queue is None:  # nothing can be submitted either
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
