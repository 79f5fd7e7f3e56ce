"""Speed and memory relative to reference code: `make bench`, or one part, `make bench-boundary`.

Also mutation tests, the list of faults, and what tests share: a one-node SLURM cluster, a browser, a small workflow.
"""
