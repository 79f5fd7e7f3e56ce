"""Stage `tables`: write one table of the paper as Markdown, HTML and LaTeX for readers, and as CSV for programs.

Our numbers come only from metrics JSONs; config/tables.yaml declares the source of each cell. The same inputs give the
same bytes: dates and commits are those of the metrics. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from uic_core.arguments import stage_parser
from uic_core.errors import InputError, stage
from uic_core.files import write_text
from uic_core.report import ordering
from uic_core.report.arguments import add_partial, add_recipes, add_scale
from uic_core.report.cells import COMPUTED, Published, Row, Source, Table, pair, read_published, table
from uic_core.report.origin import commit, foot, foreign
from uic_core.report.page import Block, Grid, Points, Quote, Text, to_html, to_latex, to_markdown
from uic_core.run import metrics as metrics_file
from uic_core.run.metrics import Metrics, Value

DEMO = (
    "**Demo data.** Our numbers come from generated images, not ImageNet: they show that every part runs, and are "
    "not to be held against the paper's. Names (3k, 224×224, ImageNet) are the paper's; the demo's sizes are smaller."
)
_LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"

Key = tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """A cell with our number (percent) and its source, the paper's, both or neither; `missing`: why ours is absent."""

    row: str
    column: str
    paper: Published | None
    source: Source | None = None
    ours: Value | None = None
    metrics: Metrics | None = None
    missing: str = ""
    tolerance: float = 0.0

    @property
    def difference(self) -> float | None:
        """Our number − the paper's, in points; None if one of them is missing."""
        if self.ours is None or self.paper is None:
            return None
        return self.ours.value - float(self.paper.text)

    @property
    def within(self) -> bool | None:
        """True if the difference is within the tolerance; None if one of the numbers is missing."""
        return None if self.difference is None else abs(self.difference) <= self.tolerance


@dataclass(frozen=True)
class Filled:
    """A table with its numbers. `notes`: (row, column, text); '' if a note concerns no single row or column."""

    number: int
    table: Table
    scale: str
    cells: dict[Key, Cell]
    notes: list[tuple[str, str, str]]
    problems: list[str]


