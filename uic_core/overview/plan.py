"""`make plan`: predict a config's jobs, GPU-hours, disk, memory and wall time on n GPUs before any training starts.

Costs are counted; rates are measured here (--measure) or assumed for a GPU (--peak). A job takes its start time plus
the longer of its arithmetic and its decoding, or their sum with one CPU.
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from uic_core.arguments import stage_parser
from uic_core.config import CONFIG_HELP, Config, read
from uic_core.errors import stage
from uic_core.layout import TRAININGS
from uic_core.overview.costs import CACHE_SPEED, Job, cache_bytes, evaluation, preparation, training
from uic_core.overview.rates import Rates, assumed
from uic_core.recipe import External, Training
from uic_core.report.cells import all_needed, by_class, needed, of_every_run, read_figures, read_tables
from uic_core.report.check_cells import check_cells

Key = tuple[str, str]


def jobs_of(config: Config, pairs: Iterable[Key], tables: Sequence[str] = ()) -> dict[Key, Job]:
    """Return the jobs that make the metrics of `pairs` (run, evaluation), all jobs they need, and then `tables`."""
    prepared = {job.key: job for job in preparation(config)}
    found: dict[Key, Job] = {}

    def add(job: Job) -> None:
        for key in job.needs:
            if key not in found:
                add(prepared[key] if key in prepared else training(config, key[1]))
        found[job.key] = job

    for run, name in pairs:
        for repeat in config.repeats(run):
            add(evaluation(config, repeat, name))
    last = tuple(found)
    for name in tables:
        found[name, ""] = Job(name, "", last, "report")
    return found


def everything(config: Config) -> dict[Key, Job]:
    """Return all jobs of a config, including its figures."""
    pairs = [*all_needed(config.tables_file, config.computable), *of_every_run(config)]
    shown = [f"table{number}" for number in read_tables(config.tables_file, config.computable)]
    shown += [f"fig{number}" for number in read_figures(config.tables_file)]
    tasks = by_class(config.tables_file, config.computable)
    shown += [f"{kind}_{task}" for task in tasks for kind in ("fig", "table")]
    shown += [f"table_{name}" for name in dict.fromkeys(name for _, name in of_every_run(config))]
    shown += ["fig_curves", "table_speed"] * any(isinstance(run, Training) for run in config.runs.values())
    return jobs_of(config, pairs, shown)


def wall(jobs: dict[Key, Job], rates: Rates) -> float:
    """Return the seconds until all jobs are done on the slots (list scheduling, longest remaining chain first)."""
    seconds = {key: rates.seconds(job) for key, job in jobs.items()}
    after: dict[Key, list[Key]] = {key: [] for key in jobs}
    waiting = {}
    for key, job in jobs.items():
        needs = [need for need in job.needs if need in jobs]
        waiting[key] = len(needs)
        for need in needs:
            after[need].append(key)
    rank: dict[Key, float] = {}
    for key in reversed(list(jobs)):  # a job comes after the jobs it needs
        rank[key] = seconds[key] + max((rank[each] for each in after[key]), default=0.0)
    ready = [(-rank[key], key) for key in jobs if not waiting[key]]
    heapq.heapify(ready)
    running: list[tuple[float, Key]] = []
    now, free = 0.0, rates.slots
    held: list[tuple[float, Key]] = []
    while ready or running or held:
        while ready:
            priority, key = heapq.heappop(ready)
            takes = rates.taken(jobs[key])
            if takes > free or (takes and held):  # keep GPUs free for the next job that needs several
                held.append((priority, key))
                continue
            free -= takes
            heapq.heappush(running, (now + seconds[key], key))
        now, done = heapq.heappop(running)
        free += rates.taken(jobs[done])
        for key in after[done]:
            waiting[key] -= 1
            if not waiting[key]:
                held.append((-rank[key], key))
        ready, held = held, []
        heapq.heapify(ready)
    return now


def report(config: Config, rates: Rates) -> str:
    """Return the plan as text."""
    tables, computed = config.tables_file, config.computable
    pairs = {number: needed(tables, number, computed) for number in read_tables(tables, computed)}
    jobs = everything(config)
    unit = "GPU-hours" if rates.gpu else "CPU-hours"
    rules: dict[str, list[Job]] = {}
    for job in jobs.values():
        rules.setdefault("table, figure" if job.environment == "report" else job.rule, []).append(job)
    lines = [[rule, len(each), *_sums(each, rates)] for rule, each in rules.items()]
    lines.append(["all", len(jobs), *_sums(jobs.values(), rates)])
    by_rule = tabulate(
        lines, ["rule", "jobs", unit, "longest job, h", "disk, GB", "memory of a job, GB"], floatfmt=".2f"
    )
    rows: list[tuple[str, int, int, float, float, float, str]] = []
    for number, shown in pairs.items():
        alone = jobs_of(config, shown, [f"table{number}"])
        runs = [job for job in alone.values() if job.rule in TRAININGS]
        hours, _, disk, _ = _sums(alone.values(), rates)
        names = textwrap.fill(", ".join(job.run for job in runs), 50)
        rows.append((f"table{number}", len(runs), len(alone), hours, wall(alone, rates) / 3600, disk, names))
    by_table = tabulate(
        rows, ["alone", "runs", "jobs", unit, "wall, h", "disk, GB", "which runs"], floatfmt=("", "", "", *[".2f"] * 3)
    )
    trained = {run: 1 + len(config.seeds.get(run, [])) for run in config.named}
    several = f", {sum(trained.values())} with their seeds" if any(config.seeds.values()) else ""
    foreign = sum(isinstance(recipe, External) for recipe in config.runs.values())
    elsewhere = f" ({foreign} trained elsewhere)" if foreign else ""
    labelled = [_labelling(job, rates) for job in jobs.values() if job.labelling.said]
    slots = f"{rates.slots} {'GPU' if rates.gpu else 'CPU'}{'s' if rates.slots > 1 else ''}"
    return (
        f"{len(trained)} runs{elsewhere}{several}; rates {rates.said}\n\n{by_rule}\n\n"
        f"What each table takes by itself; the cheapest is {min(rows, key=lambda row: row[3])[0]}:\n\n{by_table}\n\n"
        + "".join(f"{line}\n" for line in [*labelled, *decoding(config, jobs.values(), rates)])
        + f"wall time of everything on {slots}: {_hours(wall(jobs, rates))}\n"
    )


def _sums(jobs: Iterable[Job], rates: Rates) -> tuple[float, float, float, float]:
    """Return hours on the slots, hours of the longest job, gigabytes on disk, gigabytes of the largest job's memory."""
    jobs = list(jobs)
    hours = [rates.seconds(job) / 3600 for job in jobs]
    counted = sum(each * rates.taken(job) for each, job in zip(hours, jobs, strict=True))
    return counted, max(hours), sum(job.bytes for job in jobs) / 1e9, max(job.gigabytes() for job in jobs)


