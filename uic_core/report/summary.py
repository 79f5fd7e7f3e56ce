"""Stage `summary`: the index of a results folder (its README), and its jobs' time and memory. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from uic_core.arguments import stage_parser
from uic_core.errors import InputError, stage
from uic_core.evaluations import BY_CLASS
from uic_core.files import write_text
from uic_core.report import times
from uic_core.report.arguments import add_scale
from uic_core.report.cells import COMPUTED, by_class, pair, read_figures, read_tables
from uic_core.report.page import Block, Grid, Quote, Text, to_html, to_markdown
from uic_core.report.tables import DEMO

_ALL_RUNS = {
    "knn": ("Nearest neighbours", "top-1 accuracy by the nearest training images", "tables", "csv html"),
    "speed": ("Speed", "how fast the trainings were, by their own records", "tables", "csv html"),
    "curves": (
        "Training curves",
        "labels' agreement, empty classes, coverage and loss of each epoch",
        "figures",
        "svg",
    ),
}
_FOLDERS = {
    "runs/<run>/": "`recipe.yaml`, `checkpoint.safetensors`, `labels.npy`, `history.jsonl`, `training.json`; states",
    "metrics/<run>/<evaluation>.json": "what an evaluation says of a checkpoint: values, protocol, provenance",
    "metrics/<run>/<task>_samples.npz": f"what {' and '.join(BY_CLASS)} found in six test images",
    "tables/, figures/": "what the paper shows; `tables/partial/` by `snakemake partial`",
    "export/<run>/": "weights as torchvision and OpenMMLab name them, on request",
    "logs/, benchmarks/": "what each job printed; its time and memory",
    "times.html": "time and memory by rule, also in the report",
    "protocols/<evaluation>.yaml": "that section of the config, as the stages read it",
    "data/, index/, proposals/": "what the checks found; the image lists; selective-search boxes",
    "report.html": "tables and figures with captions in one file, by `snakemake --report`",
}


def page(
    titles: dict[int, str],
    csvs: dict[int, Path],
    figures: dict[int, str],
    tasks: Collection[str],
    scale: str,
    of_all_runs: Collection[str] = (),
) -> list[Block]:
    """Build the index: the tables, the figures, and the folder's other files.

    The line of a table says how many of its numbers were computed and how many are within the tolerance.

    Args:
        titles: the tables' titles by number.
        csvs: the tables' CSV files by number.
        figures: the figures' titles by number.
        tasks: evaluations with a figure and a table of their own.
        scale: 'demo', 'paper' or 'study'.
        of_all_runs: names of the files that show all runs.

    Raises:
        InputError: a CSV is missing or is not that of a table.
    """
    lines = []
    for number, path in csvs.items():
        computed, compared, within = _count(path)
        verdict = f"{within} of {compared}" if compared else "–"
        files = " ".join(f"[{kind}](tables/table{number}.{kind})" for kind in ("csv", "tex", "html"))
        lines.append([f"[Table {number}](tables/table{number}.md)", titles[number], str(computed), verdict, files])
    head = ["table", "shows", "computed numbers", "within tolerance of the paper", "also as"]
    drawn = [
        [f"[Fig. {number}](figures/fig{number}.png)", shows, f"[svg](figures/fig{number}.svg)"]
        for number, shows in figures.items()
    ]
    classes = []
    for task in tasks:
        facts = BY_CLASS[task]
        drawn.append([f"[{facts.name}](figures/{task}.png)", facts.samples.shows, f"[svg](figures/{task}.svg)"])
        also = " ".join(f"[{kind}](tables/{task}.{kind})" for kind in ("csv", "html"))
        told = f"{facts.measure} of every class, behind Table 4"
        classes.append([f"[{facts.name} by class](tables/{task}.md)", told, also])
    shown = []
    for file in of_all_runs:
        name, what, folder, kinds = _ALL_RUNS[file]
        first = "md" if folder == "tables" else "png"
        also = " ".join(f"[{kind}]({folder}/{file}.{kind})" for kind in kinds.split())
        shown.append([f"[{name}]({folder}/{file}.{first})", what, also])
    folders = [[f"[{path}]({path})" if path == "times.html" else f"`{path}`", what] for path, what in _FOLDERS.items()]
    return [
        Text("# Results"),
        Text("[index.html](index.html) is the one page to read, in a browser: its numbers link to what made them."),
        *([Quote(DEMO)] if scale == "demo" else []),
        Grid(head, lines, ["left", "left", "right", "right", "left"]),
        *([Grid(["classes", "shows", "also as"], classes, ["left"] * 3)] if classes else []),
        *([Grid(["figure", "shows", "also as"], drawn, ["left"] * 3)] if drawn else []),
        *([Grid(["all runs", "shows", "also as"], shown, ["left"] * 3)] if shown else []),
        Grid(["path", "what it is"], folders, ["left"] * 2),
    ]


def _count(path: Path) -> tuple[int, int, int]:
    """Count our numbers, those compared with the paper, and those within the tolerance."""
    try:
        cells = pd.read_csv(path)
        return int(cells["ours"].count()), int(cells["within"].count()), int((cells["within"] == "yes").sum())
    except (OSError, KeyError, ValueError) as error:  # ValueError: not CSV, or not UTF-8
        raise InputError(f"{path}: is no table ({error}); delete it and run snakemake again") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the index of a results folder and the page of its jobs' time and memory."""
    parser = stage_parser("uic_core.report.summary", __doc__)
    parser.add_argument("--tables", type=Path, required=True, help="config/tables.yaml")
    parser.add_argument("--computed", type=pair, nargs="*", default=[], help=COMPUTED)
    parser.add_argument("--csv", type=Path, nargs="+", required=True, help="table1.csv and so on, in order")
    add_scale(parser)
    parser.add_argument("--benchmarks", type=Path, required=True, help="results/benchmarks")
    parser.add_argument("--times", type=Path, required=True, help="HTML: what the jobs took")
    parser.add_argument("--all-runs", nargs="*", default=[], choices=_ALL_RUNS, help="what shows all runs")
    parser.add_argument("--out", type=Path, required=True, help="Markdown")
    options = parser.parse_args(arguments)
    with stage():
        titles = {number: table.title for number, table in read_tables(options.tables, options.computed).items()}
        figures = {int(number): figure.title for number, figure in read_figures(options.tables).items()}
        tasks = by_class(options.tables, options.computed)
        csvs = dict(zip(titles, options.csv, strict=True))
        write_text(options.times, to_html("Jobs", times.page(options.benchmarks)))
        write_text(options.out, to_markdown(page(titles, csvs, figures, tasks, options.scale, options.all_runs)))


if __name__ == "__main__":
    main()
