"""Stage `per_class`: average precision or IU of every class, for every run of Table 4, as Markdown, HTML and CSV.

Reads only the metrics JSONs. Imports no torch.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from uic_core.arguments import stage_parser
from uic_core.errors import InputError, stage
from uic_core.evaluations import BY_CLASS
from uic_core.files import write_text
from uic_core.report.arguments import add_recipes, add_scale
from uic_core.report.cells import COMPUTED, pair, shown_runs
from uic_core.report.filled import collect
from uic_core.report.origin import commit, foot
from uic_core.report.page import Block, Grid, Quote, Text, to_html, to_markdown
from uic_core.report.tables import DEMO
from uic_core.run.metrics import Metrics

CSV_HEADER = ("evaluation", "class", "run", "value", "std", "seeds", "n", "commit", "remark")


def read(
    task: str, paths: Sequence[Path], labels: dict[str, str], recipes: Mapping[str, str] | None = None
) -> list[Metrics]:
    """Read the metrics of every run, in the order of `labels`. `recipes` are those of `filled.collect`.

    Raises:
        InputError: a file cannot be read or lacks the mean, or a run has no metrics of this task.
    """
    found, problems = collect(paths, recipes)
    if problems:
        raise InputError("\n".join(problems))
    lacking = [run for run in labels if (run, task) not in found]
    if lacking:
        raise InputError(f"no metrics of run '{lacking[0]}', evaluation '{task}', among the files given; run snakemake")
    for path, metrics in found.values():
        if metrics.evaluation == task and BY_CLASS[task].mean not in metrics.values:
            raise InputError(f"{path}: no value '{BY_CLASS[task].mean}'; delete the file and run snakemake again")
    return [found[run, task][1] for run in labels]


def classes(task: str, every: Sequence[Metrics]) -> list[str]:
    """List every class that has a value in some run, in the metrics' order."""
    prefix = BY_CLASS[task].prefix
    names = [name for metrics in every for name in metrics.values if name.startswith(prefix)]
    return [name.removeprefix(prefix) for name in dict.fromkeys(names)]


def page(task: str, every: Sequence[Metrics], labels: dict[str, str], scale: str) -> list[Block]:
    """Build the page: one line per class, one column per run, the best of a line bold, the mean at the end."""
    facts = BY_CLASS[task]
    keys = [(name, facts.prefix + name) for name in classes(task, every)]
    lines = []
    for shown, key in [*keys, (f"**{facts.mean_shown}**", facts.mean)]:
        values = [metrics.values.get(key) for metrics in every]
        texts = ["–" if value is None else f"{value.value:.1f}" for value in values]
        best = max((value.value for value in values if value is not None), default=0.0)
        bold = [f"**{text}**" if best > 0 and text == f"{best:.1f}" else text for text in texts]
        spreads = [f" ± {value.std:.1f}" if value and value.std is not None else "" for value in values]
        lines.append([shown, *(text + spread for text, spread in zip(bold, spreads, strict=True))])
    return [
        *([Quote(DEMO)] if scale == "demo" else []),
        Text(f"**{facts.title}.** The last line is Table 4's number."),
        Grid(["Class", *labels.values()], lines, ["left", *["right"] * len(labels)]),
        Text(f"**Bold**: the best of a line. –: {facts.without}.", foot=True),
        *(
            Text(f"{label}: {metrics.values[facts.mean].remark}.", foot=True)
            for label, metrics in zip(labels.values(), every, strict=True)
            if metrics.values[facts.mean].remark
        ),
        *(Text(line, foot=True) for line in foot(every, scale)),
    ]


def to_csv(task: str, every: Sequence[Metrics]) -> str:
    """Write one CSV line per class and run, in percent; the mean has its name in the metrics."""
    facts = BY_CLASS[task]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for metrics in every:
        for name, value in metrics.values.items():
            if name == facts.mean or name.startswith(facts.prefix):
                optional = ["" if each is None else each for each in (value.std, value.seeds, value.n)]
                shown = [task, name.removeprefix(facts.prefix), metrics.run, round(value.value, 4)]
                writer.writerow([*shown, *optional, commit(metrics, "-dirty"), value.remark])
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Write one table of classes. On an error, name it, write nothing and exit with 2."""
    parser = stage_parser("uic_core.report.per_class", __doc__)
    parser.add_argument("--task", choices=tuple(BY_CLASS), required=True)
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics JSONs of the task")
    parser.add_argument(
        "--tables", type=Path, required=True, help="config/tables.yaml: which runs, what they are called"
    )
    parser.add_argument("--computed", type=pair, nargs="*", default=[], help=COMPUTED)
    add_scale(parser)
    add_recipes(parser)
    parser.add_argument("--out", type=Path, required=True, help="Markdown")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--html", type=Path, required=True)
    options = parser.parse_args(arguments)
    with stage():
        labels = shown_runs(options.tables, options.task, options.computed)
        every = read(options.task, options.metrics, labels, options.recipes)
        blocks = page(options.task, every, labels, options.scale)
        write_text(options.csv, to_csv(options.task, every))
        write_text(options.html, to_html(BY_CLASS[options.task].title, blocks))
        write_text(options.out, to_markdown(blocks))


if __name__ == "__main__":
    main()
