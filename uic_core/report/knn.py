"""Stage `knn` of the report: nearest-neighbour accuracy of every run, as Markdown, HTML and CSV.

Reads only the metrics JSONs. Imports no torch.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from uic_core.arguments import stage_parser
from uic_core.errors import InputError, stage
from uic_core.evaluations.knn import name
from uic_core.files import write_text
from uic_core.report.arguments import add_partial, add_recipes, add_scale
from uic_core.report.filled import collect
from uic_core.report.origin import commit, foot
from uic_core.report.page import Block, Grid, Quote, Text, to_html, to_markdown
from uic_core.report.tables import DEMO
from uic_core.run.metrics import Metrics, Value

TITLE = "Nearest neighbours: top-1 accuracy of every run (%)"
CSV_HEADER = ("layer", "neighbours", "temperature", "run", "value", "ci95", "n", "std", "seeds", "commit", "remark")


def read(
    paths: Sequence[Path],
    runs: Sequence[str],
    recipes: Mapping[str, str],
    *,
    partial: bool = False,
    stale: Mapping[Path, str] | None = None,
) -> tuple[dict[str, Metrics], list[str]]:
    """Read the metrics of the runs, in their order, and what is wrong with those that are missing.

    Args:
        recipes: run → hash of its recipe; numbers of another recipe are not shown.
        partial: leave out what is missing, instead of failing.
        stale: path → why the numbers in it are not shown.

    Raises:
        InputError: a line for each file that cannot be shown, and for each run without metrics (not if `partial`).
    """
    found, problems = collect(paths, recipes, stale)
    lacking = [run for run in runs if (run, "knn") not in found]
    problems += [
        f"no metrics of run '{run}', evaluation 'knn', among the files given; run snakemake" for run in lacking
    ]
    if problems and not partial:
        raise InputError("\n".join(problems))
    every = {run: found[run, "knn"][1] for run in runs if run not in lacking}
    for run, metrics in every.items():
        wanted = [name(layer, *setting) for layer in metrics.protocol["layers"] for setting in settings([metrics])]
        if missing := [key for key in wanted if key not in metrics.values]:
            path, _ = found[run, "knn"]
            raise InputError(f"{path}: no value '{missing[0]}'; delete the file and run snakemake again")
    return every, problems


def page(every: Mapping[str, Metrics], runs: Sequence[str], problems: Sequence[str], scale: str) -> list[Block]:
    """Build the page: for each layer a line a run, a column for each k and T, the best of a column bold."""
    columns = settings(every.values())
    lines: list[list[str]] = []
    for layer, of in layers(every).items():
        lines.append([f"*{layer}*"])
        values = {run: [every[run].values.get(name(layer, *column)) for column in columns] for run in of}
        alone = len(of) == 1  # and best of nothing
        best = [
            math.inf if alone else max((value.value for value in column if value), default=0.0)
            for column in zip(*values.values(), strict=True)
        ]
        for run in of:
            several = any(value.seeds for value in values[run] if value)
            file = f"../metrics/{run}/knn{'.seeds' * several}.json"
            cells = [
                f"[{_shown(value, most)}]({file}#{name(layer, *column)})" if value else "–"
                for value, most, column in zip(values[run], best, columns, strict=True)
            ]
            lines.append([f"`{run}`", *cells])
    spread = max((value.ci95 or 0.0 for metrics in every.values() for value in metrics.values.values()), default=0.0)
    told = (
        "Each of the k nearest training images, by cosine similarity s of its features, votes for its class with "
        f"exp(s / T). **Bold**: the best of a layer's column. 95 % intervals: ± {spread:.1f} points or less."
    )
    if any(value.seeds for metrics in every.values() for value in metrics.values.values()):
        told += " ±: standard deviation over seeds."
    head = ["Run", *(f"k = {count}, T = {temperature:g}" for count, temperature in columns)]
    return [
        *([Quote(DEMO)] if scale == "demo" else []),
        Text(f"**{TITLE}.**"),
        *(
            [Quote(f"**Partial.** {len(runs) - len(every)} of {len(runs)} runs are missing:", problems)]
            if problems
            else []
        ),
        Grid(head, lines, ["left", *["right"] * len(columns)]),
        Text(told, foot=True),
        *(
            Text(f"`{run}`: {remark}.", foot=True)
            for run, metrics in every.items()
            for remark in dict.fromkeys(value.remark for value in metrics.values.values() if value.remark)
        ),
        *(Text(line, foot=True) for line in foot(list(every.values()), scale)),
    ]


def settings(every: Iterable[Metrics]) -> list[tuple[int, float]]:
    """List (k, T) of all metrics, each once, ascending."""
    found = {
        (k, t) for metrics in every for k in metrics.protocol["neighbours"] for t in metrics.protocol["temperatures"]
    }
    return sorted(found)


def layers(every: Mapping[str, Metrics]) -> dict[str, list[str]]:
    """Map layer → the runs that have it, both in the order of the runs."""
    found: dict[str, list[str]] = {}
    for run, metrics in every.items():
        for layer in metrics.protocol["layers"]:
            found.setdefault(layer, []).append(run)
    return found


def _shown(value: Value, best: float) -> str:
    text = f"{value.value:.1f}"
    spread = f" ± {value.std:.1f}" if value.std is not None else ""
    return (f"**{text}**" if text == f"{best:.1f}" else text) + spread


def to_csv(every: Mapping[str, Metrics]) -> str:
    """Write one CSV line per layer, run, k and T, in percent."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for layer, runs in layers(every).items():
        for run in runs:
            for count, temperature in settings([every[run]]):
                value = every[run].values[name(layer, count, temperature)]
                numbers = [None if each is None else round(each, 4) for each in (value.value, value.ci95)]
                shown = [layer, count, temperature, run, *numbers, value.n, value.std, value.seeds]
                writer.writerow([*shown, commit(every[run], "-dirty"), value.remark])
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Write the table. On an error, name it, write nothing and exit with 2."""
    parser = stage_parser("uic_core.report.knn", __doc__)
    parser.add_argument("--metrics", type=Path, nargs="*", default=[], help="metrics JSONs of evaluation knn")
    parser.add_argument("--runs", nargs="+", required=True, help="the rows, in their order")
    add_scale(parser)
    add_recipes(parser)
    parser.add_argument("--out", type=Path, required=True, help="Markdown")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--html", type=Path, help="a page of its own, for the HTML report")
    add_partial(parser)
    options = parser.parse_args(arguments)
    with stage():
        every, problems = read(
            options.metrics, options.runs, options.recipes, partial=options.partial, stale=options.stale
        )
        blocks = page(every, options.runs, problems, options.scale)
        write_text(options.csv, to_csv(every))
        if options.html:
            write_text(options.html, to_html(TITLE, blocks))
        write_text(options.out, to_markdown(blocks))


if __name__ == "__main__":
    main()