def collect(
    paths: Sequence[Path], recipes: Mapping[str, str] | None = None, stale: Mapping[Path, str] | None = None,
    needed: Collection[Key] | None = None,
) -> tuple[dict[Key, tuple[Path, Metrics]], list[str]]:  # fmt: skip
    """Read metrics files; run and evaluation come from each file's content, not from its name.

    Args:
        recipes: run → hash of its recipe; files of other recipes are left out.
        stale: path → why the file is left out, too.
        needed: (run, evaluation) of the files that are wanted; others are passed over. Default: all.

    Returns:
        (run, evaluation) → (path, metrics), and one message for each file that is unreadable or left out.

    Raises:
        InputError: two files have the same run and evaluation.
    """
    found: dict[Key, tuple[Path, Metrics]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            metrics = metrics_file.read(path)
        except InputError as error:
            problems.append(str(error))
            continue
        key = (metrics.run, metrics.evaluation)
        if needed is not None and key not in needed:
            continue
        if reason := (stale or {}).get(path) or foreign(metrics, recipes or {}):
            problems.append(f"{path}: {reason}")
            continue
        if key in found:
            raise InputError(
                f"{path}: {'/'.join(key)} is also in {found[key][0]}; give --metrics only one of the two files"
            )
        found[key] = (path, metrics)
    return found, problems


def fill(
    number: int,
    table: Table,
    published: dict[Key, Published],
    paths: Sequence[Path],
    scale: str,
    *,
    partial: bool = False,
    recipes: Mapping[str, str] | None = None,
    stale: Mapping[Path, str] | None = None,
) -> Filled:
    """Fill a table with its numbers.

    Args:
        published: the paper's numbers, from `cells.read_published`.
        paths: metrics JSONs; files that the table does not need are ignored.
        scale: 'demo', 'paper' or 'study'.
        partial: leave cells without metrics empty, with the reason, instead of failing.
        recipes: run → hash of its recipe; numbers of another recipe are not shown.
        stale: path → why the numbers in it are not shown.

    Raises:
        InputError: one line for each missing or unsuitable file, run or value (not if `partial`).
    """
    sources = table.sources()
    needed = {(source.run, source.evaluation) for source in sources.values()}
    found, problems = collect(paths, recipes, stale, needed)
    cells: dict[Key, Cell] = {}
    for row in table.rows:
        for column in table.columns:
            key = (row.name, column.name)
            if not column.text:
                cell = _cell(key, published.get(key), sources.get(key), found)
                # The demo's images are not the paper's, so its numbers are not compared.
                tolerance = column.tolerance or table.tolerance
                cells[key] = replace(cell, tolerance=tolerance if scale == "paper" else math.inf)
    reasons = dict.fromkeys(cell.missing for cell in cells.values() if cell.missing)
    problems = list(dict.fromkeys([*problems, *reasons]))
    notes = [(note.row, note.column, note.text) for note in table.footnotes]
    for column_name, text, problem in _switches(table, cells):
        problems.extend(problem)
        if text:
            notes.append(("", column_name, text))
    marked = {key: cell.ours.remark for key, cell in cells.items() if cell.ours and cell.ours.remark}
    text = "; ".join(f"{row}, {column}: {remark}" for (row, column), remark in marked.items())
    notes += [(row, column, f"{text}.") for row, column in marked]
    if text := _unconverged(table, cells):
        notes.append(("", "", text))
    if scale == "demo" and (text := _ordering(table, cells)):
        notes.append(("", "", text))
    if problems and not partial:
        raise InputError(f"table {number}: " + f"\ntable {number}: ".join(problems))
    return Filled(number, table, scale, cells, notes, problems)


def _unconverged(table: Table, cells: dict[Key, Cell]) -> str:
    """Name the linear probes whose training loss ended above that of a guess; '' if all converged."""
    losses = {key: cell.ours.loss or 0.0 for key, cell in cells.items() if cell.ours and cell.ours.loss is not None}
    parts = []
    for column in (column.name for column in table.columns):
        rows = [row for row, name in losses if name == column]
        above = [row for row in rows if losses[row, column] > 1]
        if above:
            parts.append(f"{column} ({'all rows' if above == rows else ', '.join(above)})")
    if not parts:
        return ""
    told = f"The training loss of these probes ended above that of a guess: {'; '.join(parts)}. They have not converged"
    if all(cell.metrics.protocol.get("batch_norm") for key, cell in cells.items() if key in losses and cell.metrics):
        return f"{told}: lr is too high for so few steps."
    return (
        f"{told}: the scale of a layer decides how far its probe gets, and may decide which row is ahead. Batch norm "
        "before the linear layer, as in `linear_probe_batch_norm`, takes the scale out of the comparison."
    )


def _ordering(table: Table, cells: dict[Key, Cell]) -> str:
    values = {key: cell.ours for key, cell in cells.items() if cell.ours}
    settings = {key[1]: cell.metrics.protocol for key, cell in cells.items() if cell.metrics}
    iterations = {column: each["iterations"] for column, each in settings.items() if "iterations" in each}
    return ordering.note(table, values, iterations)


def _cell(key: Key, paper: Published | None, source: Source | None, found: dict[Key, tuple[Path, Metrics]]) -> Cell:
    if source is None:
        return Cell(*key, paper)
    if (source.run, source.evaluation) not in found:
        missing = (
            f"no metrics of run '{source.run}', evaluation '{source.evaluation}', among the files given; "
            "run snakemake to make them"
        )
        return Cell(*key, paper, source, missing=missing)
    path, metrics = found[source.run, source.evaluation]
    value = metrics.values.get(source.value)
    if value is None:
        missing = (
            f"{path}: no value '{source.value}' (there are: {', '.join(metrics.values)}); "
            "correct the cell in tables.yaml"
        )
        return Cell(*key, paper, source, missing=missing)
    if value.unit != "%":
        missing = f"{path}: values.{source.value}: unit '{value.unit}' is not %; correct the cell in tables.yaml"
        return Cell(*key, paper, source, missing=missing)
    return Cell(*key, paper, source, value, metrics)


def _switches(table: Table, cells: dict[Key, Cell]) -> list[tuple[str, str, list[str]]]:
    """Return (column, note, problems) for every switch of the table, from the metrics that fill it."""
    result = []
    for switch in table.switches:
        says: dict[str, list[str]] = {}
        problems: list[str] = []
        for metrics in shown_metrics(cells):
            if metrics.evaluation != switch.evaluation:
                continue
            setting = switch.setting(metrics.protocol)
            if setting in switch.says:
                says.setdefault(switch.says[setting], []).append(metrics.run)
            else:
                problems.append(
                    f"{metrics.run}/{metrics.evaluation}: protocol.{switch.key} is {setting}, "
                    f"which tables.yaml does not explain (known: {', '.join(switch.says)}); add a line to its switches"
                )
        texts = [text if len(says) == 1 else f"{', '.join(runs)}: {text}" for text, runs in says.items() if text]
        result.append((switch.column, " ".join(texts), problems))
    return result


def shown_metrics(cells: dict[Key, Cell]) -> list[Metrics]:
    """The metrics that fill a table, without duplicates, in reading order."""
    unique = {(c.metrics.run, c.metrics.evaluation): c.metrics for c in cells.values() if c.metrics is not None}
    return list(unique.values())


def page(filled: Filled) -> list[Block]:
    """Build the table's page: rows and columns in the paper's order, legend, notes, and the numbers' origin."""
    marks, notes = marked(filled)
    blocks: list[Block] = [Quote(DEMO)] if filled.scale == "demo" else []
    blocks.append(Text(f"**Table {filled.number}.** {filled.table.title}."))
    if filled.problems:
        count = sum(bool(cell.missing) for cell in filled.cells.values())
        told = f"**Partial.** {count} of our numbers {'is' if count == 1 else 'are'} missing (–):"
        blocks.append(Quote(told, [" ".join(problem.split()) for problem in filled.problems]))
    blocks += [_grid(filled, marks), Text(legend(filled), foot=True)]
    if notes:
        blocks.append(Points(notes))
    return [*blocks, *(Text(line, foot=True) for line in foot(shown_metrics(filled.cells), filled.scale))]


def marked(filled: Filled) -> tuple[dict[Key, str], list[str]]:
    """Assign superscript letters in reading order: (row, column) → letters, and the notes that explain them."""
    rows = ["", *(row.name for row in filled.table.rows)]
    columns = ["", *(column.name for column in filled.table.columns)]
    ordered = sorted(filled.notes, key=lambda note: (rows.index(note[0]), columns.index(note[1])))
    letters: dict[str, str] = {}
    marks: dict[Key, str] = {}
    for row, column, text in ordered:
        if row or column:
            if text not in letters:
                rounds, place = divmod(len(letters), len(_LETTERS))
                letters[text] = _LETTERS[place] * (rounds + 1)  # after the last one ᵃᵃ, ᵇᵇ, …
            letter = letters[text]
            marks[row, column] = marks.get((row, column), "") + letter
    general = [text for row, column, text in ordered if not row and not column]
    return marks, general + [f"{letter} {text}" for text, letter in letters.items()]


def _grid(filled: Filled, marks: dict[Key, str]) -> Grid:
    columns = filled.table.columns
    heads = [(column.shown or column.name) + marks.get(("", column.name), "") for column in columns]
    lines: list[list[str]] = []
    for row in filled.table.rows:
        if row.heading:
            lines.append([f"*{row.heading}*"])
        line = [_label(row) + marks.get((row.name, ""), "")]
        for column in columns:
            text = row.texts[column.name] if column.text else _number(filled.cells[row.name, column.name], filled.table)
            line.append(text + marks.get((row.name, column.name), ""))
        lines.append(line)
    sides = ["left", *("left" if column.text else "right" for column in columns)]
    return Grid([filled.table.stub, *heads], lines, sides)


def _label(row: Row) -> str:
    label = row.shown or row.name
    return f"**{label}**" if row.run else label


def _number(cell: Cell, table: Table) -> str:
    if cell.source is None:
        return cell.paper.text if cell.paper else "-"
    ours = "–" if cell.ours is None else f"**{cell.ours.value:.{table.decimals}f}**{spread(cell.ours, table)}"
    if not cell.paper:
        return ours
    if cell.difference is None or math.isinf(cell.tolerance):
        return f"{ours} ({cell.paper.text})"
    return f"{ours} ({cell.paper.text}, {signed(cell.difference, table)} {'✓' if cell.within else '✗'})"


def spread(value: Value, table: Table) -> str:
    """Write ± the standard deviation over several seeds, or half the interval where the table shows it; else ''."""
    half = value.std if value.seeds else value.ci95 if table.intervals else None
    return "" if half is None else f" ± {half:.{table.decimals}f}"


def signed(difference: float, table: Table) -> str:
    """Write a difference in points with its sign."""
    sign = "−" if round(difference, table.decimals) < 0 else "+"
    return f"{sign}{abs(difference):.{table.decimals}f}"


def legend(filled: Filled) -> str:
    """Write the line under the table that says how its numbers are printed and where the cited ones are from."""
    legend = "**Bold**: computed here"
    if any(cell.source and cell.paper for cell in filled.cells.values()):
        legend += ", with the paper's number in parentheses"
    compared = [cell for cell in filled.cells.values() if cell.within is not None and not math.isinf(cell.tolerance)]
    if compared:
        bounds = "/".join(f"{bound:g}" for bound in sorted({cell.tolerance for cell in compared}))
        bounds += " point" if bounds == "1" else " points"
        share = f"{sum(bool(cell.within) for cell in compared)} of {len(compared)}"
        legend += f", ours − the paper's, and whether that is within {bounds} (✓) or not (✗): {share} are"
    legend += "."
    seeds = {cell.ours.seeds for cell in filled.cells.values() if cell.ours and cell.ours.seeds}
    if seeds:
        legend += f" ±: standard deviation over {' or '.join(map(str, sorted(seeds)))} seeds."
    cited = {cell.row for cell in filled.cells.values() if cell.source is None and cell.paper}
    if cited:
        mixed = any(row.run and row.name in cited for row in filled.table.rows)
        legend += f" Other {'numbers' if mixed else 'rows'} are cited as the paper prints them."
    if any(cell.source is None and cell.paper is None for cell in filled.cells.values()):
        legend += " -: the paper has no number."
    sources = {cell.paper.source for cell in filled.cells.values() if cell.paper} - {"paper"}
    if sources:
        ordered = sorted(sources, key=lambda source: (len(source.partition("]")[0]), source))
        legend += f" Sources: {'; '.join(ordered)}."
    return legend


def to_csv(filled: Filled) -> str:
    """Write the numbers as CSV, one line per cell, in percent; difference = ours − paper; cited rows have no `ours`.

    `scale`, demo, paper or study, names what our numbers are of. `within`, yes or no, tells if the difference is within
    the `tolerance`; both are empty unless `scale` is paper.
    """
    records = [_record(filled, cell) for cell in filled.cells.values() if cell.source or cell.paper]
    # dtype=object, so that a column of integers with missing values does not become floats.
    text: str = pd.DataFrame(records, dtype=object).to_csv(index=False, lineterminator="\n")
    return text


def _record(filled: Filled, cell: Cell) -> dict[str, object]:
    def rounded(number: float | None) -> float | None:
        return None if number is None else round(number, 4)

    compared = cell.within is not None and not math.isinf(cell.tolerance)
    return {
        "table": filled.number,
        "scale": filled.scale,
        "row": cell.row,
        "column": cell.column,
        "ours": rounded(cell.ours.value if cell.ours else None),
        "paper": cell.paper and cell.paper.text,
        "difference": rounded(cell.difference),
        "tolerance": cell.tolerance if compared else None,
        "within": ("yes" if cell.within else "no") if compared else None,
        **{name: rounded(getattr(cell.ours, name, None)) for name in ("ci95", "n", "std", "seeds")},
        "run": cell.source and cell.source.run,
        "evaluation": cell.source and cell.source.evaluation,
        "commit": cell.metrics and commit(cell.metrics, "-dirty"),
        "remark": (cell.ours and cell.ours.remark) or None,
    }


def main(arguments: list[str] | None = None) -> None:
    """Write one table. On an error, name it, write nothing and exit with 2."""
    parser = stage_parser("uic_core.report.tables", __doc__)
    parser.add_argument("--table", type=int, required=True, help="number of the table in the paper")
    parser.add_argument("--tables", type=Path, required=True, help="config/tables.yaml")
    parser.add_argument("--published", type=Path, required=True, help="config/published.csv")
    add_scale(parser)
    parser.add_argument("--metrics", type=Path, nargs="*", default=[], help="metrics JSONs, in any order")
    parser.add_argument("--out", type=Path, required=True, help="Markdown")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--html", type=Path, help="a page of its own, for the HTML report")
    parser.add_argument("--tex", type=Path, help="a table environment, to be input")
    add_recipes(parser)
    parser.add_argument("--computed", type=pair, nargs="*", default=[], help=COMPUTED)
    add_partial(parser)
    options = parser.parse_args(arguments)
    with stage():
        declared = table(options.tables, options.table, options.computed)
        published = read_published(options.published, options.table, declared)
        filled = fill(
            options.table,
            declared,
            published,
            options.metrics,
            options.scale,
            partial=options.partial,
            recipes=options.recipes,
            stale=options.stale,
        )
        write_text(options.csv, to_csv(filled))
        if options.html:
            write_text(options.html, to_html(f"Table {options.table}", page(filled)))
        if options.tex:
            write_text(options.tex, to_latex(f"tab:{options.table}", page(filled)))
        write_text(options.out, to_markdown(page(filled)))


if __name__ == "__main__":
    main()
