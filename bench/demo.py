"""Check a finished demo: what its tables must show, and its limits of time and memory.

    make demo && make bench-demo

Orderings are those of the computed cells in results/tables; time and memory are from results/benchmarks.
"""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean

import pandas as pd

from bench.measure import Bars
from bench.plan import spent
from uic_core.config import validate
from uic_core.errors import InputError, stage
from uic_core.recipe import stated
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "config" / "demo.yaml"
_ABOVE = 0.01  # points: above a tie, below one image of 300, which is 0.07 points of a mean over five layers


def main() -> None:
    """Print the bars; exit status 1 if one is missed."""
    with stage():
        config = validate(read_yaml(DEMO), str(DEMO))
        results = ROOT / config.results
        if not (results / "tables" / "table3.csv").exists():
            print("bench.demo: there is no demo to look at; make demo")
            return
        bars = Bars("demo")
        report(bars, results, 100 / config.datasets.folders[stated(config.evaluations.linear_probe).data].classes)
        bars.close()


def report(bars: Bars, results: Path, chance: float) -> None:
    """Compare a results folder with the bars.

    Args:
        results: the folder of a finished demo.
        chance: accuracy of guessing, percent.

    Raises:
        InputError: a table is missing, or is not of the demo's data.
    """
    probes, clusters = ours(results / "tables" / "table3.csv"), ours(results / "tables" / "table1.csv")
    layers = ("conv1", "conv2", "conv3", "conv4", "conv5")
    supervised, uic = (fmean(probes[run, layer] for layer in layers) for run in ("supervised", "uic_3k"))
    bars.at_least("demo-supervised-above-uic", [supervised - uic], _ABOVE)
    bars.at_least("demo-uic-above-chance", [uic - chance], _ABOVE)
    for layer in layers[:3]:
        difference = probes["uic_3k", layer] - probes["random_sobel", layer]
        bars.at_least(f"demo-uic-above-random-{layer}", [difference], _ABOVE)
    for run in ("selflabel_3k", "rotnet"):  # RGB networks, too
        for layer in layers[1:4]:
            bars.at_least(
                f"demo-{run}-above-random-{layer}", [probes[run, layer] - probes["random_rgb", layer]], _ABOVE
            )
    bars.at_least("demo-nmi", [clusters["uic_3k", "NMI t/labels"] / 100], 0.2)
    bars.at_most("demo-memory-gb", [peak(results / "benchmarks")], 6)
    bars.at_most("demo-minutes", [spent(results / "benchmarks") / 60], 15)


def ours(path: Path) -> dict[tuple[str, str], float]:
    """Return the computed cells of a table, percent, by run and column."""
    try:
        cells = pd.read_csv(path).dropna(subset="ours")
        scales = set(cells["scale"])
        found = {
            (run, column): float(value)
            for run, column, value in zip(cells["run"], cells["column"], cells["ours"], strict=True)
        }
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: is no table ({error}); delete it and make demo") from error
    if scales != {"demo"}:
        raise InputError(f"{path}: is of scale {', '.join(sorted(scales))}, not of the demo's data; make demo")
    return found


def peak(benchmarks: Path) -> float:
    """Return the memory of the largest job, GB."""
    peaks = []
    for path in benchmarks.rglob("*.tsv"):
        with path.open() as file:
            peaks += [float(job["max_rss"]) for job in csv.DictReader(file, delimiter="\t") if job["max_rss"] != "NA"]
    return max(peaks, default=0.0) / 1024


if __name__ == "__main__":
    main()
