"""Stage `seeds`: means and standard deviations of one evaluation over a run's seeds. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from uic_core.arguments import stage_parser
from uic_core.errors import InputError, stage
from uic_core.run import metrics as metrics_file
from uic_core.run.metrics import Metrics, Value


def merge(paths: Sequence[Path]) -> Metrics:
    """Average metrics files of one evaluation; run, protocol and data set are those of the first file.

    Seeds may have been evaluated by different numbers of processes; the protocol then lists them, e.g. `1+2`.

    Raises:
        InputError: a file cannot be read, or differs from the first in more than its seed.
    """
    every = [metrics_file.read(path) for path in paths]
    first = every[0]
    for path, other in zip(paths, every, strict=True):
        wrong = _difference(first, other)
        if wrong:
            raise InputError(
                f"{path}: {wrong} is not that of {paths[0]}; the seeds were evaluated differently, so they have no "
                "mean; delete the older file and run snakemake again"
            )
    provenances = [metrics.provenance for metrics in every]
    provenance = provenances[0].model_copy(
        update={
            "commit": "+".join(dict.fromkeys(each.commit for each in provenances)),
            "dirty": any(each.dirty for each in provenances),
            "date": max(each.date for each in provenances),
            "trained_by": "+".join(dict.fromkeys(each.trained_by for each in provenances)),
            "run_seeds": [seed for each in provenances for seed in each.run_seeds],
            "files": {},
            "stamps": {},
            "recipe_hash": "+".join(dict.fromkeys(each.recipe_hash for each in provenances)),
            "checkpoint_hash": "+".join(each.checkpoint_hash for each in provenances),
            "checkpoint_stamp": [],
            "wall_seconds": sum(each.wall_seconds for each in provenances),
            "peak_memory_mb": max(each.peak_memory_mb for each in provenances),
        }
    )
    values = {name: _mean([metrics.values[name] for metrics in every]) for name in first.values}
    protocol = {**first.protocol, "runs": [metrics.run for metrics in every]}
    if "processes" in protocol:
        protocol["processes"] = "+".join(dict.fromkeys(str(metrics.protocol["processes"]) for metrics in every))
    return first.model_copy(update={"values": values, "protocol": protocol, "provenance": provenance})


def main(arguments: list[str] | None = None) -> None:
    """Write one metrics JSON with the means and standard deviations of several seeds."""
    parser = stage_parser("uic_core.report.seeds", main.__doc__)
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="one file a seed, the run's own first")
    parser.add_argument("--out", type=Path, required=True, help="metrics JSON to write")
    options = parser.parse_args(arguments)
    with stage():
        metrics_file.write(options.out, merge(options.metrics))


def _mean(values: list[Value]) -> Value:
    numbers = [value.value for value in values]
    return Value(
        value=statistics.fmean(numbers),
        unit=values[0].unit,
        n=values[0].n,
        std=statistics.stdev(numbers) if len(numbers) > 1 else 0.0,
        remark="; ".join(dict.fromkeys(value.remark for value in values if value.remark)),
        loss=max((value.loss for value in values if value.loss is not None), default=None),
        seeds=len(numbers),
    )


def _difference(first: Metrics, other: Metrics) -> str:
    """Name a difference in evaluation, data set, protocol, or the values' names and units; '' if there is none."""
    for name in ("evaluation", "dataset"):
        if getattr(first, name) != getattr(other, name):
            return name
    # Results do not depend on the number of processes, unless a probe's batch norm normalises each process's images.
    free = set() if first.protocol.get("batch_norm") is True else {"processes"}
    for key in first.protocol.keys() | other.protocol.keys():
        if (key in first.protocol) != (key in other.protocol):
            return f"protocol.{key}"
        if key not in free and first.protocol[key] != other.protocol[key]:
            return f"protocol.{key}"
    for name in first.values.keys() | other.values.keys():
        units = [metrics.values[name].unit for metrics in (first, other) if name in metrics.values]
        if len(units) < 2 or units[0] != units[1]:
            return f"values.{name}"
    return ""


if __name__ == "__main__":
    main()
