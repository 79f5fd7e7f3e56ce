"""Time and memory of a results folder's jobs by rule, from their benchmark files. Imports no torch.

Snakemake's own report reads a job's start from a file that cluster jobs remove; the benchmarks come from the jobs.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

from uic_core.errors import InputError
from uic_core.layout import rule_of
from uic_core.report.page import Block, Grid, Text


def page(benchmarks: Path) -> list[Block]:
    """Build the page: one line per rule, largest total time first, with number of jobs, seconds and largest memory.

    Args:
        benchmarks: the folder results/benchmarks.

    Raises:
        InputError: a file is not a benchmark.
    """
    jobs = sorted((rule_of(path), *_read(path)) for path in benchmarks.rglob("*.tsv"))
    rules = {rule: list(each) for rule, each in itertools.groupby(jobs, key=lambda job: job[0])}
    lines = []
    for rule, each in sorted(rules.items(), key=lambda item: -sum(seconds for _, seconds, _ in item[1])):
        seconds = [taken for _, taken, _ in each]
        memory = max(megabytes for _, _, megabytes in each)
        lines.append([f"`{rule}`", str(len(each)), f"{sum(seconds):.0f}", f"{max(seconds):.0f}", f"{memory:.0f}"])
    head = ["rule", "jobs", "seconds", "longest job, s", "largest memory, MB"]
    return [
        Text("**Jobs** The last run of each, while it ran: time in a queue does not count."),
        Grid(head, lines, ["left", *["right"] * 4]),
    ]


def _read(path: Path) -> tuple[float, float]:
    """Read (seconds, megabytes); 0 megabytes if the job ended before its memory was measured."""
    try:
        with path.open(newline="") as file:
            (job,) = csv.DictReader(file, delimiter="\t")
        return float(job["s"]), 0.0 if job["max_rss"] in ("NA", "-") else float(job["max_rss"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: is no benchmark of Snakemake's ({error}); delete it and run snakemake again"
        ) from error