def _labelling(job: Job, rates: Rates) -> str:
    """Return a line on what a training's labels take beside passes over its images."""
    hours = job.labelling.operations / rates.exact[job.arch] / 3600
    return f"{job.run}: {job.labelling.said}; together {hours:.1f} {'GPU' if rates.gpu else 'CPU'}-hours"


def decoding(config: Config, jobs: Iterable[Job], rates: Rates) -> list[str]:
    """Return lines on the trainings that are bound by decoding, data set by data set, and on what a cache would save.

    Nothing is said of a config that has a cache.
    """
    cache = config.datasets.cache
    if cache.format != "none":
        return []
    bound: dict[str, list[Job]] = {}
    for job in jobs:
        recipe = config.runs.get(job.run)
        if not isinstance(recipe, Training) or job.rule != recipe.stage:
            continue
        if rates.decoding(job) > rates.arithmetic(job):
            bound.setdefault(recipe.data, []).append(job)
    unit, each = ("GPU-hours", "GPU") if rates.gpu else ("CPU-hours", "job")
    where = f"bound by decoding on {rates.cpus} CPU{'s' * (rates.cpus > 1)} a {each}"
    lines = [] if bound else [f"no training is {where}"]
    for data, trainings in bound.items():
        runs = ", ".join(f"{job.run} {rates.decoding(job) / rates.arithmetic(job):.1f}" for job in trainings)
        caches = []
        for format in ("jpeg", "uint8"):  # of any images
            speed = CACHE_SPEED[format]
            saved = sum(
                rates.taken(job) * (rates.seconds(job) - rates.seconds(replace(job, images=job.images / speed)))
                for job in trainings
            )
            size = cache_bytes(format, cache.side, config.datasets.folders[data].train_images)
            caches.append(f"{format}, {size / 1e9:.3g} GB, saves {saved / 3600:.3g} {unit}")
        line = f"{data}: {where} (times the arithmetic): {runs}; a cache of {cache.side} pixels: {'; '.join(caches)}"
        lines += textwrap.wrap(line, 118, subsequent_indent="  ")
    return lines


def _hours(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return what reads an option's number, and refuses one that is not above 0 or not finite."""

    def read(text: str) -> float:
        if not 0 < (number := kind(text)) < math.inf:
            raise argparse.ArgumentTypeError(f"'{text}' is not above 0; give a number that is")
        return number

    return read


def main(arguments: list[str] | None = None) -> None:
    """Print the plan of a config."""
    parser = stage_parser("uic_core.overview.plan", __doc__)
    parser.add_argument("--config", type=Path, nargs="+", required=True, help=CONFIG_HELP)
    parser.add_argument("--gpus", type=_positive(int), default=8, help="used at once")
    parser.add_argument("--cpus", type=_positive(int), default=16, help="of a GPU's job, at most; not with --measure")
    parser.add_argument(
        "--peak", type=_positive(float), default=312.0, help="bf16 matrix rate of one GPU, TFLOP/s (A100: 312)"
    )
    parser.add_argument("--measure", action="store_true", help="measure the rates of this machine: a minute or two")
    options = parser.parse_args(arguments)
    with stage():
        config = read(options.config)
        check_cells(config.tables_file, config)
        if options.measure:
            from uic_core.overview.measure import measured  # imports torch and the stages

            rates = measured(config, options.gpus, os.cpu_count() or 1)
        else:
            rates = assumed(config, options.peak, options.gpus, options.cpus)
        print(report(config, rates), end="")


if __name__ == "__main__":
    main()
