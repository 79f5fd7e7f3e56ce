"""Compare `make plan` with a finished demo: the predicted time over the measured time.

    make demo && make bench-plan

The demo's time is from its first job's start to its last job's end, read from results/benchmarks.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

from bench.measure import Bars
from uic_core.config import Config, validate
from uic_core.overview import plan
from uic_core.overview.measure import measured
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "config" / "demo.yaml"


def main() -> None:
    """Print the bar; exit status 1 if it is missed."""
    config = validate(read_yaml(DEMO), str(DEMO))
    seconds = spent(ROOT / config.results / "benchmarks")
    if not seconds:
        print("bench.plan: nothing measured, there is no demo to compare with; make demo")
        return
    bars = Bars("plan")
    predicted = predict(config)
    print(f"  predicted {predicted / 60:.1f} minutes, the demo took {seconds / 60:.1f}")
    bars.at_least("plan_over_demo", [predicted / seconds], 0.75)
    bars.at_most("plan_over_demo", [predicted / seconds], 1.25)
    bars.close()


def predict(config: Config) -> float:
    """Return the seconds that the plan predicts, at rates measured now."""
    return plan.wall(plan.everything(config), measured(config, 1, os.cpu_count() or 1))


def spent(benchmarks: Path) -> float:
    """Return seconds from the first start to the last end of the jobs that wrote these files; 0 if there are none."""
    starts, ends = [], []
    for path in benchmarks.rglob("*.tsv"):
        with path.open() as file:
            (job,) = csv.DictReader(file, delimiter="\t")
        ends.append(path.stat().st_mtime)
        starts.append(ends[-1] - float(job["s"]))
    return max(ends) - min(starts) if ends else 0.0


if __name__ == "__main__":
    main()
